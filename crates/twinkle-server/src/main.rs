//! The `twinkle-server` binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    twinkle_server::cli::main()
}
