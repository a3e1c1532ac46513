//! A model of `tests/golden/` with the numbers PEFT and torch computed with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tch::{Device, Tensor};
use twinkle_core::call::LossSpec;
use twinkle_core::data::{Datum, TensorData, TensorValues};
use twinkle_core::ids::TenantId;
use twinkle_model::batch::{self, Example, Limits};
use twinkle_model::losses;
use twinkle_model::optimizer::Optimizer;
use twinkle_model::run::Run;
use twinkle_nn::{AdapterLayout, BaseModel, LoadOptions, Precision, peft};

const DATUMS: usize = 3;

/// One fixture model with its golden numbers.
pub(crate) struct Golden {
    folder: PathBuf,
    bytes: Vec<u8>,
    pub(crate) facts: Value,
    pub(crate) base: BaseModel,
}

impl Golden {
    /// The numbers of `generate.py`.
    pub(crate) fn open(variant: &str) -> Self {
        Self::read(variant, "golden")
    }

    /// The numbers of `losses.py`: every loss on inputs made to go wrong.
    pub(crate) fn losses(variant: &str) -> Self {
        Self::read(variant, "losses")
    }

    fn read(variant: &str, numbers: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures").join(variant);
        let options = LoadOptions { precision: Precision::Float32, device: Device::Cpu, row_tile: 64 };
        Self {
            bytes: fs::read(folder.join(format!("{numbers}.safetensors"))).unwrap(),
            facts: serde_json::from_slice(&fs::read(folder.join(format!("{numbers}.json"))).unwrap()).unwrap(),
            base: BaseModel::load(&folder, &options).unwrap(),
            folder,
        }
    }

    /// The adapters of which it has every number.
    pub(crate) fn adapters(&self) -> Vec<String> {
        self.facts["adapters"].as_object().unwrap().keys().cloned().collect()
    }

    pub(crate) fn floats(&self, key: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(key).unwrap_or_else(|_| panic!("no `{key}`"));
        assert_eq!(view.dtype(), Dtype::F32, "{key}");
        view.data().as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
    }

    pub(crate) fn ints(&self, key: &str) -> Vec<u32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(key).unwrap_or_else(|_| panic!("no `{key}`"));
        assert_eq!(view.dtype(), Dtype::I32, "{key}");
        let signed = view.data().as_chunks::<4>().0.iter().map(|number| i32::from_le_bytes(*number));
        signed.map(|number| u32::try_from(number).unwrap()).collect()
    }

    pub(crate) fn run(&self, adapter: &str) -> Run {
        let (lora, parameters) = peft::read(&self.folder.join(adapter), self.base.config()).unwrap();
        let layout = Arc::new(AdapterLayout::new(self.base.config(), &lora).unwrap());
        let optimizer = Optimizer::for_adapter(&layout, Device::Cpu).unwrap();
        Run::assembled((TenantId::new("tenant"), "tiny", lora), &self.base, layout, parameters, optimizer)
    }

    pub(crate) fn examples(&self, adapter: &str, loss: &dyn losses::Loss) -> Vec<Example> {
        let data = (0..DATUMS)
            .map(|number| {
                let input = |name: &str| TensorData::floats(self.floats(&format!("datum.{number}.{name}")));
                let targets = self.ints(&format!("datum.{number}.target_tokens"));
                let old_logprobs = self.floats(&format!("{adapter}.datum.{number}.logprobs"));
                Datum {
                    tokens: self.ints(&format!("datum.{number}.tokens")),
                    loss_inputs: BTreeMap::from([
                        ("target_tokens".into(), TensorData::ints(targets.into_iter().map(i64::from).collect())),
                        ("weights".into(), input("weights")),
                        ("advantages".into(), input("advantages")),
                        ("logprobs".into(), TensorData::floats(old_logprobs)),
                    ]),
                }
            })
            .collect();
        self.checked(data, loss)
    }

    pub(crate) fn checked(&self, data: Vec<Datum>, loss: &dyn losses::Loss) -> Vec<Example> {
        let limits = Limits { vocabulary: self.base.config().vocab_size, max_length: 1024 };
        batch::check(data, loss, limits).unwrap()
    }

    /// The datums of a case of `losses.py`, with whatever inputs it wrote.
    pub(crate) fn case(&self, case: &str) -> Vec<Datum> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let datum = |number: u64| {
            let prefix = format!("{case}.{number}.");
            let inputs = file.names().into_iter().filter_map(|key| {
                let name = key.strip_prefix(&prefix).filter(|name| !["tokens", "scored"].contains(name))?;
                let view = file.tensor(key).unwrap();
                let values = match view.dtype() {
                    Dtype::I32 => TensorValues::Int64(self.ints(key).into_iter().map(i64::from).collect()),
                    _ => TensorValues::Float32(self.floats(key)),
                };
                Some((name.to_owned(), TensorData { values, shape: view.shape().to_vec() }))
            });
            Datum { tokens: self.ints(&format!("{prefix}tokens")), loss_inputs: inputs.collect() }
        };
        (0..self.facts["datums"].as_u64().unwrap()).map(datum).collect()
    }

    /// The loss of a case of `losses.py`.
    pub(crate) fn loss_of(&self, case: &str) -> Box<dyn losses::Loss> {
        let facts = &self.facts["cases"][case];
        let config = serde_json::from_value(facts["config"].clone()).unwrap();
        losses::build(&LossSpec { config, ..LossSpec::named(facts["loss"].as_str().unwrap()) }).unwrap()
    }

    pub(crate) fn cases(&self) -> Vec<String> {
        self.facts["cases"].as_object().unwrap().keys().cloned().collect()
    }

    /// The loss as the fixture's generator configured it.
    pub(crate) fn loss(&self, name: &str) -> Box<dyn losses::Loss> {
        let config = self.facts["losses"][name].as_object().map_or_else(BTreeMap::new, |settings| {
            settings.iter().filter_map(|(key, value)| Some((key.clone(), value.as_f64()?))).collect()
        });
        losses::build(&LossSpec { config, ..LossSpec::named(name) }).unwrap()
    }

    /// Compares a flat vector with the golden tensors `<prefix>.<module>.lora_{A,B}`; returns the worst difference.
    pub(crate) fn compare(&self, run: &Run, flat: &Tensor, prefix: &str, mut check: impl FnMut(&str, &[f32], &[f32])) {
        let values = Vec::<f32>::try_from(flat).unwrap();
        for module in run.layout.modules() {
            for (side, range) in [("lora_A", module.a_range()), ("lora_B", module.b_range())] {
                let key = format!("{prefix}.{}.{side}", module.name);
                check(&key, &values[range], &self.floats(&key));
            }
        }
    }
}

pub(crate) fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

pub(crate) fn worst(values: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(values.len(), expected.len());
    values.iter().zip(expected).fold(0.0, |worst, (value, expected)| worst.max((value - expected).abs()))
}
