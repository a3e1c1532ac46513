//! The cookbook's recipes, unmodified, against a server with a tiny model under the name they know.
//!
//! `tests/cookbook` makes the folder they run in, knows their command lines and checks what they leave. What is in
//! [`every_run`] runs on every run, the rest with `cargo xtask test --all`.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use twinkle_tests::{Node, NodeOptions};

/// A name in the cookbook's table of models whose chat format works with any tokenizer.
const MODEL: &str = "Qwen/Qwen3-8B-Base";
/// Names the folder in which each recipe leaves its figures for docs/cookbook.md.
const RESULTS_VARIABLE: &str = "TWINKLE_COOKBOOK_RESULTS";
/// The SDK sends batches of many sequences, and nobody shares this server.
const QUEUE: &str = "queue_config: {rps_limit: 0, tps_limit: 0, max_input_tokens: 1000000}";

/// Makes a work folder, serves its model and runs `recipe` in it.
async fn run(recipe: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let work = folder.path().join("work");
    python("work_folder.py", &[work.as_os_str()]).await.expect("the work folder");
    let options = NodeOptions {
        model: work.join(MODEL),
        name: MODEL.to_owned(),
        model_args: QUEUE.to_owned(),
        sampler_args: QUEUE.to_owned(),
        ..NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "qwen3")
    };
    let node = Node::start(options).await.expect("the server starts");
    let url = node.base_url();
    let mut arguments = vec!["--base-url".as_ref(), url.as_ref(), "--work".as_ref(), work.as_os_str()];
    let results = env::var_os(RESULTS_VARIABLE);
    if let Some(results) = &results {
        arguments.extend(["--results".as_ref(), results.as_os_str()]);
    }
    arguments.push(recipe.as_ref());
    if let Err(failure) = python("run.py", &arguments).await {
        panic!("{failure:#}\n--- server log ---\n{}", node.log());
    }
}

/// Runs a script of `tests/cookbook` in the cookbook's environment.
async fn python(script: &str, arguments: &[&std::ffi::OsStr]) -> Result<()> {
    let root = root();
    let python = root.join(".venvs/cookbook-0.6.1/bin/python");
    if !python.exists() {
        bail!("`{}` is missing: run `cargo xtask setup --cookbook`", python.display());
    }
    let run =
        Command::new(python).arg(root.join("tests/cookbook").join(script)).args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_mins(9), run)
        .await
        .with_context(|| format!("{script} did not finish within nine minutes"))??;
    if !output.status.success() {
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{script} ended with {}:\n{stdout}\n{stderr}", output.status);
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new(".")).to_path_buf()
}

/// A test for each recipe.
macro_rules! recipes {
    ($($name:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() {
                super::run(stringify!($name)).await;
            }
        )+
    };
}

mod every_run {
    recipes! { sl_loop, rl_loop, math_rl_cispo_substeps_post_kl, preference_dpo }
}

mod all {
    recipes! {
        chat_sl_resume,
        chat_sl_rolling,
        rl_loop_gspo,
        math_rl_importance_sampling,
        math_rl_ppo_async,
        math_rl_streaming_minibatches,
        prompt_distillation,
        on_policy_distillation,
        sdft,
        sdft_reverse,
        preference_shorter,
        guess_number,
    }
}
