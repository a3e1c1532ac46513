//! The page `docs/learning.md`.

use std::fmt::Write as _;

use anyhow::Result;

use super::Recipe;
use super::curve::Curve;
use super::picture::Picture;
use crate::bench::machine;

/// What is drawn of a recipe.
pub(super) const fn picture_of(recipe: Recipe) -> Picture {
    match recipe {
        Recipe::RlLetter => Picture {
            title: "Reinforcement learning: the letter e",
            unit: "letters per answer",
            lines: &[("best", "best answer of a group"), ("reward", "mean of all answers")],
        },
        Recipe::Dpo => Picture {
            title: "Direct preference optimization: straight answers",
            unit: "margin",
            lines: &[("margin", "pairs of the batch"), ("held_out_margin", "pairs that were kept back")],
        },
    }
}

/// The whole page.
pub(super) fn page(learned: &[(Recipe, Curve)]) -> Result<String> {
    let mut page = format!(
        "# Learning\n\n\
         Written by `cargo xtask learn`, which fails if a curve does not rise. SmolLM2-135M-Instruct, bf16, LoRA rank 8, on \
         {}, server and client on the same cores. Seeds are fixed and the server is deterministic: the same machine draws the \
         same curves. On two cores that also built other things it took 14 minutes.\n",
        machine()
    );
    for (recipe, curve) in learned {
        page += &match recipe {
            Recipe::RlLetter => reinforcement(curve)?,
            Recipe::Dpo => preferences(curve)?,
        };
    }
    Ok(page)
}

fn reinforcement(curve: &Curve) -> Result<String> {
    let mut text = String::from(
        "\n## A reward that can be counted\n\n\
         [`rl_letter`](../crates/twinkle-client/examples/rl_letter/recipe.rs): the reward of an answer is how often the letter \
         `e` occurs in it; nobody tells the model. A step samples groups of answers from the run as it is, subtracts each group's \
         mean reward, and takes one AdamW step on `importance_sampling`.\n\n\
         ![the reward rises](learning/rl_letter.svg)\n\n",
    );
    table(
        &mut text,
        curve,
        &[("mean reward", "reward"), ("best of a group", "best"), ("logprob of a sampled token", "logprob")],
    )?;
    write!(
        text,
        "\nBoth compute in bf16, the sampler token by token and the trainer all at once: about the logprob of a sampled token \
         they differed by {:.3} in the mean of a step at most, and by {:.2} for one token of all.\n",
        curve.largest("sampler_gap")?,
        curve.largest("largest_gap")?
    )?;
    write!(
        text,
        "\nAsked \"{}\", which it never learned from, for its likeliest answer:\n\n> before: {}\n>\n> after: {}\n",
        curve.text("question")?,
        curve.text("before")?,
        curve.text("after")?,
    )?;
    finish(&mut text, curve, "rl_letter");
    Ok(text)
}

fn preferences(curve: &Curve) -> Result<String> {
    let mut text = String::from(
        "\n## A preference\n\n\
         [`dpo`](../crates/twinkle-client/examples/dpo/recipe.rs): every fact is told straight (chosen) and with a lot of \
         hesitation (rejected). The server knows no DPO: the client asks for logprobs with `forward`, computes the derivative of its own \
         objective by each of them, and sends the negative derivatives as the weights of `cross_entropy`. The margin is \
         β·Δ with β = 0.2; 8 facts are kept back and only measured.\n\n\
         ![the margin rises](learning/dpo.svg)\n\n",
    );
    table(
        &mut text,
        curve,
        &[
            ("loss", "loss"),
            ("margin", "margin"),
            ("margin, kept back", "held_out_margin"),
            ("ordered rightly, kept back", "held_out_accuracy"),
            ("logprob of the chosen answer against the base model's, kept back", "held_out_chosen"),
            ("logprob of the rejected answer against the base model's, kept back", "held_out_rejected"),
        ],
    )?;
    finish(&mut text, curve, "dpo");
    Ok(text)
}

/// First and last quarter of some columns.
fn table(text: &mut String, curve: &Curve, rows: &[(&str, &str)]) -> Result<()> {
    text.push_str("| mean over | first quarter | last quarter |\n| --- | ---: | ---: |\n");
    for (name, column) in rows {
        writeln!(text, "| {name} | {:.2} | {:.2} |", curve.first_quarter(column)?, curve.last_quarter(column)?)?;
    }
    Ok(())
}

/// Where the numbers are.
fn finish(text: &mut String, curve: &Curve, name: &str) {
    let steps = curve.steps();
    let _ = writeln!(text, "\nThe numbers of all {steps} steps are in [{name}.csv](learning/{name}.csv).");
}
