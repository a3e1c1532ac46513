#!/usr/bin/env python3
"""A server that was restarted continues as if it had not been. Two processes, the server restarted in between:

    restart_resume.py --phase 1 --state-file FILE …     # trains, saves, and also trains on without a restart
    restart_resume.py --phase 2 --state-file FILE …     # after the restart

Phase 2 continues twice, once from the checkpoint with its optimizer, and once in the very run that phase 1 left behind,
half-way between a forward_backward and its optim_step. Both must equal the uninterrupted run, to the last bit.
"""

import json
from pathlib import Path

import blackbox
from blackbox import TIMEOUT, expect, types

KEY = "tml-test-restart"
LEARNING_RATE = 1e-3
BEFORE, AFTER = 3, 4


def main():
    options = blackbox.parser(__doc__)
    options.add_argument("--phase", type=int, choices=(1, 2), required=True)
    options.add_argument("--state-file", type=Path, required=True, help="file that phase 1 writes and phase 2 reads")
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    if arguments.phase == 1:
        arguments.state_file.write_text(json.dumps(before(arguments)))
    else:
        after(arguments, json.loads(arguments.state_file.read_text()))


def batch(step):
    """Each step has its own data, so that a lost or repeated step shows."""
    return blackbox.sequences(seed=100 + step)


def data(step):
    return [blackbox.datum(tokens) for tokens in batch(step)]


def before(arguments):
    client = blackbox.service(arguments.base_url, KEY)
    run = blackbox.create_run(client, arguments.model, seed=21)
    for step in range(BEFORE):
        blackbox.train(run, data(step), LEARNING_RATE)
    path = run.save_state("middle").result(timeout=TIMEOUT).path
    sampler_path = run.save_weights_for_sampler("middle").result(timeout=TIMEOUT).path
    sampled = sample(blackbox.ready(client.create_sampling_client(model_path=sampler_path)))

    # The run that is interrupted: the same steps, a gradient that is waiting, and nothing saved.
    interrupted = blackbox.create_run(client, arguments.model, seed=21)
    for step in range(BEFORE):
        blackbox.train(interrupted, data(step), LEARNING_RATE)
    waiting = interrupted.forward_backward(data(BEFORE), "cross_entropy").result(timeout=TIMEOUT)

    losses, logprobs = [], []
    for step in range(BEFORE, BEFORE + AFTER):
        loss, row = blackbox.train(run, data(step), LEARNING_RATE)
        losses.append(loss)
        logprobs.append(row)
    expect(blackbox.logprobs_of(waiting) == logprobs[0], "two runs with the same seed and data differ")
    return {
        "path": path,
        "sampler_path": sampler_path,
        "sampled": sampled,
        "interrupted": interrupted.model_id,
        # Three steps of two operations, one forward_backward.
        "next_sequence": 2 * BEFORE + 2,
        "losses": losses,
        "logprobs": logprobs,
        "last": blackbox.forward(run, data(0)),
    }


def after(arguments, state):
    client = blackbox.service(arguments.base_url, KEY)
    sampler = blackbox.ready(client.create_sampling_client(model_path=state["sampler_path"]))
    expect(sample(sampler) == state["sampled"], "the sampler checkpoint gives other tokens after the restart")

    resumed = blackbox.restore_run(client, state["path"])
    for index, step in enumerate(range(BEFORE, BEFORE + AFTER)):
        loss, logprobs = blackbox.train(resumed, data(step), LEARNING_RATE)
        same(logprobs, state["logprobs"][index], f"step {step + 1} from the checkpoint")
        expect(loss == state["losses"][index], f"step {step + 1}: loss {loss!r}, not {state['losses'][index]!r}")
    same(blackbox.forward(resumed, data(0)), state["last"], "the end of the resumed run")

    continue_interrupted(arguments.base_url, state)


def continue_interrupted(base_url, state):
    """The run itself, by its id: its next operations carry the next numbers."""
    run, number = state["interrupted"], state["next_sequence"]

    def operation(route, body):
        nonlocal number
        result = blackbox.raw_operation(base_url, route, {**body, "model_id": run, "seq_id": number}, KEY)
        number += 1
        return result

    def passes(route, kind, step):
        body = {kind: {"data": [blackbox.raw_datum(tokens) for tokens in batch(step)], "loss_fn": "cross_entropy"}}
        return [blackbox.float32(output["logprobs"]["data"]) for output in operation(route, body)["loss_fn_outputs"]]

    params = {"adam_params": {"learning_rate": LEARNING_RATE}}
    operation("optim_step", params)
    for index, step in enumerate(range(BEFORE + 1, BEFORE + AFTER), start=1):
        logprobs = passes("forward_backward", "forward_backward_input", step)
        same(logprobs, state["logprobs"][index], f"step {step + 1} of the interrupted run")
        operation("optim_step", params)
    same(passes("forward", "forward_input", 0), state["last"], "the end of the interrupted run")


def sample(sampler):
    params = types.SamplingParams(max_tokens=8, temperature=1.0, seed=5, stop=[])
    prompt = types.ModelInput.from_ints(batch(0)[0][:4])
    result = sampler.sample(prompt=prompt, num_samples=1, sampling_params=params).result(timeout=TIMEOUT)
    return list(result.sequences[0].tokens)


def same(seen, wanted, what):
    if seen == wanted:
        return
    difference = max(blackbox.largest_difference(left, right) for left, right in zip(seen, wanted))
    raise blackbox.Failure(f"{what}: logprobs differ from the uninterrupted run by up to {difference:.2e}")


if __name__ == "__main__":
    blackbox.run(main)
