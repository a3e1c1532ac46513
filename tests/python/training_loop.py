#!/usr/bin/env python3
"""The main job: train a LoRA until its loss fell by 90 %, save it, sample from it.

Also checks that the sampler's logprobs are the trainer's, from the base model, from a saved sampler checkpoint
and from the live run, and that a live snapshot keeps its weights while training goes on.
"""

import blackbox
from blackbox import TIMEOUT, expect, types

LEARNING_RATE = 2e-3
MOST_STEPS = 100


def main():
    options = blackbox.parser(__doc__)
    options.add_argument("--tolerance", type=float, default=1e-5, help="of logprobs, trainer against sampler")
    options.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)

    client = blackbox.service(arguments.base_url)
    run = blackbox.create_run(client, arguments.model)
    info = run.get_info()
    expect(info.model_id == run.model_id, f"get_info names `{info.model_id}`, the run is `{run.model_id}`")
    expect(info.lora_rank == 8, f"get_info says rank {info.lora_rank}, not 8")
    expect(info.model_data.model_name == arguments.model, f"get_info names the model `{info.model_data.model_name}`")

    memorised = blackbox.sequences(seed=1)
    data = [blackbox.datum(tokens) for tokens in memorised]

    base = blackbox.ready(client.create_sampling_client(base_model=arguments.model))
    # B = 0: a fresh adapter is the base model.
    agree(base, run, memorised[0], arguments.tolerance, "the base model")

    learn(run, data, arguments.learning_rate)

    saved = run.save_state("after").result(timeout=TIMEOUT).path
    expect(saved.endswith("/weights/after"), f"save_state answered the path `{saved}`")
    expect(run.model_id in saved, f"the path `{saved}` does not name the run")
    path = run.save_weights_for_sampler("after").result(timeout=TIMEOUT).path
    expect(path.endswith("/sampler_weights/after"), f"save_weights_for_sampler answered the path `{path}`")

    live = blackbox.ready(run.save_weights_and_get_sampling_client())
    stored = blackbox.ready(client.create_sampling_client(model_path=path))
    agree(live, run, memorised[0], arguments.tolerance, "the live run")
    agree(stored, run, memorised[1], arguments.tolerance, "the sampler checkpoint")
    greedy_recalls(live, memorised)
    sampling_parameters(live, stored, memorised[0])
    snapshot_stays(live, run, data, memorised[0], arguments.learning_rate)

    weights = client.create_rest_client().get_weights_info_by_tinker_path(saved).result()
    expect(weights.base_model == arguments.model, f"the checkpoint's base model is `{weights.base_model}`")
    expect(weights.is_lora and weights.lora_rank == 8, f"the checkpoint's rank is {weights.lora_rank}, not 8")


def learn(run, data, learning_rate):
    first, _ = blackbox.train(run, data, learning_rate)
    loss = first
    for step in range(2, MOST_STEPS + 1):
        loss, logprobs = blackbox.train(run, data, learning_rate)
        total = -sum(sum(row) for row in logprobs)
        expect(abs(loss - total) <= 1e-3 * max(1.0, abs(total)), f"`loss:sum` is {loss}, the logprobs sum to {total}")
        if loss <= 0.1 * first:
            print(f"loss {first:.2f} -> {loss:.2f} in {step} steps", flush=True)
            return
    raise blackbox.Failure(f"after {MOST_STEPS} steps the loss is {loss:.3f}, it began at {first:.3f}")


def agree(sampler, run, tokens, tolerance, what):
    """The logprobs of prompt and sampled tokens are those of the trainer's forward pass."""
    prompt = tokens[:6]
    params = types.SamplingParams(max_tokens=8, temperature=1.0, seed=3, stop=[])
    result = sampler.sample(
        prompt=types.ModelInput.from_ints(prompt), num_samples=1, sampling_params=params, include_prompt_logprobs=True,
    ).result(timeout=TIMEOUT)
    sampled = result.sequences[0]
    expect(len(sampled.tokens) == 8, f"{what}: asked for 8 tokens with `stop=[]`, got {len(sampled.tokens)}")
    expect(sampled.stop_reason == "length", f"{what}: stop reason `{sampled.stop_reason}`, not `length`")
    expect(sampled.logprobs is not None, f"{what}: no logprobs for the sampled tokens")
    whole = prompt + list(sampled.tokens)
    trained = blackbox.forward(run, [blackbox.datum(whole)])[0]
    expect(result.prompt_logprobs is not None, f"{what}: no prompt logprobs")
    expect(len(result.prompt_logprobs) == len(prompt), f"{what}: {len(result.prompt_logprobs)} prompt logprobs")
    expect(result.prompt_logprobs[0] is None, f"{what}: the first prompt logprob is {result.prompt_logprobs[0]}")
    seen = list(result.prompt_logprobs[1:]) + list(sampled.logprobs)
    difference = blackbox.largest_difference(seen, trained)
    print(f"{what}: sampler and trainer differ by {difference:.2e}", flush=True)
    expect(difference <= tolerance, f"{what}: logprobs of sampler and trainer differ by {difference:.2e}")

    scored = sampler.compute_logprobs(types.ModelInput.from_ints(whole)).result(timeout=TIMEOUT)
    expect(scored[0] is None, f"{what}: compute_logprobs begins with {scored[0]}")
    difference = blackbox.largest_difference(scored[1:], trained)
    expect(difference <= tolerance, f"{what}: compute_logprobs and trainer differ by {difference:.2e}")


def greedy_recalls(sampler, memorised):
    params = types.SamplingParams(max_tokens=6, temperature=0.0, stop=[])
    right = 0
    for tokens in memorised:
        prompt = types.ModelInput.from_ints(tokens[:6])
        result = sampler.sample(prompt=prompt, num_samples=1, sampling_params=params).result(timeout=TIMEOUT)
        right += sum(a == b for a, b in zip(result.sequences[0].tokens, tokens[6:]))
    total = 6 * len(memorised)
    expect(right >= 0.7 * total, f"only {right} of {total} memorised tokens were recalled")


def sampling_parameters(live, stored, tokens):
    prompt = types.ModelInput.from_ints(tokens[:3])

    def sample(sampler, count=1, **changes):
        params = types.SamplingParams(**{"max_tokens": 12, "temperature": 1.5, "seed": 11, "stop": [], **changes})
        result = sampler.sample(prompt=prompt, num_samples=count, sampling_params=params).result(timeout=TIMEOUT)
        return [list(sequence.tokens) for sequence in result.sequences], result.sequences

    four, _ = sample(live, count=4)
    expect(len(four) == 4, f"asked for 4 samples, got {len(four)}")
    expect(len({tuple(tokens) for tokens in four}) > 1, "four samples at temperature 1.5 are all the same")
    again, _ = sample(live, count=4)
    expect(four == again, "the same seed gave other tokens")
    expect(sample(stored, count=4)[0] == four, "the same weights from a checkpoint gave other tokens for the same seed")
    expect(sample(live, count=4, seed=12)[0] != four, "another seed gave the same tokens")

    greedy, _ = sample(live, temperature=0.0)
    expect(sample(live, top_k=1)[0] == greedy, "top_k = 1 is not greedy")
    expect(sample(live, top_p=1e-6)[0] == greedy, "a tiny top_p is not greedy")

    stop = greedy[0][4]
    cut, finished = sample(live, temperature=0.0, stop=[stop])
    wanted = greedy[0][: greedy[0].index(stop) + 1]
    expect(cut[0] == wanted, f"stopping at {stop} gave {cut[0]}, not {wanted}")
    expect(finished[0].stop_reason == "stop", f"stop reason `{finished[0].stop_reason}`, not `stop`")
    expect(len(finished[0].logprobs) == len(cut[0]), "the stop token has no logprob")


def snapshot_stays(live, run, data, tokens, learning_rate):
    prompt = types.ModelInput.from_ints(tokens)
    before = live.compute_logprobs(prompt).result(timeout=TIMEOUT)
    blackbox.train(run, data, learning_rate)
    after = live.compute_logprobs(prompt).result(timeout=TIMEOUT)
    expect(before == after, "a snapshot changed when its run trained on")
    moved = blackbox.forward(run, [blackbox.datum(tokens)])[0]
    expect(moved != blackbox.float32(before[1:]), "the optimizer step did not move the run")


if __name__ == "__main__":
    blackbox.run(main)
