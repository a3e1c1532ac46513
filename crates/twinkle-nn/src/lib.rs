//! The network shared by trainer and sampler: config.json, weights, layers, LoRA
