//! Models that are a little wrong must not pass for right: each mistake here fails the comparison of the logits.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use twinkle_nn::{BaseModel, LoadOptions, Precision};

use crate::common::{Golden, VARIANTS, device, fixture};
use crate::{Tolerance, worst_logits};

/// Loads a model of the fixtures after a mistake was made in its files.
fn mutated(variant: &str, spoil: impl FnOnce(&Path)) -> BaseModel {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(variant)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    spoil(folder.path());
    let options = LoadOptions { precision: Precision::Float32, device: device(), row_tile: 64 };
    BaseModel::load(folder.path(), &options).unwrap()
}

fn assert_shows(variant: &str, mistake: &str, base: &BaseModel) {
    let allowed = Tolerance::of(base.config()).logits;
    let error = worst_logits(base, &Golden::read(variant), None, "");
    assert!(error > 2.0 * allowed, "{variant}: {mistake} moves the logits by {error} only, {allowed} is allowed");
}

/// The wrong value of a key, from the right one.
type Change<'a> = &'a dyn Fn(&Value) -> Value;

/// Changes a key of `config.json`, wherever it is; false if the model has none.
fn change(config: &mut Value, key: &str, to: Change) -> bool {
    let Some(object) = config.as_object_mut() else { return false };
    let mut found = false;
    for (name, value) in object {
        if name == key {
            *value = to(value);
            found = true;
        } else {
            found |= change(value, key, to);
        }
    }
    found
}

/// The model with another value of `key`, if its `config.json` has that key.
fn with_key(variant: &str, key: &str, to: Change) -> Option<BaseModel> {
    let path = fixture(variant).join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut config, key, to)
        .then(|| mutated(variant, |folder| fs::write(folder.join("config.json"), config.to_string()).unwrap()))
}

/// The model with tensors renamed or changed in all of its weight files.
fn with_weights(variant: &str, spoil: &dyn Fn(&str, &mut Vec<f32>) -> String) -> BaseModel {
    mutated(variant, |folder| {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "safetensors")
                || !path.file_name().unwrap().to_string_lossy().starts_with("model")
            {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
                .iter()
                .map(|(name, view)| {
                    let mut values: Vec<f32> =
                        view.data().as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
                    let name = spoil(name, &mut values);
                    (name, view.shape().to_vec(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
                })
                .collect();
            let views = tensors.iter().map(|(name, shape, bytes)| {
                (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
            });
            fs::write(&path, safetensors::serialize(views, None::<HashMap<_, _>>).unwrap()).unwrap();
        }
    })
}

#[test]
fn files_written_again_without_a_change_are_the_same_model() {
    for variant in ["qwen2", "qwen2_untied"] {
        let base = with_weights(variant, &|name, _| name.to_owned());
        assert!(worst_logits(&base, &Golden::read(variant), None, "") <= Tolerance::of(base.config()).logits);
    }
}

#[test]
fn a_wrong_number_in_the_configuration_shows() {
    let times = |factor: f64| move |value: &Value| json!(value.as_f64().unwrap() * factor);
    let flipped = |value: &Value| json!(!value.as_bool().unwrap());
    let one_less = |value: &Value| json!(value.as_u64().unwrap() - 1);
    let mistakes: [(&str, Change); 8] = [
        ("rms_norm_eps", &times(10.0)),
        ("rope_theta", &times(1.05)),
        ("partial_rotary_factor", &times(2.0)),
        ("factor", &times(1.5)),
        ("original_max_position_embeddings", &times(0.5)),
        ("norm_topk_prob", &flipped),
        ("num_experts_per_tok", &one_less),
        ("rope_type", &|_| json!("default")),
    ];
    for variant in VARIANTS {
        for (key, to) in mistakes {
            if key == "rope_type" && !matches!(variant, "llama3" | "llama3_tied" | "qwen3_yarn") {
                continue;
            }
            if let Some(base) = with_key(variant, key, to) {
                assert_shows(variant, key, &base);
            }
        }
    }
}

#[test]
fn the_other_flavour_of_norm_shows() {
    for variant in VARIANTS {
        // A plain norm multiplies by w, a zero-centred one by 1 + w: the one with the other's formula.
        let is_zero_centred = variant.starts_with("qwen3_5");
        let base = with_weights(variant, &|name, values| {
            if name.ends_with("norm.weight") && !name.contains("linear_attn") {
                for value in values {
                    *value += if is_zero_centred { -1.0 } else { 1.0 };
                }
            }
            name.to_owned()
        });
        assert_shows(variant, "the other flavour of norm", &base);
    }
}

#[test]
fn parts_taken_for_each_other_show() {
    let pairs = [
        ("input_layernorm", "post_attention_layernorm"),
        ("gate_proj", "up_proj"),
        ("q_norm", "k_norm"),
        ("in_proj_a", "in_proj_b"),
        ("A_log", "dt_bias"),
    ];
    for variant in VARIANTS {
        let names = fs::read(fixture(variant).join("model.safetensors"))
            .map(|bytes| SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect());
        let names: Vec<String> = names.unwrap_or_default();
        for (left, right) in pairs {
            if !names.iter().any(|name| name.contains(&format!(".{left}"))) {
                continue;
            }
            let base = with_weights(variant, &|name, _| {
                let (of_left, of_right) = (format!(".{left}"), format!(".{right}"));
                if name.contains(&of_left) {
                    name.replace(&of_left, &of_right)
                } else {
                    name.replace(&of_right, &of_left)
                }
            });
            assert_shows(variant, &format!("`{left}` for `{right}`"), &base);
        }
    }
}

#[test]
fn a_gate_read_before_its_query_shows() {
    for variant in VARIANTS.iter().filter(|variant| variant.starts_with("qwen3_5")) {
        let base = with_weights(variant, &|name, values| {
            if name.ends_with("self_attn.q_proj.weight") {
                // Query and gate of all heads apart instead of head by head: the second half first.
                let half = values.len() / 2;
                values.rotate_left(half);
            }
            name.to_owned()
        });
        assert_shows(variant, "a gate for a query", &base);
    }
}

#[test]
fn experts_in_another_order_show() {
    for variant in VARIANTS.iter().filter(|variant| variant.contains("moe")) {
        let base = with_weights(variant, &|name, values| {
            if name.ends_with("mlp.gate.weight") {
                let row = values.len() / 2;
                values.rotate_left(row);
            }
            name.to_owned()
        });
        assert_shows(variant, "a router with its rows in another order", &base);
    }
}
