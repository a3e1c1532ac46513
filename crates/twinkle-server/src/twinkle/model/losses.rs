//! From the name of a loss's class and its constructor's arguments to the loss.

use std::collections::BTreeMap;

use serde_json::Value;
use twinkle_core::call::{AdapterSettings, LossSpec, NamedClass};
use twinkle_core::error::{Error, Result, suggestion};
use twinkle_core::wire::twinkle::IGNORED_LABEL;
use twinkle_model::losses;

/// What a plugin's id begins with.
const PLUGINS: [&str; 2] = ["ms://", "hf://"];

/// The loss of an adapter: cross-entropy as a sum until another is set.
pub(super) fn of(settings: &AdapterSettings) -> Result<LossSpec> {
    let Some(loss) = &settings.loss else {
        let options = BTreeMap::from([("reduction".to_owned(), "sum".to_owned())]);
        return Ok(LossSpec { options, ..LossSpec::named("CrossEntropyLoss") });
    };
    spec(loss)
}

/// A loss that is checked: its name and every one of its settings are known.
pub(super) fn spec(class: &NamedClass) -> Result<LossSpec> {
    refuse_plugin(&class.class)?;
    let names = losses::native::names();
    // What is known but cannot be here has a text of its own.
    if !names.contains(&class.class.as_str()) && !losses::native::is_native(&class.class) {
        return Err(unknown("loss", "losses", &class.class, &names));
    }
    let mut spec = LossSpec::named(&class.class);
    for (name, value) in &class.settings {
        match value {
            Value::Null => {}
            Value::Number(index) if name == "ignore_index" => {
                if index.as_i64() != Some(IGNORED_LABEL) {
                    return Err(Error::unsupported(format!(
                        "`ignore_index` is {index}, but labels are ignored by {IGNORED_LABEL} here"
                    )));
                }
            }
            Value::Bool(flag) => drop(spec.config.insert(name.clone(), f64::from(*flag))),
            Value::Number(number) => drop(spec.config.insert(name.clone(), number.as_f64().unwrap_or(f64::NAN))),
            Value::String(word) => drop(spec.options.insert(name.clone(), word.clone())),
            other => {
                return Err(Error::invalid(format!(
                    "`{name}` of `{}` is {other}, but settings are numbers or words",
                    class.class
                )));
            }
        }
    }
    losses::build(&spec)?;
    Ok(spec)
}

/// Whether the loss reads the entropy of every position.
pub(super) fn reads_entropies(loss: &LossSpec) -> bool {
    loss.config.get("entropy_coef").is_some_and(|coefficient| *coefficient > 0.0)
}

/// Refuses Python code from a hub.
pub(super) fn refuse_plugin(class: &str) -> Result<()> {
    if PLUGINS.iter().any(|scheme| class.starts_with(scheme)) {
        return Err(Error::unsupported(format!(
            "`{class}` is a plugin: it is Python code, which this server does not run"
        ))
        .hint("use one of the classes of the package"));
    }
    Ok(())
}

/// The answer for a class that is not there.
pub(super) fn unknown(what: &str, many: &str, class: &str, known: &[&str]) -> Error {
    Error::invalid(format!("there is no {what} `{class}`")).hint(suggestion(class, many, known))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn named(class: &str, settings: &Value) -> Result<LossSpec> {
        spec(&NamedClass { class: class.to_owned(), settings: settings.as_object().cloned().unwrap() })
    }

    #[test]
    fn arguments_of_python_become_settings() {
        let given = json!({ "beta": 0.2, "loss_type": "ipo", "reference_free": true, "ignore_index": -100, "sft_weight": null });
        let loss = named("DPOLoss", &given).unwrap();
        assert_eq!(loss.config, [("beta".to_owned(), 0.2), ("reference_free".to_owned(), 1.0)].into());
        assert_eq!(loss.options, [("loss_type".to_owned(), "ipo".to_owned())].into());
    }

    #[test]
    fn a_fresh_adapter_has_a_sum_and_a_named_loss_a_mean() {
        assert_eq!(of(&AdapterSettings::default()).unwrap().options["reduction"], "sum");
        assert!(named("CrossEntropyLoss", &json!({})).unwrap().options.is_empty());
    }

    #[test]
    fn what_is_not_there_is_answered_with_what_is() {
        for (class, expected) in [
            ("GRPOLos", "did you mean `GRPOLoss`?"),
            ("cross_entropy", "known losses: "),
            ("GRPOLosses", "did you mean `GRPOLoss`?"),
            ("ms://org/loss", "Python code"),
            ("PPOValueLoss", "value head"),
        ] {
            let error = named(class, &json!({})).unwrap_err().to_string();
            assert!(error.contains(expected), "`{error}` lacks `{expected}`");
        }
        let error = named("GRPOLoss", &json!({ "epsilom": 0.2 })).unwrap_err().to_string();
        assert!(error.contains("epsilom"), "{error}");
        assert!(named("CrossEntropyLoss", &json!({ "ignore_index": 0 })).is_err());
    }

    #[test]
    fn an_entropy_bonus_is_seen() {
        assert!(reads_entropies(&named("GRPOLoss", &json!({ "entropy_coef": 0.01 })).unwrap()));
        assert!(!reads_entropies(&named("GRPOLoss", &json!({})).unwrap()));
    }
}
