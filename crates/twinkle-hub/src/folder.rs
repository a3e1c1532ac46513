//! What a model's folder must hold, and which of a repository's files that is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// The weights of a model in one file.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// Which file holds which weight, for a model in several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// How much of a model a folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Everything a node uses.
    Everything,
    /// The network, but not the usual files of a tokenizer. A few models have none.
    TheNetwork,
    /// Not enough to load.
    TooLittle,
}

/// Looks into a folder. Links that lead nowhere count as missing.
pub(crate) fn inspect(folder: &Path) -> Holds {
    let has = |name: &str| folder.join(name).is_file();
    let weights = match fs::read(folder.join(INDEX)) {
        Ok(index) => match shards(&index) {
            Some(shards) => shards.iter().all(|shard| has(shard)),
            None => false,
        },
        Err(_) => has(SINGLE_FILE),
    };
    if !weights || !has("config.json") {
        return Holds::TooLittle;
    }
    if has("tokenizer.json") && has("tokenizer_config.json") { Holds::Everything } else { Holds::TheNetwork }
}

/// The files an index names.
pub(crate) fn shards(index: &[u8]) -> Option<BTreeSet<String>> {
    let index: Value = serde_json::from_slice(index).ok()?;
    let shards = index.get("weight_map")?.as_object()?.values();
    let shards: Option<BTreeSet<String>> = shards.map(|shard| shard.as_str().map(str::to_owned)).collect();
    shards.filter(|shards| !shards.is_empty())
}

/// Whether a file of a repository is needed before the weights: small, and data, never code.
///
/// Only files beside `config.json` are: folders hold other formats of the same model.
pub(crate) fn is_description(name: &str) -> bool {
    let data = [".json", ".jinja", ".txt", ".model"].iter().any(|ending| name.ends_with(ending));
    let known = ["config", "configuration", "generation_config", "tokenizer", "chat_template", "special_tokens_map"]
        .iter()
        .any(|beginning| name.starts_with(beginning));
    let vocabulary = ["vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", INDEX];
    !name.contains('/') && data && (known || vocabulary.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_beside_the_configuration_is_wanted() {
        for name in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "chat_template.jinja",
            "special_tokens_map.json",
            "vocab.json",
            "merges.txt",
            "model.safetensors.index.json",
        ] {
            assert!(is_description(name), "{name}");
        }
        for name in [
            "pytorch_model.bin",
            "tokenizer.py",
            "configuration_x.py",
            "original/config.json",
            "README.md",
            "model.safetensors",
            "training_args.bin",
            "model.gguf",
        ] {
            assert!(!is_description(name), "{name}");
        }
    }

    #[test]
    fn a_folder_is_complete_when_every_shard_of_its_index_is_there() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
        assert_eq!(inspect(root.path()), Holds::TooLittle);
        write("config.json", "{}");
        write("model.safetensors.index.json", r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#);
        write("1.safetensors", "");
        assert_eq!(inspect(root.path()), Holds::TooLittle);
        write("2.safetensors", "");
        assert_eq!(inspect(root.path()), Holds::TheNetwork);
        write("tokenizer.json", "{}");
        write("tokenizer_config.json", "{}");
        assert_eq!(inspect(root.path()), Holds::Everything);
        write("model.safetensors.index.json", "{}");
        assert_eq!(inspect(root.path()), Holds::TooLittle);
    }
}
