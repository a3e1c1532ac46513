"""JSON over HTTP, with retries where a repeated request is harmless."""

import json
import os
import random
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field

DEFAULT_URL = "http://127.0.0.1:8000"
# First one that is set wins.
URL_VARIABLES = ("TWINKLE_SERVER_URL", "TINKER_BASE_URL")
KEY_VARIABLES = ("API_KEY", "TINKER_API_KEY", "TWINKLE_SERVER_TOKEN", "MODELSCOPE_TOKEN")
# What Twinkle's own client sends where nothing is set; a server without keys takes any.
DEFAULT_KEY = "EMPTY_TOKEN"
PREFIX = "/api/v1"

# A proxy, a busy or a restarting server.
TRANSIENT = frozenset({408, 429, 502, 503, 504})
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0


class TwinkleError(Exception):
    """Anything that went wrong between this client and its server."""


class RequestError(TwinkleError):
    """An answer that is not a success: `status` and the server's words."""

    def __init__(self, status: int, detail: str, url: str):
        super().__init__(f"{url} answered {status}: {detail}")
        self.status, self.detail, self.url = status, detail, url
        # Seconds after which to come again, where the server says so.
        self.retry_after: float | None = None


def resolve_url(base_url: str | None) -> str:
    """The server's address with the prefix of its routes."""
    url = base_url or first_of(URL_VARIABLES) or DEFAULT_URL
    url = url.rstrip("/")
    return url if url.endswith(PREFIX) else url + PREFIX


def resolve_key(api_key: str | None) -> str:
    return api_key or first_of(KEY_VARIABLES) or DEFAULT_KEY


def first_of(variables: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in variables if os.environ.get(name)), None)


@dataclass
class Connection:
    """Where requests go and who sends them."""

    url: str
    key: str
    # Seconds that a request is repeated while the server cannot be reached or asks to come again.
    patience: float = 300.0
    timeout: float = 600.0
    session_id: str | None = None
    # One value for the process: Twinkle's servers keep requests of one client together by it.
    request_id: str = field(default_factory=lambda: f"{time.strftime('%Y%m%d_%H%M%S')}-{uuid.uuid4().hex[:8]}")

    def get(self, route: str):
        return self.ask("GET", route)

    def post(self, route: str, body: dict):
        return self.ask("POST", route, body)

    def delete(self, route: str):
        return self.ask("DELETE", route)

    def ask(self, method: str, route: str, body: dict | None = None, retry: bool = True):
        """Sends a request and returns the parsed answer.

        Repeated with growing pauses while the server is away or busy, for `patience` seconds. Operations carry
        numbers, so a repeated one is done once.
        """
        url = f"{self.url}/{route.lstrip('/')}"
        deadline = time.monotonic() + (self.patience if retry else 0.0)
        pause = FIRST_PAUSE
        while True:
            try:
                return self._send(method, url, body)
            except RequestError as error:
                if error.status not in TRANSIENT or time.monotonic() >= deadline:
                    raise
                wait = error.retry_after
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise TwinkleError(f"{url} cannot be reached: {error}") from error
                wait = None
            # Spread, so that many clients do not come back at the same moment.
            time.sleep(min(wait if wait is not None else pause * random.uniform(0.5, 1.0), LONGEST_PAUSE))
            pause = min(pause * 2, LONGEST_PAUSE)

    def _send(self, method: str, url: str, body: dict | None):
        request = urllib.request.Request(url, method=method, headers=self._headers())
        if body is not None:
            request.data = json.dumps(body, allow_nan=False, default=plain).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            failure = RequestError(error.code, detail_of(error.read()), url)
            failure.retry_after = seconds(error.headers.get("Retry-After"))
            raise failure from None
        return json.loads(text) if text else None

    def _headers(self) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self.key}", "x-request-id": self.request_id}
        if self.session_id:
            headers["X-Twinkle-Session-Id"] = self.session_id
        return headers


def plain(value):
    """Arrays and tensors of any library as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be sent")


def detail_of(body: bytes) -> str:
    text = body.decode(errors="replace")
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    if isinstance(parsed, dict):
        return str(parsed.get("detail") or parsed.get("error") or parsed)
    return text


def seconds(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
