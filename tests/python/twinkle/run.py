"""Runs scenarios one after the other against one server and says which failed."""

import argparse
import faulthandler
import importlib
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

SCENARIOS = ("training", "losses", "checkpoints", "data", "sampling", "tenants", "weaknesses", "together", "full")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True, help="the name clients ask for")
    parser.add_argument("--model-path", required=True, help="its folder")
    parser.add_argument("--data", required=True, help="a folder in which the server looks for data sets")
    parser.add_argument("--full-url", default="", help="a server with `train_mode: full`, for the scenarios of that name")
    parser.add_argument("--limit", type=int, default=280, help="seconds until a hang is ended")
    parser.add_argument("--only", help="scenarios whose name contains this")
    parser.add_argument("--times", type=int, default=1, help="how often: adapters begin with other random numbers")
    parser.add_argument("files", nargs="+", choices=SCENARIOS)
    options = parser.parse_args()
    faulthandler.dump_traceback_later(options.limit, exit=True)
    started = time.monotonic()

    from kit import World

    failed, done = [], 0
    with tempfile.TemporaryDirectory(prefix="kit-", dir=options.data) as folder:
        world = World(options.base_url, options.model, options.model_path, Path(folder), options.full_url)
        print(f"imports took {time.monotonic() - started:.1f} s")
        for file in options.files * options.times:
            module = importlib.import_module(file)
            for name in [name for name in vars(module) if name.startswith("test_")]:
                if options.only and options.only not in name:
                    continue
                began, done = time.monotonic(), done + 1
                try:
                    getattr(module, name)(world)
                except Exception:
                    failed.append(f"{file}: {name[5:]}")
                    print(f"FAILED {failed[-1]}\n{traceback.format_exc()}", flush=True)
                else:
                    print(f"ok {file}: {name[5:]} ({time.monotonic() - began:.1f} s)", flush=True)
                world.sign_out()
    print(f"{done - len(failed)} passed, {len(failed)} failed in {time.monotonic() - started:.1f} s")
    for name in failed:
        print(f"  {name}")
    return 1 if failed or not done else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # The client's heartbeat threads need not be waited for.
    os._exit(status)
