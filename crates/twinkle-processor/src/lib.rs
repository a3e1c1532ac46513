//! Import path `processor`: chat templates and tokenization
