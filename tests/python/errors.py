#!/usr/bin/env python3
"""Every permanent mistake that the SDK lets through is refused at once, by the right exception, in words.

"At once" means within two seconds: an error the SDK takes for a passing one would be retried for minutes. The right
exception is that of the status (400 `BadRequestError`, 404 `NotFoundError`), or `RequestFailedError` of category
`user` where the content of a training or sampling request is at fault: then nothing was added to the run, and its
numbers go on.

All of it happens to a run that is half-way between a forward_backward and its optim_step. Afterwards its logprobs and
its further steps must be, bit for bit, those of a twin that never saw any of it.
"""

import json
import time

import numpy
import tinker

import blackbox
from blackbox import ALICE, AT_ONCE, MALLORY, SDK, TIMEOUT, expect, types

LEARNING_RATE = 1e-3
BEYOND_VOCABULARY = 10_000_000
NEWEST = SDK >= (0, 38)
TEN_YEARS = 315_576_000

# What a bad call raises.
FAILED = "a failed future"
BAD = tinker.BadRequestError
MISSING = tinker.NotFoundError
LOCAL = "the SDK itself"

ABSENT = ("not found", "no checkpoint", "no run", "no training run", "no session", "no sampl", "does not exist", "unknown")


class Table:
    """Runs bad calls and keeps what is wrong with how they were answered."""

    def __init__(self, verbose):
        self.verbose, self.count, self.wrong = verbose, 0, []

    def refused(self, what, action, kind, *words):
        """The action must raise `kind` quickly, with a text that holds one of `words`. Returns the text."""
        self.count += 1
        started = time.monotonic()
        try:
            action()
        except Exception as caught:
            error = caught
        else:
            return self.note(f"{what}: was accepted")
        elapsed, text, name = time.monotonic() - started, str(error), type(error).__name__
        if self.verbose:
            print(f"{what}: {name} in {elapsed:.2f} s: {text}", flush=True)
        if elapsed > AT_ONCE:
            self.note(f"{what}: it took {elapsed:.1f} s to be refused ({name}: {text})")
        if not any(is_kind(error, one) for one in (kind if isinstance(kind, tuple) else (kind,))):
            self.note(f"{what}: expected {kind}, got {name}: {text}")
        for fault in blackbox.faults(text, words):
            self.note(f"{what}: {fault}")
        return text

    def note(self, problem):
        self.wrong.append(problem)
        return ""


def is_kind(error, kind):
    if kind == FAILED:
        return isinstance(error, tinker.RequestFailedError) and "user" in str(error.category).lower()
    if kind == LOCAL:
        return not isinstance(error, tinker.TinkerError)
    return isinstance(error, kind)


def main():
    options = blackbox.parser(__doc__)
    options.add_argument("--longest", type=int, default=512, help="tokens the server accepts in one sequence")
    options.add_argument("--verbose", action="store_true", help="print every answer")
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    url, model = arguments.base_url, arguments.model
    client = blackbox.service(url, ALICE)
    twins = blackbox.Twins(client, model, LEARNING_RATE)
    run = twins.run

    table = Table(arguments.verbose)
    training(table, run, arguments.longest)
    optimizer(table, run)
    creation(table, client, model, run)
    checkpoints(table, client, blackbox.service(url, MALLORY), run, model)
    sampling(table, client, model, arguments.longest)
    identifiers(table, client, model)
    sessions(table, url, model)

    expect(not table.wrong, f"{len(table.wrong)} of {table.count} bad calls:\n  " + "\n  ".join(table.wrong))
    twins.expect_equal("the bad calls")
    print(f"{table.count} bad calls were refused at once", flush=True)


def training(table, run, longest):
    """The content of forward_backward: a failed future, and nothing accumulated."""
    good = blackbox.sequences(seed=1, count=1)[0]
    tokens, targets = good[:-1], good[1:]
    n = len(targets)
    ones = [1.0] * n
    nan, infinity = float("nan"), float("inf")

    def passing(inputs, loss="cross_entropy", config=None, tokens=tokens, model_input=None, forward=False):
        model_input = types.ModelInput.from_ints(list(tokens)) if model_input is None else model_input
        method = run.forward if forward else run.forward_backward

        def action():
            datum = types.Datum(model_input=model_input, loss_fn_inputs=inputs)
            arguments = ([datum], loss) if config is None else ([datum], loss, config)
            method(*arguments).result(timeout=TIMEOUT)

        return action

    def refused(what, *words, inputs, **options):
        table.refused(what, passing(inputs, **options), FAILED, *words)

    policy = {"target_tokens": targets, "logprobs": [-1.0] * n, "advantages": ones}

    def tensor(values, dtype, shape=None):
        return types.TensorData(data=list(values), dtype=dtype, shape=shape)

    # Shapes, types and ranges.
    refused("too few targets", "target_tokens", "length", inputs={"target_tokens": targets[:-1]})
    refused("too many targets", "target_tokens", "length", inputs={"target_tokens": [*targets, 5]})
    refused("too many weights", "weights", "length", inputs={"target_tokens": targets, "weights": [*ones, 1.0]})
    refused("no inputs of the loss", "target_tokens", inputs={})
    refused("weights without targets", "target_tokens", inputs={"weights": ones})
    refused("targets that are floats", "target_tokens", inputs={"target_tokens": tensor(ones, "float32")})
    refused("two targets per position for a policy loss", "target_tokens", "shape", "candidates", inputs={**policy, "target_tokens": tensor(targets * 2, "int64", [n, 2])}, loss="importance_sampling")
    refused("an input token outside the vocabulary", "vocabulary", inputs={"target_tokens": targets}, tokens=[BEYOND_VOCABULARY, *tokens[1:]])
    refused("a target outside the vocabulary", "vocabulary", inputs={"target_tokens": [*targets[:-1], BEYOND_VOCABULARY]})
    refused("a negative target", "vocabulary", "negative", "-5", inputs={"target_tokens": [-5, *targets[1:]]})
    refused("an empty sequence", "empty", "token", inputs={"target_tokens": []}, tokens=[])
    over_long = [good[0]] * (longest + 1)
    refused("an over-long sequence", "long", "exceed", "at most", "limit of", "context", inputs={"target_tokens": over_long}, tokens=over_long)
    if NEWEST:
        table.refused("an empty batch", lambda: run.forward_backward([], "cross_entropy").result(timeout=TIMEOUT), LOCAL)

    # Losses and their settings.
    refused("ppo without logprobs", "logprobs", "advantages", inputs={"target_tokens": targets}, loss="ppo")
    refused("cispo without advantages", "advantages", inputs={"target_tokens": targets, "logprobs": ones}, loss="cispo")
    refused("importance_sampling without logprobs", "logprobs", inputs={"target_tokens": targets, "advantages": ones}, loss="importance_sampling")
    refused("advantages of another length", "advantages", "length", inputs={**policy, "advantages": ones[:-1]}, loss="ppo")
    if NEWEST:
        # 0.16.1 refuses these before anything is sent, and loses a number by it.
        refused("an unknown loss", "nope", inputs={"target_tokens": targets}, loss="nope")
        refused("a loss without a published formula", "stable_reinforce", inputs=policy, loss="stable_reinforce")
        refused("an unknown setting", "no_such_option", inputs={"target_tokens": targets}, config={"no_such_option": 1.0})
        refused("a setting of another loss", "clip_low_threshold", inputs={"target_tokens": targets}, config={"clip_low_threshold": 0.8})
        refused("a text for a number", "clip_low_threshold", inputs=policy, loss="ppo", config={"clip_low_threshold": "low"})
        refused("a setting that is not a number", "clip_low_threshold", inputs=policy, loss="ppo", config={"clip_low_threshold": nan})
        refused("clip bounds the wrong way round", "clip_low_threshold", "clip_high_threshold", inputs=policy, loss="ppo", config={"clip_low_threshold": 1.5, "clip_high_threshold": 0.5})
        refused("an unknown input", "no_such_input", inputs={"target_tokens": targets, "no_such_input": tensor(ones, "float32")})
        refused("a misspelled input", "advantage", inputs={**policy, "advantage": tensor(ones, "float32")}, loss="ppo")
        refused("a custom loss that was never made", "loss_id", "custom", inputs={"target_tokens": targets}, loss="custom", config={"loss_id": "nobody"})
        # Numbers that are none.
        refused("a weight that is not a number", "weight", "finite", "nan", inputs={"target_tokens": targets, "weights": [nan, *ones[1:]]})
        refused("an infinite weight", "weight", "finite", "inf", inputs={"target_tokens": targets, "weights": [infinity, *ones[1:]]})
        refused("an advantage that is not a number", "advantages", "finite", "nan", inputs={**policy, "advantages": [nan, *ones[1:]]}, loss="importance_sampling")
        refused("a ratio beyond all numbers", "inf", inputs={**policy, "logprobs": [-1e30, *ones[1:]]}, loss="importance_sampling")
        refused("an unknown loss for forward", "nope", inputs={"target_tokens": targets}, loss="nope", forward=True)
    refused("too few targets for forward", "target_tokens", "length", inputs={"target_tokens": targets[:-1]}, forward=True)

    # Images: this server's models read text.
    picture = types.ModelInput(chunks=[types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=1), types.EncodedTextChunk(tokens=list(tokens[1:]))])
    refused("an image", "image", inputs={"target_tokens": targets}, model_input=picture)

    # One bad datum refuses the whole request: the good one before it must add no gradient.
    bad = types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs={"target_tokens": targets[:-1]})
    mixed = [blackbox.datum(good), bad]
    table.refused("a bad datum after a good one", lambda: run.forward_backward(mixed, "cross_entropy").result(timeout=TIMEOUT), FAILED, "target_tokens", "length")


def optimizer(table, run):
    """The settings of optim_step: a failed future, and no step."""

    def refused(what, *words, **changes):
        params = blackbox.adam(**{"learning_rate": 1e-3, **changes})
        table.refused(what, lambda: run.optim_step(params).result(timeout=TIMEOUT), FAILED, *words)

    refused("a negative learning rate", "learning_rate", "learning rate", learning_rate=-1.0)
    refused("a beta1 of one", "beta1", beta1=1.0)
    refused("a negative beta2", "beta2", beta2=-0.1)
    refused("a negative eps", "eps", eps=-1e-8)
    refused("a negative weight decay", "weight_decay", "weight decay", weight_decay=-0.1)
    if NEWEST:
        nan = float("nan")
        # The SDK sends null for it, which must not be taken for the default.
        for name in ("learning_rate", "grad_clip_norm"):
            params = blackbox.adam(**{"learning_rate": 1e-3, name: nan})
            table.refused(f"a {name} that is not a number", lambda: run.optim_step(params).result(timeout=TIMEOUT), BAD, name)
        dimuon = types.DimuonParams(learning_rate=1e-3)
        table.refused("a step of dimuon", lambda: run.optim_step(dimuon).result(timeout=TIMEOUT), FAILED, "dimuon")


def creation(table, client, model, run):
    def create(**options):
        return lambda: blackbox.create_run(client, **{"model": model, **options})

    table.refused("an unknown base model", create(model="no/such-model"), (BAD, MISSING), "no/such-model")
    table.refused("an empty name of a base model", create(model=""), (BAD, MISSING), "model")
    table.refused("rank zero", create(rank=0), BAD, "rank")
    table.refused("a negative rank", create(rank=-1), BAD, "rank")
    table.refused("an absurd rank", create(rank=1_000_000), BAD, "rank")
    table.refused("nothing to train", create(train_mlp=False, train_attn=False, train_unembed=False), LOCAL)
    if not NEWEST:
        return
    table.refused("dimuon", create(optimizer=types.DimuonOptimizerConfig()), BAD, "dimuon")
    path = run.save_state("for-dimuon").result(timeout=TIMEOUT).path
    options = {"optimizer": types.DimuonOptimizerConfig()}
    table.refused("dimuon for a loaded checkpoint", lambda: blackbox.ready(client.create_training_client_from_state(path, **options)), BAD, "dimuon")


def checkpoints(table, client, stranger, run, model):
    other = blackbox.create_run(stranger, model, seed=1)
    foreign_path = other.save_state("mine").result(timeout=TIMEOUT).path
    foreign_sampler = other.save_weights_for_sampler("mine").result(timeout=TIMEOUT).path
    absent = foreign_path.replace("/mine", "/absent")

    def restore(path):
        return lambda: blackbox.restore_run(client, path)

    def sampler(path):
        return lambda: blackbox.ready(client.create_sampling_client(model_path=path))

    foreign = table.refused("a foreign checkpoint", restore(foreign_path), MISSING, *ABSENT)
    missing = table.refused("an absent checkpoint", restore(absent), MISSING, *ABSENT)
    same = foreign.replace("/mine", "/absent") == missing
    expect(same, f"a foreign checkpoint can be told from an absent one: `{foreign}` against `{missing}`")
    table.refused("a foreign sampler checkpoint", sampler(foreign_sampler), MISSING, *ABSENT)

    own_sampler = run.save_weights_for_sampler("own").result(timeout=TIMEOUT).path
    table.refused("training from a sampler's checkpoint", restore(own_sampler), (BAD, FAILED), "sampler_weights", "kind", "weights")
    for path in ("not-a-path", "tinker://x", "tinker://a/b/c/d", "tinker://a/no_such_kind/c", "https://example.com/weights"):
        table.refused(f"the path `{path}` to train from", restore(path), (BAD, MISSING, LOCAL), "path", *ABSENT)
        table.refused(f"the path `{path}` to sample from", sampler(path), (BAD, MISSING, LOCAL), "path", *ABSENT)

    if SDK < (0, 33):
        load = run.load_state_with_optimizer
        table.refused("loading an absent checkpoint", lambda: load(absent).result(timeout=TIMEOUT), (BAD, MISSING, FAILED), *ABSENT)

    for save in (run.save_state, run.save_weights_for_sampler):
        kind = save.__name__
        for name in ("../evil", "", "a/b", "a b", ".hidden", "x" * 256):
            table.refused(f"{kind} under the name `{name[:12]}`", lambda: save(name).result(timeout=TIMEOUT), FAILED, "name")
        for ttl in (0, -1, 5, TEN_YEARS + 100):
            table.refused(f"{kind} for {ttl} seconds", lambda: save("short-lived", ttl_seconds=ttl).result(timeout=TIMEOUT), (BAD, FAILED), "ttl")
        save("twice").result(timeout=TIMEOUT)
        table.refused(f"{kind} under a taken name", lambda: save("twice").result(timeout=TIMEOUT), FAILED, "exist")


def sampling(table, client, model, longest):
    sampler = blackbox.ready(client.create_sampling_client(base_model=model))
    prompt = types.ModelInput.from_ints([5, 6, 7])

    def refused(what, *words, kind=FAILED, prompt=prompt, count=1, extras=None, **params):
        def action():
            sampling_params = types.SamplingParams(**{"max_tokens": 4, **params})
            sampler.sample(prompt=prompt, num_samples=count, sampling_params=sampling_params, **(extras or {})).result(timeout=TIMEOUT)

        table.refused(what, action, kind, *words)

    def tokens(*values):
        return types.ModelInput.from_ints(list(values))

    table.refused("sampling from an unknown model", lambda: blackbox.ready(client.create_sampling_client(base_model="no/such-model")), (BAD, MISSING), "no/such-model")
    refused("a prompt outside the vocabulary", "vocabulary", prompt=tokens(5, BEYOND_VOCABULARY))
    refused("an empty prompt", "empty", "prompt", prompt=tokens())
    refused("an over-long prompt", "long", "exceed", "at most", "limit of", "context", prompt=tokens(*[5] * (longest + 1)))
    refused("no samples", "num_samples", "sample", count=0)
    refused("a negative number of samples", "num_samples", "sample", kind=(BAD, FAILED), count=-1)
    refused("no tokens", "max_tokens", max_tokens=0)
    refused("a negative number of tokens", "max_tokens", kind=(BAD, FAILED), max_tokens=-1)
    refused("a negative temperature", "temperature", temperature=-1.0)
    refused("a top_p above one", "top_p", top_p=1.5)
    refused("a top_p of zero", "top_p", top_p=0.0)
    refused("a top_k below off", "top_k", top_k=-2)
    refused("an empty stop string", "stop", stop=[""])
    refused("a stop token outside the vocabulary", "stop", "vocabulary", stop=[BEYOND_VOCABULARY])
    # The SDK's own types refuse these.
    refused("a stop of another type", kind=LOCAL, stop={"text": 1})
    refused("stops of two types", kind=LOCAL, stop=["a", 1.5])
    picture = types.ModelInput(chunks=[types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=1), types.EncodedTextChunk(tokens=[5])])
    refused("an image", "image", prompt=picture)
    if not NEWEST:
        return
    refused("a temperature that is not a number", kind=LOCAL, temperature=float("nan"))
    refused("too many prompt logprobs", "topk_prompt_logprobs", extras={"topk_prompt_logprobs": 1_000_000})
    refused("too many sample logprobs", "topk_sample_logprobs", extras={"topk_sample_logprobs": 1_000_000})
    refused("a window without prompt logprobs", kind=LOCAL, extras={"prompt_logprobs_last_n": 1})
    refused("a window over the whole prompt", "prompt_logprobs_last_n", extras={"prompt_logprobs_last_n": 3, "include_prompt_logprobs": True})
    few_rows = types.TensorData.from_numpy(numpy.asarray([[5]], dtype=numpy.int64))
    refused("too few rows of targets", "target_prompt_logprobs", extras={"target_prompt_logprobs": few_rows})
    strange = types.TensorData.from_numpy(numpy.asarray([[5], [BEYOND_VOCABULARY]], dtype=numpy.int64))
    refused("a target outside the vocabulary", "target_prompt_logprobs", "vocabulary", extras={"target_prompt_logprobs": strange})
    recording = client.create_sampling_client(base_model=model, record_stability_info=True)
    params = types.SamplingParams(max_tokens=1)
    table.refused("samples recorded for stable_reinforce", lambda: blackbox.ready(recording).sample(prompt, 1, params).result(timeout=TIMEOUT), (BAD, FAILED), "record_stability_info", "stable_reinforce")
    refused("too many drawn tokens", "prompt_alt_tokens_k", extras={"prompt_alt_tokens_k": 1_000_000})


def identifiers(table, client, model):
    """Ids of nothing: 404 by every route that takes one."""
    run = blackbox.create_run(client, model, seed=3)
    rest = client.create_rest_client()
    nobody = "nobody:train:0"
    for what, action in {
        "an unknown run": lambda: rest.get_training_run(nobody).result(),
        "the checkpoints of an unknown run": lambda: rest.list_checkpoints(nobody).result(),
        "deleting an absent checkpoint": lambda: rest.delete_checkpoint(run.model_id, "weights/absent").result(),
        "the weights of an absent checkpoint": lambda: rest.get_weights_info_by_tinker_path(f"tinker://{run.model_id}/weights/absent").result(),
        "publishing an absent checkpoint": lambda: rest.publish_checkpoint_from_tinker_path(f"tinker://{run.model_id}/weights/absent").result(),
        "an unknown session": lambda: rest.get_session("nobody").result(),
        "an unknown sampler": lambda: rest.get_sampler("nobody:sample:0").result(),
    }.items():
        table.refused(what, action, MISSING, *ABSENT)

    # The client's own id, bent: what a user of two servers does by mistake.
    datum = [blackbox.datum(blackbox.sequences(seed=1, count=1)[0])]
    run.model_id = nobody
    table.refused("training an unknown run", lambda: run.forward_backward(datum, "cross_entropy").result(timeout=TIMEOUT), (MISSING, FAILED), *ABSENT)
    table.refused("a step of an unknown run", lambda: run.optim_step(blackbox.adam(1e-3)).result(timeout=TIMEOUT), (MISSING, FAILED), *ABSENT)
    table.refused("saving an unknown run", lambda: run.save_state("x").result(timeout=TIMEOUT), (MISSING, FAILED), *ABSENT)


def sessions(table, url, model):
    """A session that is over takes nothing new."""
    client = blackbox.service(url, ALICE)
    session = blackbox.create_run(client, model, seed=3).model_id.split(":train:")[0]
    body = json.dumps({"reason": {"type": "success"}, "detail": None}).encode()
    status, answer, _ = blackbox.post(url, f"sessions/{session}/finish", body)
    expect(status in (200, 204), f"finishing a session is answered {status}: {answer}")
    # 410 has no class of its own.
    gone = (BAD, MISSING, tinker.APIStatusError)
    over = ("finished", "over", "ended", "closed")
    table.refused("a new run in a finished session", lambda: blackbox.create_run(client, model, seed=4), gone, *over)
    table.refused("a new sampler in a finished session", lambda: blackbox.ready(client.create_sampling_client(base_model=model)), gone, *over)

    lost = blackbox.service(url, ALICE)
    blackbox.create_run(lost, model, seed=4)
    lost.holder._session_id = "nobody"
    table.refused("a new run in an unknown session", lambda: blackbox.create_run(lost, model, seed=4), MISSING, *ABSENT)


if __name__ == "__main__":
    blackbox.run(main)
