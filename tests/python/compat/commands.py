"""Scenarios of the command `tinker`."""

import tempfile
from pathlib import Path

from blackbox import expect
from scenario import Local, NotDriven, classified, resolve, scenario
from world import KEY


def tinker(*words, output="json", answer=None):
    """Runs the command in this process, as its entry point would; returns what it printed."""
    from click.testing import CliRunner
    from tinker.cli.__main__ import main_cli

    result = CliRunner().invoke(main_cli, ["--format", output, *words], input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise as_refusal(result.exception)
    if "Got unexpected extra argument" in result.output:
        # 0.16.1 calls its own command `list` where it means the built-in function.
        raise Local("a slip of this release: it cannot take the path")
    expect(result.exit_code == 0, f"`tinker {' '.join(words)}` ended with {result.exit_code}: {result.output}")
    return result.output


def as_refusal(error):
    """The command words the error of the SDK anew; without one, or with one the SDK raised by itself, it is local."""
    if type(error).__name__ != "TinkerCliError":
        return error
    cause = error.__context__
    if cause is None or (type(cause) is RuntimeError and classified(cause)[0] == "differs"):
        return Local(error.message)
    return cause


@scenario("tinker version")
def version(trial):
    from tinker import __version__ as installed

    expect(installed in tinker("version", output="table"), "another version")


@scenario("tinker model list")
def models(trial):
    expect(trial.world.model in tinker("model", "list"), "the model is missing")


# Runs.


@scenario("tinker run list", "tinker run list --limit", "tinker run list --columns")
def runs(trial):
    _ = trial.world.run
    options = {
        "tinker run list": [], "tinker run list --limit": ["--limit", "0"],
        "tinker run list --columns": ["--columns", "id,model,lora"],
    }[trial.row]
    expect(trial.world.run.model_id in tinker("run", "list", "--limit", "0", *options), "the run is missing")
    expect(tinker("run", "list", *options, output="table"), "no table")


@scenario("tinker run info")
def run_info(trial):
    run = trial.world.run.model_id
    expect(run in tinker("run", "info", run) and run in tinker("run", "info", run, output="table"), "the run is missing")


# Checkpoints.


@scenario("tinker checkpoint list", "tinker checkpoint list --run-id", "tinker checkpoint list --limit")
def checkpoints(trial):
    world = trial.world
    path = world.state
    options = {"--run-id": ["--run-id", world.run.model_id], "--limit": ["--limit", "0"]}.get(trial.row.split()[-1], [])
    expect(path in tinker("checkpoint", "list", *(options or ["--limit", "0"])), f"`{path}` is missing")
    expect(tinker("checkpoint", "list", *options, output="table"), "no table")


@scenario("tinker checkpoint info")
def checkpoint_info(trial):
    expect(trial.world.weights in tinker("checkpoint", "info", trial.world.weights), "the path is missing")


@scenario("tinker checkpoint publish", "tinker checkpoint unpublish")
def publish(trial):
    path = trial.world.new_weights()
    tinker("checkpoint", "publish", path)
    expect(public(trial.world, path), "it is not public")
    tinker("checkpoint", "unpublish", path)
    expect(not public(trial.world, path), "it is still public")


def public(world, path):
    listed = resolve(world.rest.list_checkpoints, world.run.model_id).checkpoints
    return [one.public for one in listed if one.tinker_path == path] == [True]


@scenario("tinker checkpoint set-ttl", "tinker checkpoint set-ttl --ttl", "tinker checkpoint set-ttl --remove")
def set_ttl(trial):
    path = trial.world.new_weights()
    tinker("checkpoint", "set-ttl", path, "--ttl", "3600")
    tinker("checkpoint", "set-ttl", path, "--remove")


@scenario("tinker checkpoint delete", "tinker checkpoint delete --yes")
def delete(trial):
    path = trial.world.new_weights()
    tinker("checkpoint", "delete", path, "--yes")
    expect(path not in tinker("checkpoint", "list", "--run-id", trial.world.run.model_id), f"`{path}` is still there")


@scenario("tinker checkpoint delete --run-id", "tinker checkpoint delete --type", "tinker checkpoint delete --before", "tinker checkpoint delete --after")
def delete_many(trial):
    """All checkpoints of a run of its own that the options choose."""
    world = trial.world
    run = world.new_run()
    paths = [resolve(run.save_state, "one").path, resolve(run.save_weights_for_sampler, "two").path]
    options = {
        "--run-id": [], "--type": ["--type", "weights"], "--before": ["--before", "2999-01-01"],
        "--after": ["--after", "2999-01-01"],
    }[trial.row.split()[-1]]
    left = {"--run-id": [], "--type": paths[1:], "--before": [], "--after": paths}[trial.row.split()[-1]]
    tinker("checkpoint", "delete", "--run-id", run.model_id, "--yes", *options)
    listed = [one.tinker_path for one in resolve(world.rest.list_checkpoints, run.model_id).checkpoints]
    expect(sorted(listed) == sorted(left), f"{sorted(listed)} are left, not {sorted(left)}")


@scenario("tinker checkpoint download", "tinker checkpoint download --output", "tinker checkpoint download --force")
def download(trial):
    world = trial.world
    # Older releases fetch an archive of weights for a sampler; newer ones export a checkpoint to go on from.
    path = world.state if hasattr(world.run, "save_weights_external") and newest() else world.weights
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2 if trial.row.endswith("--force") else 1):
            tinker("checkpoint", "download", path, "--output", folder, "--force")
        names = {file.name for file in Path(folder).rglob("*")}
    expect({"adapter_config.json", "adapter_model.safetensors"} <= names, f"the download holds {sorted(names)}")


def newest():
    from tinker.lib.public_interfaces.rest_client import RestClient

    return not hasattr(RestClient, "get_checkpoint_archive_url")


PUSH_OPTIONS = ("repo", "public", "revision", "commit-message", "create-pr", "allow-pattern", "ignore-pattern", "no-model-card")


@scenario("tinker checkpoint push-hf", *(f"tinker checkpoint push-hf --{option}" for option in PUSH_OPTIONS))
def push(trial):
    raise NotDriven("uploads to the Hub of Hugging Face what `tinker checkpoint download` fetches")


# Sessions.


@scenario("tinker session export-trace", "tinker session export-trace --output", "tinker session export-trace --url-only")
def trace(trial):
    words = ["session", "export-trace", trial.world.session_of()]
    options = {"--output": ["--output", "trace.pftrace"], "--url-only": ["--url-only"]}.get(trial.row.split()[-1], [])
    tinker(*words, *options)


# Accounts.


@scenario("tinker auth status")
def auth_status(trial):
    seen = tinker("auth", "status", output="table")
    expect("Credentials available: yes" in seen and "Tinker accessible: yes" in seen, seen)


@scenario("tinker auth whoami")
def auth_whoami(trial):
    tinker("auth", "whoami")


@scenario("tinker auth login")
def auth_login(trial):
    tinker("auth", "login", output="table", answer=f"{KEY}\n")


@scenario("tinker auth logout")
def auth_logout(trial):
    tinker("auth", "logout", output="table")


@scenario("tinker billing usage", "tinker billing usage --csv", "tinker billing usage --sessions-csv")
def billing(trial):
    options = {"--csv": ["--csv", "usage.csv"], "--sessions-csv": ["--sessions-csv", "sessions.csv"]}
    tinker("billing", "usage", "2026-01-01", "2026-01-02", *options.get(trial.row.split()[-1], []))


@scenario("tinker billing checkpoint-storage", "tinker billing checkpoint-storage --project-id", "tinker billing checkpoint-storage --csv")
def storage(trial):
    options = {"--csv": ["--csv", "storage.csv"], "--project-id": ["--project-id", "a-project"]}
    tinker("billing", "checkpoint-storage", *options.get(trial.row.split()[-1], []))
