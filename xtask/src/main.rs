//! The developer's commands. `cargo xtask --help` is the place to start.
#![forbid(unsafe_code)]

mod bench;
mod child;
mod clock;
mod compat;
mod cookbook;
mod docs;
#[cfg(test)]
mod features;
mod gpu;
mod learn;
mod quickstart;
mod report;
mod server;
mod setup;
mod test;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Developer commands of Twinkle in Rust.
///
/// New here? `cargo xtask quickstart` fetches what is missing, builds, starts a server and fine-tunes a small
/// language model in front of your eyes. Before you propose a change, `cargo xtask test` must end with `0 failed`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Arguments {
    /// Work on another checkout than the one this program was built from.
    #[arg(long, global = true, value_name = "FOLDER")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Options),
    Quickstart(quickstart::Options),
    Test(test::Options),
    Bench(bench::Options),
    Compat(compat::Options),
    Learn(learn::Options),
    Cookbook(cookbook::Options),
    Gpu(gpu::Options),
    Docs(docs::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let workspace = Workspace::at(arguments.root)?;
    match arguments.command {
        Command::Setup(options) => setup::run(&workspace, &options).map(|()| ExitCode::SUCCESS),
        Command::Quickstart(options) => quickstart::run(&workspace, &options).map(|()| ExitCode::SUCCESS),
        Command::Test(options) => test::run(&workspace, &options),
        Command::Bench(options) => bench::run(&workspace, &options).map(|()| ExitCode::SUCCESS),
        Command::Cookbook(options) => cookbook::run(&workspace, &options),
        Command::Gpu(options) => gpu::run(&workspace, &options),
        Command::Docs(options) => docs::run(&workspace, &options),
        Command::Compat(options) => compat::run(&workspace, &options),
        Command::Learn(options) => learn::run(&workspace, &options).map(|()| ExitCode::SUCCESS),
    }
}
