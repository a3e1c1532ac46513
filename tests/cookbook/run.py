#!/usr/bin/env python3
"""Runs recipes of the cookbook, unmodified, against a server, and checks what they leave.

    .venvs/cookbook-0.6.1/bin/python tests/cookbook/run.py --base-url URL --work FOLDER [RECIPE ...]

FOLDER is made by work_folder.py; the server serves its `Qwen/Qwen3-8B-Base` under that name. Without names all recipes
run. Exits with 1 when one failed. `--results FOLDER` leaves a JSON file for each recipe, from which the table in
docs/cookbook.md is made.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from recipes import RECIPES, Log, Recipe, Unexpected, check_all, expect, read_rows

# Seconds for one start of a recipe: most need six.
LIMIT = 240


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="folder for one JSON file per recipe")
    known = {recipe.name: recipe for recipe in RECIPES}
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(known))
    arguments = parser.parse_args()
    unknown = set(arguments.recipes) - set(known)
    if unknown:
        parser.error(f"no such recipe: {', '.join(sorted(unknown))}")
    failures = 0
    for name in arguments.recipes or known:
        failures += not run(known[name], arguments)
    sys.exit(1 if failures else 0)


def run(recipe: Recipe, arguments: argparse.Namespace) -> bool:
    folder = arguments.work / "logs" / recipe.name
    shutil.rmtree(folder, ignore_errors=True)
    output = arguments.work / f"logs/{recipe.name}.txt"
    output.parent.mkdir(exist_ok=True)
    output.write_text("")
    start = time.monotonic()
    try:
        if recipe.killed_after:
            killed_and_resumed(recipe, arguments, folder, output)
        else:
            finish(start_recipe(recipe, arguments, output), output)
        log = Log.read(folder, output.read_text())
        expect(log.rows, "metrics.jsonl is missing")
        check_all(recipe, log)
    except Unexpected as reason:
        print(f"FAIL {recipe.name}: {reason}\n--- the recipe's output ---\n{tail(output)}", flush=True)
        return False
    seconds = time.monotonic() - start
    shown = {key: log.trained(key)[-1] for key in recipe.shown}
    print(f"ok   {recipe.name} {seconds:.1f} s {json.dumps(shown)}", flush=True)
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python", *recipe.command(f"logs/{recipe.name}")])
        result = {
            "order": RECIPES.index(recipe), "name": recipe.name, "command": command, "steps": recipe.steps,
            "seconds": round(seconds, 1), "metrics": shown,
        }
        (arguments.results / f"{recipe.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return True


def start_recipe(recipe: Recipe, arguments: argparse.Namespace, output: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "TINKER_BASE_URL": arguments.base_url,
        "TINKER_API_KEY": "tml-local",
        "TINKER_TELEMETRY": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        # What datasets makes of the local files stays with them.
        "HF_HOME": str(arguments.work.absolute() / "huggingface"),
        "TOKENIZERS_PARALLELISM": "false",
        # Tensors this small are faster on one thread, and the server needs the others.
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }
    with output.open("a") as file:
        return subprocess.Popen(
            [sys.executable, *recipe.command(f"logs/{recipe.name}")],
            cwd=arguments.work, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        )


def finish(process: subprocess.Popen, output: Path):
    try:
        code = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise Unexpected(f"it did not finish within {LIMIT} s") from None
    expect(code == 0, f"it ended with {code}")


def killed_and_resumed(recipe: Recipe, arguments: argparse.Namespace, folder: Path, output: Path):
    """Kills the recipe between two checkpoints and starts it again: it goes on at the last checkpoint."""
    metrics, checkpoints = folder / "metrics.jsonl", folder / "checkpoints.jsonl"
    process = start_recipe(recipe, arguments, output)
    deadline = time.monotonic() + LIMIT
    while not any(row["step"] >= recipe.killed_after for row in read_rows(metrics)):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise Unexpected(f"it ended with {process.wait()} before step {recipe.killed_after}")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {row["step"]: row["train_mean_nll"] for row in read_rows(metrics)}
    resumed_at = read_rows(checkpoints)[-1]["batch"]
    # A line that was cut off would be read by nobody, and continued by the next start.
    metrics.write_text("".join(json.dumps(row) + "\n" for row in read_rows(metrics)))

    finish(start_recipe(recipe, arguments, output), output)
    rows = read_rows(metrics)
    # Rows of steps that are done again are removed by some recipes and kept by others.
    again = [row for row in rows if row["step"] >= resumed_at][-(recipe.steps - resumed_at):]
    steps = [row["step"] for row in again]
    expect(steps == list(range(resumed_at, recipe.steps)), f"resumed at {resumed_at}, it did the steps {steps}")
    if not recipe.resumes_exactly:
        return
    for row in again:
        step, nll = row["step"], row["train_mean_nll"]
        expect(before.get(step, nll) == nll, f"step {step} gave {before.get(step)}, and {nll} when resumed at {resumed_at}")


def tail(output: Path) -> str:
    return "\n".join(output.read_text().splitlines()[-60:])


if __name__ == "__main__":
    main()
