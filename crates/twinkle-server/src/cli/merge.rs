//! `twinkle-server merge` and `twinkle-server convert`: adapters outside a running node.

use std::fs;
use std::io::{IsTerminal, Write, stderr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use twinkle_core::error::Error;
use twinkle_nn::lora::merge::{Progress, merge};
use twinkle_nn::{AdapterLayout, ModelConfig, peft};

use super::report::{Outcome, failed, say};

pub(super) const MERGE_EXAMPLES: &str = "\
Example:
  twinkle-server merge --model Qwen3-8B --adapter my-adapter --output Qwen3-8B-mine

Every layout of PEFT and Tinker is read. The sums are rounded once, to the dtype of the model's files.
An adapter on the head of a model whose head is its embedding gives a model in which the two are apart.";

pub(super) const CONVERT_EXAMPLES: &str = "\
Examples:
  twinkle-server convert --model Qwen3-30B-A3B --adapter downloaded --format peft --output for-peft
  twinkle-server convert --model Qwen3-30B-A3B --adapter for-peft --format tinker --output for-tinker

For PEFT and vLLM every expert is a module of its own; Tinker stacks them and keeps shared factors once.
Of the model only `config.json` is read.";

#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// The folder of the base model, `config.json` and safetensors
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// The folder of the adapter, `adapter_config.json` and `adapter_model.safetensors`
    #[arg(long, value_name = "FOLDER")]
    adapter: PathBuf,
    /// The folder to make, a full Hugging Face checkpoint
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// The folder of the base model, or one with its `config.json`
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// The folder of the adapter, in any layout
    #[arg(long, value_name = "FOLDER")]
    adapter: PathBuf,
    /// For whom to write it
    #[arg(long, value_enum)]
    format: Format,
    /// The folder to write
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// PEFT and vLLM, every expert a module
    Peft,
    /// PEFT on transformers 5, experts fused
    PeftFused,
    /// Tinker's own tools
    Tinker,
}

pub(super) fn run(arguments: &MergeArgs) -> Outcome {
    let mut shown = Shown::default();
    let merged = merge(&arguments.model, &arguments.adapter, &arguments.output, &mut |progress| shown.update(progress));
    shown.end();
    let merged = merged.map_err(failed)?;
    let untied = if merged.untied { "; the head is no longer the embedding" } else { "" };
    say(&format!(
        "merged {} modules into {:.1} MB of weights in {}{untied}",
        merged.modules,
        merged.bytes as f64 / 1e6,
        arguments.output.display()
    ));
    Ok(())
}

pub(super) fn convert(arguments: &ConvertArgs) -> Outcome {
    let converted = || -> Result<usize, Error> {
        let config = ModelConfig::read(&arguments.model)?;
        let (spec, flat) = peft::read(&arguments.adapter, &config)?;
        let layout = AdapterLayout::new(&config, &spec)?;
        fs::create_dir_all(&arguments.output).map_err(|error| {
            Error::invalid(format!("`{}` could not be created: {error}", arguments.output.display()))
        })?;
        let format = match arguments.format {
            Format::Peft => peft::Format::Peft,
            Format::PeftFused => peft::Format::PeftFused,
            Format::Tinker => peft::Format::Tinker,
        };
        let base = peft::base_model(&arguments.adapter)?;
        peft::write_as(format, &arguments.output, &layout, &flat, &base)?;
        Ok(layout.modules().len())
    };
    let modules = converted().map_err(failed)?;
    say(&format!("wrote {modules} modules to {}", arguments.output.display()));
    Ok(())
}

/// The progress on a terminal: one line that counts up.
#[derive(Default)]
struct Shown {
    percent: Option<u64>,
}

impl Shown {
    fn update(&mut self, Progress { done, total }: Progress) {
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        if stderr().is_terminal() && self.percent != Some(percent) {
            self.percent = Some(percent);
            // Nobody listens on a closed stderr.
            let _ =
                write!(stderr(), "\rmerging {percent:3} %  {:.1} of {:.1} MB", done as f64 / 1e6, total as f64 / 1e6);
        }
    }

    fn end(&self) {
        if self.percent.is_some() {
            let _ = writeln!(stderr());
        }
    }
}
