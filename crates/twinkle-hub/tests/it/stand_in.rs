//! A server that speaks as both hubs do, and a second one where large files lie, as with the real ones.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The commit every branch of every repository is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Whether at the storage rather than the hub.
    pub(crate) at_storage: bool,
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    /// What it would be let in with.
    pub(crate) credentials: Vec<String>,
}

/// What is wrong with one answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status, and perhaps `Retry-After`.
    Status(u16, Option<&'static str>),
    /// The connection breaks after so many bytes of the body.
    BreaksAfter(usize),
    /// One byte is another.
    Damaged,
    /// `Range` is not honoured.
    IgnoresRange,
}

#[derive(Default)]
struct Inner {
    /// Files of the repositories by id.
    repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Repositories that answer every request with this status and text.
    refused: BTreeMap<String, (u16, &'static str)>,
    /// The faults of the next answers with this file.
    faults: HashMap<String, VecDeque<Fault>>,
    /// Whether the list of files has names only, as some mirrors give it.
    names_only: bool,
    seen: Vec<Seen>,
    storage: Option<SocketAddr>,
}

/// The running servers. They end with the runtime of the test.
#[derive(Clone)]
pub(crate) struct StandIn {
    inner: Arc<Mutex<Inner>>,
    address: SocketAddr,
}

#[derive(Clone)]
struct Server {
    inner: Arc<Mutex<Inner>>,
    is_storage: bool,
}

impl StandIn {
    pub(crate) async fn start() -> Self {
        let inner = Arc::new(Mutex::new(Inner::default()));
        let storage = serve(Server { inner: Arc::clone(&inner), is_storage: true }).await;
        let address = serve(Server { inner: Arc::clone(&inner), is_storage: false }).await;
        let stand_in = Self { inner, address };
        stand_in.with(|inner| inner.storage = Some(storage));
        stand_in
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Publishes a model, or a data set under an id with `datasets/` before it.
    pub(crate) fn publish(&self, id: &str, files: &[(&str, Vec<u8>)]) {
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.clone())).collect();
        self.with(|inner| inner.repositories.insert(id.to_owned(), files));
    }

    pub(crate) fn refuse(&self, id: &str, status: u16, text: &'static str) {
        self.with(|inner| inner.refused.insert(id.to_owned(), (status, text)));
    }

    /// The next answers with this file have these faults, one each.
    pub(crate) fn faults(&self, file: &str, faults: &[Fault]) {
        self.with(|inner| inner.faults.insert(file.to_owned(), faults.iter().cloned().collect()));
    }

    pub(crate) fn list_names_only(&self) {
        self.with(|inner| inner.names_only = true);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.with(|inner| inner.seen.clone())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock())
    }
}

async fn serve(server: Server) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(answer).with_state(server);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

async fn answer(State(server): State<Server>, request: Request) -> Response {
    let text = |name: header::HeaderName| {
        request.headers().get(name).map(|value| value.to_str().unwrap_or_default().to_owned())
    };
    let range = text(header::RANGE);
    let credentials = [text(header::AUTHORIZATION), text(header::COOKIE)].into_iter().flatten().collect();
    let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let mut inner = server.inner.lock();
    let (at_storage, method) = (server.is_storage, request.method().clone());
    inner.seen.push(Seen { at_storage, method: method.clone(), path: path.clone(), range: range.clone(), credentials });
    let parts: Vec<&str> = request.uri().path().trim_start_matches('/').split('/').collect();
    let query = request.uri().query().unwrap_or_default();
    match parts.as_slice() {
        [organisation, name, file] if server.is_storage => {
            inner.content(&format!("{organisation}/{name}"), file, range.as_deref(), HeaderMap::new())
        }
        ["api", "models", organisation, name, "revision", revision] => {
            inner.huggingface_list(&format!("{organisation}/{name}"), revision)
        }
        [organisation, name, "resolve", COMMIT, file] => {
            let is_head = method == Method::HEAD;
            inner.huggingface_file(&format!("{organisation}/{name}"), file, range.as_deref(), is_head)
        }
        ["api", "v1", "models", organisation, name, "repo", "files"] => {
            inner.modelscope_list(&format!("{organisation}/{name}"), query)
        }
        ["api", "v1", "models", organisation, name, "repo"] => {
            let file = query.split('&').find_map(|pair| pair.strip_prefix("FilePath=")).unwrap_or_default();
            inner.modelscope_file(&format!("{organisation}/{name}"), file, range.as_deref())
        }
        ["api", "datasets", organisation, name, "revision", revision] => {
            inner.huggingface_list(&format!("datasets/{organisation}/{name}"), revision)
        }
        ["datasets", organisation, name, "resolve", COMMIT, file @ ..] => {
            let is_head = method == Method::HEAD;
            let id = format!("datasets/{organisation}/{name}");
            inner.huggingface_file(&id, &file.join("/"), range.as_deref(), is_head)
        }
        ["api", "v1", "datasets", organisation, name, "repo", "tree"] => {
            inner.modelscope_list(&format!("datasets/{organisation}/{name}"), query)
        }
        ["api", "v1", "datasets", organisation, name, "repo"] => {
            let file = query.split('&').find_map(|pair| pair.strip_prefix("FilePath=")).unwrap_or_default();
            inner.modelscope_file(
                &format!("datasets/{organisation}/{name}"),
                &file.replace("%2F", "/"),
                range.as_deref(),
            )
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

impl Inner {
    fn huggingface_list(&mut self, id: &str, revision: &str) -> Response {
        if let Some((status, text)) = self.refused.get(id) {
            return (StatusCode::from_u16(*status).unwrap(), [("X-Error-Message", *text)]).into_response();
        }
        if let Some(fault) = self.fault("list") {
            return fault;
        }
        let known = ["main", "v1", COMMIT].contains(&revision);
        let Some(files) = self.repositories.get(id).filter(|_| known) else {
            return (StatusCode::NOT_FOUND, [("X-Error-Message", "Repository not found")]).into_response();
        };
        let sibling = |(name, content): (&String, &Vec<u8>)| -> Value {
            if self.names_only {
                return json!({ "rfilename": name });
            }
            let mut sibling = json!({ "rfilename": name, "size": content.len(), "blobId": git_id(content) });
            if is_large(name) {
                sibling["lfs"] = json!({ "sha256": sha256(content), "size": content.len(), "pointerSize": 135 });
            }
            sibling
        };
        let siblings: Vec<Value> = files.iter().map(sibling).collect();
        axum::Json(json!({ "id": id, "sha": COMMIT, "private": false, "siblings": siblings })).into_response()
    }

    fn huggingface_file(&mut self, id: &str, file: &str, range: Option<&str>, is_head: bool) -> Response {
        let Some(content) = self.repositories.get(id).and_then(|files| files.get(file)) else {
            return (StatusCode::NOT_FOUND, [("X-Error-Message", "Entry not found")]).into_response();
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-repo-commit", COMMIT.parse().unwrap());
        if is_large(file) {
            headers.insert("x-linked-etag", format!("\"{}\"", sha256(content)).parse().unwrap());
            headers.insert("x-linked-size", content.len().into());
            return self.redirect(id, file, headers);
        }
        headers.insert(header::ETAG, format!("\"{}\"", git_id(content)).parse().unwrap());
        if is_head {
            headers.insert(header::CONTENT_LENGTH, content.len().into());
            return (headers, Body::empty()).into_response();
        }
        self.content(id, file, range, headers)
    }

    fn modelscope_list(&mut self, id: &str, query: &str) -> Response {
        if let Some((status, text)) = self.refused.get(id) {
            let body = json!({ "Code": 10_010_205_001_u64, "Message": text, "Success": false });
            return (StatusCode::from_u16(*status).unwrap(), axum::Json(body)).into_response();
        }
        let known = ["Revision=master", "Revision=v1"].iter().any(|revision| query.contains(revision));
        let Some(files) = self.repositories.get(id).filter(|_| known && query.contains("Recursive=True")) else {
            let body = json!({ "Code": 10_010_205_001_u64, "Message": "model not exists", "Success": false });
            return (StatusCode::NOT_FOUND, axum::Json(body)).into_response();
        };
        let entry = |(name, content): (&String, &Vec<u8>)| {
            json!({ "Name": name, "Path": name, "Type": "blob", "Size": content.len(), "Sha256": sha256(content),
                    "Revision": COMMIT })
        };
        let mut entries: Vec<Value> = files.iter().map(entry).collect();
        entries.push(json!({ "Name": "onnx", "Path": "onnx", "Type": "tree", "Size": 0, "Sha256": "" }));
        axum::Json(json!({ "Code": 200, "Data": { "Files": entries }, "Message": "success", "Success": true }))
            .into_response()
    }

    fn modelscope_file(&mut self, id: &str, file: &str, range: Option<&str>) -> Response {
        if is_large(file) {
            return self.redirect(id, file, HeaderMap::new());
        }
        self.content(id, file, range, HeaderMap::new())
    }

    fn redirect(&self, id: &str, file: &str, mut headers: HeaderMap) -> Response {
        let location = format!("http://{}/{id}/{file}", self.storage.unwrap());
        headers.insert(header::LOCATION, location.parse().unwrap());
        (StatusCode::FOUND, headers).into_response()
    }

    /// The next fault of a file, if it is a status.
    fn fault(&mut self, file: &str) -> Option<Response> {
        let faults = self.faults.get_mut(file)?;
        let Some(Fault::Status(status, retry_after)) = faults.front().cloned() else { return None };
        faults.pop_front();
        let mut response = StatusCode::from_u16(status).unwrap().into_response();
        if let Some(wait) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, wait.parse().unwrap());
        }
        Some(response)
    }

    fn content(&mut self, id: &str, file: &str, range: Option<&str>, mut headers: HeaderMap) -> Response {
        if let Some(fault) = self.fault(file) {
            return fault;
        }
        let fault = self.faults.get_mut(file).and_then(VecDeque::pop_front);
        let Some(content) = self.repositories.get(id).and_then(|files| files.get(file)) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let range = range.filter(|_| !matches!(fault, Some(Fault::IgnoresRange)));
        let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let mut status = StatusCode::OK;
        if let Some(from) = from {
            if from >= content.len() {
                return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            }
            status = StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            headers.insert(header::CONTENT_RANGE, range.parse().unwrap());
        }
        let mut body = content.get(from.unwrap_or(0)..).unwrap_or_default().to_vec();
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        match fault {
            Some(Fault::Damaged) => {
                if let Some(byte) = body.last_mut() {
                    *byte ^= 1;
                }
                (status, headers, body).into_response()
            }
            Some(Fault::BreaksAfter(bytes)) => {
                let sent = Bytes::from(body.get(..bytes).unwrap_or_default().to_vec());
                let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
                // What was sent is on its way before the connection breaks.
                let end = stream::once(async {
                    tokio::task::yield_now().await;
                    Err(broken)
                });
                let chunks = stream::iter([Ok(sent)]).chain(end);
                (status, headers, Body::from_stream(chunks)).into_response()
            }
            _ => (status, headers, body).into_response(),
        }
    }
}

/// Which files lie at the storage.
fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name == "tokenizer.json"
}

pub(crate) fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// What stands for git's name of a content: as long, and made of it.
pub(crate) fn git_id(content: &[u8]) -> String {
    sha256(content).chars().take(40).collect()
}
