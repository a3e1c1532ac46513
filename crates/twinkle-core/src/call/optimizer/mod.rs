//! The optimizers a run can have, by the names, settings and defaults of `torch.optim`.

mod settings;
mod work;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use settings::{Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, Muon, MuonRate, NAdam, RAdam, RmsProp, Sgd};
pub use work::{AdamParams, GradientClip, GradientNorm, OptimizerOverrides, OptimizerWork};

use super::named;
use crate::{Error, Result};

/// An optimizer and its settings. The journal stores these: fields may be added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is named after its settings, which say what it is")]
pub enum OptimizerSpec {
    AdamW(AdamW),
    Adam(Adam),
    #[serde(rename = "SGD")]
    Sgd(Sgd),
    Adamax(Adamax),
    NAdam(NAdam),
    RAdam(RAdam),
    Adagrad(Adagrad),
    Adadelta(Adadelta),
    #[serde(rename = "RMSprop")]
    RmsProp(RmsProp),
    Adafactor(Adafactor),
    Muon(Muon),
}

impl Default for OptimizerSpec {
    fn default() -> Self {
        Self::AdamW(AdamW::default())
    }
}

/// The same field of whichever optimizer it is.
macro_rules! field {
    ($spec:expr, $field:ident) => {
        match $spec {
            OptimizerSpec::AdamW(settings) => &settings.$field,
            OptimizerSpec::Adam(settings) => &settings.$field,
            OptimizerSpec::Sgd(settings) => &settings.$field,
            OptimizerSpec::Adamax(settings) => &settings.$field,
            OptimizerSpec::NAdam(settings) => &settings.$field,
            OptimizerSpec::RAdam(settings) => &settings.$field,
            OptimizerSpec::Adagrad(settings) => &settings.$field,
            OptimizerSpec::Adadelta(settings) => &settings.$field,
            OptimizerSpec::RmsProp(settings) => &settings.$field,
            OptimizerSpec::Adafactor(settings) => &settings.$field,
            OptimizerSpec::Muon(settings) => &settings.$field,
        }
    };
    ($spec:expr, mut $field:ident) => {
        match $spec {
            OptimizerSpec::AdamW(settings) => &mut settings.$field,
            OptimizerSpec::Adam(settings) => &mut settings.$field,
            OptimizerSpec::Sgd(settings) => &mut settings.$field,
            OptimizerSpec::Adamax(settings) => &mut settings.$field,
            OptimizerSpec::NAdam(settings) => &mut settings.$field,
            OptimizerSpec::RAdam(settings) => &mut settings.$field,
            OptimizerSpec::Adagrad(settings) => &mut settings.$field,
            OptimizerSpec::Adadelta(settings) => &mut settings.$field,
            OptimizerSpec::RmsProp(settings) => &mut settings.$field,
            OptimizerSpec::Adafactor(settings) => &mut settings.$field,
            OptimizerSpec::Muon(settings) => &mut settings.$field,
        }
    };
}

impl OptimizerSpec {
    /// The names, as `torch.optim` has them.
    pub const NAMES: [&'static str; 11] =
        ["AdamW", "Adam", "SGD", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Adafactor", "Muon"];

    /// Settings that say how torch computes and not what: they change nothing here.
    const OF_THE_IMPLEMENTATION: [&'static str; 4] = ["foreach", "fused", "capturable", "differentiable"];

    /// The optimizer of this name with these keyword arguments of its class; what is left out has torch's default.
    pub fn named(name: &str, mut settings: Map<String, Value>) -> Result<Self> {
        settings.retain(|key, _| !Self::OF_THE_IMPLEMENTATION.contains(&key.as_str()));
        let spec: Self = named("optimizer", &Self::NAMES, name, settings)?;
        spec.validate()?;
        Ok(spec)
    }

    /// Its name in `torch.optim`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::AdamW(_) => "AdamW",
            Self::Adam(_) => "Adam",
            Self::Sgd(_) => "SGD",
            Self::Adamax(_) => "Adamax",
            Self::NAdam(_) => "NAdam",
            Self::RAdam(_) => "RAdam",
            Self::Adagrad(_) => "Adagrad",
            Self::Adadelta(_) => "Adadelta",
            Self::RmsProp(_) => "RMSprop",
            Self::Adafactor(_) => "Adafactor",
            Self::Muon(_) => "Muon",
        }
    }

    /// The learning rate.
    #[must_use]
    pub const fn lr(&self) -> f64 {
        *field!(self, lr)
    }

    /// Another learning rate.
    pub const fn set_lr(&mut self, lr: f64) {
        *field!(self, mut lr) = lr;
    }

    /// The weight decay.
    #[must_use]
    pub const fn weight_decay(&self) -> f64 {
        *field!(self, weight_decay)
    }

    /// Another weight decay.
    pub const fn set_weight_decay(&mut self, weight_decay: f64) {
        *field!(self, mut weight_decay) = weight_decay;
    }

    /// The decay of both moments, where there are two.
    pub const fn betas_mut(&mut self) -> Option<&mut [f64; 2]> {
        match self {
            Self::AdamW(settings) => Some(&mut settings.betas),
            Self::Adam(settings) => Some(&mut settings.betas),
            Self::Adamax(settings) => Some(&mut settings.betas),
            Self::NAdam(settings) => Some(&mut settings.betas),
            Self::RAdam(settings) => Some(&mut settings.betas),
            _ => None,
        }
    }

    /// What a schedule that cycles momentum changes: the momentum, or the first moment's decay; `None`: there is none.
    pub const fn momentum_mut(&mut self) -> Option<&mut f64> {
        match self {
            Self::Sgd(settings) => Some(&mut settings.momentum),
            Self::RmsProp(settings) => Some(&mut settings.momentum),
            Self::Muon(settings) => Some(&mut settings.momentum),
            _ => match self.betas_mut() {
                Some([beta1, _]) => Some(beta1),
                None => None,
            },
        }
    }

    /// What is added to the denominator, where that is one number.
    pub const fn eps_mut(&mut self) -> Option<&mut f64> {
        match self {
            Self::AdamW(settings) => Some(&mut settings.eps),
            Self::Adam(settings) => Some(&mut settings.eps),
            Self::Adamax(settings) => Some(&mut settings.eps),
            Self::NAdam(settings) => Some(&mut settings.eps),
            Self::RAdam(settings) => Some(&mut settings.eps),
            Self::Adagrad(settings) => Some(&mut settings.eps),
            Self::Adadelta(settings) => Some(&mut settings.eps),
            Self::RmsProp(settings) => Some(&mut settings.eps),
            Self::Muon(settings) => Some(&mut settings.eps),
            Self::Sgd(_) | Self::Adafactor(_) => None,
        }
    }

    /// Whether the settings are in the ranges that torch allows; the error names the first that is not.
    pub fn validate(&self) -> Result<()> {
        at_least_zero("lr", self.lr())?;
        at_least_zero("weight_decay", self.weight_decay())?;
        let mut own = self.clone();
        if let Some(betas) = own.betas_mut() {
            for beta in betas {
                check("betas", *beta, (0.0..1.0).contains(beta), "two numbers in [0, 1)")?;
            }
        }
        if let Some(eps) = own.eps_mut() {
            at_least_zero("eps", *eps)?;
        }
        match self {
            Self::Sgd(sgd) => {
                at_least_zero("momentum", sgd.momentum)?;
                check("dampening", sgd.dampening, true, "a finite number")?;
                if sgd.nesterov && (sgd.momentum <= 0.0 || sgd.dampening != 0.0) {
                    return Err(Error::invalid("`nesterov` needs a momentum above 0 and no dampening"));
                }
                Ok(())
            }
            Self::NAdam(nadam) => at_least_zero("momentum_decay", nadam.momentum_decay),
            Self::Adagrad(adagrad) => {
                at_least_zero("lr_decay", adagrad.lr_decay)?;
                at_least_zero("initial_accumulator_value", adagrad.initial_accumulator_value)
            }
            Self::Adadelta(adadelta) => check("rho", adadelta.rho, (0.0..=1.0).contains(&adadelta.rho), "in [0, 1]"),
            Self::RmsProp(rmsprop) => {
                at_least_zero("momentum", rmsprop.momentum)?;
                at_least_zero("alpha", rmsprop.alpha)
            }
            Self::Adafactor(adafactor) => {
                check("beta2_decay", adafactor.beta2_decay, adafactor.beta2_decay <= 0.0, "at most 0")?;
                check("d", adafactor.d, adafactor.d >= 1.0, "at least 1")?;
                let (of_squares, of_parameters) = adafactor.eps;
                at_least_zero("eps", of_squares.unwrap_or_default())?;
                at_least_zero("eps", of_parameters)
            }
            Self::Muon(muon) => {
                at_least_zero("momentum", muon.momentum)?;
                for coefficient in muon.ns_coefficients {
                    check("ns_coefficients", coefficient, true, "three finite numbers")?;
                }
                check("ns_steps", f64::from(muon.ns_steps), muon.ns_steps < 100, "below 100")
            }
            Self::AdamW(_) | Self::Adam(_) | Self::Adamax(_) | Self::RAdam(_) => Ok(()),
        }
    }
}

fn at_least_zero(name: &str, value: f64) -> Result<()> {
    check(name, value, value >= 0.0, "a finite number of at least 0")
}

fn check(name: &str, value: f64, allowed: bool, range: &str) -> Result<()> {
    if allowed && value.is_finite() {
        return Ok(());
    }
    Err(Error::invalid(format!("`{name}` is {value}, but must be {range}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(settings) => settings,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn keyword_arguments_of_torch_make_an_optimizer() {
        let given = settings(json!({ "lr": 1, "momentum": 0.9, "nesterov": true, "foreach": null }));
        let expected = Sgd { lr: 1.0, momentum: 0.9, nesterov: true, ..Sgd::default() };
        assert_eq!(OptimizerSpec::named("SGD", given).unwrap(), OptimizerSpec::Sgd(expected));
        let given = settings(json!({ "eps": [null, 0.01] }));
        let expected = Adafactor { eps: (None, 0.01), ..Adafactor::default() };
        assert_eq!(OptimizerSpec::named("Adafactor", given).unwrap(), OptimizerSpec::Adafactor(expected));
        for name in OptimizerSpec::NAMES {
            assert_eq!(OptimizerSpec::named(name, Map::new()).unwrap().name(), name);
        }
    }

    #[test]
    fn what_is_wrong_with_an_optimizer_is_named() {
        let wrong = |name: &str, value: Value| OptimizerSpec::named(name, settings(value)).unwrap_err().to_string();
        assert!(wrong("Adamw", json!({})).contains("did you mean `AdamW`?"), "{}", wrong("Adamw", json!({})));
        assert!(wrong("SGD", json!({ "beta": 1 })).contains("`beta`"), "{}", wrong("SGD", json!({ "beta": 1 })));
        assert!(wrong("Adam", json!({ "betas": [0.9, 1.0] })).contains("`betas` is 1"));
        assert!(wrong("SGD", json!({ "nesterov": true })).contains("`nesterov`"));
        assert!(wrong("AdamW", json!({ "lr": -1.0 })).contains("`lr` is -1"));
        assert!(wrong("Muon", json!({ "adjust_lr_fn": "other" })).contains("match_rms_adamw"));
    }

    #[cfg(feature = "node")]
    #[test]
    fn an_optimizer_survives_the_journal() {
        for name in OptimizerSpec::NAMES {
            let mut spec = OptimizerSpec::named(name, Map::new()).unwrap();
            spec.set_lr(0.1 + 0.2);
            let bytes = rmp_serde::to_vec_named(&spec).unwrap();
            assert_eq!(rmp_serde::from_slice::<OptimizerSpec>(&bytes).unwrap(), spec);
        }
        let work = OptimizerWork {
            clip: Some(GradientClip { max_norm: 1.0, norm: GradientNorm::Infinity }),
            step: true,
            normalise: true,
            accumulation_steps: Some(4),
            ..OptimizerWork::default()
        };
        let bytes = rmp_serde::to_vec_named(&work).unwrap();
        assert_eq!(rmp_serde::from_slice::<OptimizerWork>(&bytes).unwrap(), work);
    }
}
