"""Sampling parameters and scores: logits to processed logprobs, likeliest tokens and given tokens, in numpy.

The order is vLLM's: temperature, then top-k (every logit at least the k-th largest stays, ties included),
then top-p (ascending cumulative probability <= 1 - p is dropped, one token always stays). A temperature
below 1e-5 means the lowest id among the largest logits.
"""

import json

import numpy

# (name, temperature, top_k, top_p)
PARAMETERS = [
    ("plain", 1.0, -1, 1.0),
    ("hot", 1.7, -1, 1.0),
    ("cold", 0.3, -1, 1.0),
    ("greedy", 0.0, -1, 1.0),
    ("greedy ignores truncation", 0.0, 5, 0.4),
    ("top-k of one", 1.0, 1, 1.0),
    ("top-k", 1.0, 7, 1.0),
    ("top-k after temperature", 0.6, 7, 1.0),
    ("top-k beyond the vocabulary", 1.0, 1000, 1.0),
    ("top-k off as zero", 1.0, 0, 1.0),
    ("top-p", 1.0, -1, 0.9),
    ("small top-p keeps one", 1.0, -1, 0.0001),
    ("top-p after temperature", 1.5, -1, 0.7),
    ("top-p of what top-k left", 1.0, 10, 0.8),
    ("everything", 0.7, 20, 0.95),
]


def log_softmax(values):
    shifted = values - values.max()
    return shifted - numpy.log(numpy.exp(shifted).sum())


def process(logits, temperature, top_k, top_p):
    """Returns the kept ids, the log-softmax over the kept, and log-softmax(logits / temperature) over all."""
    logits = logits.astype(numpy.float64)
    if temperature < 1e-5:
        best = int(numpy.flatnonzero(logits == logits.max())[0])
        return [best], {best: 0.0}, log_softmax(logits)
    scaled = logits / temperature
    reported = log_softmax(scaled)
    kept = numpy.full(len(scaled), True)
    if 0 < top_k < len(scaled):
        kept &= scaled >= numpy.sort(scaled)[-top_k]
    if top_p < 1.0:
        probabilities = numpy.where(kept, numpy.exp(scaled - scaled.max()), 0.0)
        probabilities /= probabilities.sum()
        order = numpy.argsort(probabilities, kind="stable")
        cumulative = numpy.cumsum(probabilities[order])
        nearest = numpy.abs(cumulative[:-1] - (1.0 - top_p)).min()
        assert nearest > 1e-6, "rounding must not decide what is kept"
        dropped = order[cumulative <= 1.0 - top_p]
        kept[dropped[dropped != order[-1]]] = False
    ids = numpy.flatnonzero(kept)
    processed = log_softmax(scaled[ids])
    return ids.tolist(), dict(zip(ids.tolist(), processed.tolist())), reported


# How many of the likeliest tokens, and from which distance to the next their order cannot be a matter of rounding.
LIKELIEST = 5
CLEAR = 1e-3
# The temperature at which tokens are drawn in place of the prompt's.
TEMPERATURE = 0.7


def scores(tokens, logits, generator):
    """What a prompt's rows say about its next tokens: all in fp64 from the reference's fp32 logits."""
    found = []
    for row, values in enumerate(logits[:-1]):
        logprobs = log_softmax(values.astype(numpy.float64))
        order = numpy.argsort(-logprobs, kind="stable")[: LIKELIEST + 1]
        targets = generator.integers(0, len(logprobs), 3).tolist()
        best = int(order[0])
        found.append({
            "next": round(float(logprobs[tokens[row + 1]]), 7),
            "likeliest": order[:LIKELIEST].tolist(),
            "logprobs": logprobs[order[:LIKELIEST]].round(7).tolist(),
            "is_clear": bool((-numpy.diff(logprobs[order])).min() > CLEAR),
            "targets": targets,
            "target_logprobs": logprobs[targets].round(7).tolist(),
            # How often the likeliest token is drawn at the temperature.
            "drawn_best": round(float(numpy.exp(log_softmax(values.astype(numpy.float64) / TEMPERATURE)[best])), 7),
        })
    return found


def write_scores(path, cases, seed):
    """`cases`: adapter or None, tokens, logits `[n, V]`."""
    generator = numpy.random.default_rng(seed)
    found = []
    for adapter, tokens, logits in cases:
        rows = scores(tokens, logits, generator)
        assert sum(row["is_clear"] for row in rows) > len(rows) // 2, "most rows must show the order"
        found.append({"adapter": adapter, "tokens": [int(token) for token in tokens], "rows": rows})
    path.write_text(json.dumps({"temperature": TEMPERATURE, "cases": found}) + "\n")


def rows(seed):
    generator = numpy.random.default_rng(seed)
    ties = generator.normal(size=64).round(1) * 2.0
    ties[[3, 40]] = 9.0
    steep = generator.normal(size=64)
    steep[17] = 30.0
    return {
        "random": generator.normal(size=64) * 2.0,
        "ties": ties,
        "one certain token": steep,
        "large offset": generator.normal(size=64) * 2.0 + 500.0,
    }


def write(path, seed):
    cases = []
    for row, values in rows(seed).items():
        logits = values.astype(numpy.float32)
        for name, temperature, top_k, top_p in PARAMETERS:
            # With equal probabilities at the edge of the nucleus the order of sorting would decide.
            if row == "ties" and top_p < 1.0 and name != "greedy ignores truncation":
                continue
            ids, processed, reported = process(logits, temperature, top_k, top_p)
            cases.append({
                "row": row, "name": name, "temperature": temperature, "top_k": top_k, "top_p": top_p,
                "kept": ids, "processed_logprobs": [processed[i] for i in ids],
                "scaled_logprobs": [round(float(value), 9) for value in reported],
            })
    logits = {row: [float(value) for value in values.astype(numpy.float32)] for row, values in rows(seed).items()}
    path.write_text(json.dumps({"logits": logits, "cases": cases}) + "\n")
