"""What the scenarios of Twinkle's own client share. The client is the unmodified package `twinkle-kit`.

    .venvs/twinkle-kit-0.5.1/bin/python tests/python/twinkle/run.py --base-url http://127.0.0.1:8000 \\
        --model tiny/qwen3 --model-path tests/golden/fixtures/qwen3 --data /tmp training

The server's TWINKLE_DATA_DIRS names the folder of `--data`.
"""

import http.client
import itertools
import json
import math
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path

# Nothing may leave the machine, and no option of the caller's shell may change the test.
for name in ("TWINKLE_SERVER_URL", "TWINKLE_SERVER_TOKEN", "TINKER_BASE_URL", "TINKER_API_KEY"):
    os.environ.pop(name, None)
os.environ.update(HF_HUB_OFFLINE="1", TINKER_TELEMETRY="0", NO_PROXY="127.0.0.1,localhost", no_proxy="127.0.0.1,localhost")

import requests  # noqa: E402
from peft import LoraConfig  # noqa: E402
from twinkle_client import init_twinkle_client  # noqa: E402
from twinkle_client.http import set_api_key, set_session_id  # noqa: E402
from twinkle_client.manager import TwinkleClient  # noqa: E402
from twinkle_client.model import MultiLoraTransformersModel  # noqa: E402
from twinkle_client.sampler import vLLMSampler  # noqa: E402

IGNORED = -100
TOKENS = range(3, 250)


class Failure(Exception):
    """What was expected and what was seen."""


def expect(condition, message):
    if not condition:
        raise Failure(message)


def near(value, wanted, tolerance, what):
    expect(abs(value - wanted) <= tolerance, f"{what} is {value}, not {wanted} within {tolerance}")


@dataclass
class World:
    """The server under test."""

    base_url: str
    model: str
    # The same model's folder, for tokenizers on this side.
    model_path: str
    # A folder that the server can read, too.
    folder: Path
    # A server that trains all weights of the same model.
    full_url: str = ""

    def of_full_training(self) -> "World":
        expect(self.full_url, "name a server that trains all weights with `--full-url`")
        return replace(self, base_url=self.full_url)

    def __post_init__(self):
        self._names = itertools.count()
        self.key = ""
        self._clients = []

    def sign_in(self, key: str | None = None) -> TwinkleClient:
        """A new session of the tenant `key`, or of a new one; what is made afterwards belongs to it."""
        self.key = key or f"tenant-{next(self._names)}"
        self._clients.append(init_twinkle_client(base_url=self.base_url, api_key=self.key))
        return self._clients[-1]

    def sign_out(self):
        """Ends all heartbeats: they would go on with the key of whoever signs in next."""
        while self._clients:
            self._clients.pop().close()

    def adapter(self, r=8, lora_alpha=16, **options) -> MultiLoraTransformersModel:
        """A fresh adapter under a name of its own, without an optimizer."""
        model = MultiLoraTransformersModel(model_id=self.model)
        config = LoraConfig(r=r, lora_alpha=lora_alpha, target_modules="all-linear")
        model.add_adapter_to_model(f"adapter{next(self._names)}", config, **options)
        return model

    def trained(self, loss="CrossEntropyLoss", optimizer="AdamW", lr=1e-2, weight_decay=0.0, **options):
        """A fresh adapter that is ready to train."""
        model = self.adapter(**options)
        model.set_processor("InputProcessor")
        model.set_loss(loss)
        model.set_optimizer(optimizer, lr=lr, weight_decay=weight_decay)
        return model

    def sampler(self) -> vLLMSampler:
        return vLLMSampler(model_id=self.model)

    def post(self, route: str, body, key=None, headers=None) -> requests.Response:
        """What no client sends: below `/api/v1`."""
        headers = self._headers(key or self.key) | (headers or {})
        return requests.post(f"{self.base_url}/api/v1/{route}", json=body, headers=headers, timeout=120)

    def get(self, route: str, key=None) -> requests.Response:
        return requests.get(f"{self.base_url}/api/v1/{route}", headers=self._headers(key or self.key), timeout=120)

    def get_as_written(self, route: str) -> tuple[int, str]:
        """The path as it stands; other ways to send it resolve `..` first."""
        connection = http.client.HTTPConnection(self.base_url.removeprefix("http://"), timeout=120)
        connection.request("GET", f"/api/v1/{route}", headers=self._headers(self.key))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    @staticmethod
    def _headers(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}", "x-request-id": f"by-hand-{key}"}


def use(client: TwinkleClient):
    """Everything sent from now on is this session's: the package keeps one for the whole process."""
    set_api_key(client.api_key)
    set_session_id(client._session_id)


def features(seed: int, count=4, shortest=8, longest=14, prompt=3) -> list[dict]:
    """Random sequences as a template encodes them: the label of a position is the next token."""
    dice = random.Random(seed)
    return [feature([dice.choice(TOKENS) for _ in range(dice.randint(shortest, longest))], prompt) for _ in range(count)]


def feature(tokens: list[int], prompt: int = 1) -> dict:
    """The first `prompt` tokens are given, the others are learned."""
    labels = [IGNORED] * (prompt - 1) + tokens[prompt:] + [IGNORED]
    return {
        "input_ids": tokens,
        "labels": labels,
        "attention_mask": [1] * len(tokens),
        "position_ids": list(range(len(tokens))),
        "length": len(tokens),
    }


def plain(value) -> list:
    """An array, a tensor or a list of them as a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [plain(item) for item in value] if isinstance(value, list) else value


def mask(row: dict) -> list[bool]:
    return [label != IGNORED for label in row["labels"]]


def learned(rows: list[dict], logps) -> list[list[float]]:
    """The log-probabilities of what is learned, sequence by sequence."""
    return [[logp for logp, kept in zip(line, mask(row)) if kept] for row, line in zip(rows, logps)]


def mean_loss(rows, logps) -> float:
    values = list(itertools.chain.from_iterable(learned(rows, logps)))
    return -sum(values) / len(values)


def sums(rows, logps) -> list[float]:
    return [sum(line) for line in learned(rows, logps)]


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def step(model, rows, **options) -> dict:
    """One whole step: its result."""
    result = model.forward_backward(inputs=rows, **options).result
    model.clip_grad_and_step()
    return result


def refused(call, *statuses: int, words: tuple[str, ...] = ()) -> str:
    """The call fails with one of these statuses and says these words; no traceback leaves the server."""
    try:
        answer = call()
    except requests.HTTPError as error:
        status, text = error.response.status_code, error.response.text
    except Exception as error:
        raise Failure(f"{type(error).__name__} instead of a refusal: {error}") from error
    else:
        raise Failure(f"accepted: {answer}")
    expect(status in statuses, f"answered {status}, not one of {statuses}: {text}")
    detail = json.loads(text)["detail"]
    expect("Traceback" not in text and "panicked" not in text, f"a traceback reached the client: {text}")
    for word in words:
        expect(word in str(detail), f"`{word}` is not said in: {detail}")
    return str(detail)
