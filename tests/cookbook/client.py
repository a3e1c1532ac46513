"""Runs the scripts in cookbook/client, unmodified, each against the server of its folder, and checks what they say.

    .venvs/twinkle-kit-0.5.1/bin/python tests/cookbook/client.py --server target/debug/twinkle-server

The servers are started by their own `server.py` with their own YAML; the environment names a tiny model made here. The
scripts run one after the other in this process, whose imports take ten seconds.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tiny_model import write_model, write_tokenizer

ROOT = Path(__file__).resolve().parents[2]
COOKBOOK = ROOT / "cookbook" / "client"
BASE_MODEL = "Qwen/Qwen3-0.6B"
SEED = 20261121
# As an interpreter in which `python/` is installed and twinkle-kit is not.
START = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import twinkle_rs.names
twinkle_rs.names.lend()
runpy.run_path(sys.argv[2], run_name="__main__")
"""


class Unexpected(Exception):
    """A script ran, but said something else than it should."""


@dataclass(frozen=True)
class Script:
    path: str
    check: Callable[[str], None]
    environment: dict[str, str] = field(default_factory=dict)


def expect(condition, text: str):
    if not condition:
        raise Unexpected(text)


def learns(output: str):
    """Its losses fall and it saves something."""
    losses = [float(value) for value in re.findall(r"^(?:epoch|step) .*?loss'?:? '?([\d.]+)", output, re.MULTILINE)]
    expect(len(losses) >= 2 and losses[-1] < 0.95 * losses[0], f"losses {losses} in:\n{output}")
    expect(re.search(r"^saved: (twinkle|tinker)://", output, re.MULTILINE), f"nothing saved in:\n{output}")


def learns_and_answers(output: str):
    learns(output)
    expect(re.search(r"^answer: .*\w", output, re.MULTILINE), f"no answer in:\n{output}")


def answers(output: str):
    logprobs = [float(value) for value in re.findall(r"answer \(\d+ tokens, logprob (-?[\d.]+)\)", output)]
    expect(len(logprobs) >= 2 and all(value < 0 for value in logprobs), f"answers with logprobs {logprobs} in:\n{output}")


def rewards(output: str):
    values = [float(value) for value in re.findall(r"^step \d+: reward ([\d.]+)", output, re.MULTILINE)]
    expect(len(values) >= 2 and max(values) > 0, f"rewards {values} in:\n{output}")


def resumes(output: str):
    expect("resumed: " in output and "'cur_step'" in output, f"it did not go on in:\n{output}")


QUICK = {"EPOCHS": "2", "STEPS": "6"}
FEW = {"STEPS": "2"}
# Which servers are started, and what runs against each.
PLAN: dict[str, list[Script]] = {
    "server/transformer": [
        Script("twinkle/self_host/self_cognition.py", learns_and_answers),
        Script("twinkle/self_host/sample.py", answers, {"ADAPTER": "{saved}"}),
        Script("twinkle/self_host/grpo.py", rewards, FEW),
        Script("twinkle/modelscope/self_cognition.py", learns_and_answers, {"MODELSCOPE_TOKEN": "ms-key"}),
        Script("tinker/self_host/lora.py", learns, QUICK),
        Script("tinker/self_host/sample.py", answers),
        Script("tinker/self_host/self_cognition.py", learns_and_answers, QUICK),
        Script("tinker/self_host/short_math_grpo.py", rewards, FEW),
        Script("tinker/modelscope/sample.py", answers, {"MODELSCOPE_TOKEN": "ms-key"}),
        Script("tinker/modelscope/self_cognition.py", learns_and_answers, {**QUICK, "MODELSCOPE_TOKEN": "ms-key"}),
    ],
    "server/megatron": [Script("twinkle/self_host/sample.py", answers)],
    "twinkle/transformer": [
        Script("twinkle/transformer/lora.py", learns),
        Script("twinkle/transformer/lora.py", resumes, {**QUICK, "RESUME": "{saved}"}),
    ],
    "twinkle/megatron": [Script("twinkle/megatron/lora.py", learns)],
    "tinker/transformer": [
        Script("tinker/transformer/lora.py", learns, QUICK),
        Script("tinker/transformer/sample.py", answers),
        Script("tinker/transformer/self_congnition.py", learns_and_answers, QUICK),
    ],
    "tinker/megatron": [Script("tinker/megatron/lora.py", learns, QUICK)],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, required=True, help="the program")
    parser.add_argument("--only", default="", help="servers and scripts whose path contains this")
    parser.add_argument("--limit", type=int, default=280, help="seconds until a hang is ended")
    arguments = parser.parse_args()
    faulthandler.dump_traceback_later(arguments.limit, exit=True)
    expect(every_script() == planned(), f"not run: {every_script() ^ planned()}")
    failed, done = [], 0
    with tempfile.TemporaryDirectory(prefix="cookbook-") as folder:
        folder = Path(folder)
        make_model(folder / "model")
        port = free_port()
        os.environ.update(
            TWINKLE_SERVER_BINARY=str(arguments.server.resolve()), PORT=str(port), MODEL_PATH=str(folder / "model"),
            TWINKLE_SERVER_URL=f"http://127.0.0.1:{port}", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1",
            TINKER_TELEMETRY="0", HF_HUB_OFFLINE="1",
        )
        for name, scripts in PLAN.items():
            scripts = [script for script in scripts if arguments.only in f"{name} {script.path}"]
            if not scripts:
                continue
            with server(name, folder):
                saved = ""
                for script in scripts:
                    began, done = time.monotonic(), done + 1
                    try:
                        output = run(script, saved)
                        script.check(output)
                        saved = next(iter(re.findall(r"^saved: (\S+)", output, re.MULTILINE)), saved)
                        print(f"ok {script.path} on {name} ({time.monotonic() - began:.1f} s)", flush=True)
                    except (Exception, SystemExit):
                        failed.append(script.path)
                        print(f"FAILED {script.path} on {name}\n{traceback.format_exc()}", flush=True)
    print(f"{done - len(failed)} passed, {len(failed)} failed")
    return 1 if failed or not done else 0


def every_script() -> set[str]:
    return {str(path.relative_to(COOKBOOK)) for path in COOKBOOK.rglob("*.py")}


def planned() -> set[str]:
    started = {f"{name}/server.py" for name in PLAN}
    return started | {script.path for scripts in PLAN.values() for script in scripts}


def run(script: Script, saved: str) -> str:
    """What the script prints."""
    changed = {name: value.format(saved=saved) for name, value in script.environment.items()}
    before = {name: os.environ.get(name) for name in (*changed, "TWINKLE_SERVER_TOKEN", "API_KEY")}
    os.environ.update(changed)
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_path(str(COOKBOOK / script.path), run_name="__main__")
    except BaseException:
        print(output.getvalue())
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    return output.getvalue()


@contextlib.contextmanager
def server(name: str, folder: Path):
    """The server of a folder, started by its script and stopped in order."""
    log = folder / f"{name.replace('/', '-')}.log"
    environment = {**os.environ, "STATE_PATH": str(folder / name / "state")}
    command = [sys.executable, "-S", "-c", START, str(ROOT / "python/src"), str(COOKBOOK / name / "server.py")]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    try:
        wait_until_ready(process, log)
        yield
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
        expect(status == 0, f"{name}/server.py ended with {status}:\n{log.read_text()}")
    except BaseException:
        print(f"--- log of {name} ---\n{log.read_text()[-8000:]}", flush=True)
        raise
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_ready(process: subprocess.Popen, log: Path):
    url = f"{os.environ['TWINKLE_SERVER_URL']}/readyz"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        expect(process.poll() is None, f"the server ended:\n{log.read_text()}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise Unexpected(f"the server was not ready:\n{log.read_text()}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def make_model(folder: Path):
    """A model that knows the words of the data, and writes numbers where sums are asked."""
    rows = [json.loads(line) for line in (COOKBOOK / "data/self_cognition.jsonl").read_text().splitlines()]
    filled = [
        {key: text.replace("{{NAME}}", "Somebody").replace("{{AUTHOR}}", "nobody") for key, text in row.items()} for row in rows
    ]
    texts = [f"User: {row['query']}\n\nAssistant: {row['response']}\n\n" for row in filled]
    texts += [f"System: You are a helpful assistant.\n\n{text}" for text in texts]
    texts += [
        f"User: What is {one} + {other}? Answer with the number alone.\n\nAssistant: {one + other}\n\n"
        for one in range(1, 5) for other in range(1, 5) for _ in range(4)
    ]
    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder, texts)
    write_model(folder, tokenizer, texts, SEED)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # The clients' heartbeat threads need not be waited for.
    os._exit(status)
