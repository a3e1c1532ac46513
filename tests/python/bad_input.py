#!/usr/bin/env python3
"""What no SDK sends is refused at once, in words, and changes nothing: broken bodies, bombs, strangers' ids.

What the SDK does let through is in `errors.py`. A run is half-way between a forward_backward and its optim_step while
all of it happens; afterwards it must train on with the very bits of a run that never saw any of it. "At once" means
within two seconds: an error that the SDK takes for a passing one would be retried for minutes.
"""

import gzip
import json
import socket
import time
import urllib.parse
import urllib.request

import blackbox
from blackbox import ALICE, AT_ONCE, MALLORY, TIMEOUT, expect

LEARNING_RATE = 1e-3
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def main():
    options = blackbox.parser(__doc__)
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    url, model = arguments.base_url, arguments.model
    client = blackbox.service(url, ALICE)

    twins = blackbox.Twins(client, model, LEARNING_RATE)
    raw(url, client, model, twins.run.model_id)
    twins.expect_equal("the bad input")


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
        for fault in blackbox.faults(json.dumps(answer), words):
            raise blackbox.Failure(f"{what}: {fault}")

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
