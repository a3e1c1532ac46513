"""Scenarios of `ServiceClient`."""

import blackbox
import tinker
from blackbox import expect, types
from scenario import Local, resolve, scenario
from world import KEY


@scenario("ServiceClient(base_url)", "ServiceClient(api_key)")
def keys(trial):
    client = tinker.ServiceClient(base_url=trial.world.base_url, api_key=KEY)
    expect(resolve(client.get_server_capabilities).supported_models, "no models")


@scenario("ServiceClient(user_metadata)")
def session_metadata(trial):
    client = tinker.ServiceClient(user_metadata={"team": "blue"})
    session = trial.world.rest.get_session(start(client, trial.world)).result()
    if "user_metadata" in type(session).model_fields:
        expect(session.user_metadata == {"team": "blue"}, f"the session has {session}")


@scenario("ServiceClient(project_id)")
def session_project(trial):
    start(tinker.ServiceClient(project_id="a-project"), trial.world)


@scenario("ServiceClient(display_name)")
def session_name(trial):
    client = tinker.ServiceClient(display_name="nightly run")
    session = trial.world.rest.get_session(start(client, trial.world)).result()
    if "display_name" in type(session).model_fields:
        expect(session.display_name == "nightly run", f"the session has {session}")


@scenario("ServiceClient(default_headers_overrides)")
def session_headers(trial):
    start(tinker.ServiceClient(default_headers_overrides={"X-Anything": "goes"}), trial.world)


def start(client, world):
    """Makes the client begin its session."""
    resolve(client.create_sampling_client, base_model=world.model)
    return world.session_of(client)


@scenario("ServiceClient.holder")
def holder(trial):
    expect(trial.world.service.holder is not None, "no holder")


@scenario("ServiceClient.get_telemetry", "TrainingClient.get_telemetry", "SamplingClient.get_telemetry", "RestClient.get_telemetry", "AdminClient.get_telemetry")
def telemetry(trial):
    world = trial.world
    clients = {
        "ServiceClient": "service", "TrainingClient": "run", "SamplingClient": "sampler", "RestClient": "rest",
        "AdminClient": "admin", "BackcompatTrainingClientFuture": "run", "BackcompatSamplingClientFuture": "sampler",
    }
    client = getattr(world, clients[trial.row.partition(".")[0]])
    reporter = trial(client)
    # A client without a session has nobody to report to in some releases.
    expect(reporter is not None or trial.row.startswith(("RestClient", "AdminClient")), "no telemetry")


@scenario("ServiceClient.get_console_url", "TrainingClient.get_console_url")
def console_url(trial):
    client = trial.world.service if trial.row.startswith("Service") else trial.world.run
    expect(trial(client).startswith("http"), "no address")


@scenario("ServiceClient.get_server_capabilities", "RestClient.get_server_capabilities")
def capabilities(trial):
    client = trial.world.service if trial.row.startswith("Service") else trial.world.rest
    models = trial(client).supported_models
    expect([model.model_name for model in models] == [trial.world.model], f"the models are {models}")
    if "max_context_length" in type(models[0]).model_fields:
        expect(models[0].max_context_length, f"the context of {models[0]} is unknown")
    if "trainable" in type(models[0]).model_fields:
        expect(models[0].trainable and models[0].sampleable, f"{models[0]} can do nothing")


@scenario("ServiceClient.create_lora_training_client", "ServiceClient.create_lora_training_client(rank)", "ServiceClient.create_lora_training_client(seed)")
def create(trial):
    runs = [trial(trial.world.service, trial.world.model, rank=4, seed=11) for _ in range(2)]
    info = resolve(runs[0].get_info)
    expect(info.lora_rank == 4, f"the rank is {info.lora_rank}")
    results = [resolve(run.forward_backward, trial.world.data, "cross_entropy") for run in runs]
    expect(blackbox.logprobs_of(results[0]) == blackbox.logprobs_of(results[1]), "the same seed, other weights")


@scenario("ServiceClient.create_lora_training_client(train_mlp)", "ServiceClient.create_lora_training_client(train_attn)", "ServiceClient.create_lora_training_client(train_unembed)")
def create_parts(trial):
    """What is not trained stays out of the checkpoint's description, too."""
    part = trial.row.partition("(")[2].removesuffix(")")
    run = resolve(trial.world.service.create_lora_training_client, trial.world.model, rank=4, **{part: False})
    resolve(run.forward_backward, trial.world.data, "cross_entropy")
    resolve(run.optim_step, blackbox.adam(1e-3))
    info = resolve(trial.world.rest.get_weights_info_by_tinker_path, resolve(run.save_state, "parts").path)
    seen = {name: getattr(info, name) for name in ("train_mlp", "train_attn", "train_unembed") if hasattr(info, name)}
    wanted = {name: name != part for name in seen}
    expect(seen == wanted, f"the checkpoint has {seen}, not {wanted}")


@scenario("ServiceClient.create_lora_training_client(user_metadata)")
def create_metadata(trial):
    run = trial.world.new_run(user_metadata={"renderer_name": "role_colon"})
    found = resolve(trial.world.rest.get_training_run, run.model_id)
    expect(found.user_metadata == {"renderer_name": "role_colon"}, f"the run has {found.user_metadata}")


@scenario("ServiceClient.create_lora_training_client(optimizer)", "AdamOptimizerConfig")
def create_adam(trial):
    resolve(trial.world.new_run(optimizer=types.AdamOptimizerConfig()).optim_step, blackbox.adam(1e-3))


@scenario("DimuonOptimizerConfig")
def create_dimuon(trial):
    run = trial.world.new_run(optimizer=types.DimuonOptimizerConfig())
    resolve(run.forward_backward, trial.world.data, "cross_entropy")
    resolve(run.optim_step, types.DimuonParams(learning_rate=1e-3))


@scenario("AdamParams.learning_rate", "AdamParams.beta1", "AdamParams.beta2", "AdamParams.eps", "AdamParams.weight_decay", "AdamParams.grad_clip_norm")
def adam_setting(trial):
    """The setting changes the second step: the first one of Adam hides some of them."""
    name = trial.row.partition(".")[2]
    other = {"learning_rate": 5e-3, "beta1": 0.5, "beta2": 0.5, "eps": 1.0, "weight_decay": 0.5, "grad_clip_norm": 1e-3}
    world = trial.world
    results = []
    for changes in ({}, {name: other[name]}):
        run = world.new_run()
        for scale in (1.0, 5.0):
            data = [blackbox.datum(world.tokens, [scale] * (len(world.tokens) - 1))]
            resolve(run.forward_backward, data, "cross_entropy")
            resolve(run.optim_step, blackbox.adam(**{"learning_rate": 1e-2, **changes}))
        results.append(blackbox.forward(run, world.data))
    expect(results[0] != results[1], f"`{name}` changes nothing")


FROM_STATE = ("ServiceClient.create_training_client_from_state", "ServiceClient.create_training_client_from_state_with_optimizer")


@scenario(*FROM_STATE)
def create_from_state(trial):
    world = trial.world
    restored = trial(world.service, world.state)
    expect(blackbox.forward(restored, world.data) == blackbox.forward(trained(world), world.data), "other weights")
    blackbox.train(restored, world.data, 1e-3)


def trained(world):
    return resolve(world.service.create_training_client_from_state, world.state)


@scenario(*(f"{name}(user_metadata)" for name in FROM_STATE))
def from_state_metadata(trial):
    run = called(trial, trial.world.state, user_metadata={"renderer_name": "qwen3"})
    found = resolve(trial.world.rest.get_training_run, run.model_id)
    expect(found.user_metadata == {"renderer_name": "qwen3"}, f"the run has {found.user_metadata}")


@scenario(*(f"{name}(base_model)" for name in FROM_STATE))
def from_state_base_model(trial):
    called(trial, trial.world.state, base_model=trial.world.model)


@scenario(*(f"{name}(weights_access_token)" for name in FROM_STATE), "TrainingClient.load_state(weights_access_token)", "TrainingClient.load_state_with_optimizer(weights_access_token)")
def access_token(trial):
    """A token opens what belongs to another account: there are no such tokens here. Older releases take its key."""
    world = trial.world
    target = world.service if trial.row.startswith("Service") else world.new_run()
    # 0.18 cannot make the client it needs for this.
    trial.local(TypeError, target, world.state, weights_access_token="tml-another-account")


@scenario(*(f"{name}(optimizer)" for name in FROM_STATE))
def from_state_optimizer(trial):
    called(trial, trial.world.state, optimizer=types.AdamOptimizerConfig())


def called(trial, *arguments, **named):
    return trial(trial.world.service, *arguments, **named)


@scenario("ServiceClient.create_sampling_client", "ServiceClient.create_sampling_client(model_path)", "ServiceClient.create_sampling_client(base_model)")
def create_sampling(trial):
    world = trial.world
    for source in ({"model_path": world.weights}, {"base_model": world.model}):
        sampler = trial(world.service, **source)
        expect(resolve(sampler.compute_logprobs, world.prompt)[1:], "no logprobs")


@scenario("ServiceClient.create_sampling_client(retry_config)", "TrainingClient.create_sampling_client(retry_config)", "TrainingClient.save_weights_and_get_sampling_client(retry_config)", "TrainingClient.save_weights_and_get_sampling_client_submit(retry_config)", "SamplingClient.create(retry_config)")
def retry_config(trial):
    """Says how the client retries; the server never sees it."""
    from tinker.lib.retry_handler import RetryConfig

    sampler = sampling_client(trial, retry_config=RetryConfig(max_connections=2))
    expect(resolve(sampler.compute_logprobs, trial.world.prompt)[1:], "no logprobs")


@scenario("ServiceClient.create_sampling_client(record_stability_info)", "TrainingClient.create_sampling_client(record_stability_info)", "TrainingClient.save_weights_and_get_sampling_client(record_stability_info)", "SamplingClient.create(record_stability_info)")
def stability_info(trial):
    """Asks the server to remember each sample for the loss `stable_reinforce`."""
    sampler = sampling_client(trial, record_stability_info=True)
    resolve(sampler.sample, trial.world.prompt, 1, trial.world.sampling())


def sampling_client(trial, **options):
    """A sampling client made by the row's method."""
    world = trial.world
    method = trial.row.partition("(")[0]
    if method == "ServiceClient.create_sampling_client":
        return trial(world.service, model_path=world.weights, **options)
    if method == "TrainingClient.create_sampling_client":
        return trial(world.run, world.weights, **options)
    if method == "SamplingClient.create":
        return trial(tinker.SamplingClient, world.service.holder, base_model=world.model, **options)
    return trial(world.run, **options)


@scenario("ServiceClient.create_rest_client")
def create_rest(trial):
    expect(resolve(trial(trial.world.service).list_training_runs).cursor is not None, "no cursor")


@scenario("ServiceClient.create_custom_loss")
def create_custom_loss(trial):
    handle = trial.world.loss
    expect(handle.loss_id is not None, "the loss was not uploaded: the server does not run it")
    result = resolve(trial.world.run.forward_backward_custom, trial.world.data, handle)
    total = sum(value * value for row in blackbox.logprobs_of(result) for value in row)
    seen = result.metrics["custom/squared:sum"]
    expect(abs(seen - total) <= 1e-3 * total, f"the loss is {seen}, not {total}")


def squared(logprobs, weights):
    """A loss of the tests: the sum of squared logprobs."""
    loss = (logprobs * logprobs * weights).sum()
    return loss, {"custom/squared:sum": loss}


@scenario("ServiceClient.close", "ServiceClient.close(detail)")
def close(trial):
    client = tinker.ServiceClient()
    start(client, trial.world)
    trial(client, "success", detail="done")
    try:
        resolve(client.create_sampling_client, base_model=trial.world.model)
    except RuntimeError:
        return
    raise Local("a closed client goes on")


@scenario("ServiceClient.copy_weights", "ServiceClient.copy_weights(ttl_seconds)", "RestClient.copy_weights", "RestClient.copy_weights(ttl_seconds)", "RestClient.copy_weights(destination_project_id)")
def copy_weights(trial):
    world = trial.world
    if trial.row.startswith("Service"):
        path = trial(in_project(), world.weights, ttl_seconds=3600)
    else:
        path = trial(world.rest, world.weights, "a-project", ttl_seconds=3600)
    expect(path != world.weights and path.startswith("tinker://"), f"the copy is `{path}`")
    sampler = resolve(world.service.create_sampling_client, model_path=path)
    scored = [resolve(one.compute_logprobs, world.prompt)[1:] for one in (sampler, world.sampler)]
    expect(scored[0] == scored[1], "the copy has other weights")


@scenario("ServiceClient.copy_weights(weights_access_token)", "RestClient.copy_weights(weights_access_token)")
def copy_weights_token(trial):
    world = trial.world
    if trial.row.startswith("Service"):
        trial(in_project(), world.weights, weights_access_token="a-token")
    else:
        trial(world.rest, world.weights, "a-project", weights_access_token="a-token")


def in_project():
    """The copy is filed under the project of the client."""
    return tinker.ServiceClient(project_id="a-project")
