"""Sessions, runs and checkpoints over the native protocol."""

import logging
import threading
from types import SimpleNamespace
from urllib.parse import quote

from .connection import Connection, TwinkleError, resolve_key, resolve_url

HEARTBEAT_SECONDS = 10.0
logger = logging.getLogger("twinkle_rs")

_current: Connection | None = None


def current() -> Connection | None:
    """The connection of the last `init_twinkle_client`."""
    return _current


def init_twinkle_client(
    base_url: str | None = None, api_key: str | None = None, session_heartbeat_interval: float = HEARTBEAT_SECONDS, **options
) -> "TwinkleClient":
    """Opens a session; clients made afterwards use its address and key unless they name their own."""
    global _current
    client = TwinkleClient(base_url, api_key, session_heartbeat_interval=session_heartbeat_interval, **options)
    _current = client.connection
    return client


class Heartbeat:
    """Keeps a session alive from a thread of its own, which ends with the process."""

    def __init__(self, connection: Connection, route: str, session_id: str, interval: float = HEARTBEAT_SECONDS):
        self._stopped = threading.Event()
        self._beat = lambda: connection.ask("POST", route, {"session_id": session_id}, retry=False)
        self._interval = interval
        threading.Thread(target=self._run, name="twinkle-heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._beat()
            except (TwinkleError, ValueError) as error:
                # Also what a proxy says in another format than JSON.
                logger.warning("the session's heartbeat failed: %s", error)


class TwinkleClient:
    """Asks what the server has. Records have the fields of the protocol as attributes."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        route_prefix: str = "/twinkle",
        session_heartbeat_interval: float = HEARTBEAT_SECONDS,
        session_metadata: dict | None = None,
    ):
        self.connection = Connection(resolve_url(base_url), resolve_key(api_key))
        self.base_url, self.api_key = self.connection.url, self.connection.key
        self._prefix = route_prefix.rstrip("/")
        created = self._post("create_session", {"metadata": session_metadata})
        self.session_id = self.connection.session_id = created.session_id
        route = f"{self._prefix}/session_heartbeat"
        self._heartbeat = Heartbeat(self.connection, route, self.session_id, session_heartbeat_interval)

    def close(self) -> None:
        """Ends the heartbeats."""
        self._heartbeat.stop()

    def health_check(self) -> bool:
        try:
            self.connection.ask("GET", f"{self._prefix}/healthz", retry=False)
        except TwinkleError:
            return False
        return True

    def get_server_capabilities(self) -> SimpleNamespace:
        return self._get("get_server_capabilities")

    def get_capacity_info(self) -> SimpleNamespace:
        """`max_loras`, `used_loras` and `free_loras`."""
        return self._get("capacity_info")

    def list_training_runs(self, limit: int = 20, offset: int = 0) -> list[SimpleNamespace]:
        """This key's runs, newest first."""
        return self._get(f"training_runs?limit={limit}&offset={offset}").training_runs

    def get_training_run(self, run_id: str) -> SimpleNamespace:
        return self._get(f"training_runs/{quote(run_id)}")

    def list_checkpoints(self, run_id: str) -> list[SimpleNamespace]:
        """A run's checkpoints, oldest first."""
        return self._get(f"training_runs/{quote(run_id)}/checkpoints").checkpoints

    def get_checkpoint_path(self, run_id: str, checkpoint_id: str) -> SimpleNamespace:
        """`path` on the server and `twinkle_path`."""
        return self._get(f"checkpoint_path/{quote(run_id)}/{quote(checkpoint_id)}")

    def get_latest_checkpoint_path(self, run_id: str) -> str | None:
        checkpoints = self.list_checkpoints(run_id)
        return self.get_checkpoint_path(run_id, checkpoints[-1].checkpoint_id).path if checkpoints else None

    def delete_checkpoint(self, run_id: str, checkpoint_id: str) -> SimpleNamespace:
        route = f"{self._prefix}/training_runs/{quote(run_id)}/checkpoints/{quote(checkpoint_id)}"
        return record(self.connection.delete(route))

    def get_weights_info(self, twinkle_path: str) -> SimpleNamespace:
        """The base model, the run and the rank of a checkpoint."""
        return self._post("weights_info", {"twinkle_path": twinkle_path})

    def _get(self, route: str) -> SimpleNamespace:
        return record(self.connection.get(f"{self._prefix}/{route}"))

    def _post(self, route: str, body: dict) -> SimpleNamespace:
        return record(self.connection.post(f"{self._prefix}/{route}", body))


def record(value):
    """JSON with its keys as attributes; what a user wrote into metadata stays a dict."""
    if isinstance(value, list):
        return [record(item) for item in value]
    if isinstance(value, dict):
        return SimpleNamespace(**{name: item if name == "user_metadata" else record(item) for name, item in value.items()})
    return value
