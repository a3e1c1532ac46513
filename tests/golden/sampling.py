"""Sampling parameters: logits to processed logprobs, in numpy.

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
