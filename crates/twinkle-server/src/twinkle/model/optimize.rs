//! Work on the gradients that have accumulated: clipping, stepping, clearing, the learning rate's schedule.
//!
//! All of it is for the end of an accumulation window and does nothing before. The run counts its own backward passes and
//! the tokens of their losses: gradients are divided by them when they are clipped, or else when a step is taken.

use axum::extract::State;
use serde_json::{Value, json};
use twinkle_core::call::{GradientClip, GradientNorm, OptimizerOverrides, OptimizerWork, RunOperation, RunOutcome};
use twinkle_core::error::{Error, Result};

use super::arguments::{Arguments, accumulation_steps};
use super::forward::AboutAdapter;
use super::settings::check_has_optimizer;
use super::work::to_the_end;
use crate::tinker::unexpected;
use crate::twinkle::{Answer, Caller, Json, TwinkleFront, null, ok};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Clip,
    Step,
    Zero,
    Schedule,
    All,
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip_grad_norm",
            Self::Step => "step",
            Self::Zero => "zero_grad",
            Self::Schedule => "lr_step",
            Self::All => "clip_grad_and_step",
        }
    }

    const fn clips(self) -> bool {
        matches!(self, Self::Clip | Self::All)
    }

    const fn steps(self) -> bool {
        matches!(self, Self::Step | Self::All)
    }
}

/// `POST clip_grad_norm`: answers the norm before clipping as a text, `None` before the end of a window.
pub(super) async fn clip_grad_norm(
    State(front): State<TwinkleFront>,
    caller: Caller,
    Json(request): Json<AboutAdapter>,
) -> Answer {
    let norm = work(front, caller, request, Part::Clip).await?;
    let shown = norm.map_or_else(|| "None".to_owned(), |norm| norm.to_string());
    ok(&json!({ "result": shown, "value": norm }))
}

/// `POST step`
pub(super) async fn step(state: State<TwinkleFront>, caller: Caller, request: Json<AboutAdapter>) -> Answer {
    work(state.0, caller, request.0, Part::Step).await?;
    null()
}

/// `POST zero_grad`
pub(super) async fn zero_grad(state: State<TwinkleFront>, caller: Caller, request: Json<AboutAdapter>) -> Answer {
    work(state.0, caller, request.0, Part::Zero).await?;
    null()
}

/// `POST lr_step`
pub(super) async fn lr_step(state: State<TwinkleFront>, caller: Caller, request: Json<AboutAdapter>) -> Answer {
    work(state.0, caller, request.0, Part::Schedule).await?;
    null()
}

/// `POST clip_grad_and_step`: all four in one.
pub(super) async fn clip_grad_and_step(
    state: State<TwinkleFront>,
    caller: Caller,
    request: Json<AboutAdapter>,
) -> Answer {
    work(state.0, caller, request.0, Part::All).await?;
    null()
}

async fn work(front: TwinkleFront, caller: Caller, request: AboutAdapter, what: Part) -> Result<Option<f64>> {
    to_the_end(what.name(), async move {
        let work = read(what, request.rest)?;
        let adapter = front.adapter(&caller, request.adapter_name.as_deref()).await?;
        if what != Part::Clip {
            check_has_optimizer(&adapter.record.settings)?;
        }
        let done = front.perform(&adapter.tenant, adapter.run(), RunOperation::Optimize(work)).await?;
        let metrics = match done.outcome()? {
            RunOutcome::OptimStep { metrics } => metrics,
            other => return Err(unexpected("the model component", other)),
        };
        if what.steps() {
            // The weights of the forward that is kept are not these any more.
            front.forget_forward(&adapter);
        }
        let norm = metrics.get("grad_norm").copied().filter(|_| what.clips());
        if norm.is_some() {
            adapter.counters(|counters| counters.grad_norm = norm);
            front.keep_counters(&adapter).await;
        }
        Ok(norm)
    })
    .await
}

fn read(what: Part, arguments: serde_json::Map<String, Value>) -> Result<OptimizerWork> {
    let mut arguments = Arguments::new(what.name(), arguments);
    let mut work = OptimizerWork {
        normalise: what.clips() || what.steps(),
        step: what.steps(),
        zero_gradients: matches!(what, Part::Zero | Part::All),
        step_scheduler: matches!(what, Part::Schedule | Part::All),
        only_at_boundary: true,
        accumulation_steps: accumulation_steps(&mut arguments)?,
        ..OptimizerWork::default()
    };
    if what.clips() {
        let max_norm = arguments.number("max_grad_norm")?.unwrap_or(1.0);
        work.clip = Some(GradientClip { max_norm, norm: norm(&mut arguments)? });
    }
    if what.steps()
        && let Some(params) = arguments.any("optim_params")
    {
        work.overrides = overrides(params)?;
    }
    if what == Part::Zero {
        // Torch asks whether gradients become nothing or zeros: here that is the same.
        arguments.flag("set_to_none")?;
    }
    arguments.end()?;
    Ok(work)
}

fn norm(arguments: &mut Arguments) -> Result<GradientNorm> {
    match arguments.any("norm_type") {
        None => Ok(GradientNorm::Two),
        Some(value) if value.as_f64() == Some(2.0) || value == "2" => Ok(GradientNorm::Two),
        Some(value) if value == "inf" || value == "Infinity" => Ok(GradientNorm::Infinity),
        Some(value) => Err(Error::invalid(format!("`norm_type` is {value}, but must be 2 or `inf`"))),
    }
}

fn overrides(params: Value) -> Result<OptimizerOverrides> {
    let Value::Object(params) = params else {
        return Err(Error::invalid("`optim_params` must be an object such as {\"lr\": 1e-4}"));
    };
    let mut params = Arguments::new("optim_params", params);
    let betas = match params.any("betas") {
        None => None,
        Some(value) => {
            Some(serde_json::from_value::<[f64; 2]>(value).map_err(|_| Error::invalid("`betas` must be two numbers"))?)
        }
    };
    let overrides = OptimizerOverrides {
        lr: params.number("lr")?,
        betas,
        eps: params.number("eps")?,
        weight_decay: params.number("weight_decay")?,
    };
    params.end()?;
    Ok(overrides)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(what: Part, arguments: &Value) -> Result<OptimizerWork> {
        read(what, arguments.as_object().cloned().unwrap())
    }

    #[test]
    fn all_in_one_is_the_sum_of_the_four() {
        let all = asked(Part::All, &json!({})).unwrap();
        let parts = [Part::Clip, Part::Step, Part::Zero, Part::Schedule].map(|step| asked(step, &json!({})).unwrap());
        assert_eq!(all.clip, parts[0].clip);
        assert!(all.step && parts[1].step && !parts[0].step);
        assert!(all.zero_gradients && parts[2].zero_gradients && !parts[1].zero_gradients);
        assert!(all.step_scheduler && parts[3].step_scheduler && !parts[2].step_scheduler);
        assert!(parts.iter().all(|part| part.only_at_boundary));
        assert!(parts[0].normalise && parts[1].normalise && !parts[2].normalise);
    }

    #[test]
    fn arguments_arrive_and_mistakes_are_named() {
        let work =
            asked(Part::All, &json!({ "max_grad_norm": 0.5, "norm_type": "inf", "gradient_accumulation_steps": 4 }));
        let work = work.unwrap();
        assert_eq!(work.clip, Some(GradientClip { max_norm: 0.5, norm: GradientNorm::Infinity }));
        assert_eq!(work.accumulation_steps, Some(4));
        let params = json!({ "optim_params": { "lr": 0.1, "betas": [0.9, 0.95], "eps": null, "weight_decay": 0 } });
        let overrides = asked(Part::Step, &params).unwrap().overrides;
        assert_eq!((overrides.lr, overrides.betas, overrides.eps), (Some(0.1), Some([0.9, 0.95]), None));
        for (what, arguments, expected) in [
            (Part::Clip, json!({ "norm_type": 1 }), "`norm_type` is 1"),
            (Part::Clip, json!({ "max_grad_nrom": 1 }), "did you mean `max_grad_norm`"),
            (Part::Step, json!({ "gradient_accumulation_steps": 0 }), "at least 1"),
            (Part::Step, json!({ "optim_params": { "lr": "1" } }), "`lr`"),
            (Part::Step, json!({ "optim_params": 3 }), "`optim_params`"),
        ] {
            let error = asked(what, &arguments).unwrap_err().to_string();
            assert!(error.contains(expected), "`{error}` lacks `{expected}`");
        }
    }
}
