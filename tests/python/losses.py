#!/usr/bin/env python3
"""Every loss through the SDK: its value where the formula is known by heart, and several targets per position.

Also a batch that the SDK cuts into several requests, and a loss of the client's own: forward, derive, and backward with
minus the derivatives as weights.
"""

import numpy

import blackbox
from blackbox import SDK, TIMEOUT, expect, types

NEWEST = SDK >= (0, 38)
LOSSES = ["importance_sampling", "ppo", "cispo", "dro"] + (["gspo"] if NEWEST else [])


def main():
    arguments = blackbox.parser(__doc__).parse_args()
    blackbox.watchdog(arguments.limit)
    client = blackbox.service(arguments.base_url)
    run = blackbox.create_run(client, arguments.model)
    tokens = blackbox.sequences(seed=5)

    for loss in LOSSES:
        on_policy(run, loss, tokens)
    thresholds_per_token(run, tokens[0])
    candidates(run, tokens)
    if NEWEST:
        sparse(run, tokens[0])
        refused_by_name(run, tokens[0])
    own_loss(run, tokens[0])
    many_requests(run, tokens[0][:4])


def datum(tokens, **inputs):
    arrays = {}
    for name, values in {"target_tokens": tokens[1:], **inputs}.items():
        kind = numpy.int64 if name == "target_tokens" else numpy.float32
        arrays[name] = values if isinstance(values, types.TensorData) else numpy.asarray(values, dtype=kind)
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=arrays)


def outcome(run, data, loss="cross_entropy", backward=True, config=None):
    call = run.forward_backward if backward else run.forward
    result = call(data, loss, config).result(timeout=TIMEOUT)
    for name in result.metrics:
        expect(name.count(":") == 1, f"{loss}: the SDK cannot reduce the metric `{name}`")
    return result


def logprobs(result):
    """In the shape the client sees them."""
    return [numpy.asarray(output["logprobs"].data, dtype=numpy.float32).reshape(output["logprobs"].shape)
            for output in result.loss_fn_outputs]


def close(what, seen, wanted, tolerance=1e-5):
    expect(abs(seen - wanted) <= tolerance * max(1.0, abs(wanted)), f"{what} is {seen}, not {wanted}")


def on_policy(run, loss, sequences):
    """Where the policy is the one that sampled, every ratio is 1 and the loss is known by heart."""
    plain = logprobs(outcome(run, [datum(tokens) for tokens in sequences], backward=False))
    data, wanted, counted = [], 0.0, 0
    for tokens, old in zip(sequences, plain):
        advantages = numpy.linspace(-1.0, 2.0, len(old), dtype=numpy.float32)
        advantages[:3] = 0.0
        # A masked position may say anything.
        sampled = old.copy()
        sampled[:3] = -500.0
        inputs = {"logprobs": sampled, "advantages": advantages}
        if loss == "gspo":
            inputs["sequence_ratio_mask"] = (advantages != 0).astype(numpy.float32)
        data.append(datum(tokens, **inputs))
        per_token = advantages * old if loss in ("cispo", "dro") else advantages
        wanted -= float(per_token.astype(numpy.float64).sum())
        counted += int((advantages != 0).sum())

    forward, backward = outcome(run, data, loss, backward=False), outcome(run, data, loss)
    expect(forward.metrics == backward.metrics, f"{loss}: forward says {forward.metrics}, backward {backward.metrics}")
    for seen, again, old in zip(logprobs(forward), logprobs(backward), plain):
        expect((seen == again).all() and (seen == old).all(), f"{loss}: the logprobs changed without a step")
    metrics = backward.metrics
    close(f"{loss}: loss:sum", metrics["loss:sum"], wanted)
    close(f"{loss}: tokens:sum", metrics["tokens:sum"], counted)
    close(f"{loss}: ratio:sum", metrics["ratio:sum"], counted)
    close(f"{loss}: kl:sum", metrics["kl:sum"], 0.0)
    if loss not in ("importance_sampling", "dro"):
        close(f"{loss}: clipped_tokens:sum", metrics["clipped_tokens:sum"], 0.0)


def thresholds_per_token(run, tokens):
    old = logprobs(outcome(run, [datum(tokens)], backward=False))[0]
    ones = numpy.ones_like(old)
    # Every ratio is e; the first half may go that far.
    high = numpy.where(numpy.arange(len(old)) < 5, 3.0, 1.5)
    inputs = {"logprobs": old - 1, "advantages": ones, "clip_high_threshold": high}
    result = outcome(run, [datum(tokens, **inputs)], "ppo", config={"clip_low_threshold": 0.5})
    close("ppo with thresholds per token", result.metrics["loss:sum"], -(5 * numpy.e + 1.5 * (len(old) - 5)), 1e-4)
    close("clipped tokens", result.metrics["clipped_tokens:sum"], len(old) - 5)


def table(tokens, count, seed):
    """Targets and weights with `count` candidates per position; the first is the real next token."""
    generator = numpy.random.default_rng(seed)
    targets = generator.integers(3, 250, (len(tokens) - 1, count))
    targets[:, 0] = tokens[1:]
    return targets, generator.normal(size=targets.shape).astype(numpy.float32)


def candidates(run, sequences):
    flat = logprobs(outcome(run, [datum(tokens) for tokens in sequences], backward=False))
    tables = [table(tokens, count, seed=count) for tokens, count in zip(sequences, (3, 1, 3))]
    data = [datum(tokens, target_tokens=targets, weights=weights) for tokens, (targets, weights) in zip(sequences, tables)]
    data.insert(1, datum(sequences[1]))
    result = outcome(run, data)
    found = logprobs(result)
    length = len(sequences[0]) - 1
    shapes = [row.shape for row in found]
    expect(shapes == [(length, 3), (length,), (length, 1), (length, 3)], f"the logprobs have the shapes {shapes}")
    for seen, wanted in [(found[0], flat[0]), (found[2], flat[1]), (found[3], flat[2])]:
        expect((seen[:, 0] == wanted).all(), "a candidate's logprob is not that of the only target")
    expect((found[1] == flat[1]).all(), "datums with candidates changed their neighbour's logprobs")
    wanted = -float(flat[1].astype(numpy.float64).sum())
    for (_, weights), seen in zip(tables, [found[0], found[2], found[3]]):
        wanted -= float((weights.astype(numpy.float64) * seen).sum())
    close("cross entropy of candidates", result.metrics["loss:sum"], wanted)


def sparse(run, tokens):
    """A sparse tensor is the dense one with zeros; targets and weights choose for themselves."""
    targets, weights = table(tokens, 6, seed=9)
    weights[:, 2:] = 0.0
    targets[:4] = 0
    weights[:4] = 0.0
    dense = outcome(run, [datum(tokens, target_tokens=targets, weights=weights)])
    for these, those in [(csr(targets), weights), (targets, csr(weights)), (csr(targets), csr(weights))]:
        result = outcome(run, [datum(tokens, target_tokens=these, weights=those)])
        expect(result.metrics == dense.metrics, f"sparse says {result.metrics}, dense {dense.metrics}")
        expect((logprobs(result)[0] == logprobs(dense)[0]).all(), "sparse and dense targets have other logprobs")


def csr(array):
    rows, columns = numpy.nonzero(array)
    starts = numpy.concatenate([[0], numpy.cumsum((array != 0).sum(1))])
    kind = "int64" if array.dtype.kind == "i" else "float32"
    return types.TensorData(
        data=array[rows, columns], dtype=kind, shape=list(array.shape),
        sparse_crow_indices=starts.tolist(), sparse_col_indices=columns.tolist(),
    )


def refused_by_name(run, tokens):
    try:
        outcome(run, [datum(tokens)], "stable_reinforce", config={"kl_coeff": 0.01})
    except Exception as error:
        text = str(error)
        expect("published" in text and "gspo" in text, f"`stable_reinforce` is refused with `{text}`")
        return
    expect(False, "`stable_reinforce` was accepted")


def own_loss(run, tokens):
    """C = Σ t² through weights of −dC/dt: the loss falls along its own gradient."""
    def value():
        return float((logprobs(outcome(run, [datum(tokens)], backward=False))[0].astype(numpy.float64) ** 2).sum())

    before = value()
    for _ in range(5):
        asked = datum(tokens, weights=numpy.zeros(len(tokens) - 1))
        found = logprobs(outcome(run, [asked], backward=False))[0]
        result = outcome(run, [datum(tokens, weights=-2 * found)])
        expect((logprobs(result)[0] == found).all(), "backward used other logprobs than forward")
        run.optim_step(blackbox.adam(1e-3)).result(timeout=TIMEOUT)
    after = value()
    expect(after < 0.9 * before, f"five steps along the client's own gradient went from {before:.3f} to {after:.3f}")


def many_requests(run, tokens):
    """More datums than one request may hold, as the SDK cuts and joins them."""
    alone = outcome(run, [datum(tokens)], backward=False)
    count = 1030
    result = outcome(run, [datum(tokens)] * count, backward=False)
    expect(len(result.loss_fn_outputs) == count, f"{count} datums gave {len(result.loss_fn_outputs)} outputs")
    for name, one in alone.metrics.items():
        close(f"{name} of {count} datums", result.metrics[name], count * one, 1e-9)


if __name__ == "__main__":
    blackbox.run(main)
