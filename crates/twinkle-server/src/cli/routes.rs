//! `twinkle-server routes`: what a node of this configuration answers.

use std::fmt::Write;

use clap::Args;

use super::ConfigArgs;
use super::report::{Outcome, misuse, print};
use crate::listing::{self, RouteEntry};

pub(super) const EXAMPLES: &str = "\
Example:
  twinkle-server routes -c node.yaml | grep sampl

A path's `{name}` stands for one segment, `{*name}` for all that follow. Probes need no API key.";

#[derive(Debug, Args)]
pub(super) struct RoutesArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(arguments: &RoutesArgs) -> Outcome {
    let config = arguments.config.load()?;
    config.check_supported().map_err(|errors| misuse(&errors))?;
    print(&columns(&listing::of_config(&config)));
    Ok(())
}

/// Method, path and who answers, in columns.
fn columns(entries: &[RouteEntry]) -> String {
    let widest = entries.iter().map(|entry| entry.path.len()).max().unwrap_or_default();
    let mut text = String::new();
    for RouteEntry { method, path, application, .. } in entries {
        let application = if application.is_empty() { "(node)" } else { application };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{method:<7}{path:<widest$}  {application}");
    }
    text
}
