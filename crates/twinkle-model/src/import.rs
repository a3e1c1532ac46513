//! Adapters from elsewhere as training checkpoints.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use twinkle_core::call::{LoraSpec, SavedTraining};
use twinkle_core::{Error, Result};
use twinkle_nn::{AdapterLayout, ModelConfig, peft};

use crate::files::{FORMAT, OPTIMIZER_FILE, RUN_FILE, RunFile};

/// An adapter that was imported.
#[derive(Debug)]
pub struct Imported {
    /// Its shape.
    pub lora: LoraSpec,
    /// How many optimizer steps the run had taken that saved it; `None`: nothing says so.
    pub optimizer_steps: Option<u64>,
}

/// Writes into `target` the files of a training checkpoint with the adapter of the folder `source`.
///
/// What a run has saved comes with its optimizer, if the folder has that. Any other adapter, in every format that
/// [`peft`] reads, is one without an optimizer. Of the base model, whose public name is `base_model`, only `config.json`
/// in the folder `model` is read. Blocks.
///
/// Errors: the files are no adapter of this model, or belong to a run of another base model.
pub fn import(source: &Path, target: &Path, model: &Path, base_model: &str) -> Result<Imported> {
    let saved = saved_run(source)?;
    if let Some(saved) = &saved {
        saved.check_base(base_model)?;
        if saved.lora.full {
            return Err(Error::unsupported("a checkpoint of all weights is not imported; an adapter is"));
        }
    }
    let config = ModelConfig::read(model)?;
    let (lora, parameters) = peft::read(source, &config)?;
    let layout = AdapterLayout::new(&config, &lora)?;
    peft::write(target, &layout, &parameters, base_model)?;
    let has_optimizer = match &saved {
        Some(saved) if !saved.training.without_optimizer => copy(source, target, OPTIMIZER_FILE)?,
        _ => false,
    };
    let optimizer_steps = saved.as_ref().map(|saved| saved.optimizer_steps);
    let saved = saved.unwrap_or_else(|| RunFile {
        format: FORMAT,
        base_model: base_model.to_owned(),
        lora: lora.clone(),
        optimizer_steps: 0,
        optimizer: None,
        accumulation: None,
        training: SavedTraining::default(),
    });
    let training = SavedTraining { without_optimizer: !has_optimizer, ..saved.training };
    RunFile { lora: lora.clone(), training, ..saved }.write(target)?;
    Ok(Imported { lora, optimizer_steps })
}

fn saved_run(source: &Path) -> Result<Option<RunFile>> {
    let path = source.join(RUN_FILE);
    match fs::read(&path) {
        Ok(text) => RunFile::parse(&text).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::invalid(format!("cannot read `{RUN_FILE}`: {error}"))),
    }
}

/// Copies a file, if it is there.
fn copy(source: &Path, target: &Path, name: &str) -> Result<bool> {
    match fs::copy(source.join(name), target.join(name)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::internal(format!("`{name}` could not be copied: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tch::Device;
    use twinkle_core::ids::TenantId;
    use twinkle_nn::{BaseModel, LoadOptions, Precision};

    use super::*;
    use crate::files::read_run;

    fn model() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/qwen3")
    }

    #[test]
    fn an_adapter_of_every_format_becomes_a_checkpoint_with_its_very_weights_and_no_optimizer() {
        let options = LoadOptions { precision: Precision::Float32, device: Device::Cpu, row_tile: 64 };
        let base = BaseModel::load(&model(), &options).unwrap();
        for format in ["attn_mlp", "rslora", "tinker"] {
            let (source, target) = (model().join(format), tempfile::tempdir().unwrap());
            let imported = import(&source, target.path(), &model(), "tiny").unwrap();
            let (lora, expected) = peft::read(&source, base.config()).unwrap();
            assert_eq!((&imported.lora, imported.optimizer_steps), (&lora, None), "{format}");
            let read = |with_optimizer| read_run(target.path(), TenantId::new("alice"), "tiny", &base, with_optimizer);
            assert!(read(false).unwrap().run.parameters.equal(&expected), "{format}");
            assert!(read(true).unwrap_err().message.contains("no optimizer"), "{format}");

            // A checkpoint that goes round comes back as it was.
            let again = tempfile::tempdir().unwrap();
            let back = import(target.path(), again.path(), &model(), "tiny").unwrap();
            assert_eq!((back.lora, back.optimizer_steps), (lora, Some(0)), "{format}");
            let foreign = import(target.path(), again.path(), &model(), "another").unwrap_err();
            assert!(foreign.message.contains("belongs to base model `tiny`"), "{foreign}");
        }
    }

    #[test]
    fn what_is_no_adapter_of_the_model_is_refused() {
        let (empty, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(import(empty.path(), target.path(), &model(), "tiny").is_err());
        let of_another = model().join("../llama3/attn_mlp");
        let another = import(&of_another, target.path(), &model(), "tiny");
        assert!(another.is_err(), "{another:?}");
    }
}
