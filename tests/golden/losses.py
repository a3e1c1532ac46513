"""Every loss once more, on inputs made to go wrong: `losses.safetensors` and `losses.json` of two models.

Negative weights, several candidates per position (some named twice, most of weight 0), masked positions whose ratio
overflows, bounds of single tokens, sequences whose ratio is clipped on either side. The losses are written out again
here, apart from `oracle.py`, and each gradient is computed with PEFT and through a functional call.
"""

import json

import torch
from safetensors.torch import save_file

import oracle

# Which adapter of which model.
FIXTURES = {"llama3_tied": "attn_mlp_unembed", "qwen3": "attn_mlp"}
LENGTHS = [6, 19, 33]
CANDIDATES = 5
# Old logprobs this far below overflow fp32 in the ratio: exp(500).
OVERFLOW = -500.0
CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
# Name of the case, of the loss, and its settings.
CASES = {
    "candidates": ("cross_entropy", {}),
    "cross_entropy": ("cross_entropy", {}),
    "importance_sampling": ("importance_sampling", {}),
    "ppo": ("ppo", CLIP),
    "ppo_bounds": ("ppo", {}),
    "cispo": ("cispo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.5}),
    "dro": ("dro", {"beta": 0.3}),
    "gspo": ("gspo", CLIP),
}
INPUTS = {
    "cross_entropy": ["target_tokens", "weights"],
    "importance_sampling": ["target_tokens", "logprobs", "advantages"],
    "gspo": ["target_tokens", "logprobs", "advantages", "sequence_ratio_mask"],
}


def write(directory, logits_of, functional, lora, vocabulary, seed, agreement):
    """`logits_of` and `functional` are two ways to the same logits, differentiable by the tensors in `lora`."""
    generator = torch.Generator().manual_seed(seed)
    tensors, facts = {}, {"datums": len(LENGTHS), "cases": {}}
    for case, (loss, settings) in CASES.items():
        datums = [decided_datum(case, number, vocabulary, logits_of, generator) for number in range(len(LENGTHS))]
        values, logprobs, computed = gradients(logits_of, lora, loss, settings, datums)
        _, _, again = gradients(functional, lora, loss, settings, datums)
        for key, gradient in computed.items():
            size = gradient.abs().max().item()
            difference = (gradient - again[key]).abs().max().item() / size
            assert size > 0 and difference < agreement, (case, key, size, difference)
            tensors[f"{case}.gradient.{key}"] = gradient
        for number, datum in enumerate(datums):
            tensors[f"{case}.{number}.scored"] = logprobs[number]
            for name in ["tokens", *INPUTS.get(loss, INPUTS["importance_sampling"])]:
                tensors[f"{case}.{number}.{name}"] = datum[name]
            for name in CLIP if case == "ppo_bounds" else []:
                tensors[f"{case}.{number}.{name}"] = datum[name]
        facts["cases"][case] = {"loss": loss, "config": settings, "per_datum": values}
    tensors = {key: value.int() if value.dtype == torch.int64 else value for key, value in tensors.items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, directory / "losses.safetensors")
    (directory / "losses.json").write_text(json.dumps(facts, indent=1) + "\n")


class Undecided(Exception):
    """A ratio so near to a bound that rounding would decide whether it is clipped."""


def decided_datum(case, number, vocabulary, logits_of, generator):
    loss, settings = CASES[case]
    while True:
        datum = random_datum(case, LENGTHS[number], number, vocabulary, logits_of, generator)
        try:
            loss_value(loss, settings, datum["scored"], datum)
            return datum
        except Undecided:
            continue


def random_datum(case, length, number, vocabulary, logits_of, generator):
    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    tokens = torch.randint(0, vocabulary, (length,), generator=generator)
    masked = torch.arange(length) < length // 3
    if case == "candidates":
        targets = torch.randint(1, vocabulary, (length, CANDIDATES), generator=generator)
        weights = normal(length, CANDIDATES)
        # What a sparse tensor leaves out is token 0 with weight 0; a row may be left out whole.
        absent = torch.rand(length, CANDIDATES, generator=generator) < 0.6
        absent[number] = True
        targets[absent], weights[absent] = 0, 0.0
        # A token named twice in a row.
        targets[-1], weights[-1] = torch.tensor([7, 7, 0, 7, 9]), torch.tensor([0.5, -1.5, 0.0, 0.25, 2.0])
        return {"tokens": tokens, "target_tokens": targets, "weights": weights, "scored": torch.zeros_like(weights)}

    targets = torch.randint(0, vocabulary, (length,), generator=generator)
    weights = torch.where(masked, 0.0, normal(length))
    with torch.no_grad():
        scored = oracle.token_logprobs(logits_of(tokens), targets)
    # The sequences' ratios lie below, between and above the bounds; the tokens' on all sides of them.
    shift = [-0.4, 0.05, 0.5][number]
    noise = (normal(length) * 0.4).clamp(-1.5, 1.5)
    outside = masked | (torch.arange(length) == length - 1)
    noise[~outside] -= noise[~outside].mean()
    old = torch.where(masked, OVERFLOW, scored - noise - shift)
    advantages = torch.where(masked, 0.0, normal(length))
    low = 0.5 + torch.rand(length, generator=generator) / 2
    return {
        "tokens": tokens, "target_tokens": targets, "weights": weights, "advantages": advantages, "logprobs": old,
        "scored": scored,
        # The last position counts in the loss but not in the sequence's ratio.
        "sequence_ratio_mask": (~outside).float(),
        "clip_low_threshold": low, "clip_high_threshold": low + torch.rand(length, generator=generator),
    }


def loss_value(loss, settings, logprobs, datum):
    if loss == "cross_entropy":
        return -(datum["weights"] * logprobs).sum()
    counted = datum["advantages"] != 0
    new, old, advantages = (tensor[counted] for tensor in (logprobs, datum["logprobs"], datum["advantages"]))
    if loss == "dro":
        return -(new * advantages - settings["beta"] / 2 * (new - old).square()).sum()
    ratio = (new - old).exp()
    if loss == "gspo":
        mask = datum["sequence_ratio_mask"] != 0
        sequence = (logprobs - datum["logprobs"])[mask].mean().exp().detach()
        ratio = sequence * (new - new.detach()).exp()
    if loss == "importance_sampling":
        return -(ratio * advantages).sum()
    low, high = (settings.get(name, datum[name][counted]) for name in CLIP)
    if torch.minimum((ratio - low).abs(), (ratio - high).abs()).min() < 1e-4:
        raise Undecided
    clipped = torch.minimum(torch.maximum(ratio, torch.as_tensor(low)), torch.as_tensor(high))
    if loss == "cispo":
        return -(clipped.detach() * new * advantages).sum()
    return -torch.minimum(ratio * advantages, clipped * advantages).sum()


def gradients(logits_of, lora, loss, settings, datums):
    values, logprobs, total = [], [], 0.0
    for datum in datums:
        rows = torch.log_softmax(logits_of(datum["tokens"]).float(), -1)
        targets = datum["target_tokens"]
        scored = rows.gather(-1, targets.reshape(len(rows), -1)).reshape(targets.shape)
        value = loss_value(loss, settings, scored, datum)
        values.append(value.item())
        logprobs.append(scored.detach())
        total = total + value
    keys = sorted(lora)
    return values, logprobs, dict(zip(keys, torch.autograd.grad(total, [lora[key] for key in keys])))
