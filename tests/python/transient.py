#!/usr/bin/env python3
"""What passes is waited for: the SDK slows down or tries again by itself, and the user's loop sees nothing of it.

`--what quota`: the server takes `--rate` requests a second. Three times as many optimizer steps at once all succeed, not
sooner than the quota allows and not much later: a 429 with `Retry-After` is neither an error nor a long back-off.

`--what outage`: a loop trains and samples while somebody kills the server and starts it again; whoever does so waits
until `--working` exists. Every loss, logprob and sample is, bit for bit, that of a twin that ran before.
"""

import pathlib
import time

import blackbox
from blackbox import TIMEOUT, expect, types

LEARNING_RATE = 1e-3
STEPS = 40


def main():
    options = blackbox.parser(__doc__)
    options.add_argument("--what", required=True, choices=["quota", "outage"])
    options.add_argument("--rate", type=float, default=8.0, help="requests a second that the server takes")
    options.add_argument("--working", type=pathlib.Path, help="made when the loop is under way")
    options.add_argument("--killed", type=pathlib.Path, help="exists when the server was killed")
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    client = blackbox.service(arguments.base_url)
    if arguments.what == "quota":
        quota(client, arguments.model, arguments.rate)
    else:
        outage(client, arguments.model, arguments.working, arguments.killed)


def quota(client, model, rate):
    run = blackbox.create_run(client, model)
    run.optim_step(blackbox.adam(LEARNING_RATE)).result(timeout=TIMEOUT)
    count = int(3 * rate)
    started = time.monotonic()
    pending = [run.optim_step(blackbox.adam(LEARNING_RATE)) for _ in range(count)]
    for future in pending:
        future.result(timeout=TIMEOUT)
    elapsed = time.monotonic() - started
    # A full window may have been free at the start; a polling question for each result does not count.
    least, most = (count - rate) / rate - 0.5, 4 * count / rate + 10
    print(f"{count} steps at {rate} a second took {elapsed:.1f} s", flush=True)
    expect(elapsed >= least, f"{count} steps took {elapsed:.2f} s, which is more than {rate} a second")
    expect(elapsed <= most, f"{count} steps took {elapsed:.1f} s: the SDK was not told when to come again")


def outage(client, model, working, killed):
    data = [blackbox.datum(tokens) for tokens in blackbox.sequences(seed=51)]
    prompt = types.ModelInput.from_ints(blackbox.sequences(seed=52, count=1)[0][:6])
    sampler = blackbox.ready(client.create_sampling_client(base_model=model))

    def work(begun):
        """The losses, the logprobs and the samples of a loop; `begun` is told of every step."""
        run = blackbox.create_run(client, model, seed=53)
        seen = []
        for step in range(STEPS):
            params = types.SamplingParams(max_tokens=24, temperature=1.0, seed=step, stop=[])
            sample = sampler.sample(prompt, 2, params)
            seen.append(blackbox.train(run, data, LEARNING_RATE))
            seen.append([list(sequence.tokens) for sequence in sample.result(timeout=TIMEOUT).sequences])
            begun(step)
        return seen

    wanted = work(lambda step: None)

    def begun(step):
        if step == STEPS // 4:
            working.write_text("now")

    seen = work(begun)
    expect(killed.exists(), "nobody killed the server meanwhile")
    first = next((index for index, (one, other) in enumerate(zip(wanted, seen)) if one != other), None)
    expect(first is None, f"item {first} of the loop differs after the outage")


if __name__ == "__main__":
    blackbox.run(main)
