//! Where the node listens, and whether it may.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket, lookup_host};
use twinkle_core::config::HttpOptions;
use twinkle_core::error::{Error, Result};

/// Connections the kernel keeps waiting while all of ours are busy.
const BACKLOG: u32 = 4_096;

/// An address that is taken, but does not listen yet: clients are refused until the node is ready.
#[derive(Debug)]
pub(super) struct ReservedAddress {
    socket: TcpSocket,
    address: SocketAddr,
}

impl ReservedAddress {
    /// Takes the configured address. Beyond this machine only when `may_be_reached`: API keys are asked for, or the
    /// operator trusts whoever reaches it.
    pub(super) async fn take(options: &HttpOptions, may_be_reached: bool) -> Result<Self> {
        let HttpOptions { host, port, .. } = options;
        let mut addresses: Vec<SocketAddr> = lookup_host((host.as_str(), *port))
            .await
            .map_err(|error| {
                Error::invalid(format!("`{host}` is not an address of this machine: {error}"))
                    .hint("set `http_options.host`, for example to `127.0.0.1`")
            })?
            .collect();
        if !may_be_reached && !addresses.iter().all(|address| address.ip().is_loopback()) {
            return Err(Error::unsupported(format!(
                "refusing to listen on `{host}`: it can be reached from other machines, and any API key is accepted"
            ))
            .hint(
                "make keys with `twinkle-server keys create` and name their file in `auth.keys_file`, set \
                 `http_options.host` to `127.0.0.1`, or pass `--insecure` if every machine that reaches it is trusted",
            ));
        }
        // `localhost` may mean both families; clients of local servers mostly write 127.0.0.1.
        addresses.sort_by_key(|address| !address.is_ipv4());
        let mut failure = Error::invalid(format!("`{host}` names no address"));
        for address in addresses {
            match bind(address) {
                Ok(socket) => return Ok(Self { socket, address }),
                Err(error) => failure = cannot_listen(address, &error),
            }
        }
        Err(failure)
    }

    /// Whether only programs on this machine reach it.
    pub(super) const fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// Starts listening.
    pub(super) fn listen(self) -> Result<TcpListener> {
        let address = self.address;
        self.socket.listen(BACKLOG).map_err(|error| cannot_listen(address, &error))
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted node must not wait for its predecessor's closed connections to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::AddrInUse {
        let port = address.port();
        return Error::new(
            twinkle_core::ErrorCode::Conflict,
            format!("cannot listen on `{address}`: another program already does"),
        )
        .hint(format!("stop it, or set another `http_options.port` than {port}"));
    }
    Error::invalid(format!("cannot listen on `{address}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(host: &str, port: u16) -> HttpOptions {
        HttpOptions { host: host.to_owned(), port, ..HttpOptions::default() }
    }

    #[tokio::test]
    async fn an_address_beyond_this_machine_needs_insecure() {
        let refusal = ReservedAddress::take(&options("0.0.0.0", 0), false).await.unwrap_err();
        assert!(refusal.message.starts_with("refusing to listen on `0.0.0.0`"), "{refusal}");
        assert!(refusal.hint.unwrap().contains("--insecure"));
        ReservedAddress::take(&options("0.0.0.0", 0), true).await.unwrap();
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = ReservedAddress::take(&options("127.0.0.1", 0), false).await.unwrap().listen().unwrap();
        let port = first.local_addr().unwrap().port();
        let refusal = ReservedAddress::take(&options("127.0.0.1", port), false).await.unwrap_err();
        assert_eq!(refusal.message, format!("cannot listen on `127.0.0.1:{port}`: another program already does"));
    }

    #[tokio::test]
    async fn localhost_is_served_on_ipv4() {
        let reserved = ReservedAddress::take(&options("localhost", 0), false).await.unwrap();
        assert!(reserved.address.is_ipv4());
    }
}
