//! `twinkle-server schema`: the grammar of configuration files, for editors.

use super::report::{Outcome, failure, print};

pub(super) const EXAMPLES: &str = "\
Example:
  twinkle-server schema >config.schema.json

An editor with YAML support completes and checks keys when a file begins with
  # yaml-language-server: $schema=config.schema.json";

pub(super) fn run() -> Outcome {
    let schema = serde_json::to_string_pretty(&twinkle_core::config::schema()).map_err(|error| failure(&error))?;
    print(&(schema + "\n"));
    Ok(())
}
