//! Adapters on disk, in the layout of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tch::Tensor;
use twinkle_core::call::LoraSpec;
use twinkle_core::{Error, ErrorCode, Result};

use super::layout::{AdapterLayout, LoraModule, Site};
use super::projection::Projection;
use crate::config::{ModelConfig, read_json};
use crate::torch::{device_error, to_floats};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// Writes an adapter, fp32, from its flat parameters `[P]`.
pub fn write(directory: &Path, layout: &AdapterLayout, flat: &Tensor, base_model: &str) -> Result<()> {
    let values = to_floats(flat).map_err(device_error)?;
    if values.len() != layout.parameter_count() {
        return Err(Error::internal(format!(
            "an adapter of {} parameters was given {}",
            layout.parameter_count(),
            values.len()
        )));
    }
    let mut views = Vec::with_capacity(2 * layout.modules().len());
    for module in layout.modules() {
        let (a, b) = (&values[module.a_range()], &values[module.b_range()]);
        for (factor, shape, numbers) in
            [('A', [module.rank, module.inputs], a), ('B', [module.outputs, module.rank], b)]
        {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(numbers))
                .map_err(|error| Error::internal(format!("an adapter tensor could not be laid out: {error}")))?;
            views.push((tensor_name(module, factor), view));
        }
    }
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|error| Error::internal(format!("the adapter could not be encoded: {error}")))?;
    write_file(&directory.join(WEIGHTS_FILE), &bytes)?;
    let config = serde_json::to_vec_pretty(&config_json(layout, base_model))
        .map_err(|error| Error::internal(format!("the adapter's description could not be encoded: {error}")))?;
    write_file(&directory.join(CONFIG_FILE), &config)
}

fn config_json(layout: &AdapterLayout, base_model: &str) -> Value {
    let spec = layout.spec();
    let mut targets: Vec<&str> = Vec::new();
    for projection in Projection::ALL {
        let is_there = |module: &LoraModule| matches!(module.site, Site::Layer(_, found) if found == projection);
        if layout.modules().iter().any(is_there) {
            targets.push(projection.leaf());
        }
    }
    if layout.module_at(Site::Head).is_some() {
        targets.push("lm_head");
    }
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": spec.rank,
        "lora_alpha": integral(spec.alpha),
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": false,
        "use_dora": false,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": null,
    })
}

/// PEFT writes alpha as an integer when it is one.
fn integral(alpha: f64) -> Value {
    if alpha.fract() == 0.0 && alpha.abs() < 1e15 { json!(alpha as i64) } else { json!(alpha) }
}

/// Reads an adapter written by us or by PEFT. Returns its shape and its flat fp32 parameters `[P]` on the CPU.
///
/// An adapter that covers only some modules of a group (say q and v) is read with zero factors in the others, which
/// neither change the output nor ever receive a gradient: the same function, and the same training.
pub fn read(directory: &Path, config: &ModelConfig) -> Result<(LoraSpec, Tensor)> {
    let settings = read_json(&directory.join(CONFIG_FILE))?;
    refuse_what_is_not_computed(&settings)?;
    let rank = settings
        .get("r")
        .and_then(Value::as_u64)
        .and_then(|rank| u32::try_from(rank).ok())
        .ok_or_else(|| Error::invalid(format!("`{CONFIG_FILE}` has no rank `r`")))?;
    let alpha = settings
        .get("lora_alpha")
        .and_then(Value::as_f64)
        .ok_or_else(|| Error::invalid(format!("`{CONFIG_FILE}` has no `lora_alpha`")))?;

    let path = directory.join(WEIGHTS_FILE);
    let bytes =
        fs::read(&path).map_err(|error| Error::invalid(format!("cannot read `{}`: {error}", path.display())))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Error::invalid(format!("`{}` is damaged or cut off: {error}", path.display())))?;
    let mut tensors: BTreeMap<String, TensorView> = BTreeMap::new();
    for (name, view) in file.iter() {
        tensors.insert(plain_name(name)?, view);
    }

    let names: BTreeSet<&str> = tensors.keys().map(String::as_str).collect();
    let touches = |suffixes: &[Projection]| {
        names.iter().any(|name| suffixes.iter().any(|projection| name.contains(&format!(".{}.", projection.suffix()))))
    };
    let (attention, mlp): (Vec<_>, Vec<_>) = Projection::ALL.into_iter().partition(|projection| projection.is_attention());
    let spec = LoraSpec {
        rank,
        alpha,
        seed: 0,
        train_attn: touches(&attention),
        train_mlp: touches(&mlp),
        train_unembed: names.iter().any(|name| name.starts_with("lm_head.")),
        ..LoraSpec::default()
    };
    let layout = AdapterLayout::new(config, &spec)?;

    let mut flat = vec![0.0_f32; layout.parameter_count()];
    for module in layout.modules() {
        let a = tensors.remove(&format!("{}.lora_A", module.name));
        let b = tensors.remove(&format!("{}.lora_B", module.name));
        let (Some(a), Some(b)) = (&a, &b) else {
            if a.is_some() || b.is_some() {
                return Err(Error::invalid(format!(
                    "the adapter has only one of the two factors of `{}`",
                    module.name
                )));
            }
            continue;
        };
        copy_floats(a, [module.rank, module.inputs], &mut flat[module.a_range()], &module.name)?;
        copy_floats(b, [module.outputs, module.rank], &mut flat[module.b_range()], &module.name)?;
    }
    if let Some(name) = tensors.keys().next() {
        return Err(Error::unsupported(format!(
            "the adapter has a tensor for `{name}`, which this model cannot adapt"
        )));
    }
    if flat.iter().any(|value| !value.is_finite()) {
        return Err(Error::invalid(format!("`{}` holds numbers that are not finite", path.display())));
    }
    Ok((spec, Tensor::from_slice(&flat)))
}

/// Settings of PEFT that change what an adapter computes and that we do not compute.
fn refuse_what_is_not_computed(settings: &Value) -> Result<()> {
    let refuse = |key: &str, value: &Value| {
        Err(Error::unsupported(format!(
            "`{key}` in `{CONFIG_FILE}` is {value}, and such adapters are not computed here"
        )))
    };
    if let Some(kind) = settings.get("peft_type").filter(|kind| kind.as_str() != Some("LORA")) {
        return refuse("peft_type", kind);
    }
    for key in ["use_rslora", "use_dora", "use_qalora", "fan_in_fan_out", "lora_bias", "alora_invocation_tokens"] {
        if let Some(value) = settings.get(key).filter(|value| !value.is_null() && value.as_bool() != Some(false)) {
            return refuse(key, value);
        }
    }
    if let Some(bias) = settings.get("bias").filter(|bias| bias.as_str() != Some("none")) {
        return refuse("bias", bias);
    }
    for key in ["rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices", "target_parameters"] {
        let Some(value) = settings.get(key) else { continue };
        let is_empty = match value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !is_empty {
            return refuse(key, value);
        }
    }
    Ok(())
}

/// `model.layers.0.self_attn.q_proj.lora_A` from a key of the file.
fn plain_name(key: &str) -> Result<String> {
    let unknown = || Error::unsupported(format!("the adapter has a tensor `{key}`, which is not a LoRA factor"));
    let name = key.strip_prefix(PREFIX).ok_or_else(unknown)?;
    let name = name.strip_suffix(".weight").ok_or_else(unknown)?;
    if !(name.ends_with(".lora_A") || name.ends_with(".lora_B")) {
        return Err(unknown());
    }
    Ok(name.replacen("model.language_model.", "model.", 1))
}

fn tensor_name(module: &LoraModule, factor: char) -> String {
    format!("{PREFIX}{}.lora_{factor}.weight", module.name)
}

fn copy_floats(view: &TensorView, shape: [usize; 2], target: &mut [f32], module: &str) -> Result<()> {
    if view.shape() != shape {
        return Err(Error::invalid(format!(
            "a factor of the adapter on `{module}` has shape {:?}, this model asks for {shape:?}",
            view.shape()
        )));
    }
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => {
            for (value, bytes) in target.iter_mut().zip(data.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Dtype::BF16 => {
            for (value, bytes) in target.iter_mut().zip(data.chunks_exact(2)) {
                *value = half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
        Dtype::F16 => {
            for (value, bytes) in target.iter_mut().zip(data.chunks_exact(2)) {
                *value = half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
        other => return Err(Error::unsupported(format!("a factor of the adapter on `{module}` has dtype {other:?}"))),
    }
    Ok(())
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|error| {
        let message = format!("`{}` could not be written: {error}", path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::new(ErrorCode::ResourceExhausted, message).hint("free space on the server's disk")
            }
            _ => Error::internal(message),
        }
    })
}
