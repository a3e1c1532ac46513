"""What the black-box tests share. Each test is a script run against a server that is already up:

    .venvs/tinker-0.38.0/bin/python tests/python/training_loop.py --base-url http://127.0.0.1:8000 --model tiny

They use the public API of the installed Tinker SDK, 0.38.0 (protobuf) or 0.16.1 (JSON), and token ids only.
A test that fails says what it expected, and its exit status is not 0.
"""

import argparse
import faulthandler
import json
import os
import random
import sys
import time
import traceback
import urllib.error
import urllib.request
import warnings

# Nothing may leave the machine, and no option of the caller's shell may change the test.
for name in ("TINKER_BASE_URL", "TINKER_API_KEY", "TINKER_PROJECT_ID", "TINKER_TAGS"):
    os.environ.pop(name, None)
os.environ["TINKER_TELEMETRY"] = "0"
for name in ("NO_PROXY", "no_proxy"):
    os.environ[name] = "127.0.0.1,localhost"

import numpy  # noqa: E402
import tinker  # noqa: E402
from tinker import types  # noqa: E402

SDK = tuple(int(part) for part in tinker.__version__.split("."))
# Long enough for a debug build on a busy machine; a hang ends the script in `watchdog`.
TIMEOUT = 120.0
# A permanent mistake is refused within so many seconds: the SDK retries what it takes for a passing one for minutes.
AT_ONCE = 2.0
ALICE, MALLORY = "tml-test-alice", "tml-test-mallory"
ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0, "grad_clip_norm": 0.0}
# Ids that every tokenizer and every test model has.
SMALLEST_TOKEN, LARGEST_TOKEN = 3, 250

warnings.filterwarnings("ignore", category=FutureWarning)


def parser(description):
    """The options every test takes."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--base-url", required=True, help="for example http://127.0.0.1:8000")
    options.add_argument("--model", required=True, help="the base model's name, as the server knows it")
    options.add_argument("--limit", type=int, default=300, help="seconds until a hanging test is ended (default 300)")
    return options


def watchdog(seconds):
    """Ends the process with every thread's stack when it is not done in time: a hang is a failure."""
    faulthandler.dump_traceback_later(seconds, exit=True)


def run(main):
    """Runs `main`, turning a failed expectation into one clear line and a non-zero exit status."""
    started = time.monotonic()
    try:
        main()
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr, flush=True)
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    name = os.path.basename(sys.argv[0])
    print(f"passed: {name} with tinker {tinker.__version__} in {time.monotonic() - started:.1f} s", flush=True)
    # The SDK's background threads need not be waited for.
    os._exit(0)


class Failure(Exception):
    """What was expected and what was seen."""


def expect(condition, message):
    if not condition:
        raise Failure(message)


def service(base_url, key="tml-test-alice"):
    return tinker.ServiceClient(base_url=base_url, api_key=key)


def ready(client):
    """0.38.0 returns a future of a client where 0.16.1 returns the client."""
    return client.result() if hasattr(client, "result") else client


def create_run(client, model, seed=7, rank=8, **options):
    return ready(client.create_lora_training_client(base_model=model, rank=rank, seed=seed, **options))


def restore_run(client, path, with_optimizer=True):
    if with_optimizer:
        return ready(client.create_training_client_from_state_with_optimizer(path))
    return ready(client.create_training_client_from_state(path))


def sequences(seed, count=3, length=12):
    generator = random.Random(seed)
    return [[generator.randint(SMALLEST_TOKEN, LARGEST_TOKEN) for _ in range(length)] for _ in range(count)]


def datum(tokens, weights=None):
    """Predict each token from those before it."""
    targets = tokens[1:]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": list(targets),
            "weights": [1.0] * len(targets) if weights is None else weights,
        },
    )


def adam(learning_rate, **changes):
    return types.AdamParams(learning_rate=learning_rate, **{**ADAM, **changes})


def forward(run_client, data, loss="cross_entropy"):
    """Logprobs per datum, without touching gradients."""
    return logprobs_of(run_client.forward(data, loss).result(timeout=TIMEOUT))


def train(run_client, data, learning_rate, **changes):
    """One forward_backward and one optim_step, submitted together as users do; returns the loss and the logprobs."""
    result = run_client.forward_backward(data, "cross_entropy")
    step = run_client.optim_step(adam(learning_rate, **changes))
    result = result.result(timeout=TIMEOUT)
    step.result(timeout=TIMEOUT)
    return loss_of(result), logprobs_of(result)


class Twins:
    """Two runs that are the same, half-way between a forward_backward and its optim_step. What is done to `run` and refused
    must leave it what the other is, which nobody touches."""

    def __init__(self, client, model, learning_rate):
        self.learning_rate = learning_rate
        self.undisturbed, self.run = (create_run(client, model, seed=31) for _ in range(2))
        first, self.second = ([datum(tokens) for tokens in sequences(seed=seed)] for seed in (31, 32))
        for each in (self.undisturbed, self.run):
            each.forward_backward(first, "cross_entropy").result(timeout=TIMEOUT)

    def expect_equal(self, after):
        """Logprobs now and after some more training are equal, bit for bit."""
        wanted, seen = forward(self.undisturbed, self.second), forward(self.run, self.second)
        expect(seen == wanted, f"{after} moved the run's weights")
        for each in (self.undisturbed, self.run):
            each.optim_step(adam(self.learning_rate)).result(timeout=TIMEOUT)
        for _ in range(2):
            wanted = train(self.undisturbed, self.second, self.learning_rate)
            seen = train(self.run, self.second, self.learning_rate)
            expect(seen == wanted, f"after {after} the run trains otherwise: loss {seen[0]!r}, not {wanted[0]!r}")


def faults(text, words=()):
    """What is wrong with the text of a refusal: it must hold one of `words`, and be for users."""
    if words and not any(word in text.lower() for word in words):
        yield f"the text says none of {words}: {text}"
    if any(ugly in text for ugly in ("panicked", "Traceback", "unwrap", "RecvError")):
        yield f"the text is not for users: {text}"


def loss_of(result):
    expect("loss:sum" in result.metrics, f"the metrics {result.metrics} hold no `loss:sum`")
    return result.metrics["loss:sum"]


def logprobs_of(result):
    return [float32(output["logprobs"].data) for output in result.loss_fn_outputs]


def float32(values):
    """JSON writes the shortest decimal of a float32, protobuf its bits: make them the same Python floats."""
    return numpy.asarray(values, dtype=numpy.float32).tolist()


def largest_difference(left, right):
    expect(len(left) == len(right), f"{len(left)} values against {len(right)}")
    return max((abs(a - b) for a, b in zip(left, right)), default=0.0)


def post(base_url, route, body, key="tml-test-alice", headers=None):
    """A raw POST. Returns the status, the parsed JSON (or the text), and the headers."""
    if isinstance(body, (dict, list)):
        body = json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    if key is not None:
        sent["X-API-Key"] = key
    request = urllib.request.Request(f"{base_url}/api/v1/{route}", data=body, headers=sent, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.status, decoded(response.read()), response.headers
    except urllib.error.HTTPError as error:
        return error.code, decoded(error.read()), error.headers


def decoded(body):
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def raw_result(base_url, request_id, key="tml-test-alice"):
    """Polls a future as an old client would, until it is done."""
    while True:
        status, body, _ = post(base_url, "retrieve_future", {"request_id": request_id}, key)
        pending = status == 408 or (status == 200 and body.get("type") == "try_again")
        if not pending:
            return status, body


def raw_operation(base_url, route, body, key="tml-test-alice"):
    """Submits an operation in the JSON form and waits for its result."""
    status, answer, _ = post(base_url, route, body, key)
    expect(status == 200, f"{route} answered {status}: {answer}")
    status, result = raw_result(base_url, answer["request_id"], key)
    expect(status == 200 and "error" not in result, f"{route} ended in {status}: {result}")
    return result


def raw_datum(tokens):
    """The JSON form of `datum`, with every default left out."""
    targets = tokens[1:]
    return {
        "model_input": {"chunks": [{"tokens": tokens[:-1]}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": targets, "dtype": "int64", "shape": [len(targets)]},
            "weights": {"data": [1.0] * len(targets), "dtype": "float32", "shape": [len(targets)]},
        },
    }
