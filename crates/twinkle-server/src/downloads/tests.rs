//! Links to real checkpoints on a real file system.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, RANGE};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use jiff::Timestamp;
use tempfile::TempDir;
use twinkle_core::call::{LoraSpec, Position};
use twinkle_core::checkpoint::CheckpointMeta;
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, TenantId};

use super::*;

struct Fixture {
    downloads: Downloads,
    store: StateStore,
    files: CheckpointStore,
    record: CheckpointRecord,
    base: Base,
    _folder: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = CheckpointStore::new(folder.path().to_path_buf());
        let store = StateStore::open_in_memory().await.unwrap();
        let record = CheckpointRecord {
            path: CheckpointPath::new(RunId::new("s:train:0"), CheckpointKind::ExternalWeights, "final").unwrap(),
            tenant: TenantId::new("alice"),
            base_model: "tiny".to_owned(),
            lora: LoraSpec { rank: 4, train_unembed: false, ..LoraSpec::default() },
            size_bytes: 0,
            user_metadata: BTreeMap::new(),
            created_at: Timestamp::now(),
            expires_at: None,
            public: false,
        };
        let downloads = Downloads::new(SigningKey::fresh(), store.clone(), files.clone(), false);
        let (parts, ()) = Request::get("/x").header("host", "node:8000").body(()).unwrap().into_parts();
        let base = Base::of(&parts, "/api/v1/x", false).unwrap();
        let fixture = Self { downloads, store, files, record, base, _folder: folder };
        fixture.save(&fixture.record).await;
        fixture
    }

    async fn save(&self, record: &CheckpointRecord) {
        let draft = self.files.draft(&record.tenant, &record.path).unwrap();
        std::fs::write(draft.directory().join("adapter_config.json"), b"{\"r\": 4}").unwrap();
        std::fs::write(draft.directory().join("adapter_model.safetensors"), weights()).unwrap();
        std::fs::write(draft.directory().join("run.json"), b"{}").unwrap();
        let meta = CheckpointMeta {
            base_model: record.base_model.clone(),
            lora: record.lora.clone(),
            user_metadata: BTreeMap::new(),
            created_at: record.created_at,
            position: Position::default(),
            optimizer_steps: None,
        };
        draft.commit(&meta, true).unwrap();
        self.store.insert_checkpoint(record).await.unwrap();
    }

    /// What is answered to the URL of a link.
    async fn fetch(&self, url: &str, range: Option<&str>) -> Result<(http::response::Parts, Bytes)> {
        let uri: http::Uri = url.parse().unwrap();
        let parts: Vec<&str> = uri.path().rsplit('/').take(4).collect();
        let axum::extract::Query(query) = axum::extract::Query::try_from_uri(&uri).unwrap();
        let link = Link::parse(parts[3], parts[2], parts[1], parts[0], &query)?;
        let mut headers = HeaderMap::new();
        if let Some(range) = range {
            headers.insert(RANGE, range.parse().unwrap());
        }
        let (head, body) = answer(&self.downloads, &link, &query, &headers).await?.into_parts();
        Ok((head, body.collect().await.unwrap().to_bytes()))
    }
}

fn weights() -> Vec<u8> {
    (0..300_001_u32).map(|index| (index % 253) as u8).collect()
}

#[tokio::test]
async fn a_link_leads_to_its_file_whole_or_in_parts() {
    let fixture = Fixture::new().await;
    let url = fixture.downloads.link(&fixture.base, &fixture.record, "adapter_model.safetensors").url;
    assert!(url.starts_with("http://node:8000/api/v1/downloads/s:train:0/external_weights/final/adapter_model"));
    assert!(is_link(url.parse::<http::Uri>().unwrap().path()));

    let (head, whole) = fixture.fetch(&url, None).await.unwrap();
    assert_eq!((head.status, whole.to_vec()), (StatusCode::OK, weights()));
    let (begin, first) = fixture.fetch(&url, Some("bytes=0-999")).await.unwrap();
    assert_eq!((begin.status, first.len()), (StatusCode::PARTIAL_CONTENT, 1_000));
    assert_eq!(begin.headers[CONTENT_RANGE], format!("bytes 0-999/{}", weights().len()));
    assert_eq!(begin.headers[ETAG], head.headers[ETAG]);
    let (_, rest) = fixture.fetch(&url, Some("bytes=1000-")).await.unwrap();
    assert_eq!([first, rest].concat(), weights());
    let (outside, _) = fixture.fetch(&url, Some("bytes=300001-")).await.unwrap();
    assert_eq!(outside.status, StatusCode::RANGE_NOT_SATISFIABLE);
}

#[tokio::test]
async fn nothing_in_a_link_can_be_changed() {
    let fixture = Fixture::new().await;
    let url = fixture.downloads.link(&fixture.base, &fixture.record, "adapter_config.json").url;
    fixture.fetch(&url, None).await.unwrap();
    let refusal = fixture.fetch(&url.replace("saved=", "saved=-"), None).await.unwrap_err();
    for changed in [
        url.replace("adapter_config.json", "run.json"),
        url.replace("adapter_config.json", "archive.tar"),
        url.replace("/final/", "/other/"),
        url.replace("external_weights", "weights"),
        url.replace("s:train:0", "s:train:1"),
        url.replace("expires=", "expires=1"),
        url.replace("signature=", "signature=00"),
        url.split("signature=").next().unwrap().to_owned() + "signature=",
    ] {
        assert_eq!(fixture.fetch(&changed, None).await.unwrap_err(), refusal, "{changed}");
    }
    let stranger = Downloads::new(SigningKey::fresh(), fixture.store.clone(), fixture.files.clone(), false);
    let forged = stranger.link(&fixture.base, &fixture.record, "adapter_config.json").url;
    assert_eq!(fixture.fetch(&forged, None).await.unwrap_err(), refusal);
}

#[tokio::test]
async fn a_link_ends_with_its_checkpoint() {
    let fixture = Fixture::new().await;
    let url = fixture.downloads.link(&fixture.base, &fixture.record, "adapter_config.json").url;
    let later = fixture.record.created_at + jiff::SignedDuration::from_secs(1);
    fixture.save(&CheckpointRecord { created_at: later, ..fixture.record.clone() }).await;
    assert_eq!(fixture.fetch(&url, None).await.unwrap_err().code, ErrorCode::Gone);
    fixture.store.delete_checkpoint(&fixture.record.tenant, &fixture.record.path).await.unwrap();
    assert_eq!(fixture.fetch(&url, None).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn the_archive_holds_the_adapter_and_says_that_it_is_complete() {
    let fixture = Fixture::new().await;
    let url = fixture.downloads.link(&fixture.base, &fixture.record, ARCHIVE).url;
    let (head, bytes) = fixture.fetch(&url, None).await.unwrap();
    assert_eq!(head.headers[CONTENT_LENGTH], bytes.len().to_string());
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut members = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        assert!(entry.header().entry_type().is_file());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        members.push((entry.path().unwrap().to_string_lossy().into_owned(), content));
    }
    let expected = [
        ("adapter_config.json".to_owned(), b"{\"r\": 4}".to_vec()),
        ("adapter_model.safetensors".to_owned(), weights()),
        ("checkpoint_complete".to_owned(), Vec::new()),
    ];
    assert_eq!(members, expected);

    // Taken up again anywhere, also inside of a header.
    for split in [1, 511, 700, 2_000, bytes.len() - 1] {
        let (_, first) = fixture.fetch(&url, Some(&format!("bytes=0-{}", split - 1))).await.unwrap();
        let (_, rest) = fixture.fetch(&url, Some(&format!("bytes={split}-"))).await.unwrap();
        assert_eq!([first, rest].concat(), bytes, "at {split}");
    }
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_not_sent() {
    let fixture = Fixture::new().await;
    let opened = fixture.files.look(&fixture.record.tenant, &fixture.record.path).unwrap();
    std::fs::write(opened.directory().join("adapter_model.safetensors"), "short").unwrap();
    for file in ["adapter_model.safetensors", ARCHIVE] {
        let url = fixture.downloads.link(&fixture.base, &fixture.record, file).url;
        let refused = fixture.fetch(&url, None).await.unwrap_err();
        assert!(refused.message.contains("adapter_model.safetensors"), "{refused}");
    }
}

#[test]
fn links_begin_as_the_client_called_the_server() {
    let base = |request: http::request::Builder, is_tls| {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Base::of(&parts, "/api/v1/training_runs", is_tls)
    };
    let request = || Request::get("/training_runs");
    let text = |base: Result<Base>| base.map(|base| format!("{base:?}")).unwrap();
    assert_eq!(text(base(request().header("host", "a:1"), false)), "Base(\"http://a:1/api/v1\")");
    assert_eq!(text(base(request().header("host", "a"), true)), "Base(\"https://a/api/v1\")");
    let proxied = request().header("host", "a:1").header("x-forwarded-proto", "https");
    assert_eq!(
        text(base(proxied.header("x-forwarded-host", "tinker.example, b"), false)),
        "Base(\"https://tinker.example/api/v1\")"
    );
    let h2 = Request::get("https://b.example/training_runs");
    assert_eq!(text(base(h2, false)), "Base(\"https://b.example/api/v1\")");
    for wrong in ["user@a", "a/b", ""] {
        assert!(base(request().header("host", wrong), false).is_err(), "{wrong}");
    }
    assert!(base(request(), false).is_err());
}
