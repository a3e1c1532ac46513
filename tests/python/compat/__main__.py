"""Drives everything the installed release of the SDK offers against a server, and says what came of it.

    python tests/python/compat --base-url http://127.0.0.1:8000 --model NAME --tokenizer FOLDER [--packages FOLDER]

Writes one line of JSON per row to the standard output, `{"group", "row", "outcome", "text"}`, and before all of them how
many there will be, `{"rows"}`. `cargo xtask compat` runs
this with every release and writes `docs/compat.md`.
"""

import argparse
import json
import os
import site
import sys
import tempfile
from pathlib import Path

# So that nothing on this machine changes the result, and nothing leaves it. The SDK reads these when it is imported.
for name in list(os.environ):
    if name.startswith("TINKER_"):
        del os.environ[name]
os.environ.update({
    "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "COLUMNS": "200",
})
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--base-url", required=True)
    options.add_argument("--model", required=True, help="the base model's name, as the server knows it")
    options.add_argument("--tokenizer", required=True, type=Path, help="a folder with the model's tokenizer")
    options.add_argument("--packages", type=Path, help="a folder with torch and transformers")
    options.add_argument("--only", default="", help="drive only the rows whose name contains this")
    arguments = options.parse_args()
    tokenizer = arguments.tokenizer.absolute()
    if arguments.packages:
        # Behind everything else: what the release brings itself comes from its own environment.
        site.addsitedir(str(arguments.packages.absolute()))
    with tempfile.TemporaryDirectory() as folder:
        # The SDK looks for credentials at home, and transformers for models in the working directory.
        os.environ["HOME"] = folder
        os.chdir(folder)
        Path(arguments.model).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.model).symlink_to(tokenizer)
        drive(arguments)
    # The SDK's background threads need not be waited for.
    os._exit(0)


def drive(arguments):
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import api_futures  # noqa: F401
    import commands  # noqa: F401
    import rest  # noqa: F401
    import sampling  # noqa: F401
    import scenario
    import service  # noqa: F401
    import surface
    import training  # noqa: F401
    import world

    rows = [row for row in surface.rows() if arguments.only in row.name]
    # As a user's shell has them, for everything that is made without arguments.
    os.environ.update({"TINKER_BASE_URL": arguments.base_url, "TINKER_API_KEY": world.KEY, "TINKER_TELEMETRY": "1"})
    clients = world.World(arguments.base_url, arguments.model)
    output = sys.stdout
    print(json.dumps({"rows": len(rows)}), flush=True)
    # The commands print as they like; only rows go to the standard output.
    sys.stdout = sys.stderr
    for row in rows:
        outcome, text = scenario.drive(row, clients)
        line = {"group": row.group, "row": row.name, "outcome": outcome, "text": text}
        output.write(json.dumps(line) + "\n")
        output.flush()


if __name__ == "__main__":
    main()
