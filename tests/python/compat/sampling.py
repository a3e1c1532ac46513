"""Scenarios of `SamplingClient` and of the sampling parameters."""

import tinker
from blackbox import expect, types
from scenario import resolve, scenario


@scenario("SamplingClient.sample")
def sample(trial):
    result = trial(trial.world.sampler, trial.world.prompt, 2, trial.world.sampling())
    expect([len(one.tokens) for one in result.sequences] == [4, 4], f"the samples are {result}")
    expect(all(len(one.logprobs) == 4 for one in result.sequences), "logprobs are missing")


@scenario("SamplingClient.sample(include_prompt_logprobs)")
def prompt_logprobs(trial):
    world = trial.world
    result = trial(world.sampler, world.prompt, 1, world.sampling(), include_prompt_logprobs=True)
    expect(result.prompt_logprobs[0] is None and len(result.prompt_logprobs) == 5, f"{result.prompt_logprobs}")


@scenario("SamplingClient.sample(topk_prompt_logprobs)")
def topk_prompt(trial):
    world = trial.world
    result = trial(world.sampler, world.prompt, 1, world.sampling(), topk_prompt_logprobs=3, include_prompt_logprobs=True)
    rows = list(result.topk_prompt_logprobs)
    expect(len(rows) == 5 and not rows[0], f"the rows are {rows}")
    for row, seen in list(zip(rows, result.prompt_logprobs))[1:]:
        values = [value for _, value in row]
        expect(len(values) == 3 and values == sorted(values, reverse=True), f"the row is {row}")
        expect(seen <= values[0] + 1e-6, "the prompt's token is likelier than the likeliest")


@scenario("SamplingClient.sample(topk_sample_logprobs)")
def topk_sample(trial):
    world = trial.world
    result = trial(world.sampler, world.prompt, 1, world.sampling(temperature=0.0), topk_sample_logprobs=2)
    sequence = result.sequences[0]
    rows = list(getattr(sequence, "topk_logprobs", None) or getattr(sequence, "topk_sample_logprobs", None) or [])
    expect(len(rows) == 4, f"the rows are {rows} of {sequence}")
    for token, row in zip(sequence.tokens, rows):
        expect(row[0][0] == token, f"greedy chose {token}, the likeliest are {row}")


@scenario("SamplingClient.sample(target_prompt_logprobs)")
def target_prompt(trial):
    """Naming the prompt's own tokens gives the prompt's logprobs."""
    world = trial.world
    tokens = world.tokens[:5]
    target = types.TensorData(data=[*tokens[1:4], -1], dtype="int64", shape=[4, 1])
    result = trial(
        world.sampler, world.prompt, 1, world.sampling(), target_prompt_logprobs=target, include_prompt_logprobs=True,
    )
    expect(result.target_prompt_logprobs is not None, "no target logprobs")
    seen = list(result.target_prompt_logprobs.data)
    wanted = [*result.prompt_logprobs[1:4], 0.0]
    expect(max(abs(a - b) for a, b in zip(seen, wanted)) < 1e-5 and len(seen) == 4, f"{seen}, not {wanted}")


@scenario("SamplingClient.sample(prompt_alt_tokens_k)")
def alternatives(trial):
    world = trial.world
    result = trial(world.sampler, world.prompt, 1, world.sampling(), prompt_alt_tokens_k=2)
    expect(result.prompt_alt_tokens is not None, "no alternatives")
    expect(list(result.prompt_alt_tokens.tokens.shape) == [4, 2], f"the alternatives are {result.prompt_alt_tokens}")


@scenario("SamplingClient.sample(prompt_logprobs_last_n)")
def last_n(trial):
    world = trial.world
    result = trial(
        world.sampler, world.prompt, 1, world.sampling(), include_prompt_logprobs=True, prompt_logprobs_last_n=2,
    )
    expect([value is None for value in result.prompt_logprobs] == [True] * 3 + [False] * 2, f"{result.prompt_logprobs}")


@scenario("SamplingClient.compute_logprobs")
def compute(trial):
    scored = trial(trial.world.sampler, trial.world.prompt)
    expect(scored[0] is None and len(scored) == 5, f"the logprobs are {scored}")


@scenario("SamplingClient.compute_logprobs(prompt_logprobs_last_n)")
def compute_last_n(trial):
    scored = trial(trial.world.sampler, trial.world.prompt, prompt_logprobs_last_n=2)
    expect([value is None for value in scored] == [True] * 3 + [False] * 2, f"the logprobs are {scored}")


@scenario("SamplingClient.create", "SamplingClient.create(model_path)", "SamplingClient.create(base_model)")
def create(trial):
    world = trial.world
    for source in ({"model_path": world.weights}, {"base_model": world.model}):
        sampler = resolve(tinker.SamplingClient.create, world.service.holder, **source)
        expect(resolve(sampler.compute_logprobs, world.prompt)[1:], "no logprobs")


@scenario("SamplingClient.create(sampling_session_id)")
def create_from_session(trial):
    """A session has one client in a process: two would give their samples the same numbers."""
    world = trial.world
    session = resolve(world.service.create_sampling_client, model_path=world.weights)._sampling_session_id
    sampler = resolve(tinker.SamplingClient.create, world.service.holder, sampling_session_id=session)
    expect(resolve(sampler.compute_logprobs, world.prompt)[1:], "no logprobs")


@scenario("SamplingClient.get_base_model")
def base_model(trial):
    expect(trial(trial.world.sampler) == trial.world.model, "another model")


@scenario("SamplingClient.get_sampler_handle")
def handle(trial):
    expect(trial(trial.world.sampler), "an empty handle")


@scenario("SamplingClient.from_sampler_handle", "SamplingClient.from_sampler_handle(api_key)", "BackcompatSamplingClientFuture.from_sampler_handle")
def from_handle(trial):
    """A copy in another process numbers its samples far from those of the original."""
    from world import KEY

    world = trial.world
    named = {"api_key": KEY} if trial.row.endswith(")") else {}
    copies = [tinker.SamplingClient.from_sampler_handle(world.sampler.get_sampler_handle(), **named) for _ in range(2)]
    tokens = [resolve(one.sample, world.prompt, 1, world.sampling()).sequences[0].tokens for one in [world.sampler, *copies]]
    expect(tokens[0] == tokens[1] == tokens[2], f"the copies sample {tokens}")


@scenario("SamplingClient.on_queue_state_change")
def queue_state(trial):
    """The SDK calls it when the server says that a sample waits."""
    from tinker.lib.api_future_impl import QueueState

    for state in QueueState:
        trial(trial.world.sampler, state, "a reason")


@scenario("BackcompatSamplingClientFuture.create", "BackcompatTrainingClientFuture.create")
def future_create(trial):
    sampler = resolve(tinker.BackcompatSamplingClientFuture.create, trial.world.service.holder, base_model=trial.world.model)
    expect(resolve(sampler.compute_logprobs, trial.world.prompt)[1:], "no logprobs")


# Parameters.


def tokens(world, **changes):
    result = resolve(world.sampler.sample, world.prompt, 4, world.sampling(**{"temperature": 1.5, "max_tokens": 8, **changes}))
    return [list(one.tokens) for one in result.sequences], result


@scenario("SamplingParams.max_tokens")
def max_tokens(trial):
    expect([len(one) for one in tokens(trial.world, max_tokens=3)[0]] == [3] * 4, "another length")


@scenario("SamplingParams.seed")
def seed(trial):
    first, again, other = (tokens(trial.world, seed=value)[0] for value in (1, 1, 2))
    expect(first == again != other, "the seed does not decide")


@scenario("SamplingParams.temperature")
def temperature(trial):
    greedy = tokens(trial.world, temperature=0.0)[0]
    expect(len({tuple(one) for one in greedy}) == 1, "greedy samples differ")
    expect(len({tuple(one) for one in tokens(trial.world)[0]}) > 1, "hot samples are equal")


@scenario("SamplingParams.top_k", "SamplingParams.top_p")
def truncation(trial):
    name = trial.row.partition(".")[2]
    narrow = {"top_k": 1, "top_p": 1e-6}[name]
    expect(tokens(trial.world, **{name: narrow})[0] == tokens(trial.world, temperature=0.0)[0], f"`{name}` is not greedy")


@scenario("SamplingParams.stop")
def stop(trial):
    """As ids, as a text and as texts; what was found stays in the sample."""
    world = trial.world
    greedy = tokens(world, temperature=0.0)[0][0]
    cut, result = tokens(world, temperature=0.0, stop=[greedy[3]])
    expect(cut[0] == greedy[: greedy.index(greedy[3]) + 1], f"stopping at {greedy[3]} gives {cut[0]} of {greedy}")
    expect(result.sequences[0].stop_reason == "stop", f"the reason is {result.sequences[0].stop_reason}")
    for text in ("never", ["never", "ever"], None):
        expect(tokens(world, stop=text)[0], "no samples")
