"""Scenarios of `TrainingClient`, of losses and of what a datum may hold."""

import blackbox
import tinker
from blackbox import expect, types
from scenario import NotDriven, resolve, scenario


@scenario("TrainingClient.forward")
def forward(trial):
    world = trial.world
    before = resolve(world.run.forward, world.data, "cross_entropy")
    result = trial(world.run, world.data, "cross_entropy")
    expect(blackbox.logprobs_of(result) == blackbox.logprobs_of(before), "a forward pass changes the run")
    expect(abs(blackbox.loss_of(result) + sum(map(sum, blackbox.logprobs_of(result)))) < 1e-2, "another loss")


@scenario("TrainingClient.forward_backward")
def forward_backward(trial):
    run = trial.world.new_run()
    before = trial(run, trial.world.data, "cross_entropy")
    resolve(run.optim_step, blackbox.adam(1e-2))
    after = trial(run, trial.world.data, "cross_entropy")
    expect(blackbox.loss_of(after) < blackbox.loss_of(before), "the step did not lower the loss")


@scenario("TrainingClient.forward(loss_fn_config)", "TrainingClient.forward_backward(loss_fn_config)")
def loss_config(trial):
    """Tighter bounds clip what wider ones let pass."""
    run = trial.world.new_run()
    wide, tight = (
        trial(run, trial.world.policy_data(), "ppo", {"clip_low_threshold": low, "clip_high_threshold": high})
        for low, high in ((0.0, 1e6), (0.999, 1.001))
    )
    expect(blackbox.loss_of(wide) != blackbox.loss_of(tight), "the configuration changes nothing")


@scenario("TrainingClient.optim_step", "TrainingClient.optim_step(optim_params)")
def optim_step(trial):
    run = trial.world.new_run()
    resolve(run.forward_backward, trial.world.data, "cross_entropy")
    metrics = trial(run, blackbox.adam(1e-2, grad_clip_norm=1.0)).metrics
    expect(any("grad" in name for name in metrics), f"the metrics are {metrics}")


@scenario("TrainingClient.optim_step(adam_params)")
def optim_step_adam_params(trial):
    resolve(trial.world.run.forward_backward, trial.world.data, "cross_entropy")
    trial(trial.world.run, adam_params=blackbox.adam(1e-3))


@scenario("TrainingClient.get_info")
def get_info(trial):
    info = trial(trial.world.run)
    expect(info.model_data.model_name == trial.world.model and info.lora_rank == 8, f"the information is {info}")


@scenario("TrainingClient.get_tokenizer", "SamplingClient.get_tokenizer")
def get_tokenizer(trial):
    needs("transformers")
    client = trial.world.run if "Training" in trial.row else trial.world.base
    tokenizer = trial(client)
    expect(tokenizer.decode(tokenizer.encode("Hello")), "an empty tokenizer")


def needs(package):
    try:
        __import__(package)
    except ModuleNotFoundError:
        raise NotDriven(f"needs `{package}`") from None


@scenario("TrainingClient.save_state")
def save_state(trial):
    path = trial(trial.world.run, trial.world.name("saved")).path
    restored = resolve(trial.world.service.create_training_client_from_state, path)
    blackbox.train(restored, trial.world.data, 1e-3)


@scenario("TrainingClient.save_weights_for_sampler")
def save_weights(trial):
    path = trial(trial.world.run, trial.world.name("saved")).path
    sampler = resolve(trial.world.service.create_sampling_client, model_path=path)
    expect(resolve(sampler.compute_logprobs, trial.world.prompt)[1:], "no logprobs")


SAVES = ("TrainingClient.save_state", "TrainingClient.save_weights_for_sampler", "TrainingClient.save_weights_external")


@scenario(*(f"{name}(ttl_seconds)" for name in SAVES))
def save_ttl(trial):
    path = trial(trial.world.run, trial.world.name("ttl"), ttl_seconds=3600).path
    found = checkpoint(trial.world, path)
    expect(found.expires_at is not None, f"it does not expire: {found}")


@scenario("TrainingClient.save_state(overwrite)")
def save_overwrite(trial):
    name = trial.world.name("again")
    resolve(trial.world.run.save_state, name)
    try:
        resolve(trial.world.run.save_state, name)
    except tinker.RequestFailedError:
        trial(trial.world.run, name, overwrite=True)
        return
    raise blackbox.Failure("without `overwrite` the name is taken silently")


@scenario("TrainingClient.save_state(user_metadata)", "TrainingClient.save_weights_for_sampler(user_metadata)")
def save_metadata(trial):
    path = trial(trial.world.run, trial.world.name("noted"), user_metadata={"step": "3"}).path
    found = checkpoint(trial.world, path)
    expect(found.user_metadata == {"step": "3"}, f"the checkpoint has {found.user_metadata}")


def checkpoint(world, path):
    for found in resolve(world.rest.list_checkpoints, world.run.model_id).checkpoints:
        if found.tinker_path == path:
            return found
    raise blackbox.Failure(f"`{path}` is not listed")


@scenario("TrainingClient.save_weights_external")
def save_external(trial):
    saved = trial(trial.world.run, trial.world.name("external"))
    found = checkpoint(trial.world, saved.path)
    expect(found.checkpoint_type == "external", f"the checkpoint is {found}")


@scenario("TrainingClient.save_weights_external(age_encryption_recipients)")
def save_encrypted(trial):
    # The public half of a key pair made for this test with `age-keygen`.
    recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    path = trial(trial.world.run, trial.world.name("secret"), age_encryption_recipients=[recipient]).path
    urls = resolve(trial.world.rest.get_external_weights_urls, path).urls
    expect(urls and all(name.endswith(".age") for name in urls), f"the files are {sorted(urls)}")


LOADS = ("TrainingClient.load_state", "TrainingClient.load_state_with_optimizer")


@scenario(*LOADS)
def load_state(trial):
    world = trial.world
    run = world.new_run()
    trial(run, world.state)
    restored = resolve(world.service.create_training_client_from_state, world.state)
    expect(blackbox.forward(run, world.data) == blackbox.forward(restored, world.data), "other weights")


@scenario("TrainingClient.create_sampling_client")
def run_create_sampling(trial):
    sampler = trial(trial.world.run, trial.world.weights)
    expect(resolve(sampler.compute_logprobs, trial.world.prompt)[1:], "no logprobs")


@scenario("TrainingClient.save_weights_and_get_sampling_client", "TrainingClient.save_weights_and_get_sampling_client_submit", "TrainingClient.save_weights_and_get_sampling_client(name)")
def live_sampler(trial):
    options = {"name": trial.world.name("live")} if trial.row.endswith("(name)") else {}
    sampler = trial(trial.world.run, **options)
    expect(resolve(sampler.compute_logprobs, trial.world.prompt)[1:], "no logprobs")


@scenario("TrainingClient.save_weights_and_get_sampling_client(kind)")
def live_kinds(trial):
    for kind in ("snapshot", "inflight"):
        sampler = trial(trial.world.run, kind=kind)
        expect(resolve(sampler.compute_logprobs, trial.world.prompt)[1:], f"no logprobs of kind `{kind}`")


@scenario("TrainingClient.forward_backward_custom", "TrainingClient.forward_backward_custom(loss_type_input)")
def custom(trial):
    """The sum of squared logprobs, computed here and sent back as linear weights."""
    needs("torch")
    named = {"loss_type_input": "logprobs"} if trial.row.endswith(")") else {}

    def loss(data, logprobs):
        total = sum((one * one).sum() for one in logprobs)
        return total, {"squared": float(total)}

    run = trial.world.new_run()
    first = trial(run, trial.world.data, loss, **named).metrics["squared"]
    resolve(run.optim_step, blackbox.adam(1e-2))
    second = trial(run, trial.world.data, loss, **named).metrics["squared"]
    expect(second < first, f"the loss went from {first} to {second}")


# Losses.


@scenario('loss "cross_entropy"')
def cross_entropy(trial):
    learns(trial, trial.world.data)


@scenario('loss "importance_sampling"', 'loss "ppo"', 'loss "cispo"', 'loss "dro"', 'loss "gspo"', 'loss "stable_reinforce"')
def policy(trial):
    data = trial.world.policy_data()
    if "gspo" in trial.row:
        data[0].loss_fn_inputs["sequence_ratio_mask"] = types.TensorData(
            data=[1.0] * (len(trial.world.tokens) - 1), dtype="float32", shape=[len(trial.world.tokens) - 1],
        )
    learns(trial, data)


def learns(trial, data):
    loss = trial.row.split('"')[1]
    run = trial.world.new_run()
    resolve(run.forward_backward, data, loss)
    resolve(run.optim_step, blackbox.adam(1e-3))
    resolve(run.forward, data, loss)


@scenario('loss "custom"')
def loss_custom(trial):
    """What `forward_backward_custom` sends when the server runs the loss."""
    needs("torch")
    handle = trial.world.loss
    expect(handle.loss_id is not None, "the loss was not uploaded: the server does not run it")
    result = resolve(trial.world.run.forward_backward, trial.world.data, "custom", {"loss_id": handle.loss_id})
    expect("custom/squared:sum" in result.metrics, f"the metrics are {result.metrics}")


# What a datum holds.


@scenario("EncodedTextChunk", "Datum.model_input", "Datum.loss_fn_inputs", "TensorData.data", "TensorData.dtype")
def text(trial):
    """A prompt in two chunks is the prompt in one."""
    tokens = trial.world.tokens
    split = types.Datum(
        model_input=types.ModelInput(chunks=[
            types.EncodedTextChunk(tokens=tokens[:4]), types.EncodedTextChunk(tokens=tokens[4:-1]),
        ]),
        loss_fn_inputs={"target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1])},
    )
    run = trial.world.run
    expect(blackbox.forward(run, [split]) == blackbox.forward(run, [blackbox.datum(tokens)]), "chunks matter")


@scenario("ImageChunk")
def image(trial):
    # What a PNG begins with: nothing further is read of it.
    chunk = {"data": b"\x89PNG\r\n\x1a\n", "format": "png", "expected_tokens": 4}
    with_chunk(trial, types.ImageChunk, chunk)


@scenario("ImageAssetPointerChunk")
def image_pointer(trial):
    chunk = {"location": "asset://an-image", "format": "png", "expected_tokens": 4}
    with_chunk(trial, types.ImageAssetPointerChunk, chunk)


@scenario("DmelChunk")
def sound(trial):
    with_chunk(trial, types.DmelChunk, {"dmel": bytes(8)})


def with_chunk(trial, kind, settings):
    """Such a chunk before the text, in the form this release knows."""
    known = kind.model_fields
    if "height" in known:
        settings |= {"height": 8, "width": 8, "tokens": settings["expected_tokens"]}
    chunk = kind(**{name: value for name, value in settings.items() if name in known})
    prompt = types.ModelInput(chunks=[chunk, types.EncodedTextChunk(tokens=trial.world.tokens[:4])])
    resolve(trial.world.base.sample, prompt, 1, trial.world.sampling())


@scenario("Datum.model_input_spans", "Datum.loss_fn_input_spans")
def spans(trial):
    """Where a datum's tokens come from, for `stable_reinforce`; the two lists come together."""
    tokens = trial.world.tokens
    span = [tinker.PromptProvenanceSpan(sequence_id="a-sequence", length=len(tokens) - 1)]
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs={"target_tokens": tokens[1:]},
        model_input_spans=span, loss_fn_input_spans=span,
    )
    resolve(trial.world.run.forward, [datum], "cross_entropy")


@scenario("TensorData.shape")
def candidates(trial):
    """Two candidates for each position: their losses add up."""
    count = len(trial.world.tokens) - 1
    pairs = [[token, token % 200 + 5] for token in trial.world.tokens[1:]]
    flat = [token for pair in pairs for token in pair]
    datum = trial.world.datum(
        target_tokens=types.TensorData(data=flat, dtype="int64", shape=[count, 2]),
        weights=types.TensorData(data=[0.5] * len(flat), dtype="float32", shape=[count, 2]),
    )
    run = trial.world.new_run()
    wide = resolve(run.forward_backward, [datum], "cross_entropy")
    single = [
        resolve(run.forward, [trial.world.datum(
            target_tokens=[pair[column] for pair in pairs], weights=[0.5] * count,
        )], "cross_entropy")
        for column in range(2)
    ]
    total = sum(blackbox.loss_of(one) for one in single)
    expect(abs(blackbox.loss_of(wide) - total) < 1e-3, f"the loss is {blackbox.loss_of(wide)}, not {total}")


@scenario("TensorData.sparse_crow_indices", "TensorData.sparse_col_indices")
def sparse(trial):
    """One target in every position of a sparse matrix is the dense list of targets."""
    targets = trial.world.tokens[1:]
    count = len(targets)
    layout = {"shape": [count, 1], "sparse_crow_indices": list(range(count + 1)), "sparse_col_indices": [0] * count}
    datum = trial.world.datum(
        target_tokens=types.TensorData(data=targets, dtype="int64", **layout),
        weights=types.TensorData(data=[1.0] * count, dtype="float32", **layout),
    )
    run = trial.world.new_run()
    seen = blackbox.loss_of(resolve(run.forward_backward, [datum], "cross_entropy"))
    dense = blackbox.loss_of(resolve(run.forward, [blackbox.datum(trial.world.tokens)], "cross_entropy"))
    expect(abs(seen - dense) < 1e-3, f"the loss is {seen}, not {dense}")
