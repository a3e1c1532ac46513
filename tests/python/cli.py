#!/usr/bin/env python3
"""The SDK's own `tinker` command: runs, models, checkpoints and sessions, down to the downloaded files.

One command is run as a program; the others in this process, which saves them the start of Python.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import uuid

import blackbox
from blackbox import SDK, TIMEOUT, expect
from click.testing import CliRunner

# A tenant of its own: the command lists everything that is a tenant's.
KEY = f"tml-test-cli-{uuid.uuid4()}"


def main():
    options = blackbox.parser(__doc__)
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    os.environ["TINKER_BASE_URL"] = arguments.base_url
    os.environ["TINKER_API_KEY"] = KEY

    client = blackbox.service(arguments.base_url, KEY)
    run = blackbox.create_run(client, arguments.model, rank=4, user_metadata={"purpose": "cli"})
    state = run.save_state("kept").result(timeout=TIMEOUT).path
    sampler = run.save_weights_for_sampler("sold").result(timeout=TIMEOUT).path

    runs(run.model_id)
    lists(run.model_id, {state: "training", sampler: "sampler"})
    published(state)
    lifetimes(state)
    if SDK >= (0, 38, 0):
        models(arguments.model)
        external = run.save_weights_external("out", ttl_seconds=7200).result(timeout=TIMEOUT).path
        expect(external.endswith("/external_weights/out"), f"the export's path is `{external}`")
        lists(run.model_id, {state: "training", sampler: "sampler", external: "external"})
        downloaded(external)
        # Through a new run and a temporary export.
        downloaded(state)
        traces(run)
    else:
        downloaded(sampler)
        downloaded(state)
    deletes(run.model_id, state, sampler)


def runs(run_id):
    listed = told("run", "list")["runs"]
    expect(run_id in [run["training_run_id"] for run in listed], f"`tinker run list` shows {listed}")
    info = told("run", "info", run_id)
    expect(info["lora_rank"] == 4 and info["is_lora"], f"`tinker run info` shows {info}")
    expect(info["user_metadata"] == {"purpose": "cli"}, f"`tinker run info` shows {info}")
    message = refused("run", "info", "nobody:train:0")
    expect("does not exist" in message, f"an unknown run is answered with `{message}`")
    program = pathlib.Path(sys.executable).with_name("tinker")
    shown = subprocess.run([program, "run", "info", run_id], capture_output=True, text=True, timeout=TIMEOUT)
    expect(run_id in shown.stdout and shown.returncode == 0, f"the program `tinker` says {shown}")


def models(model):
    listed = told("model", "list")["models"]
    mine = [shown for shown in listed if shown["model_name"] == model]
    expect(len(mine) == 1 and mine[0]["trainable"] and mine[0]["sampleable"], f"`tinker model list` shows {listed}")
    expect(mine[0]["max_context_length"] > 0, f"`tinker model list` shows {mine}")


def lists(run_id, expected):
    for of_run in [["--run-id", run_id], [], ["--limit", "0"]]:
        listed = told("checkpoint", "list", *of_run)["checkpoints"]
        kinds = {shown["tinker_path"]: shown["checkpoint_type"] for shown in listed}
        expect(kinds == expected, f"`tinker checkpoint list {of_run}` shows {kinds}, not {expected}")
        expect(all(shown["size_bytes"] > 0 and not shown["public"] for shown in listed), f"{listed}")


def published(path):
    for command, public in [("publish", True), ("publish", True), ("unpublish", False)]:
        told("checkpoint", command, path, silent=True)
        info = told("checkpoint", "info", path)
        expect(info["public"] is public, f"after `{command}` the checkpoint is {info}")


def lifetimes(path):
    told("checkpoint", "set-ttl", path, "--ttl", "7200", silent=True)
    info = told("checkpoint", "info", path)
    expect(info["expires_at"] is not None, f"with a lifetime the checkpoint is {info}")
    message = refused("checkpoint", "set-ttl", path, "--ttl", "60")
    expect("3600" in message, f"a lifetime of a minute is answered with `{message}`")
    told("checkpoint", "set-ttl", path, "--remove", silent=True)
    info = told("checkpoint", "info", path)
    expect(info["expires_at"] is None, f"without a lifetime the checkpoint is {info}")


def downloaded(path):
    with tempfile.TemporaryDirectory() as folder:
        told("checkpoint", "download", path, "--output", folder)
        target = pathlib.Path(folder) / path.removeprefix("tinker://").replace("/", "_")
        config = json.loads((target / "adapter_config.json").read_text())
        expect(config["r"] == 4 and config["peft_type"] == "LORA", f"the downloaded adapter is {config}")
        weights = (target / "adapter_model.safetensors").read_bytes()
        head = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
        tensors = [name for name in head if name != "__metadata__"]
        expect(any(name.endswith("lora_A.weight") for name in tensors), f"the downloaded tensors are {tensors}")
        end = max(head[name]["data_offsets"][1] for name in tensors)
        length = 8 + int.from_bytes(weights[:8], "little") + end
        expect(len(weights) == length, f"the downloaded file has {len(weights)} bytes, not {length}")


def traces(run):
    session = run.model_id.split(":train:")[0]
    message = refused("session", "export-trace", session)
    expect("keeps no timelines" in message, f"a trace is answered with `{message}`")


def deletes(run_id, state, sampler):
    # In 0.16.1 paths are not taken: the command's own `list` is in the way of Python's.
    one = [sampler] if SDK >= (0, 18) else ["--run-id", run_id, "--type", "sampler_weights"]
    answer = told("checkpoint", "delete", "--yes", *one)
    expect(answer["deleted_count"] == 1, f"`tinker checkpoint delete` says {answer}")
    if SDK >= (0, 18):
        answer = told("checkpoint", "delete", "--yes", sampler)
        expect(answer["deleted_count"] == 0 and "does not exist" in answer["failed"][0]["error"], f"{answer}")
    told("checkpoint", "delete", "--yes", "--run-id", run_id)
    left = told("checkpoint", "list", "--run-id", run_id)["checkpoints"]
    expect(left == [], f"after deleting everything there is {left}")
    message = refused("checkpoint", "info", state)
    expect("not found" in message.lower(), f"a deleted checkpoint is answered with `{message}`")


def command(*words):
    from tinker.cli.__main__ import main_cli

    return CliRunner().invoke(main_cli, ["--format", "json", *words])


def told(*words, silent=False):
    """What the command tells, which must be JSON or nothing."""
    result = command(*words)
    if result.exit_code != 0:
        raise blackbox.Failure(f"`tinker {' '.join(words)}` failed: {result.output} {result.exception!r}")
    if silent:
        return None
    text = result.stdout
    return json.loads(text[text.index("{") :])


def refused(*words):
    """Why the command fails."""
    result = command(*words)
    expect(result.exit_code != 0, f"`tinker {' '.join(words)}` succeeded: {result.output}")
    error = result.exception
    return f"{getattr(error, 'message', error)} {getattr(error, 'details', '')} {result.output}"


if __name__ == "__main__":
    blackbox.run(main)
