"""Starts the program `twinkle-server` from Python."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

PROGRAM = "twinkle-server"
# Names the program where it is not on the path.
PROGRAM_VARIABLE = "TWINKLE_SERVER_BINARY"


def find_program() -> Path:
    """The program: `TWINKLE_SERVER_BINARY`, beside this Python, on the path, or built in the repository around us."""
    named = os.environ.get(PROGRAM_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise FileNotFoundError(f"`{PROGRAM_VARIABLE}` names `{named}`, which is no file")
        return Path(named)
    name = PROGRAM + (".exe" if os.name == "nt" else "")
    beside = Path(sys.executable).parent / name
    if beside.is_file():
        return beside
    on_path = shutil.which(PROGRAM)
    if on_path:
        return Path(on_path)
    for folder in Path(__file__).resolve().parents:
        for profile in ("release", "debug"):
            built = folder / "target" / profile / name
            if built.is_file():
                return built
    raise FileNotFoundError(
        f"there is no `{PROGRAM}` on the path\n"
        f"hint: `cargo install --path crates/twinkle-server`, or name the program with `{PROGRAM_VARIABLE}`"
    )


def launch_server(config=None, config_path=None, ray_namespace=None) -> None:
    """Runs a server and returns when it has been stopped.

    Either `config_path`, a YAML file, or `config`, the same as a dict. SIGINT and SIGTERM stop the server in order: it
    finishes what it has, and a second one ends it at once. A server that could not start, or failed, raises
    `subprocess.CalledProcessError`; its reason is on stderr.

    `ray_namespace` is accepted for older scripts: everything runs in one process.
    """
    if (config is None) == (config_path is None):
        raise ValueError("give either `config` or `config_path`")
    del ray_namespace
    if config_path is not None:
        _run(Path(config_path))
        return
    if not isinstance(config, dict):
        raise TypeError(f"`config` is a dict with the keys of the YAML, not {type(config).__name__}")
    with tempfile.TemporaryDirectory(prefix="twinkle-") as folder:
        path = Path(folder) / "server_config.yaml"
        # Every JSON text is YAML.
        path.write_text(json.dumps(config))
        _run(path)


class TwinkleServer:
    """A server that is described and not yet started."""

    def __init__(self, config_path):
        self.config_path = Path(config_path)

    @classmethod
    def from_config(cls, config_path) -> "TwinkleServer":
        """The server that a YAML file describes."""
        if not Path(config_path).is_file():
            raise FileNotFoundError(f"there is no configuration `{config_path}`")
        return cls(config_path)

    def run(self) -> None:
        """Runs it until it is stopped; see `launch_server`."""
        launch_server(config_path=self.config_path)


def _run(config_path: Path) -> None:
    command = [str(find_program()), "--config", str(config_path)]
    process = None
    early = []

    def forward(number, frame):
        # A terminal that was closed is a reason to stop in order, too.
        number = signal.SIGTERM if number == signal.SIGHUP else number
        early.append(number) if process is None else process.send_signal(number)

    previous = _handle((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), forward)
    try:
        # In a session of its own: else a terminal's Ctrl-C reaches it twice, from the terminal and from us.
        process = subprocess.Popen(command, start_new_session=True)
        for number in early:
            process.send_signal(number)
        status = process.wait()
    finally:
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if status != 0:
        raise subprocess.CalledProcessError(status, command)


def _handle(numbers, handler) -> dict:
    """Installs a handler: what was there before. In another thread than the main one nothing can be installed."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}


def main() -> None:
    """`python -m twinkle.server`: the program with our arguments, in this process's place."""
    try:
        program = str(find_program())
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    arguments = [program, *sys.argv[1:]]
    if os.name == "nt":
        sys.exit(subprocess.call(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, arguments)
