//! Accepts connections, with or without TLS, and serves HTTP/1.1 and HTTP/2 on them, until told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use twinkle_core::telemetry::labels::Whole;
use twinkle_core::telemetry::metrics::CONNECTIONS;

use super::HttpService;
use super::tls::Tls;

/// What a connection may cost.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at once; further ones wait in the kernel's queue. One client may park thousands of polls.
    pub connections: usize,
    /// How long a client may take to agree on TLS.
    pub handshake: Duration,
    /// How long a client may take to send a request's head.
    pub header_read: Duration,
    /// How often a silent HTTP/2 client is asked whether it is still there; it has as long to answer.
    pub keep_alive: Duration,
    /// Streams at once on one HTTP/2 connection.
    pub streams: u32,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            handshake: Duration::from_secs(10),
            header_read: Duration::from_secs(30),
            keep_alive: Duration::from_mins(1),
            streams: 1_024,
        }
    }
}

/// Serves `service` on `listener` until `stop` is cancelled; then stops accepting, lets requests in
/// progress finish for at most `grace`, and returns. With `tls` nothing but TLS is understood.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    service: impl HttpService,
    limits: ConnectionLimits,
    stop: CancellationToken,
    grace: Duration,
) {
    let connections = Arc::new(Semaphore::new(limits.connections));
    let protocol = protocol(limits);
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let Some((stream, peer, place)) = accepted else { continue };
        let connection = Connection { protocol: protocol.clone(), peer, limits, watcher: graceful.watcher() };
        let (service, tls, stop) = (service.clone(), tls.clone(), stop.clone());
        tokio::spawn(async move {
            match tls {
                None => connection.serve(stream, service).await,
                Some(tls) => {
                    let greeting = timeout(limits.handshake, tls.accept(stream));
                    tokio::select! {
                        () = stop.cancelled() => {}
                        greeted = greeting => match greeted {
                            Ok(Ok(stream)) => connection.serve(stream, service).await,
                            Ok(Err(error)) => debug!(%peer, %error, "no TLS with a client"),
                            Err(_) => debug!(%peer, "a client took too long to agree on TLS"),
                        },
                    }
                }
            }
            drop(place);
        });
    }
    drop(listener);
    if timeout(grace, graceful.shutdown()).await.is_err() {
        warn!(grace_s = grace.as_secs(), "some requests did not finish in time and are cut off");
    }
}

/// A client that has connected.
struct Connection {
    protocol: auto::Builder<TokioExecutor>,
    peer: SocketAddr,
    limits: ConnectionLimits,
    watcher: Watcher,
}

impl Connection {
    /// Answers requests until either side ends the connection, or the client does not even send one.
    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: impl HttpService) {
        let Self { protocol, peer, limits, watcher } = self;
        let _open = CONNECTIONS.hold(Whole);
        let (asked, mut first) = watch::channel(false);
        let answer = service_fn(move |request: hyper::Request<Incoming>| {
            asked.send_if_modified(|asked| !std::mem::replace(asked, true));
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            // The node stack and the router are always ready: back-pressure lives in the component stacks.
            let mut service = service.clone();
            service.call(request)
        });
        let connection =
            watcher.watch(protocol.serve_connection_with_upgrades(TokioIo::new(stream), answer).into_owned());
        // hyper's own limit starts when it knows the protocol, so one byte would hold a connection for ever.
        let silent = async {
            if timeout(limits.header_read, first.wait_for(|asked| *asked)).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = silent => debug!(%peer, "a client connected and sent no request"),
            ended = connection => if let Err(error) = ended {
                debug!(%peer, %error, "connection ended early");
            },
        }
    }
}

fn protocol(limits: ConnectionLimits) -> auto::Builder<TokioExecutor> {
    let mut protocol = auto::Builder::new(TokioExecutor::new());
    protocol.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_read);
    protocol
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.keep_alive)
        .max_concurrent_streams(limits.streams);
    protocol
}

/// The next connection, who it is, and its place among those allowed at once.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            // Small answers to small requests: waiting to fill a packet would only add latency.
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "cannot turn off Nagle's algorithm on a connection");
            }
            Some((stream, peer, place))
        }
        Err(error) => {
            // Out of file descriptors, or a client that went away; neither is worth ending the node for.
            warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::response::Response;
    use futures::FutureExt;
    use http::Request;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;
    use tower::service_fn;
    use twinkle_core::config::TlsConfig;

    use super::*;

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    struct Listening {
        address: SocketAddr,
        stop: CancellationToken,
        ended: JoinHandle<()>,
    }

    /// What the served handler tells and waits for.
    #[derive(Default)]
    struct Handler {
        /// A request has reached it.
        entered: Notify,
        /// It may answer.
        release: Notify,
    }

    /// Listens with a service that answers `ok` once it is released.
    async fn listening(limits: ConnectionLimits, handler: Arc<Handler>) -> Listening {
        listening_with(None, limits, handler).await
    }

    async fn listening_with(tls: Option<Tls>, limits: ConnectionLimits, handler: Arc<Handler>) -> Listening {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = service_fn(move |_: Request<Body>| {
            let handler = Arc::clone(&handler);
            async move {
                handler.entered.notify_one();
                handler.release.notified().await;
                Ok::<_, Infallible>(Response::new(Body::from("ok")))
            }
        });
        let stop = CancellationToken::new();
        let grace = Duration::from_secs(20);
        let ended = tokio::spawn(serve(listener, tls, service, limits, stop.clone(), grace));
        Listening { address, stop, ended }
    }

    async fn read_to_end(mut stream: TcpStream) -> String {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn a_request_in_progress_is_answered_although_the_node_stops() {
        let handler = Arc::new(Handler::default());
        let node = listening(ConnectionLimits::default(), Arc::clone(&handler)).await;
        let mut stream = TcpStream::connect(node.address).await.unwrap();
        stream.write_all(HEAD).await.unwrap();
        handler.entered.notified().await;
        node.stop.cancel();
        handler.release.notify_one();
        let answer = read_to_end(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
        node.ended.await.unwrap();
        assert!(TcpStream::connect(node.address).await.is_err(), "the node still accepts");
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_head_is_hung_up_on() {
        let limits = ConnectionLimits { header_read: Duration::from_millis(20), ..ConnectionLimits::default() };
        let node = listening(limits, Arc::default()).await;
        // Also one that does not let on which protocol it speaks: HTTP/2 begins with `PRI`.
        for beginning in ["GET / HTTP/1.1\r\nhost: a\r\n", "PR", ""] {
            let mut stream = TcpStream::connect(node.address).await.unwrap();
            stream.write_all(beginning.as_bytes()).await.unwrap();
            let answer = read_to_end(stream).await;
            assert!(!answer.contains("200"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_agree_on_tls_is_hung_up_on() {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let files =
            TlsConfig { certificate: folder.path().join("node.pem"), private_key: folder.path().join("node.key") };
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.private_key, made.signing_key.serialize_pem()).unwrap();
        let tls = Tls::load(&files).unwrap();

        let limits = ConnectionLimits { handshake: Duration::from_millis(20), ..ConnectionLimits::default() };
        let node = listening_with(Some(tls), limits, Arc::default()).await;
        let stream = TcpStream::connect(node.address).await.unwrap();
        assert_eq!(read_to_end(stream).await, "");
    }

    #[tokio::test]
    async fn a_connection_over_the_limit_waits_for_a_place() {
        let handler = Arc::new(Handler::default());
        let limits = ConnectionLimits { connections: 1, ..ConnectionLimits::default() };
        let node = listening(limits, Arc::clone(&handler)).await;
        let mut first = TcpStream::connect(node.address).await.unwrap();
        first.write_all(HEAD).await.unwrap();
        handler.entered.notified().await;
        let mut second = TcpStream::connect(node.address).await.unwrap();
        second.write_all(HEAD).await.unwrap();
        handler.release.notify_one();
        let mut answer = [0; 12];
        first.read_exact(&mut answer).await.unwrap();
        assert!(handler.entered.notified().now_or_never().is_none(), "the second connection was served too");

        drop(first);
        handler.entered.notified().await;
        handler.release.notify_one();
        second.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
}
