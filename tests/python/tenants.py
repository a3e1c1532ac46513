#!/usr/bin/env python3
"""Four tenants with different keys train at the same time; each gets exactly what it gets alone.

They differ in rank, modules, learning rate, clipping, and in the number and length of their sequences, so that their rows share
passes in ever new ways. "Exactly" means every logprob of every step, to the last bit.
"""

import threading

import blackbox
from blackbox import TIMEOUT, expect, types

STEPS = 6
TENANTS = {
    "alice": {"rank": 8, "seed": 1, "count": 3, "length": 12, "learning_rate": 1e-3, "adam": {}},
    "bob": {"rank": 4, "seed": 2, "count": 1, "length": 70, "learning_rate": 5e-4, "adam": {"grad_clip_norm": 1.0}},
    "carol": {"rank": 16, "seed": 3, "count": 5, "length": 7, "learning_rate": 2e-3, "adam": {"weight_decay": 0.1}},
    "dave": {"rank": 2, "seed": 4, "count": 2, "length": 33, "learning_rate": 1e-3, "adam": {}},
}
MODULES = {"carol": {"train_unembed": False}, "dave": {"train_mlp": False}}


def main():
    arguments = blackbox.parser(__doc__).parse_args()
    blackbox.watchdog(arguments.limit)
    clients = {name: blackbox.service(arguments.base_url, f"tml-test-{name}") for name in TENANTS}

    alone = {name: curve(clients[name], arguments.model, name) for name in TENANTS}
    together, errors = {}, []
    barrier = threading.Barrier(len(TENANTS))

    def work(name):
        try:
            together[name] = curve(clients[name], arguments.model, name, barrier)
        except BaseException as error:  # the thread's failure is the test's
            errors.append((name, error))
            barrier.abort()

    threads = [threading.Thread(target=work, args=(name,), name=name, daemon=True) for name in TENANTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect(not errors, f"training together failed: {errors}")

    for name in TENANTS:
        for step, (left, right) in enumerate(zip(alone[name]["steps"], together[name]["steps"]), start=1):
            difference = max(blackbox.largest_difference(a, b) for a, b in zip(left[1], right[1]))
            expect(difference == 0.0, f"{name}, step {step}: logprobs together differ from alone by up to {difference:.2e}")
            expect(left[0] == right[0], f"{name}, step {step}: the loss together is {right[0]!r}, alone {left[0]!r}")
        for (tokens, logprobs), (tokens_together, logprobs_together) in zip(alone[name]["sampled"], together[name]["sampled"]):
            expect(tokens == tokens_together, f"{name}: sampled {tokens_together} together, {tokens} alone")
            difference = blackbox.largest_difference(logprobs, logprobs_together)
            expect(difference == 0.0, f"{name}: logprobs of samples together differ from alone by {difference:.2e}")
    curves = [tuple(loss for loss, _ in alone[name]["steps"]) for name in TENANTS]
    expect(len(set(curves)) == len(curves), "tenants with different data have the same losses")


def curve(client, model, name, barrier=None):
    """Every step's loss and logprobs, and a sample from the trained run."""
    tenant = TENANTS[name]
    data = [
        blackbox.datum(tokens)
        for tokens in blackbox.sequences(tenant["seed"], count=tenant["count"], length=tenant["length"])
    ]
    run = blackbox.create_run(client, model, seed=tenant["seed"], rank=tenant["rank"], **MODULES.get(name, {}))
    if barrier is not None:
        barrier.wait(TIMEOUT)
    steps = [blackbox.train(run, data, tenant["learning_rate"], **tenant["adam"]) for _ in range(STEPS)]
    expect(steps[-1][0] < steps[0][0], f"{name}: the loss did not fall: {[loss for loss, _ in steps]}")
    sampler = blackbox.ready(run.save_weights_and_get_sampling_client())
    params = types.SamplingParams(max_tokens=8, temperature=1.0, seed=9, stop=[])
    prompt = types.ModelInput.from_ints([10, 20, 30])
    result = sampler.sample(prompt=prompt, num_samples=2, sampling_params=params).result(timeout=TIMEOUT)
    sampled = [(list(sequence.tokens), blackbox.float32(sequence.logprobs)) for sequence in result.sequences]
    return {"steps": steps, "sampled": sampled}


if __name__ == "__main__":
    blackbox.run(main)
