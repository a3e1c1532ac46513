"""Twinkle's client and the Tinker SDK side by side: one base model, one server, one key."""

import threading

from kit import expect, features, step, sums
from twinkle_client import init_tinker_client

TOKENS = [5, 9, 17, 33, 65, 129, 3, 7]


def tinker_service(world, key):
    init_tinker_client()
    import tinker

    return tinker.ServiceClient(base_url=world.base_url, api_key=key)


def datum(tokens):
    from tinker import types

    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )


def test_both_train_at_once_on_one_base_model(world):
    from tinker import types

    world.sign_in("together")
    rows = features(71)
    model = world.trained()
    training = tinker_service(world, "together").create_lora_training_client(base_model=world.model, rank=8)
    losses, failures = [], []

    def other():
        try:
            for _ in range(8):
                result = training.forward_backward([datum(TOKENS)], "cross_entropy")
                training.optim_step(types.AdamParams(learning_rate=1e-2)).result()
                losses.append(-sum(result.result().loss_fn_outputs[0]["logprobs"].tolist()))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    first = step(model, rows)["loss"]
    for _ in range(7):
        last = step(model, rows)["loss"]
    thread.join()
    expect(not failures, f"Tinker's loop failed: {failures}")
    expect(losses[-1] < 0.7 * losses[0], f"Tinker's loss went from {losses[0]} to {losses[-1]}")
    expect(last < 0.7 * first, f"Twinkle's loss went from {first} to {last}")


def test_each_reads_the_others_checkpoints(world):
    from tinker import types

    client = world.sign_in("exchange")
    service = tinker_service(world, "exchange")
    # `all-linear` of PEFT has no adapter on the head.
    training = service.create_lora_training_client(base_model=world.model, rank=8, train_unembed=False)
    for _ in range(4):
        training.forward_backward([datum(TOKENS)], "cross_entropy").result()
        training.optim_step(types.AdamParams(learning_rate=1e-2)).result()
    theirs = training.save_state("from-tinker").result().path
    forward = training.forward([datum(TOKENS)], "cross_entropy").result()
    wanted = sum(forward.loss_fn_outputs[0]["logprobs"].tolist())

    # Tinker's clients do not name alpha: the server's default is 32.
    model = world.trained(lora_alpha=32)
    model.load(theirs.replace("tinker://", "twinkle://"))
    labels = TOKENS[1:] + [-100]
    row = {"input_ids": TOKENS, "labels": labels}
    logps = model.forward_only(inputs=[row]).result["logps"]
    logps = logps if isinstance(logps[0], list) else [logps]
    found = sums([row], logps)[0]
    expect(abs(found - wanted) < 1e-4, f"the log-probability is {found}, in Tinker's run {wanted}")

    ours = model.save(name="from-twinkle", is_sampler=True).twinkle_path
    sampling = service.create_sampling_client(model_path=ours)
    sampled = sampling.sample(
        prompt=types.ModelInput.from_ints(TOKENS[:4]),
        num_samples=1,
        sampling_params=types.SamplingParams(max_tokens=3, temperature=0.0),
    ).result()
    mine = world.sampler().sample(
        [{"input_ids": TOKENS[:4]}], sampling_params={"max_tokens": 3, "temperature": 0.0}, adapter_uri=ours
    )
    expect(sampled.sequences[0].tokens == mine[0].sequences[0].tokens, "the two clients draw other tokens")
    runs = {run.training_run_id for run in client.list_training_runs()}
    expect(len(runs) >= 2, f"one key's runs of both protocols: {runs}")


def test_the_same_run_through_both_clients_ends_in_the_same_adapter(world):
    """From one checkpoint, the same eight steps on the same data. Adam does not see that one takes sums and the other
    means, but for the rounding of its small numbers."""
    from tinker import types

    client = world.sign_in("twins")
    service = tinker_service(world, "twins")
    training = service.create_lora_training_client(base_model=world.model, rank=8, train_unembed=False)
    start = training.save_state("start").result().path
    model = world.adapter(lora_alpha=32)
    model.set_loss("CrossEntropyLoss", reduction="sum")
    model.set_optimizer("AdamW", lr=1e-3, betas=[0.9, 0.95], eps=1e-12, weight_decay=0.0)
    model.load(start.replace("tinker://", "twinkle://"))
    row = {"input_ids": TOKENS[:-1], "labels": TOKENS[1:]}
    for _ in range(8):
        training.forward_backward([datum(TOKENS)], "cross_entropy")
        training.optim_step(types.AdamParams(learning_rate=1e-3, beta1=0.9, beta2=0.95, eps=1e-12)).result()
        model.forward_backward(inputs=[row])
        model.clip_grad_and_step(max_grad_norm=1e9)
    theirs = adapter_of(client, training.save_state("end").result().path)
    ours = adapter_of(client, model.save(name="end").twinkle_path)
    expect(theirs.keys() == ours.keys() and len(ours) > 4, f"{sorted(theirs)} against {sorted(ours)}")
    moved = adapter_of(client, start)
    for name, tensor in ours.items():
        apart = abs(tensor - theirs[name]).max()
        expect(apart < 1e-5, f"`{name}` is {apart} apart")
    expect(max(abs(tensor - moved[name]).max() for name, tensor in ours.items()) > 1e-3, "nothing was trained")


def adapter_of(client, path: str) -> dict:
    from safetensors.numpy import load_file

    run, _, checkpoint = path.partition("://")[2].partition("/")
    return load_file(f"{client.get_checkpoint_path(run, checkpoint).path}/adapter_model.safetensors")


def test_tinkers_samples_have_seeds_log_probabilities_and_a_greedy_choice(world):
    from tinker import types

    world.sign_in("drawing")
    sampling = tinker_service(world, "drawing").create_sampling_client(base_model=world.model)
    prompt = types.ModelInput.from_ints(TOKENS[:4])

    def drawn(**options):
        parameters = types.SamplingParams(max_tokens=6, **options)
        return sampling.sample(prompt=prompt, num_samples=2, sampling_params=parameters).result().sequences

    one, other = (drawn(temperature=1.0, seed=11) for _ in range(2))
    expect([s.tokens for s in one] == [s.tokens for s in other], "a seed does not repeat")
    expect(all(len(s.logprobs) == len(s.tokens) for s in one), "log-probabilities are missing")
    first, second = drawn(temperature=0.0)
    expect(first.tokens == second.tokens, "the greedy choice is not one")
