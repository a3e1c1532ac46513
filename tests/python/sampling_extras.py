#!/usr/bin/env python3
"""What a sample may be asked for beside its tokens, through the SDK: each extra against the others and the trainer.

0.16.1 knows the likeliest prompt tokens only; the rest needs 0.38.0. The weights that produced a token are an extension
which the SDK ignores; they are read from the raw answer.
"""

import time

import blackbox
import numpy
from blackbox import AT_ONCE, SDK, TIMEOUT, expect, types

LEARNING_RATE = 1e-2
# Of logprobs, trainer against sampler.
TOLERANCE = 1e-5
ABSENT = -99999.0


def main():
    options = blackbox.parser(__doc__)
    options.add_argument("--longest", type=int, default=512, help="tokens the server accepts in one sequence")
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    client = blackbox.service(arguments.base_url)
    run = blackbox.create_run(client, arguments.model)
    tokens = blackbox.sequences(seed=5, count=1, length=40)[0]
    blackbox.train(run, [blackbox.datum(tokens)], LEARNING_RATE)
    sampler = blackbox.ready(run.save_weights_and_get_sampling_client())

    trained = blackbox.forward(run, [blackbox.datum(tokens)])[0]
    likeliest_prompt_tokens(sampler, tokens, trained)
    many_samples(sampler, tokens)
    wrong(sampler, arguments.longest)
    if SDK < (0, 38):
        return
    likeliest_sampled_tokens(sampler, tokens)
    given_tokens(sampler, tokens, trained)
    the_last_ones(sampler, tokens)
    drawn_tokens(sampler, tokens)
    wrong_extras(client, sampler, tokens, arguments.model)
    weights_in_flight(arguments.base_url, run, tokens)


def ask(sampler, tokens, count=1, prompt_logprobs=False, params=None, **extras):
    wanted = types.SamplingParams(**{"max_tokens": 1, "temperature": 1.0, "seed": 3, "stop": [], **(params or {})})
    return sampler.sample(
        prompt=types.ModelInput.from_ints(list(tokens)), num_samples=count, sampling_params=wanted,
        include_prompt_logprobs=prompt_logprobs, **extras,
    ).result(timeout=TIMEOUT)


def likeliest_prompt_tokens(sampler, tokens, trained):
    result = ask(sampler, tokens, prompt_logprobs=True, topk_prompt_logprobs=4)
    own, top = result.prompt_logprobs, result.topk_prompt_logprobs
    expect(len(top) == len(tokens) and top[0] is None, f"{len(top)} rows, the first is {top[0]}")
    difference = blackbox.largest_difference(own[1:], trained)
    expect(difference <= TOLERANCE, f"prompt logprobs differ from the trainer's by {difference:.2e}")
    seen = 0
    for position in range(1, len(tokens)):
        row = [(int(token), logprob) for token, logprob in top[position]]
        expect(len(row) == 4, f"position {position} has {len(row)} tokens, not 4")
        ordered = sorted(row, key=lambda cell: (-cell[1], cell[0]))
        expect(row == ordered, f"position {position} is not in order: {row}")
        expect(row[0][1] >= own[position], f"position {position}: the prompt's token is likelier than the likeliest")
        for token, logprob in row:
            if token == tokens[position]:
                seen += 1
                expect(logprob == own[position], f"position {position}: {logprob} among the likeliest, {own[position]} alone")
    print(f"likeliest prompt tokens: {seen} of {len(tokens) - 1} are the prompt's own", flush=True)
    alone = ask(sampler, tokens, topk_prompt_logprobs=4)
    expect(alone.prompt_logprobs is None, "the likeliest tokens implied the prompt's own logprobs")
    expect(alone.topk_prompt_logprobs == top, "asking for less changed the likeliest tokens")
    if SDK >= (0, 38):
        ids, logprobs = result.topk_prompt_logprobs_np.token_ids, result.topk_prompt_logprobs_np.logprobs
        expect(ids.shape == logprobs.shape == (len(tokens), 4), f"shapes {ids.shape} and {logprobs.shape}")
        expect((ids[0] == 0).all() and (logprobs[0] == ABSENT).all(), f"the first row is {ids[0]}, {logprobs[0]}")


def many_samples(sampler, tokens):
    result = ask(sampler, tokens[:5], count=1024, params={"max_tokens": 2})
    expect(len(result.sequences) == 1024, f"asked for 1024 samples, got {len(result.sequences)}")
    expect(len({tuple(sequence.tokens) for sequence in result.sequences}) > 100, "most of 1024 samples are the same")
    if SDK >= (0, 38):
        names = {sequence.sequence_id for sequence in result.sequences}
        expect(len(names) == 1024 and all(names), f"1024 samples have {len(names)} ids")


def likeliest_sampled_tokens(sampler, tokens):
    plain = ask(sampler, tokens, count=3, params={"max_tokens": 8})
    result = ask(sampler, tokens, count=3, params={"max_tokens": 8}, topk_sample_logprobs=300)
    for sequence, same in zip(result.sequences, plain.sequences):
        expect(list(sequence.tokens) == list(same.tokens), "asking for the likeliest tokens changed the draws")
        expect(same.topk_logprobs is None, "likeliest tokens that nobody asked for")
        expect(len(sequence.topk_logprobs) == len(sequence.tokens), "not a row per new token")
        for token, logprob, row in zip(sequence.tokens, sequence.logprobs, sequence.topk_logprobs):
            expect(dict(row).get(token, logprob) == logprob, f"token {token}: {logprob}, among the likeliest {dict(row)[token]}")
            total = sum(numpy.exp(value) for _, value in row)
            expect(total <= 1.0 + 1e-4, f"the likeliest tokens have the probability {total}")


def tensor(cells, sparse=False):
    """[rows, columns] ids; -1 is skipped."""
    cells = numpy.asarray(cells, dtype=numpy.int64)
    if not sparse:
        return types.TensorData.from_numpy(cells)
    rows, columns = numpy.nonzero(cells != -1)
    starts = numpy.concatenate([[0], numpy.cumsum((cells != -1).sum(axis=1))]).tolist()
    return types.TensorData(
        data=cells[rows, columns], dtype="int64", shape=list(cells.shape),
        sparse_crow_indices=starts, sparse_col_indices=columns.tolist(),
    )


def scored(sampler, tokens, cells, sparse=False, **options):
    wanted = tensor(cells, sparse)
    found = ask(sampler, tokens, target_prompt_logprobs=wanted, **options).target_prompt_logprobs
    expect(found is not None and found.dtype == "float32", f"the answer is {found}")
    expect(found.shape == wanted.shape, f"shape {found.shape}, not {wanted.shape}")
    expect(found.sparse_crow_indices == wanted.sparse_crow_indices, "another layout of rows")
    expect(found.sparse_col_indices == wanted.sparse_col_indices, "another layout of columns")
    return found


def given_tokens(sampler, tokens, trained):
    own = [[token] for token in tokens[1:]]
    found = scored(sampler, tokens, own)
    alone = ask(sampler, tokens, prompt_logprobs=True).prompt_logprobs[1:]
    expect(blackbox.float32(found.data) == blackbox.float32(alone), "the prompt's own tokens have other logprobs by name")
    difference = blackbox.largest_difference(found.data, trained)
    expect(difference <= TOLERANCE, f"given tokens differ from the trainer by {difference:.2e}")

    cells = numpy.full((len(tokens) - 1, 3), -1, dtype=numpy.int64)
    for row in range(9, len(tokens) - 1, 4):
        cells[row, 0], cells[row, 2] = tokens[row + 1], (row * 7) % 250
    dense = numpy.asarray(scored(sampler, tokens, cells).to_numpy())
    expect((dense[cells == -1] == 0.0).all(), "a skipped cell is not 0.0")
    expect((dense[cells != -1] < 0.0).all(), "a given token has no logprob")
    named = blackbox.float32(dense[9::4, 0])
    expect(named == blackbox.float32(alone[9::4]), "a candidate differs from the prompt's own logprob")
    sparse = scored(sampler, tokens, cells, sparse=True)
    expect(list(sparse.data) == dense[cells != -1].tolist(), "the sparse layout has other logprobs")


def the_last_ones(sampler, tokens):
    whole = ask(sampler, tokens, prompt_logprobs=True, topk_prompt_logprobs=2)
    for last in (1, 7, len(tokens) - 1):
        some = ask(sampler, tokens, prompt_logprobs=True, topk_prompt_logprobs=2, prompt_logprobs_last_n=last)
        expect(some.prompt_logprobs[:-last] == [None] * (len(tokens) - last), f"the last {last}: others are there, too")
        expect(some.prompt_logprobs[-last:] == whole.prompt_logprobs[-last:], f"the last {last} differ alone")
        expect(some.topk_prompt_logprobs[:-last] == [None] * (len(tokens) - last), f"the last {last}: other rows are there")
        expect(some.topk_prompt_logprobs[-last:] == whole.topk_prompt_logprobs[-last:], f"the last {last} rows differ")
    prompt = types.ModelInput.from_ints(tokens)
    some = sampler.compute_logprobs(prompt, prompt_logprobs_last_n=5).result(timeout=TIMEOUT)
    expect(some[:-5] == [None] * (len(tokens) - 5) and some[-5:] == whole.prompt_logprobs[-5:], f"compute_logprobs: {some}")


def drawn_tokens(sampler, tokens):
    def draw(k=6, **params):
        return ask(sampler, tokens, params=params, prompt_alt_tokens_k=k).prompt_alt_tokens

    first = draw()
    shape = [len(tokens) - 1, 6]
    expect(first.tokens.shape == shape and first.logprobs.shape == shape, f"shapes {first.tokens.shape}, {first.logprobs.shape}")
    expect(first.tokens.dtype == "int64" and first.logprobs.dtype == "float32", "other types of numbers")
    again = draw()
    expect(list(again.tokens.data) == list(first.tokens.data), "the same seed drew other tokens")
    expect(list(again.logprobs.data) == list(first.logprobs.data), "the same seed drew other logprobs")
    expect(list(draw(seed=4).tokens.data) != list(first.tokens.data), "another seed drew the same tokens")
    named = scored(sampler, tokens, first.tokens.to_numpy())
    expect(list(named.data) == list(first.logprobs.data), "a drawn token has another logprob when it is given")
    best = ask(sampler, tokens, topk_prompt_logprobs=1).topk_prompt_logprobs
    greedy = draw(k=2, temperature=0.0).tokens.to_numpy()
    expect(all((row == cell[0][0]).all() for row, cell in zip(greedy, best[1:])), "at temperature 0 others were drawn")
    warm = ask(sampler, tokens, params={"temperature": 1.7}, prompt_alt_tokens_k=6).prompt_alt_tokens
    named = scored(sampler, tokens, warm.tokens.to_numpy())
    expect(list(named.data) == list(warm.logprobs.data), "the temperature scaled the logprobs of drawn tokens")


def refused(what, action, words):
    """The action must raise quickly, with a text that holds one of `words`."""
    started = time.monotonic()
    try:
        action()
    except Exception as error:  # the SDK has a class per status
        text = str(error)
    else:
        raise blackbox.Failure(f"{what} was accepted")
    elapsed = time.monotonic() - started
    expect(elapsed < AT_ONCE, f"{what}: it took {elapsed:.1f} s to be refused: {text}")
    expect(any(word in text.lower() for word in words), f"{what}: the text `{text}` says none of {words}")


def wrong(sampler, longest):
    def sample(**params):
        return lambda: ask(sampler, [5, 6], params=params)

    refused("no new token at all", sample(max_tokens=0), ["max_tokens"])
    refused("more than the context", sample(max_tokens=longest), ["context"])
    refused("a top_p of zero", sample(top_p=0.0), ["top_p"])
    refused("a negative top_k", sample(top_k=-2), ["top_k"])
    refused("an empty stop text", sample(stop=[""]), ["stop"])
    refused("a stop token outside the vocabulary", sample(stop=[10_000_000]), ["stop", "vocabulary"])
    refused("too many samples", lambda: ask(sampler, [5, 6], count=1025), ["num_samples"])
    refused("too many likeliest tokens", lambda: ask(sampler, [5, 6], topk_prompt_logprobs=1025), ["topk_prompt_logprobs"])
    picture = types.ModelInput(chunks=[types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=4)])
    params = types.SamplingParams(max_tokens=1)
    look = lambda: sampler.sample(prompt=picture, num_samples=1, sampling_params=params).result(timeout=TIMEOUT)  # noqa: E731
    refused("a picture", look, ["image"])


def wrong_extras(client, sampler, tokens, model):
    def extra(**extras):
        return lambda: ask(sampler, tokens, prompt_logprobs=True, **extras)

    refused("too many likeliest new tokens", extra(topk_sample_logprobs=1025), ["topk_sample_logprobs"])
    refused("too many drawn tokens", extra(prompt_alt_tokens_k=1025), ["prompt_alt_tokens_k"])
    refused("the last of all", extra(prompt_logprobs_last_n=len(tokens)), ["prompt_logprobs_last_n"])
    short = tensor([[5]] * (len(tokens) - 2))
    refused("too few rows of given tokens", extra(target_prompt_logprobs=short), ["rows"])
    nothing = tensor([[-1]] * (len(tokens) - 1))
    refused("no given token", extra(target_prompt_logprobs=nothing), ["names no token"])
    beyond = tensor([[10_000_000]] * (len(tokens) - 1))
    refused("a given token outside the vocabulary", extra(target_prompt_logprobs=beyond), ["vocabulary"])
    negative = tensor([[-7]] * (len(tokens) - 1))
    refused("a negative token", extra(target_prompt_logprobs=negative), ["-7"])
    recording = blackbox.ready(client.create_sampling_client(base_model=model, record_stability_info=True))
    refused("recording for a loss that is not here", lambda: ask(recording, [5, 6]), ["record_stability_info"])


def weights_in_flight(base_url, run, tokens):
    """Inflight sessions of a run share its newest inflight weights; each token's tag says which they were."""
    prompt = types.ModelInput.from_ints(tokens)
    snapshot = blackbox.ready(run.save_weights_and_get_sampling_client())
    first = blackbox.ready(run.save_weights_and_get_sampling_client(kind="inflight"))
    before = first.compute_logprobs(prompt).result(timeout=TIMEOUT)
    expect(before == snapshot.compute_logprobs(prompt).result(timeout=TIMEOUT), "a snapshot and inflight weights differ")
    old = tag(base_url, first, tokens, 700)
    expect(old == {**tag(base_url, snapshot, tokens, 701), "operation": old["operation"]}, "other weights by the tag")

    blackbox.train(run, [blackbox.datum(tokens)], LEARNING_RATE)
    expect(first.compute_logprobs(prompt).result(timeout=TIMEOUT) == before, "training alone changed inflight weights")
    second = blackbox.ready(run.save_weights_and_get_sampling_client(kind="inflight"))
    after = second.compute_logprobs(prompt).result(timeout=TIMEOUT)
    expect(after != before, "the second inflight client reads the first one's weights")
    expect(first.compute_logprobs(prompt).result(timeout=TIMEOUT) == after, "the first inflight client kept its weights")
    expect(snapshot.compute_logprobs(prompt).result(timeout=TIMEOUT) == before, "a snapshot changed")
    new = tag(base_url, first, tokens, 702)
    expect(new["optimizer_steps"] == old["optimizer_steps"] + 1, f"tags {old} and {new}")
    expect(new["operation"] > old["operation"] and new["adapter"] != old["adapter"], f"tags {old} and {new}")


def tag(base_url, sampler, tokens, number):
    """The weights that produced a sample, which only the raw answer tells."""
    wanted = {
        "sampling_session_id": sampler._sampling_session_id, "seq_id": number, "num_samples": 2,
        "prompt": {"chunks": [{"tokens": tokens}]}, "sampling_params": {"max_tokens": 3, "stop": []},
    }
    result = blackbox.raw_operation(base_url, "asample", wanted)
    spans = [sequence["weight_spans"] for sequence in result["sequences"]]
    expect(spans[0] == spans[1] and len(spans[0]) == 1, f"the samples of one request have the tags {spans}")
    length = spans[0][0].pop("length")
    expect(length == 3, f"the tag covers {length} of 3 tokens")
    return spans[0][0]


if __name__ == "__main__":
    blackbox.run(main)
