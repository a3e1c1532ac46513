#!/usr/bin/env python3
"""Losses written in torch, run by the server and by the client: the same values, metrics and steps.

Needs torch beside the SDK, so it runs in the cookbook's environment.
"""

import math
import time

import numpy
import torch
import torch.nn.functional as F

import blackbox
from blackbox import TIMEOUT, expect, types

RANKS = {"logprobs": 1, "sampled": 1, "advantages": 1, "mask": 1, "margin": 0}
LENGTH = 12


def policy(logprobs, sampled, advantages, mask, margin):
    """Clipped policy gradient with a penalty on entropy."""
    ratio = torch.exp(logprobs - sampled)
    plain = ratio * advantages
    clipped = ratio.clamp(0.8, 1.2) * advantages
    count = mask.sum().clamp(min=1.0)
    entropy = -(logprobs.exp() * logprobs * mask).sum() / count
    loss = -(torch.minimum(plain, clipped) * mask).sum() / math.sqrt(logprobs.shape[0]) - 0.01 * entropy
    return loss, {
        "custom/entropy:mean": entropy,
        "custom/clipped:sum": ((ratio < 0.8) | (ratio > 1.2)).float().mul(mask).sum(),
    }


def preference(logprobs, sampled, advantages, mask, margin):
    """The first half of the datum is preferred to the second, by a margin of its own."""
    half = logprobs.size(0) // 2
    gap = (logprobs - sampled)[:half].sum() - (logprobs - sampled)[half:].sum()
    return -F.logsigmoid(gap - margin), {"custom/right:mean": (gap > margin).to(torch.float32)}


def table(logprobs, target):
    """Distillation on several candidates per position."""
    loss = F.kl_div(F.log_softmax(logprobs, dim=-1), target, reduction="sum")
    return loss, {"custom/kl:sum": loss}


def datums():
    generator = numpy.random.default_rng(3)
    made = []
    for tokens in blackbox.sequences(seed=11)[:3]:
        tokens = (tokens * LENGTH)[: LENGTH + 1]
        floats = {
            "sampled": generator.normal(-5.0, 0.5, LENGTH),
            "advantages": generator.normal(0.0, 1.0, LENGTH),
            "mask": (numpy.arange(LENGTH) > 2) * 1.0,
        }
        inputs = {
            name: types.TensorData(data=[float(x) for x in value], dtype="float32", shape=[LENGTH])
            for name, value in floats.items()
        }
        inputs["margin"] = types.TensorData(data=[float(generator.normal())], dtype="float32", shape=[])
        inputs["target_tokens"] = types.TensorData(data=tokens[1:], dtype="int64", shape=[LENGTH])
        made.append(types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs))
    return made


def tables():
    generator = numpy.random.default_rng(4)
    made = []
    for tokens in blackbox.sequences(seed=12)[:2]:
        tokens = (tokens * LENGTH)[: LENGTH + 1]
        candidates = [int(token) for token in generator.integers(3, 250, LENGTH * 4)]
        share = generator.random((LENGTH, 4)) + 0.1
        share = share / share.sum(axis=1, keepdims=True)
        inputs = {
            "target_tokens": types.TensorData(data=candidates, dtype="int64", shape=[LENGTH, 4]),
            "target": types.TensorData(data=[float(x) for x in share.flatten()], dtype="float32", shape=[LENGTH, 4]),
        }
        made.append(types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs))
    return made


def on_the_client(loss, names):
    """The same loss as a function of all datums, which the SDK runs here."""

    def whole(data, logprobs_list):
        total, sums = 0.0, {}
        for datum, logprobs in zip(data, logprobs_list, strict=True):
            value, metrics = loss(logprobs, *(datum.loss_fn_inputs[name].to_torch() for name in names))
            total = total + value
            for key, metric in metrics.items():
                sums[key] = sums.get(key, 0.0) + metric.item()
        return total, {key: value / len(data) if key.endswith(":mean") else value for key, value in sums.items()}

    return whole


def close(left, right, what):
    expect(abs(left - right) <= 1e-4 * max(1.0, abs(right)), f"{what}: {left} by the server, {right} by the client")


def same_as_on_the_client(client, model, loss, ranks, data):
    handle = client.create_custom_loss(loss, ranks).result(timeout=TIMEOUT)
    expect(handle.loss_id, f"{loss.__name__} was not sent to the server")
    found = []
    for function in (handle, on_the_client(loss, list(ranks)[1:])):
        run = blackbox.create_run(client, model)
        outcomes = []
        for _ in range(3):
            result = run.forward_backward_custom(data, function)
            run.optim_step(types.AdamParams(learning_rate=1e-2, **blackbox.ADAM)).result(timeout=TIMEOUT)
            outcomes.append(result.result(timeout=TIMEOUT))
        found.append(outcomes)
    for step, (server, here) in enumerate(zip(*found, strict=True)):
        for key in ["loss:sum", *(key for key in here.metrics if key.startswith("custom/"))]:
            close(server.metrics[key], here.metrics[key], f"{loss.__name__}, step {step}, {key}")
        for left, right in zip(server.loss_fn_outputs, here.loss_fn_outputs, strict=True):
            left, right = (numpy.asarray(side["logprobs"].to_numpy()) for side in (left, right))
            expect(left.shape == right.shape, f"{loss.__name__}: logprobs of shape {left.shape} and {right.shape}")
            expect(numpy.allclose(left, right, atol=1e-4), f"{loss.__name__}, step {step}: other logprobs")
    first, last = found[0][0].metrics["loss:sum"], found[0][-1].metrics["loss:sum"]
    expect(last < first, f"{loss.__name__}: three steps did not lower the loss: {first} to {last}")


def refused(call, *words):
    started = time.monotonic()
    try:
        call().result(timeout=TIMEOUT)
    except Exception as error:
        text = str(error)
        expect(all(word in text for word in words), f"`{text}` lacks one of {words}")
        expect(time.monotonic() - started < 2.0, f"it took {time.monotonic() - started:.1f} s to say `{text}`")
        return
    expect(False, f"nothing was said about {words}")


def main():
    arguments = blackbox.parser(__doc__).parse_args()
    blackbox.watchdog(arguments.limit)
    client = blackbox.service(arguments.base_url)
    data = datums()
    same_as_on_the_client(client, arguments.model, policy, RANKS, data)
    same_as_on_the_client(client, arguments.model, preference, RANKS, data)
    same_as_on_the_client(client, arguments.model, table, {"logprobs": 2, "target": 2}, tables())

    def random(logprobs):
        return (logprobs * torch.rand_like(logprobs)).sum(), {}

    def explosive(logprobs):
        return logprobs.expand(2**40, logprobs.size(0)).sum(), {}

    def undefined(logprobs):
        return torch.log(logprobs).sum(), {}

    only = {"logprobs": 1}
    refused(lambda: client.create_custom_loss(random, only), "torch.rand_like", "not supported")
    run = blackbox.create_run(client, arguments.model)
    for loss, word in [(explosive, "values computed for one datum"), (undefined, "is NaN")]:
        handle = client.create_custom_loss(loss, only).result(timeout=TIMEOUT)
        refused(lambda: run.forward_backward_custom(data, handle), loss.__name__, word)


blackbox.run(main)
