//! Uploads to `ModelScope`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{StatusCode, Url};
use serde_json::{Value, json};
use twinkle_core::Result;
use twinkle_core::config::HubModel;

use super::files::LocalFile;
use super::sender::{Answer, Sender, action};
use super::title;
use crate::hubs::below;

const JSON: &str = "application/json";
const MASTER: &str = "master";

/// The hub's number for a repository that only its owner sees.
const PRIVATE: u8 = 1;

pub(super) async fn upload(sender: &Sender, endpoint: &Url, model: &HubModel, files: &[LocalFile]) -> Result<()> {
    make_repository(sender, endpoint, model).await?;
    for file in files.iter().filter(|file| file.content.is_none()) {
        put(sender, endpoint, model, file).await?;
    }
    commit(sender, endpoint, model, files).await
}

async fn make_repository(sender: &Sender, endpoint: &Url, model: &HubModel) -> Result<()> {
    let (organisation, name) = (model.organisation.as_str(), model.name.as_str());
    let known = sender.get(&below(endpoint, &["api", "v1", "models", organisation, name])).await?;
    if known.status.is_success() && is_success(&known.body) {
        return Ok(());
    }
    let wanted = json!({
        "Path": organisation,
        "Name": name,
        "ChineseName": "",
        "Visibility": PRIVATE,
        "License": "Apache License 2.0",
        "OriginalModelId": "",
        "TrainId": "",
    });
    let made = sender.post(&below(endpoint, &["api", "v1", "models"]), JSON, &wanted).await?;
    accepted(sender, &format!("the repository `{}`", model.id()), &made)
}

async fn put(sender: &Sender, endpoint: &Url, model: &HubModel, file: &LocalFile) -> Result<()> {
    let (organisation, name) = (model.organisation.as_str(), model.name.as_str());
    let parts = ["api", "v1", "repos", "models", organisation, name, "info", "lfs", "objects", "batch"];
    let wanted = json!({ "operation": "upload", "objects": [{ "oid": file.sha256, "size": file.size }] });
    let answer = sender.post(&below(endpoint, &parts), JSON, &wanted).await?;
    accepted(sender, &format!("`{}`", file.name), &answer)?;
    let objects = answer.body.get("Data").and_then(|data| data.get("objects"));
    let object = objects.and_then(|objects| objects.get(0)).cloned().unwrap_or_default();
    let Some((place, headers)) = action(&object, "upload")? else {
        // The hub has these bytes.
        sender.progress().add(file.size);
        return Ok(());
    };
    sender.put(&place, &headers, file, endpoint).await
}

async fn commit(sender: &Sender, endpoint: &Url, model: &HubModel, files: &[LocalFile]) -> Result<()> {
    let actions: Vec<Value> = files
        .iter()
        .map(|file| {
            let (kind, digest, content, encoding) = match &file.content {
                Some(content) => ("normal", "", STANDARD.encode(content), "base64"),
                None => ("lfs", file.sha256.as_str(), String::new(), ""),
            };
            json!({
                "action": "create",
                "path": file.name,
                "type": kind,
                "size": file.size,
                "sha256": digest,
                "content": content,
                "encoding": encoding,
            })
        })
        .collect();
    let (organisation, name) = (model.organisation.as_str(), model.name.as_str());
    let url = below(endpoint, &["api", "v1", "repos", "models", organisation, name, "commit", MASTER]);
    let answer = sender.post(&url, JSON, &json!({ "commit_message": title(files), "actions": actions })).await?;
    accepted(sender, "the commit", &answer)?;
    let in_commit = files.iter().filter(|file| file.content.is_some());
    sender.progress().add(in_commit.map(|file| file.size).sum());
    Ok(())
}

/// The hub says with status 200 that something failed, too.
fn accepted(sender: &Sender, what: &str, answer: &Answer) -> Result<()> {
    if answer.status.is_success() && is_success(&answer.body) {
        return Ok(());
    }
    let code = answer.body.get("Code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
    let said = code.filter(|_| answer.status.is_success()).and_then(|code| StatusCode::from_u16(code).ok());
    let status = said.filter(|status| !status.is_success()).unwrap_or(answer.status);
    Err(sender.refused(what, status, &answer.body))
}

fn is_success(body: &Value) -> bool {
    body.get("Success")
        .and_then(Value::as_bool)
        .unwrap_or_else(|| body.get("Code").and_then(Value::as_u64) == Some(200))
}
