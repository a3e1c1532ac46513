#!/usr/bin/env python3
"""The package in `python/`, as it is installed: which names it lends, and to whom; start, training, sampling.

    python3 tests/python/package.py --wheel FOLDER --server target/debug/twinkle-server --model tests/golden/fixtures/qwen3

FOLDER is the unpacked wheel. `site.addsitedir` makes of a folder what an installation makes of it. Nothing else needs
to be installed: this runs with any Python.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def expect(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--server", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--kit", type=Path, help="an environment with twinkle-kit")
    arguments = parser.parse_args()
    os.environ["TWINKLE_SERVER_BINARY"] = str(arguments.server)
    names(arguments.wheel)
    if arguments.kit:
        beside(arguments.wheel, next(arguments.kit.glob("lib/*/site-packages")))
    with tempfile.TemporaryDirectory() as folder:
        server(arguments, Path(folder))
    print("passed: package.py")


def python(code: str, *folders: Path, arguments=()) -> subprocess.CompletedProcess:
    """Runs code in a Python that has these folders as its packages."""
    sites = "".join(f"site.addsitedir({str(folder)!r})\n" for folder in folders)
    code = f"import site\n{sites}{textwrap.dedent(code)}"
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def names(wheel: Path):
    """Nothing lies under the names of twinkle-kit, and without it both can be imported."""
    top = {path.name for path in wheel.iterdir()}
    expect("twinkle" not in top and "twinkle_client" not in top, f"the wheel installs {top}")
    code = """
        from twinkle.server import launch_server, TwinkleServer
        from twinkle_client import ServiceClient, init_tinker_client, init_tinker_compat_client, init_twinkle_client
        from twinkle import init_tinker_client as other
        import sys, twinkle_rs
        assert ServiceClient is twinkle_rs.ServiceClient and other is init_tinker_client
        assert not {"torch", "numpy", "requests"} & set(sys.modules)
        try:
            import twinkle.dataset
        except ModuleNotFoundError as error:
            assert "twinkle-kit" in str(error), error
        else:
            raise AssertionError("twinkle.dataset was found")
    """
    done = python(code, wheel)
    expect(done.returncode == 0, f"without twinkle-kit: {done.stderr}")
    module = "import runpy; runpy.run_module('twinkle.server', run_name='__main__', alter_sys=True)"
    done = python(module, wheel, arguments=["--version"])
    expect(done.returncode == 0 and done.stdout.startswith("twinkle-server "), f"`-m twinkle.server`: {done}")


def beside(wheel: Path, kit: Path):
    """An installed twinkle-kit keeps its names, whichever comes first on the path."""
    for folders in ((wheel, kit), (kit, wheel)):
        code = """
            from importlib.util import find_spec
            import twinkle_rs.names, twinkle_rs.server
            for name in ("twinkle", "twinkle_client"):
                assert "names" not in find_spec(name).origin, find_spec(name)
        """
        done = python(code, *folders)
        expect(done.returncode == 0, f"beside twinkle-kit: {done.stderr}")


def server(arguments, folder: Path):
    """The documents' script starts a server, trains, samples, and stops in order."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    config = folder / "server_config.yaml"
    config.write_text(CONFIG.format(port=port, state=folder / "state", model=arguments.model))
    script = f"from twinkle.server import TwinkleServer\nTwinkleServer.from_config({str(config)!r}).run()\nprint('returned')"
    code = f"import site; site.addsitedir({str(arguments.wheel)!r})\n{script}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        wait_until_ready(url, process, folder / "log")
        done = python(TRAINING, arguments.wheel, arguments=[url])
        expect(done.returncode == 0, f"training: {done.stderr}\n{(folder / 'log').read_text()}")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        # Not killed: what it started would stay.
        process.terminate()
        process.wait(timeout=60)
    expect(process.returncode == 0 and output == "returned\n", f"after SIGTERM: {process.returncode}, {output!r}")

    config.write_text("http_options: {prot: 1}\n")
    done = python(f"from twinkle.server import launch_server\nlaunch_server(config_path={str(config)!r})", arguments.wheel)
    expect(done.returncode == 1 and "`prot`" in done.stderr, f"a wrong configuration: {done}")


def wait_until_ready(url: str, process: subprocess.Popen, log: Path):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        expect(process.poll() is None, f"the server ended: {log.read_text()}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                json.load(answer)
                return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"FAILED: the server was not ready: {log.read_text()}")


CONFIG = """
http_options: {{host: 127.0.0.1, port: {port}}}
persistence: {{mode: file, file_path: {state}}}
applications:
  - {{name: server, route_prefix: /api/v1, import_path: server}}
  - name: model
    route_prefix: /api/v1/model/tiny/model
    import_path: model
    args: {{model_id: {model}, torch_dtype: float32, device_group: {{name: m, ranks: 1, device_type: CPU}},
           device_mesh: {{device_type: CPU, dp_size: 1}}}}
  - name: sampler
    route_prefix: /api/v1/sampler/tiny/model
    import_path: sampler
    args: {{model_id: {model}, sampler_type: torch, engine_args: {{enable_lora: true}},
           device_group: {{name: s, ranks: 1, device_type: CPU}}, device_mesh: {{device_type: CPU, dp_size: 1}}}}
"""

# As the documents have it, but for the data.
TRAINING = """
import sys
from twinkle_client import init_twinkle_client
client = init_twinkle_client(base_url=sys.argv[1], api_key="mine")
assert client.health_check()
assert [model.model_name for model in client.get_server_capabilities().supported_models] == ["tiny/model"]
from twinkle_client import ServiceClient, types
service_client = ServiceClient()
training_client = service_client.create_lora_training_client(base_model="tiny/model", rank=16)
batch = [{"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, 7, 8, 9, 10, -100]}]
losses = []
for epoch in range(12):
    losses.append(training_client.forward_backward(batch, "cross_entropy"))
    training_client.optim_step(learning_rate=1e-2)
training_client.save_state("my-lora-checkpoint")
assert losses[-1].loss < 0.2 * losses[0].loss, [loss.loss for loss in losses]

sampling_client = service_client.create_sampling_client(model_path="twinkle://my-lora-checkpoint", base_model="tiny/model")
params = types.SamplingParams(max_tokens=4, temperature=0.0)
result = sampling_client.sample(prompt=types.ModelInput.from_ints([5, 6]), sampling_params=params)
assert result.sequences[0].tokens == [7, 8, 9, 10], result.sequences

again = ServiceClient(base_url=sys.argv[1], api_key="mine").create_training_client_from_state("my-lora-checkpoint")
assert again.forward(batch).loss == training_client.forward(batch).loss
run = next(run for run in client.list_training_runs() if run.training_run_id == training_client.model_id)
assert [found.checkpoint_id for found in client.list_checkpoints(run.training_run_id)] == ["weights/my-lora-checkpoint"]

from twinkle_rs import OperationFailed, RequestError
try:
    training_client.forward_backward(batch, "crossentropy").result()
except (OperationFailed, RequestError) as error:
    assert "cross_entropy" in str(error)
else:
    raise AssertionError("an unknown loss was accepted")
other = ServiceClient(base_url=sys.argv[1], api_key="another")
try:
    other.create_training_client_from_state(training_client.save_state("private").path)
except RequestError as error:
    assert error.status in (403, 404), error
else:
    raise AssertionError("another key's checkpoint was loaded")
client.close()
"""

if __name__ == "__main__":
    main()
