//! The server, built together with the tests that start it.

use std::process::ExitCode;

fn main() -> ExitCode {
    twinkle_server::cli::main()
}
