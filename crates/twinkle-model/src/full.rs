//! The weights of a run that trains all of them, in memory and as a Hugging Face checkpoint.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::Tensor;
use twinkle_core::{Error, Result};
use twinkle_nn::full::{TrainedModel, WeightLayout};
use twinkle_nn::{BaseModel, Gradients};

use crate::files::io_error;
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
    /// The base's folder.
    source: PathBuf,
    /// Made when first needed after a step.
    trained: Option<Arc<TrainedModel>>,
}

impl FullWeights {
    /// For a run on this model.
    pub(crate) fn of(base: &BaseModel) -> Result<Self> {
        let Some(source) = base.directory() else {
            return Err(Error::internal("the base model has no folder"));
        };
        Ok(Self { layout: base.weight_layout()?, source: source.to_owned(), trained: None })
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
        let values = Vec::<f32>::try_from(masters)
            .map_err(|error| Error::internal(format!("the weights could not be read: {error}")))?;
        let views = self.layout.weights().iter().map(|weight| {
            let shape = weight.shape.iter().map(|size| *size as usize).collect();
            let bytes: &[u8] = bytemuck::cast_slice(values.get(weight.range()).unwrap_or_default());
            Ok((weight.name.as_str(), TensorView::new(Dtype::F32, shape, bytes)?))
        });
        let views = views
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|error| Error::internal(format!("the weights could not be laid out: {error}")))?;
        let path = directory.join(WEIGHTS_FILE);
        let format = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(views, Some(format), &path).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(error) => io_error("written", &path, &error),
            error => Error::internal(format!("`{}` could not be written: {error}", path.display())),
        })?;
        self.write_config(directory)?;
        for name in COMPANIONS {
            let from = self.source.join(name);
            if from.exists() {
                let to = directory.join(name);
                fs::copy(&from, &to).map_err(|error| io_error("written", &to, &error))?;
            }
        }
        Ok(())
    }

    /// The base's configuration; the weights are fp32, whatever the base's were.
    fn write_config(&self, directory: &Path) -> Result<()> {
        let (from, to) = (self.source.join(CONFIG_FILE), directory.join(CONFIG_FILE));
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

    /// Reads masters back, fp32 `[P]` on the CPU.
    pub(crate) fn read(&self, directory: &Path) -> Result<Tensor> {
        let path = directory.join(WEIGHTS_FILE);
        let bytes =
            fs::read(&path).map_err(|error| Error::invalid(format!("`{}` cannot be read: {error}", path.display())))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|error| Error::invalid(format!("`{}` is damaged: {error}", path.display())))?;
        let mut values: Vec<f32> = Vec::with_capacity(self.layout.count());
        for weight in self.layout.weights() {
            let view = file
                .tensor(&weight.name)
                .map_err(|_| Error::invalid(format!("`{WEIGHTS_FILE}` lacks tensor `{}`", weight.name)))?;
            let fits = view.shape().iter().map(|size| *size as i64).eq(weight.shape.iter().copied());
            if view.dtype() != Dtype::F32 || !fits {
                return Err(Error::invalid(format!(
                    "tensor `{}` of `{WEIGHTS_FILE}` is {:?} {:?}, expected F32 {:?}",
                    weight.name,
                    view.dtype(),
                    view.shape(),
                    weight.shape
                )));
            }
            let (numbers, _) = view.data().as_chunks::<4>();
            values.extend(numbers.iter().map(|number| f32::from_le_bytes(*number)));
        }
        Ok(Tensor::from_slice(&values))
    }
}
