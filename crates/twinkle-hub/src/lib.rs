//! Where a model's files come from: folders, both hubs and their caches, GGUF files.
#![forbid(unsafe_code)]
