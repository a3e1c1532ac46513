#!/usr/bin/env python3
"""The sampling client's own traffic: many samples at once, samples it gives up, and copies of it in other processes.

An abandoned sample must be gone from the engine at once, while the client goes on as if nothing had happened. With
`--measure` it prints how long bursts take, for `docs/benchmarks.md`.
"""

import asyncio
import json
import pickle
import time
import urllib.request

import blackbox
from blackbox import TIMEOUT, expect, types

BURST = 64
# Far longer than the test, and more than the engine has seats.
ENDLESS = {"num_samples": 1024, "max_tokens": 400}


def main():
    options = blackbox.parser(__doc__)
    options.add_argument("--measure", type=int, default=0, help="time so many bursts of 512 samples and do nothing else")
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    client = blackbox.service(arguments.base_url)
    sampling = blackbox.ready(client.create_sampling_client(base_model=arguments.model))
    if arguments.measure:
        measure(sampling, arguments.measure)
        return

    config = sampling.holder.get_client_config()
    expect(config.sample_join_sampling_session, "copies of a client should be given numbers")
    burst(sampling, BURST)
    abandon(sampling, arguments.base_url)
    burst(sampling, BURST)
    copies(sampling)


def params(max_tokens, seed=1):
    return types.SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=seed, stop=[])


def burst(sampling, count, max_tokens=4):
    """Samples at once; each must come back with its own tokens."""
    prompts = [types.ModelInput.from_ints([3 + index % 200, 7, 11]) for index in range(count)]
    futures = [sampling.sample(prompt, 1, params(max_tokens, seed=index)) for index, prompt in enumerate(prompts)]
    results = [future.result(timeout=TIMEOUT) for future in futures]
    lengths = {len(result.sequences[0].tokens) for result in results}
    expect(lengths == {max_tokens}, f"samples of {max_tokens} tokens have {lengths}")
    ids = {result.sequences[0].sequence_id for result in results}
    expect(len(ids) == count, f"{count} samples have {len(ids)} ids")
    return results


def abandon(sampling, url):
    """Gives samples up in the two ways there are: by a deadline, and by cancelling what waits."""
    prompt = types.ModelInput.from_ints([5, 9, 31])

    async def work():
        endless = [
            asyncio.create_task(
                sampling.sample_async(prompt, ENDLESS["num_samples"], params(ENDLESS["max_tokens"], seed))
            )
            for seed in range(3)
        ]
        await until(lambda: engine(url)["requests_in_memory"] == len(endless), "the samples never began")
        # A sample can be given up from when the client has its name and waits for it.
        await asyncio.sleep(1.0)
        for task in endless:
            task.cancel()
        await asyncio.gather(*endless, return_exceptions=True)

    asyncio.run(work())
    asyncio.run(until(lambda: engine(url)["requests_in_memory"] == 0, "abandoned samples are still computed"))
    expect(engine(url)["cache_bytes"] == 0, "abandoned samples still hold memory")


def copies(sampling):
    """A pickled client is another client of the same sampling session, and the server keeps them apart."""
    packed = pickle.dumps(sampling)
    clones = [pickle.loads(packed) for _ in range(2)]
    first = [burst(clone, 8) for clone in clones]
    wanted = burst(sampling, 8)
    for results in first:
        same = [result.sequences[0].tokens for result in results] == [result.sequences[0].tokens for result in wanted]
        expect(same, "a copy of the client samples other tokens with the same seeds")
    numbers = sorted(clone._cloned_sampler_id for clone in clones)
    expect(numbers == [1, 2], f"the copies should be clients 1 and 2, not {numbers}")


def measure(sampling, rounds):
    burst(sampling, 16)
    for count, max_tokens in ((512, 1), (512, 16)):
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            burst(sampling, count, max_tokens)
            times.append(time.perf_counter() - began)
        bulk = sampling.holder.get_client_config().sample_use_retrieve_futures
        times.sort()
        print(f"bulk={bulk} samples={count} tokens={max_tokens} best={times[0]:.3f} median={times[len(times) // 2]:.3f}")


async def until(condition, message, limit=20.0):
    deadline = time.monotonic() + limit
    while not condition():
        expect(time.monotonic() < deadline, message)
        await asyncio.sleep(0.05)


def engine(url):
    """What the sampling engine holds, from the server's own status page."""
    request = urllib.request.Request(f"{url}/health/sampler", headers={"X-API-Key": "tml-test-alice"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return json.load(response)["status"]


if __name__ == "__main__":
    blackbox.run(main)
