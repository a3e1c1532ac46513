#!/usr/bin/env python3
"""Trains a run as a plan says, and saves it: the other half of a comparison with the native Rust client.

The plan is a JSON file with the adapter's rank and seed and, per step, its examples, its loss with settings, and the
optimizer's settings. Steps are submitted without waiting, as a loop does that keeps the server busy.
"""

import json
import pathlib

import blackbox
from blackbox import TIMEOUT, expect, types

DTYPES = {"target_tokens": "int64"}


def main():
    options = blackbox.parser(__doc__)
    options.add_argument("--plan", required=True, type=pathlib.Path)
    options.add_argument("--name", required=True, help="of the checkpoint")
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    plan = json.loads(arguments.plan.read_text())

    client = blackbox.service(arguments.base_url)
    run = blackbox.create_run(client, arguments.model, seed=plan["seed"], rank=plan["rank"])
    pending = []
    for step in plan["steps"]:
        data = [datum(example) for example in step["data"]]
        config = step["loss_config"]
        pending.append(run.forward_backward(data, step["loss"], config) if config else run.forward_backward(data, step["loss"]))
        pending.append(run.optim_step(types.AdamParams(**step["adam"])))
    for future in pending:
        future.result(timeout=TIMEOUT)
    path = run.save_state(arguments.name).result(timeout=TIMEOUT).path
    expect(path.endswith(f"/weights/{arguments.name}"), f"the checkpoint is at `{path}`")


def datum(example):
    inputs = {
        name: types.TensorData(data=values, dtype=DTYPES.get(name, "float32"), shape=[len(values)])
        for name, values in example["inputs"].items()
    }
    return types.Datum(model_input=types.ModelInput.from_ints(example["tokens"]), loss_fn_inputs=inputs)


if __name__ == "__main__":
    blackbox.run(main)
