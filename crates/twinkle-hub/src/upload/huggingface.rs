//! Uploads to Hugging Face.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{StatusCode, Url};
use serde_json::{Value, json};
use twinkle_core::config::HubModel;
use twinkle_core::{Error, Result};

use super::files::LocalFile;
use super::sender::{Sender, action};
use super::title;
use crate::hubs::below;

const JSON: &str = "application/json";
const LFS_JSON: &str = "application/vnd.git-lfs+json";
const LINES: &str = "application/x-ndjson";
const MAIN: &str = "main";

pub(super) async fn upload(sender: &Sender, endpoint: &Url, model: &HubModel, files: &[LocalFile]) -> Result<()> {
    make_repository(sender, endpoint, model).await?;
    let large = large_files(sender, endpoint, model, files).await?;
    for file in &large {
        put(sender, endpoint, model, file).await?;
    }
    commit(sender, endpoint, model, files, &large).await
}

async fn make_repository(sender: &Sender, endpoint: &Url, model: &HubModel) -> Result<()> {
    let url = below(endpoint, &["api", "repos", "create"]);
    let wanted = json!({ "type": "model", "name": model.name, "organization": model.organisation, "private": true });
    let answer = sender.post(&url, JSON, &wanted).await?;
    match answer.status {
        // It is there already.
        StatusCode::CONFLICT => Ok(()),
        status if status.is_success() => Ok(()),
        status => Err(sender.refused(&format!("the repository `{}`", model.id()), status, &answer.body)),
    }
}

/// The files that the hub wants beforehand. Those that it wants in the commit must be small enough for one.
async fn large_files<'a>(
    sender: &Sender,
    endpoint: &Url,
    model: &HubModel,
    files: &'a [LocalFile],
) -> Result<Vec<&'a LocalFile>> {
    let url = below(endpoint, &["api", "models", &model.organisation, &model.name, "preupload", MAIN]);
    let described: Vec<Value> = files
        .iter()
        .map(|file| json!({ "path": file.name, "size": file.size, "sample": STANDARD.encode(&file.sample) }))
        .collect();
    let answer = sender.post(&url, JSON, &json!({ "files": described })).await?;
    if !answer.status.is_success() {
        return Err(sender.refused(&format!("the repository `{}`", model.id()), answer.status, &answer.body));
    }
    let listed = answer.body.get("files").and_then(Value::as_array).cloned().unwrap_or_default();
    let wants_beforehand = |file: &&LocalFile| {
        let mode = listed.iter().find(|entry| entry.get("path").and_then(Value::as_str) == Some(&file.name));
        let mode = mode.and_then(|entry| entry.get("uploadMode")).and_then(Value::as_str);
        mode == Some("lfs") || file.content.is_none()
    };
    Ok(files.iter().filter(wants_beforehand).collect())
}

async fn put(sender: &Sender, endpoint: &Url, model: &HubModel, file: &LocalFile) -> Result<()> {
    let repository = format!("{}.git", model.name);
    let url = below(endpoint, &[&model.organisation, &repository, "info", "lfs", "objects", "batch"]);
    let object = json!({ "oid": file.sha256, "size": file.size });
    let wanted = json!({ "operation": "upload", "transfers": ["basic"], "objects": [object], "hash_algo": "sha256" });
    let answer = sender.post(&url, LFS_JSON, &wanted).await?;
    if !answer.status.is_success() {
        return Err(sender.refused(&format!("`{}`", file.name), answer.status, &answer.body));
    }
    let object = answer.body.get("objects").and_then(|objects| objects.get(0)).cloned().unwrap_or_default();
    if let Some(reason) = object.get("error").and_then(|error| error.get("message")).and_then(Value::as_str) {
        return Err(Error::invalid(format!("Hugging Face refused `{}`: {reason}", file.name)));
    }
    let Some((place, headers)) = action(&object, "upload")? else {
        // The hub has these bytes.
        sender.progress().add(file.size);
        return Ok(());
    };
    sender.put(&place, &headers, file, endpoint).await?;
    let Some((verify, _)) = action(&object, "verify")? else { return Ok(()) };
    if verify.origin() != endpoint.origin() {
        // Nobody but the hub gets the credential.
        return Ok(());
    }
    let answer = sender.post(&verify, LFS_JSON, &json!({ "oid": file.sha256, "size": file.size })).await?;
    if answer.status.is_success() {
        return Ok(());
    }
    Err(sender.refused(&format!("`{}`", file.name), answer.status, &answer.body))
}

async fn commit(
    sender: &Sender,
    endpoint: &Url,
    model: &HubModel,
    files: &[LocalFile],
    large: &[&LocalFile],
) -> Result<()> {
    let mut lines = vec![json!({ "key": "header", "value": { "summary": title(files), "description": "" } })];
    for file in files {
        let is_large = large.iter().any(|other| other.name == file.name);
        lines.push(match &file.content {
            Some(content) if !is_large => {
                let value = json!({ "path": file.name, "encoding": "base64", "content": STANDARD.encode(content) });
                json!({ "key": "file", "value": value })
            }
            _ => {
                let value = json!({ "path": file.name, "algo": "sha256", "oid": file.sha256, "size": file.size });
                json!({ "key": "lfsFile", "value": value })
            }
        });
    }
    let mut text = lines.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    text.push('\n');
    let url = below(endpoint, &["api", "models", &model.organisation, &model.name, "commit", MAIN]);
    let answer = sender.post_text(&url, LINES, text).await?;
    if !answer.status.is_success() {
        return Err(sender.refused("the commit", answer.status, &answer.body));
    }
    let in_commit = files.iter().filter(|file| !large.iter().any(|other| other.name == file.name));
    sender.progress().add(in_commit.map(|file| file.size).sum());
    Ok(())
}
