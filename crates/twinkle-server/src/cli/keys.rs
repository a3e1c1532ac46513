//! `twinkle-server keys`: makes, lists and revokes API keys, also while a node runs.

use std::fmt::Write;

use clap::{Args, Subcommand};
use tokio::runtime;
use twinkle_core::config::ServerConfig;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::state::{ApiKeyRecord, StateStore};

use super::ConfigArgs;
use super::report::{Outcome, failed, print, say};
use crate::keys::{ApiKey, KeySource, check_name, matches};
use crate::launcher::open_records;

pub(super) const EXAMPLES: &str = "\
Examples:
  twinkle-server keys create -c node.yaml --tenant alice --name laptop   print a new key of tenant `alice`
  twinkle-server keys list -c node.yaml                                  show all, by their first letters
  twinkle-server keys revoke -c node.yaml laptop                         refuse it from now on

A node takes changes over within seconds. A tenant may have several keys: to replace one, make the new one first.
docs/security.md tells where keys are kept.";

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make a key and print it: it is shown this once
    #[command(after_help = EXAMPLES)]
    Create(CreateArgs),
    /// Show the beginning, tenant, name and age of every key
    List(ListArgs),
    /// Refuse a key from now on
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Whose key it is; all keys of a tenant see the same objects [default: a tenant of its own]
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// What to call the key [default: `key-` and its first letters]
    #[arg(long, value_name = "LABEL")]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The key's name, or enough of its beginning
    key: String,
}

pub(super) fn run(command: &KeysCommand) -> Outcome {
    match command {
        KeysCommand::Create(arguments) => create(&arguments.config.load()?, arguments),
        KeysCommand::List(arguments) => list(&arguments.config.load()?),
        KeysCommand::Revoke(arguments) => revoke(&arguments.config.load()?, &arguments.key),
    }
    .map_err(failed)
}

fn create(config: &ServerConfig, arguments: &CreateArgs) -> Result<()> {
    let (tenant, name) = (arguments.tenant.as_deref(), arguments.name.as_deref());
    if let Some(tenant) = tenant {
        check_name("name of a tenant", tenant)?;
    }
    if let Some(name) = name {
        check_name("name of a key", name)?;
    }
    let key = ApiKey::fresh();
    let record = key.record(tenant, name);
    with_keys(config, async |keys| keys.add(&record).await)?;
    // Only the key goes to stdout: `KEY=$(twinkle-server keys create …)` takes it.
    print(&format!("{}\n", key.reveal()));
    say(&format_args!("key `{}` of tenant `{}`: it is not shown again", record.name, record.tenant));
    Ok(())
}

fn list(config: &ServerConfig) -> Result<()> {
    let keys = with_keys(config, async |keys| keys.read().await)?;
    print(&columns(&keys));
    Ok(())
}

fn revoke(config: &ServerConfig, wanted: &str) -> Result<()> {
    let revoked = with_keys(config, async |source| {
        let keys = source.read().await?;
        let record = the_one(&keys, wanted)?;
        source.remove(&record.prefix).await?;
        Ok(record.clone())
    })?;
    say(&format_args!("key `{}` ({}…) of tenant `{}` is revoked", revoked.name, revoked.prefix, revoked.tenant));
    Ok(())
}

/// The only key that `wanted` can mean.
fn the_one<'a>(keys: &'a [ApiKeyRecord], wanted: &str) -> Result<&'a ApiKeyRecord> {
    let meant: Vec<&ApiKeyRecord> = keys.iter().filter(|key| matches(key, wanted)).collect();
    match meant.as_slice() {
        [key] => Ok(key),
        [] => Err(Error::not_found("there is no such key").hint("`twinkle-server keys list` shows all")),
        several => {
            let names: Vec<String> = several.iter().map(|key| format!("`{}`", key.name)).collect();
            Err(Error::invalid(format!("several keys are meant: {}", names.join(", "))).hint("write a name"))
        }
    }
}

/// Prefix, tenant, name and time of creation, in columns.
fn columns(keys: &[ApiKeyRecord]) -> String {
    let width = |title: &str, cell: fn(&ApiKeyRecord) -> &str| {
        keys.iter().map(|key| cell(key).len()).max().unwrap_or_default().max(title.len())
    };
    let prefixes = width("prefix", |key| &key.prefix);
    let tenants = width("tenant", |key| key.tenant.as_str());
    let names = width("name", |key| &key.name);
    let mut text = format!("{:<prefixes$}  {:<tenants$}  {:<names$}  created\n", "prefix", "tenant", "name");
    for ApiKeyRecord { prefix, tenant, name, created_at, .. } in keys {
        let tenant = tenant.as_str();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{prefix:<prefixes$}  {tenant:<tenants$}  {name:<names$}  {created_at}");
    }
    text
}

/// Does something with the keys of a configuration.
fn with_keys<T>(config: &ServerConfig, work: impl AsyncFnOnce(&KeySource) -> Result<T>) -> Result<T> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::internal(format!("the async runtime could not be started: {error}")))?;
    runtime.block_on(async {
        let source = KeySource::of(config, async || open_store(config).await).await?;
        let outcome = work(&source).await;
        if let KeySource::Store(store) = &source {
            store.close().await;
        }
        outcome
    })
}

/// Opens the node's store, which a running node keeps to itself.
async fn open_store(config: &ServerConfig) -> Result<StateStore> {
    open_records(&config.persistence).await.map_err(|error| match error.code {
        ErrorCode::Conflict => error.hint(
            "stop the node, or keep the keys in a file (`auth.keys_file`): that can be changed while a node runs",
        ),
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> [ApiKeyRecord; 2] {
        [("alice", "laptop"), ("bob", "server")].map(|(tenant, name)| ApiKey::fresh().record(Some(tenant), Some(name)))
    }

    #[test]
    fn one_key_is_meant_or_none_is_revoked() {
        let mut keys = keys();
        keys[0].prefix = "tml-AAAA1111".to_owned();
        keys[1].prefix = "tml-AAAA2222".to_owned();
        assert_eq!(the_one(&keys, "server").unwrap().name, "server");
        assert_eq!(the_one(&keys, "tml-AAAA1").unwrap().name, "laptop");
        let ambiguous = the_one(&keys, "tml-AAAA").unwrap_err();
        assert_eq!(ambiguous.message, "several keys are meant: `laptop`, `server`");
        for wanted in ["nobody", "tml-", "tml-B"] {
            assert_eq!(the_one(&keys, wanted).unwrap_err().code, ErrorCode::NotFound, "{wanted}");
        }
    }

    #[test]
    fn a_list_stands_in_columns_and_shows_no_digest() {
        let keys = keys();
        let text = columns(&keys);
        let starts: Vec<usize> = text.lines().filter_map(|line| line.find("20").or(line.find("created"))).collect();
        assert!(starts.len() == 3 && starts.iter().all(|start| *start == starts[0]), "{text}");
        assert!(!text.contains(&hex::encode(keys[0].digest)), "{text}");
    }
}
