"""Scenarios of the futures themselves."""

import asyncio

import blackbox
import tinker
from blackbox import expect
from scenario import LIMIT, scenario


def submitted(trial):
    return trial.world.run.forward(trial.world.data, "cross_entropy")


@scenario("APIFuture.result")
def result(trial):
    future = submitted(trial)
    values = [blackbox.logprobs_of(future.result(timeout=LIMIT)) for _ in range(2)]
    expect(values[0] == values[1], "asking twice gives two results")


@scenario("APIFuture.result_async")
def result_async(trial):
    async def wait():
        return await submitted(trial).result_async(timeout=LIMIT)

    expect(blackbox.logprobs_of(asyncio.run(wait())), "no result")


@scenario("APIFuture.coroutine")
def coroutine(trial):
    async def wait():
        return await asyncio.create_task(submitted(trial).coroutine())

    expect(blackbox.logprobs_of(asyncio.run(wait())), "no result")


@scenario("APIFuture.future")
def future(trial):
    expect(blackbox.logprobs_of(submitted(trial).future().result(timeout=LIMIT)), "no result")


BACKCOMPAT = ("BackcompatTrainingClientFuture", "BackcompatSamplingClientFuture")


@scenario(*(f"{name}.{method}" for name in BACKCOMPAT for method in ("result", "future", "coroutine", "result_async")))
def client_future(trial):
    """The future of a client gives the client, in each of the ways of a future."""
    training = "Training" in trial.row
    client = trial.world.as_future(trial.world.run if training else trial.world.sampler)
    method = trial.row.rpartition(".")[2]
    if method in ("coroutine", "result_async"):
        async def wait():
            return await getattr(client, method)()

        made = asyncio.run(wait())
    elif method == "future":
        made = client.future().result(timeout=LIMIT)
    else:
        made = client.result(timeout=LIMIT)
    expect(type(made) in (tinker.TrainingClient, tinker.SamplingClient), f"a {type(made)}")
