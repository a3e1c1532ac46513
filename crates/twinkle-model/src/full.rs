//! The weights of a run that trains all of them, in memory and as a Hugging Face checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use tch::{Device, Kind, Tensor};
use twinkle_core::{Error, Result};
use twinkle_nn::full::{TrainedModel, WeightLayout};
use twinkle_nn::tensor_file::{Entry, FloatFile, TensorFile};
use twinkle_nn::{BaseModel, Gradients};

use crate::files::{self, io_error};
use crate::optimizer::shape::ParameterShape;

const WEIGHTS_FILE: &str = "model.safetensors";
const CONFIG_FILE: &str = "config.json";
/// What a checkpoint takes from the base's folder beside `config.json`, as far as it is there.
const COMPANIONS: [&str; 9] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// Where the weights lie, and the network of the present ones.
#[derive(Debug)]
pub(crate) struct FullWeights {
    layout: Arc<WeightLayout>,
    /// The base's folder; `None`: its weights came from memory, and there is nothing to write beside them.
    source: Option<PathBuf>,
    /// Made when first needed after a step.
    trained: Option<Arc<TrainedModel>>,
}

impl FullWeights {
    /// For a run on this model.
    pub(crate) fn of(base: &BaseModel) -> Self {
        Self { layout: base.weight_layout(), source: base.directory().map(Path::to_owned), trained: None }
    }

    pub(crate) fn layout(&self) -> &Arc<WeightLayout> {
        &self.layout
    }

    /// The weights as an optimizer sees them.
    pub(crate) fn shapes(&self) -> Vec<ParameterShape> {
        let shape = |weight: &twinkle_nn::full::Weight| ParameterShape {
            start: weight.start as i64,
            dimensions: weight.shape.clone(),
            decays: weight.decays(),
        };
        self.layout.weights().iter().map(shape).collect()
    }

    /// The network of `masters`; `gradients` learn where its weights are.
    pub(crate) fn model(
        &mut self,
        base: &BaseModel,
        masters: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Arc<TrainedModel>> {
        let trained = match self.trained.take() {
            Some(trained) => trained,
            None => Arc::new(base.with_weights(&self.layout, masters)?),
        };
        gradients.attach(&trained);
        Ok(Arc::clone(self.trained.insert(trained)))
    }

    pub(crate) fn forget_model(&mut self) {
        self.trained = None;
    }

    /// Writes `masters` as a checkpoint in fp32 that transformers loads, with the base's configuration and tokenizer.
    pub(crate) fn write(&self, directory: &Path, masters: &Tensor) -> Result<()> {
        let Some(source) = &self.source else {
            return Err(Error::internal("the base model has no folder, so a checkpoint would lack its configuration"));
        };
        let entry = |weight: &twinkle_nn::full::Weight| Entry {
            name: weight.published.clone(),
            dtype: Dtype::F32,
            shape: weight.shape.iter().map(|size| *size as usize).collect(),
        };
        let entries = self.layout.weights().iter().map(entry).collect();
        let format = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let mut file = TensorFile::create(&directory.join(WEIGHTS_FILE), &format, entries)?;
        for weight in self.layout.weights() {
            let range = weight.range();
            files::append(&mut file, &masters.narrow(0, range.start as i64, range.len() as i64))?;
        }
        file.finish()?;
        write_config(source, directory)?;
        for name in COMPANIONS {
            let from = source.join(name);
            if from.exists() {
                let to = directory.join(name);
                fs::copy(&from, &to).map_err(|error| io_error("written", &to, &error))?;
            }
        }
        Ok(())
    }

    /// Reads masters back, fp32 `[P]` on the CPU.
    pub(crate) fn read(&self, directory: &Path) -> Result<Tensor> {
        let file = FloatFile::open(&directory.join(WEIGHTS_FILE))?;
        let masters = Tensor::empty([self.layout.count() as i64], (Kind::Float, Device::Cpu));
        for weight in self.layout.weights() {
            let Some(found) = file.tensor(&weight.published)? else {
                return Err(Error::invalid(format!("`{WEIGHTS_FILE}` lacks tensor `{}`", weight.published)));
            };
            if found.size() != weight.shape {
                return Err(Error::invalid(format!(
                    "tensor `{}` of `{WEIGHTS_FILE}` is {:?}, expected {:?}",
                    weight.published,
                    found.size(),
                    weight.shape
                )));
            }
            let range = weight.range();
            masters.narrow(0, range.start as i64, range.len() as i64).copy_(&found.view([-1]));
        }
        Ok(masters)
    }
}

/// The base's configuration; the weights are fp32, whatever the base's were.
fn write_config(source: &Path, directory: &Path) -> Result<()> {
    let (from, to) = (source.join(CONFIG_FILE), directory.join(CONFIG_FILE));
    let text = fs::read(&from).map_err(|error| io_error("read", &from, &error))?;
    let mut config: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| Error::internal(format!("`{}` is damaged: {error}", from.display())))?;
    if let Some(config) = config.as_object_mut() {
        for key in ["torch_dtype", "dtype"] {
            if config.contains_key(key) {
                config.insert(key.to_owned(), "float32".into());
            }
        }
    }
    let text = serde_json::to_vec_pretty(&config)
        .map_err(|error| Error::internal(format!("`{CONFIG_FILE}` could not be encoded: {error}")))?;
    fs::write(&to, text).map_err(|error| io_error("written", &to, &error))
}
