#!/usr/bin/env python3
"""What every release of the SDK must be able to do, each in the dialect it speaks.

Create, forward, forward_backward, optim_step, save, go on from what was saved with and without the optimizer, sample
from the live run and from saved weights, compute logprobs, and the lists of the REST client. A few seconds.
"""

import blackbox
from blackbox import TIMEOUT, expect, types

LEARNING_RATE = 1e-2


def main():
    options = blackbox.parser(__doc__)
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    # A tenant of its own, so that the lists hold nothing but what happens here.
    key = f"tml-release-{'-'.join(map(str, blackbox.SDK))}"
    client = blackbox.service(arguments.base_url, key)
    rest = client.create_rest_client()

    run = blackbox.create_run(client, arguments.model, user_metadata={"renderer_name": "role_colon"})
    data = [blackbox.datum(tokens) for tokens in blackbox.sequences(seed=3)]
    untrained = blackbox.forward(run, data)
    loss, seen = blackbox.train(run, data, LEARNING_RATE)
    expect(seen == untrained, "forward and forward_backward of the same weights differ")
    trained = blackbox.forward(run, data)
    expect(trained != untrained, "the step moved nothing")

    state = run.save_state("state").result(timeout=TIMEOUT).path
    sampler = run.save_weights_for_sampler("sampler").result(timeout=TIMEOUT).path
    goes_on(client, run, state, data, trained)
    samples(client, run, sampler, data, trained)
    lists(rest, run, [state, sampler], arguments.model)


def goes_on(client, run, state, data, trained):
    """With its optimizer a restored run takes the very step the run itself takes; without, another one."""
    faithful = blackbox.restore_run(client, state)
    fresh = blackbox.restore_run(client, state, with_optimizer=False)
    for restored in (faithful, fresh):
        expect(blackbox.forward(restored, data) == trained, "a restored run begins with other weights")
    for each in (run, faithful, fresh):
        blackbox.train(each, data, LEARNING_RATE)
    wanted = blackbox.forward(run, data)
    expect(blackbox.forward(faithful, data) == wanted, "a run restored with its optimizer takes another step")
    expect(blackbox.forward(fresh, data) != wanted, "a run restored without its optimizer takes the same step")


def samples(client, run, path, data, trained):
    """Saved weights are those of the time they were saved; the run has stepped on since."""
    stored = blackbox.ready(client.create_sampling_client(model_path=path))
    live = blackbox.ready(run.save_weights_and_get_sampling_client())
    base = blackbox.ready(client.create_sampling_client(base_model=run.get_info().model_data.model_name))
    tokens = blackbox.sequences(seed=3)[0]
    scored = [
        sampler.compute_logprobs(types.ModelInput.from_ints(tokens)).result(timeout=TIMEOUT)
        for sampler in (stored, live, base)
    ]
    expect(blackbox.largest_difference(scored[0][1:], trained[0]) <= 1e-5, "stored weights score differently")
    expect(scored[1] != scored[0] and scored[2] != scored[0], "the samplers have the same weights")
    parameters = types.SamplingParams(max_tokens=4, temperature=1.0, seed=5, stop=[])
    result = live.sample(
        prompt=types.ModelInput.from_ints(tokens[:4]), num_samples=2, sampling_params=parameters,
    ).result(timeout=TIMEOUT)
    for sequence in result.sequences:
        expect(len(sequence.tokens) == len(sequence.logprobs) == 4, f"a sample of {len(sequence.tokens)} tokens")


def lists(rest, run, paths, model):
    expect(run.model_id in [one.training_run_id for one in rest.list_training_runs().result().training_runs], "no run")
    seen = rest.get_training_run(run.model_id).result()
    expect(seen.base_model == model and seen.user_metadata == {"renderer_name": "role_colon"}, f"the run is `{seen}`")
    for found in (rest.list_checkpoints(run.model_id), rest.list_user_checkpoints()):
        found = {one.tinker_path for one in found.result().checkpoints}
        expect(found.issuperset(paths), f"the checkpoints are {found}, not {paths}")
    rest.delete_checkpoint_from_tinker_path(paths[1]).result()
    left = {one.tinker_path for one in rest.list_checkpoints(run.model_id).result().checkpoints}
    expect(paths[1] not in left and paths[0] in left, f"after one was deleted the checkpoints are {left}")


if __name__ == "__main__":
    blackbox.run(main)
