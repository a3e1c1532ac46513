//! Native Rust client for training and sampling LoRA adapters on a Twinkle server
