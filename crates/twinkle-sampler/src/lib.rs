//! Import path `sampler`: continuous batching, token sampling, engines
