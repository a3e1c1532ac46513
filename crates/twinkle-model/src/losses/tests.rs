use twinkle_core::call::LossSpec;

use super::*;

fn spec(name: &str, config: &[(&str, f64)]) -> LossSpec {
    let config = config.iter().map(|(key, value)| ((*key).into(), *value)).collect();
    LossSpec { name: name.into(), config, ..LossSpec::default() }
}

fn built(name: &str) -> Box<dyn Loss> {
    build(&spec(name, &[])).unwrap()
}

/// Inputs of one target in the order of the loss's columns, the defaults where `sent` has none.
fn inputs(loss: &dyn Loss, sent: &[(&str, f32)]) -> Vec<f32> {
    let Inputs::Columns(columns) = loss.inputs() else { panic!("a loss without columns") };
    let value = |column: &Column| {
        let given = sent.iter().find(|(name, _)| *name == column.name).map(|(_, value)| *value);
        given.or(column.default).unwrap_or_else(|| panic!("no `{}`", column.name))
    };
    columns.iter().map(value).collect()
}

fn token(loss: &dyn Loss, logprob: f32, sent: &[(&str, f32)]) -> TokenLoss {
    let Scope::Token(rule) = loss.scope() else { panic!("not a loss of single tokens") };
    rule.token(logprob, &inputs(loss, sent))
}

fn example(loss: &dyn Loss, rows: &[&[(&str, f32)]]) -> Example {
    Example {
        tokens: vec![1; rows.len()],
        targets: vec![1; rows.len()],
        candidates: None,
        inputs: rows.iter().flat_map(|sent| inputs(loss, sent)).collect(),
        sent: BTreeMap::new(),
    }
}

/// Value and derivatives of one datum of a loss of sequences.
fn sequence(loss: &dyn Loss, logprobs: &[f32], rows: &[&[(&str, f32)]]) -> (f64, Vec<f32>) {
    let Scope::Sequence(rule) = loss.scope() else { panic!("not a loss of sequences") };
    let mut derivatives = vec![0.0; logprobs.len()];
    let value = rule.sequence(DatumView { example: &example(loss, rows), logprobs, facts: &[] }, &mut derivatives);
    (value, derivatives)
}

fn policy(sampled: f32, advantage: f32) -> [(&'static str, f32); 2] {
    [("logprobs", sampled), ("advantages", advantage)]
}

/// Central difference of the value must equal the derivative wherever the loss is smooth.
fn check_derivative(loss: &dyn Loss, logprob: f32, sent: &[(&str, f32)]) {
    let step = 1e-3;
    let above = token(loss, logprob + step, sent).value;
    let below = token(loss, logprob - step, sent).value;
    let numeric = (above - below) / (2.0 * step);
    let exact = token(loss, logprob, sent).derivative;
    assert!((numeric - exact).abs() <= 1e-2 * exact.abs().max(1.0), "{numeric} against {exact} at {logprob} {sent:?}");
}

#[test]
fn derivatives_equal_central_differences() {
    for weight in [0.0, 1.0, 0.5, -2.0] {
        check_derivative(built("cross_entropy").as_ref(), -1.3, &[("weights", weight)]);
    }
    for name in ["importance_sampling", "ppo", "dro"] {
        let loss = built(name);
        for (logprob, sampled, advantage) in
            [(-1.0, -1.05, 1.5), (-1.0, -1.05, -1.5), (-1.0, -2.0, 1.0), (-1.0, -2.0, -1.0), (-3.0, -1.0, 1.0)]
        {
            check_derivative(loss.as_ref(), logprob, &policy(sampled, advantage));
        }
    }
}

#[test]
fn masked_positions_are_exactly_nothing_even_where_the_ratio_overflows() {
    for name in ["importance_sampling", "ppo", "cispo", "dro"] {
        assert_eq!(token(built(name).as_ref(), -0.5, &policy(-500.0, 0.0)), TokenLoss::MASKED, "{name}");
    }
    assert_eq!(token(built("cross_entropy").as_ref(), f32::NEG_INFINITY, &[("weights", 0.0)]), TokenLoss::MASKED);
    let masked = [("logprobs", -500.0), ("advantages", 0.0), ("sequence_ratio_mask", 1.0)];
    assert_eq!(sequence(built("gspo").as_ref(), &[-0.5], &[&masked]), (0.0, vec![0.0]));
}

#[test]
fn bounds_of_a_target_win_over_the_settings() {
    let ppo = built("ppo");
    // r = e.
    let clipped = token(ppo.as_ref(), 0.0, &policy(-1.0, 1.0));
    assert_eq!(clipped, TokenLoss { value: -1.2, derivative: 0.0 });
    let [q, a] = policy(-1.0, 1.0);
    let wide = token(ppo.as_ref(), 0.0, &[q, a, ("clip_high_threshold", 5.0)]);
    assert!((wide.derivative + 1.0_f32.exp()).abs() < 1e-6, "{wide:?}");
    let swapped = example(ppo.as_ref(), &[&[q, a, ("clip_low_threshold", 2.0)]]);
    assert!(ppo.check(&swapped).unwrap_err().to_string().contains("position 0 needs 0 ≤"));
}

#[test]
fn the_ratio_of_a_sequence_is_the_mean_over_its_mask() {
    let gspo = built("gspo");
    let row =
        |sampled, advantage, mask| [("logprobs", sampled), ("advantages", advantage), ("sequence_ratio_mask", mask)];
    // t − q is 5 (left out), 0.2 and −0.1: s = exp(0.05), whose clipping leaves both alone.
    let rows = [row(-6.0, 0.0, 0.0), row(-1.2, 2.0, 1.0), row(-0.9, -1.0, 1.0)];
    let (value, derivatives) =
        sequence(gspo.as_ref(), &[-1.0; 3], &rows.iter().map(<[_; 3]>::as_slice).collect::<Vec<_>>());
    let s = 0.05_f32.exp();
    assert!((value + f64::from(s)).abs() < 1e-6, "{value}");
    let expected = [0.0, -2.0 * s, s];
    for (derivative, expected) in derivatives.iter().zip(expected) {
        assert!((derivative - expected).abs() < 1e-6, "{derivatives:?}");
    }
}

#[test]
fn a_clipped_sequence_has_a_value_but_no_derivative() {
    let gspo = built("gspo");
    let row = |advantage| [("logprobs", -2.0), ("advantages", advantage), ("sequence_ratio_mask", 1.0)];
    let (value, derivatives) = sequence(gspo.as_ref(), &[-1.0, -1.0], &[&row(1.0), &row(-1.0)]);
    // r = e: the first is clipped to 1.2, the second takes the worse branch, which is the ratio's.
    assert!((value - (1.0_f64.exp() - 1.2)).abs() < 1e-6, "{value}");
    assert!(derivatives[0] == 0.0 && (derivatives[1] - 1.0_f32.exp()).abs() < 1e-6, "{derivatives:?}");
}

#[test]
fn a_sequence_that_counts_needs_a_mask() {
    let gspo = built("gspo");
    let row = |advantage| [("logprobs", -2.0), ("advantages", advantage), ("sequence_ratio_mask", 0.0)];
    assert!(gspo.check(&example(gspo.as_ref(), &[&row(0.0)])).is_ok());
    let error = gspo.check(&example(gspo.as_ref(), &[&row(1.0)])).unwrap_err();
    assert!(error.to_string().contains("`sequence_ratio_mask` is 0 everywhere"), "{error}");
}

#[test]
fn metrics_count_what_counts_and_are_finite() {
    let ppo = built("ppo");
    // Masked; inside the bounds (r = 1); outside; a ratio that overflows.
    let rows = [policy(-500.0, 0.0), policy(-1.0, 1.0), policy(-2.0, 1.0), policy(-500.0, 1.0)];
    let example = example(ppo.as_ref(), &rows.iter().map(<[_; 2]>::as_slice).collect::<Vec<_>>());
    let mut tally = Tally::default();
    ppo.observe(DatumView { example: &example, logprobs: &[-1.0; 4], facts: &[] }, &mut tally);
    let metrics: BTreeMap<String, f64> = tally.into_metrics().collect();
    let expected = [("clipped_tokens:sum", 2.0), ("kl:sum", -500.0), ("tokens:sum", 3.0)];
    for (name, expected) in expected {
        assert!((metrics[name] - expected).abs() < 1e-9, "{metrics:?}");
    }
    assert!(metrics["ratio:sum"].is_finite());
}

#[test]
fn unknown_names_suggest_the_nearest() {
    let error = build(&spec("cross_entrpy", &[])).err().unwrap();
    assert!(error.to_string().contains("did you mean `cross_entropy`"), "{error}");
    let error = build(&spec("ppo", &[("clip_low", 0.8)])).err().unwrap();
    assert!(error.to_string().contains("clip_low_threshold"), "{error}");
    assert!(build(&spec("ppo", &[("clip_low_threshold", 1.3)])).is_err());
    assert!(build(&spec("ppo", &[("clip_low_threshold", f64::NAN)])).is_err());
    assert!(build(&spec("gspo", &[("beta", 0.1)])).is_err());
    assert!(build(&spec("dro", &[("beta", -0.1)])).is_err());
}

#[test]
fn a_loss_without_a_published_formula_is_refused_by_name() {
    let error = build(&spec("stable_reinforce", &[("kl_coeff", 0.01)])).err().unwrap();
    assert!(error.code.is_users_fault());
    let text = error.to_string();
    assert!(text.contains("has not been published") && text.contains("`gspo`"), "{text}");
}
