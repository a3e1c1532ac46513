#!/usr/bin/env python3
"""Everything a user can get wrong is refused at once, in words, and changes nothing.

A run is half-way between a forward_backward and its optim_step while all of it happens; afterwards it must train on
with the very bits of a run that never saw any of it. "At once" means within two seconds: an error that the SDK
takes for a passing one would be retried for minutes.
"""

import gzip
import json
import socket
import time
import urllib.parse
import urllib.request

import blackbox
from blackbox import SDK, TIMEOUT, expect, types

AT_ONCE = 2.0
LEARNING_RATE = 1e-3
ALICE, MALLORY = "tml-test-alice", "tml-test-mallory"
BEYOND_VOCABULARY = 10_000_000
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def main():
    options = blackbox.parser(__doc__)
    options.add_argument("--longest", type=int, default=512, help="tokens the server accepts in one sequence")
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    url, model = arguments.base_url, arguments.model
    client = blackbox.service(url, ALICE)

    undisturbed = blackbox.create_run(client, model, seed=31)
    run = blackbox.create_run(client, model, seed=31)
    first = [blackbox.datum(tokens) for tokens in blackbox.sequences(seed=31)]
    second = [blackbox.datum(tokens) for tokens in blackbox.sequences(seed=32)]
    undisturbed.forward_backward(first, "cross_entropy").result(timeout=TIMEOUT)
    run.forward_backward(first, "cross_entropy").result(timeout=TIMEOUT)

    training(run, arguments.longest)
    creation(client, model)
    checkpoints(client, blackbox.service(url, MALLORY), run, model)
    sampling(client, model, arguments.longest)
    raw(url, client, model, run.model_id)

    for each in (undisturbed, run):
        each.optim_step(blackbox.adam(LEARNING_RATE)).result(timeout=TIMEOUT)
    for _ in range(2):
        wanted = blackbox.train(undisturbed, second, LEARNING_RATE)
        seen = blackbox.train(run, second, LEARNING_RATE)
        expect(seen == wanted, f"after the bad input the run trains otherwise: loss {seen[0]!r}, not {wanted[0]!r}")


# === through the SDK ===

def training(run, longest):
    good = blackbox.sequences(seed=1, count=1)[0]

    def passing(inputs, tokens=None, loss="cross_entropy", config=None):
        tokens = good[:-1] if tokens is None else tokens
        datum = types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)
        return lambda: run.forward_backward([datum], loss, config).result(timeout=TIMEOUT)

    targets = good[1:]
    if SDK >= (0, 38):
        # 0.16.1 refuses these two before anything is sent.
        refused("an unknown loss", passing({"target_tokens": targets}, loss="nope"), ["nope"])
        not_a_number = {"target_tokens": targets, "weights": [float("nan")] * len(targets)}
        refused("a weight that is not a number", passing(not_a_number), ["weight", "finite", "nan"])
        # The SDK sends null for it, which must not be taken for the default.
        step = blackbox.adam(float("nan"))
        refused("a learning rate that is not a number", lambda: run.optim_step(step).result(timeout=TIMEOUT), ["learning_rate", "learning rate"])
        unknown = passing({"target_tokens": targets}, config={"no_such_option": 1.0})
        refused("an unknown loss option", unknown, ["no_such_option"])
    refused("too few targets", passing({"target_tokens": targets[:-1]}), ["target_tokens", "length"])
    refused("too many weights", passing({"target_tokens": targets, "weights": [1.0] * (len(targets) + 1)}), ["weights", "length"])
    refused("no targets", passing({}), ["target_tokens"])
    refused("ppo without logprobs", passing({"target_tokens": targets}, loss="ppo"), ["logprobs", "advantages", "ppo"])
    beyond = [BEYOND_VOCABULARY, *good[1:-1]]
    refused("an input token outside the vocabulary", passing({"target_tokens": targets}, beyond), ["vocabulary"])
    refused("a target outside the vocabulary", passing({"target_tokens": [*targets[:-1], BEYOND_VOCABULARY]}), ["vocabulary"])
    refused("a negative token", passing({"target_tokens": [-5, *targets[1:]]}), ["vocabulary", "negative", "-5"])
    refused("an empty sequence", passing({"target_tokens": []}, []), ["empty", "token"])
    over_long = [good[0]] * (longest + 1)
    refused("an over-long sequence", passing({"target_tokens": over_long}, over_long), ["long", "exceed", "at most", "limit of", "context"])
    negative = blackbox.adam(-1.0)
    refused("a negative learning rate", lambda: run.optim_step(negative).result(timeout=TIMEOUT), ["learning_rate", "learning rate"])

    # One bad datum refuses the whole request: the good one before it must add no gradient.
    bad = types.Datum(model_input=types.ModelInput.from_ints(good[:-1]), loss_fn_inputs={"target_tokens": targets[:-1]})
    mixed = [blackbox.datum(good), bad]
    refused("a bad datum after a good one", lambda: run.forward_backward(mixed, "cross_entropy").result(timeout=TIMEOUT), ["target_tokens", "length"])


def creation(client, model):
    def create(**options):
        return lambda: blackbox.create_run(client, **{"model": model, **options})

    refused("an unknown base model", create(model="no/such-model"), ["no/such-model"])
    refused("rank zero", create(rank=0), ["rank"])
    refused("an absurd rank", create(rank=1_000_000), ["rank"])


def checkpoints(client, stranger, run, model):
    other = blackbox.create_run(stranger, model, seed=1)
    path = other.save_state("mine").result(timeout=TIMEOUT).path
    sampler_path = other.save_weights_for_sampler("mine").result(timeout=TIMEOUT).path
    absent = path.replace("/mine", "/absent")

    foreign = refused("a foreign checkpoint", lambda: blackbox.restore_run(client, path), ["not found", "no checkpoint", "does not exist", "unknown"])
    missing = refused("an absent checkpoint", lambda: blackbox.restore_run(client, absent), ["not found", "no checkpoint", "does not exist", "unknown"])
    expect(
        foreign.replace("/mine", "/absent") == missing,
        f"a foreign checkpoint can be told from an absent one: `{foreign}` against `{missing}`",
    )
    refused("a foreign sampler checkpoint", lambda: blackbox.ready(client.create_sampling_client(model_path=sampler_path)), ["not found", "no checkpoint", "does not exist", "unknown"])
    for name in ("../evil", "", "a/b"):
        refused(f"the checkpoint name `{name}`", lambda: run.save_state(name).result(timeout=TIMEOUT), ["name"])
    run.save_state("twice").result(timeout=TIMEOUT)
    refused("a name that is taken", lambda: run.save_state("twice").result(timeout=TIMEOUT), ["exist"])


def sampling(client, model, longest):
    sampler = blackbox.ready(client.create_sampling_client(base_model=model))

    def sample(tokens=(5, 6), count=1, **params):
        return lambda: sampler.sample(
            prompt=types.ModelInput.from_ints(list(tokens)), num_samples=count,
            sampling_params=types.SamplingParams(**{"max_tokens": 4, **params}),
        ).result(timeout=TIMEOUT)

    refused("a prompt outside the vocabulary", sample([5, BEYOND_VOCABULARY]), ["vocabulary"])
    refused("an empty prompt", sample([]), ["empty", "prompt"])
    refused("an over-long prompt", sample([5] * (longest + 1)), ["long", "exceed", "at most", "limit of", "context"])
    refused("a negative temperature", sample(temperature=-1.0), ["temperature"])
    refused("a top_p above one", sample(top_p=1.5), ["top_p"])
    refused("no samples at all", sample(count=0), ["num_samples", "sample"])
    sample()()


def refused(what, action, words):
    """The action must raise quickly, with a text that holds one of `words`. Returns the text."""
    started = time.monotonic()
    try:
        action()
    except Exception as error:  # the SDK has a class per status
        text, name = str(error), type(error).__name__
    else:
        raise blackbox.Failure(f"{what} was accepted")
    elapsed = time.monotonic() - started
    expect(elapsed < AT_ONCE, f"{what}: it took {elapsed:.1f} s to be refused ({name}: {text})")
    readable(what, text, words)
    expect(name not in ("InternalServerError", "APIConnectionError", "RateLimitError", "ConflictError"), f"{what}: {name}: {text}")
    return text


def readable(what, text, words):
    expect(any(word in text.lower() for word in words), f"{what}: the text `{text}` says none of {words}")
    for ugly in ("panicked", "Traceback", "unwrap", "RecvError"):
        expect(ugly not in text, f"{what}: the text `{text}` is not for users")


# === raw HTTP ===

def raw(url, client, model, run_id):
    """Requests that no SDK sends. They go to a run of their own, whose numbers are counted here."""
    own = blackbox.create_run(client, model, seed=41).model_id
    good = blackbox.raw_datum(blackbox.sequences(seed=41, count=1)[0])

    def passing(number, data, loss="cross_entropy"):
        return {"forward_backward_input": {"data": data, "loss_fn": loss}, "model_id": own, "seq_id": number}

    def refused_post(what, route, body, words, statuses=(400, 404, 413, 415, 422), key=ALICE, headers=None):
        started = time.monotonic()
        status, answer, sent = blackbox.post(url, route, body, key, headers)
        if status == 200 and isinstance(answer, dict) and "request_id" in answer:
            status, answer = blackbox.raw_result(url, answer["request_id"], key)
            expect("error" in answer, f"{what} was accepted: {answer}")
            expect(answer.get("category") == "user", f"{what}: the category is `{answer.get('category')}`")
        else:
            expect(status in statuses, f"{what}: status {status}: {answer}")
            # The SDK takes a 400 without these for a broken proxy and retries.
            expect(sent.get("Content-Length") not in (None, "0"), f"{what}: a {status} without Content-Length")
        elapsed = time.monotonic() - started
        expect(elapsed < AT_ONCE, f"{what}: it took {elapsed:.1f} s to be refused")
        readable(what, json.dumps(answer), words)

    refused_post("an unknown loss", "forward_backward", passing(1, [good], "nope"), ["nope"])
    refused_post("an empty batch", "forward_backward", passing(2, []), ["empty", "data", "datum"])
    step = {"adam_params": {"learning_rate": None}, "model_id": own, "seq_id": 3}
    refused_post("a learning rate of null", "optim_step", step, ["learning_rate", "learning rate"])
    text = json.dumps({**step, "seq_id": 4}).replace("null", "NaN").encode()
    refused_post("a learning rate of NaN", "optim_step", text, ["json", "expected", "learning_rate", "number", "nan"])
    # Each refusal consumed its number: the run must not wait for it.
    result = blackbox.raw_operation(url, "forward_backward", passing(5, [good]))
    expect(len(result["loss_fn_outputs"]) == 1, f"the run did not go on after its refused operations: {result}")

    refused_post("broken JSON", "forward_backward", b'{"forward_backward_input": {', ["json", "eof", "expected"])
    refused_post("JSON of another shape", "forward_backward", [], ["expected", "missing", "invalid"])
    refused_post("JSON nested without end", "forward_backward", b"[" * 200_000, ["json", "recursion", "expected", "depth", "eof"])
    refused_post("broken protobuf", "forward_backward", b"\xff\xff\xff\xff\x00garbage", ["protobuf"], headers=PROTOBUF)
    refused_post("an unknown run", "optim_step", {"adam_params": {}, "model_id": "nobody:train:0", "seq_id": 1}, ["not found", "no run", "does not exist", "unknown"])
    refused_post("a foreign run", "get_info", {"model_id": run_id}, ["not found", "no run", "does not exist", "unknown"], (404,), key=MALLORY)
    refused_post("an unknown sampling session", "asample", {
        "sampling_session_id": "nobody:sample:0", "seq_id": 0, "num_samples": 1, "prompt": {"chunks": [{"tokens": [5]}]},
        "sampling_params": {"max_tokens": 1},
    }, ["not found", "no sampling", "does not exist", "unknown"], (404,))
    refused_post("no key", "create_session", {"tags": [], "user_metadata": None, "sdk_version": "0"}, ["key", "credential", "auth"], (401,), key=None)

    zstd = {**PROTOBUF, "Content-Encoding": "zstd"}
    small_bomb = {"Content-Encoding": "gzip"}
    refused_post("a zstd bomb of 13 GB", "forward_backward", zstd_bomb(100_000), ["large", "limit", "bytes", "exceed"], headers=zstd)
    refused_post("broken zstd", "forward_backward", b"not zstd at all", ["zstd", "encoding", "decompress"], headers=zstd)
    refused_post("a gzip bomb", "forward_backward", gzip.compress(bytes(1 << 30), 9), ["large", "limit", "bytes", "exceed", "encoding", "gzip"], headers=small_bomb)
    oversized(url)
    expect(json.load(urllib.request.urlopen(f"{url}/api/v1/healthz", timeout=TIMEOUT))["status"] == "ok", "healthz is not ok")


def zstd_bomb(blocks):
    """A valid zstd frame of `blocks` run-length blocks, each four bytes that become 128 KiB."""
    header = bytes.fromhex("28b52ffd") + b"\x00" + bytes([7 << 3])
    block = ((131072 << 3) | (1 << 1)).to_bytes(3, "little") + b"\x00"
    last = ((131072 << 3) | (1 << 1) | 1).to_bytes(3, "little") + b"\x00"
    return header + block * (blocks - 1) + last


def oversized(url):
    """A body announced with ten gigabytes is refused before it is sent."""
    parts = urllib.parse.urlsplit(url)
    started = time.monotonic()
    with socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT) as connection:
        head = (
            f"POST {parts.path}/api/v1/forward_backward HTTP/1.1\r\nHost: {parts.netloc}\r\nX-API-Key: {ALICE}\r\n"
            f"Content-Type: application/x-protobuf\r\nContent-Length: {10 << 30}\r\n\r\n"
        )
        connection.sendall(head.encode() + b"x" * 1000)
        connection.settimeout(AT_ONCE)
        try:
            answer = connection.recv(4096).decode(errors="replace")
        except TimeoutError:
            raise blackbox.Failure("a body of 10 GB is not refused before it was sent") from None
    expect(" 413 " in answer.split("\r\n")[0], f"a body of 10 GB is answered `{answer[:200]}`")
    elapsed = time.monotonic() - started
    expect(elapsed < AT_ONCE, f"a body of 10 GB: it took {elapsed:.1f} s to be refused")


if __name__ == "__main__":
    blackbox.run(main)
