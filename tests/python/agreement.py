#!/usr/bin/env python3
"""The sampler's logprobs are the trainer's, at every temperature.

In the manner of the cookbook's `compare_sampling_training_logprobs` and `validate_temperature_logprobs`: a run is
trained a little, its weights are sampled at several temperatures, and each sampled token's logprob is compared with

* `compute_logprobs` of the same tokens by the same sampler (unscaled),
* `forward` of the same tokens by the trainer (unscaled),
* and, where the temperature is not 1, with those by way of differences: the reported value is that of the scaled
  distribution `softmax(logits / T)`, so for two tokens at one place `lp_T(i) - lp_T(j) = (lp_1(i) - lp_1(j)) / T`.

The tolerances are stated on the command line and mean: the largest difference of one token's logprob. In fp32 they are
those of another order of addition, in bf16 those of logits that were rounded to 8 bits in the two passes.
"""

import math

import numpy

import blackbox
from blackbox import SDK, TIMEOUT, expect, types

TEMPERATURES = [0.0, 0.25, 0.5, 0.7, 1.0, 1.3, 2.0]
PROMPTS, SAMPLES, NEW_TOKENS = 3, 4, 16


def main():
    options = blackbox.parser(__doc__)
    options.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of one token's logprob")
    options.add_argument("--mean-tolerance", type=float, default=1e-5, help="mean difference over all tokens")
    options.add_argument("--vocabulary", type=int, default=336, help="tokens of the model, for sums of probabilities")
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    client = blackbox.service(arguments.base_url)
    run = blackbox.create_run(client, arguments.model)
    data = [blackbox.datum(tokens) for tokens in blackbox.sequences(seed=1)]
    for _ in range(5):
        blackbox.train(run, data, 5e-3)
    sampler = blackbox.ready(run.save_weights_and_get_sampling_client())
    prompts = [tokens[:6] for tokens in blackbox.sequences(seed=2, count=PROMPTS)]

    gaps = Gaps()
    for temperature in TEMPERATURES:
        for index, prompt in enumerate(prompts):
            params = types.SamplingParams(max_tokens=NEW_TOKENS, temperature=temperature, seed=100 + index, stop=[])
            result = sampler.sample(types.ModelInput.from_ints(prompt), SAMPLES, params).result(timeout=TIMEOUT)
            compare(gaps, sampler, run, prompt, result.sequences, temperature)
    if SDK >= (0, 38):
        scaled_differences(gaps, sampler, prompts[0])
        whole_distribution(sampler, prompts[0], arguments.vocabulary, arguments.tolerance)
    gaps.judge(arguments.tolerance, arguments.mean_tolerance)


class Gaps:
    """Differences by what was compared."""

    def __init__(self):
        self.by_name = {}

    def add(self, name, left, right):
        expect(len(left) == len(right), f"{name}: {len(left)} values against {len(right)}")
        self.by_name.setdefault(name, []).extend(a - b for a, b in zip(left, right))

    def judge(self, tolerance, mean_tolerance):
        wrong = []
        for name, differences in self.by_name.items():
            largest = max(abs(difference) for difference in differences)
            mean = sum(differences) / len(differences)
            print(f"{name}: {len(differences)} tokens, largest {largest:.2e}, mean {mean:+.2e}", flush=True)
            if not largest <= tolerance or not abs(mean) <= mean_tolerance:
                wrong.append(name)
        expect(not wrong, f"more than {tolerance} apart, or {mean_tolerance} in the mean: {', '.join(wrong)}")


def compare(gaps, sampler, run, prompt, sequences, temperature):
    wholes = [prompt + list(sequence.tokens) for sequence in sequences]
    trained = blackbox.forward(run, [blackbox.datum(whole) for whole in wholes])
    pending = [sampler.compute_logprobs(types.ModelInput.from_ints(whole)) for whole in wholes]
    for sequence, forward, scored in zip(sequences, trained, pending):
        expect(len(sequence.tokens) == NEW_TOKENS, f"{len(sequence.tokens)} tokens with `stop=[]`")
        new = len(sequence.tokens)
        scored = scored.result(timeout=TIMEOUT)
        gaps.add("compute_logprobs against forward", scored[1:], forward)
        if temperature in (0.0, 1.0):
            # At temperature 0 the value is unscaled.
            gaps.add(f"sampled at {temperature} against forward", sequence.logprobs, forward[-new:])
            gaps.add(f"sampled at {temperature} against compute_logprobs", sequence.logprobs, scored[-new:])
        else:
            expect(all(value <= 0.0 for value in sequence.logprobs), f"a logprob above 0 at temperature {temperature}")


def scaled_differences(gaps, sampler, prompt):
    """One token after one prompt, many times: at each temperature the differences of two tokens' logprobs scale."""

    def draw(temperature):
        params = types.SamplingParams(max_tokens=1, temperature=temperature, seed=7, stop=[])
        result = sampler.sample(types.ModelInput.from_ints(prompt), 64, params).result(timeout=TIMEOUT)
        found = {}
        for sequence in result.sequences:
            token, logprob = sequence.tokens[0], sequence.logprobs[0]
            expect(found.setdefault(token, logprob) == logprob, f"token {token} has two logprobs at one place")
        return found

    def at_one(tokens):
        pending = [sampler.compute_logprobs(types.ModelInput.from_ints(prompt + [token])) for token in tokens]
        return {token: answer.result(timeout=TIMEOUT)[-1] for token, answer in zip(tokens, pending)}

    for temperature in (0.5, 0.7, 1.3, 2.0):
        found = draw(temperature)
        expect(len(found) >= 2, f"64 draws at temperature {temperature} gave one token only")
        unscaled = at_one(sorted(found))
        first, *others = sorted(found)
        seen = [found[token] - found[first] for token in others]
        wanted = [(unscaled[token] - unscaled[first]) / temperature for token in others]
        gaps.add(f"differences at temperature {temperature}", seen, wanted)


def whole_distribution(sampler, prompt, vocabulary, tolerance):
    """Every token's probability by `compute_logprobs` sums to one, and the scaled value is its softmax."""
    pending = [sampler.compute_logprobs(types.ModelInput.from_ints(prompt + [token])) for token in range(vocabulary)]
    logprobs = numpy.asarray([answer.result(timeout=TIMEOUT)[-1] for answer in pending], dtype=numpy.float64)
    total = numpy.exp(logprobs).sum()
    expect(abs(total - 1.0) < 10 * tolerance, f"the probabilities of all {vocabulary} tokens sum to {total}")
    for temperature in (0.5, 2.0):
        scaled = logprobs / temperature
        scaled -= math.log(numpy.exp(scaled).sum())
        params = types.SamplingParams(max_tokens=1, temperature=temperature, seed=9, stop=[])
        result = sampler.sample(types.ModelInput.from_ints(prompt), 16, params).result(timeout=TIMEOUT)
        for sequence in result.sequences:
            difference = abs(scaled[sequence.tokens[0]] - sequence.logprobs[0])
            expect(difference < 10 * tolerance, f"at {temperature} token {sequence.tokens[0]} is {difference:.2e} off")


if __name__ == "__main__":
    blackbox.run(main)
