"""W + s·B·A through a functional call, the losses, and the optimizer. Nothing here is taken from the program under test."""

import torch

ADAM = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.01, "grad_clip_norm": 0.5}
LOSSES = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
}


def adapted_weights(model, lora, scales):
    """`{"model.layers.0.self_attn.q_proj.weight": W + s·B·A, …}`"""
    deltas = {}
    for key, a in lora.items():
        if key.endswith(".lora_A"):
            module = key.removesuffix(".lora_A")
            deltas[module] = scales[module] * lora[f"{module}.lora_B"] @ a
    weights = {}
    for module in deltas:
        parent, _, leaf = module.rpartition(".")
        if leaf in ("in_proj_q", "in_proj_k", "in_proj_v"):
            target, parts = f"{parent}.in_proj_qkv.weight", [deltas[f"{parent}.in_proj_{part}"] for part in "qkv"]
        elif parent.endswith(".experts") and leaf != "down_proj":
            # Gate rows first, then up.
            target, parts = f"{parent}.gate_up_proj", [deltas[f"{parent}.gate_proj"], deltas[f"{parent}.up_proj"]]
        else:
            target, parts = module if parent.endswith(".experts") else f"{module}.weight", [deltas[module]]
        # Of three dimensions, the first numbers the experts.
        weights[target] = model.get_parameter(target).detach() + torch.cat(parts, -2)
    return weights


def functional_logits(model, lora, scales, tokens, rounded=None):
    """The logits of `model` with every adapted weight replaced by W + s·B·A. A tied head is replaced alone.

    With a `rounded` model, what that one computes with the sums in its own dtype.
    """
    weights = adapted_weights(model, lora, scales)
    if rounded is not None:
        model, weights = rounded, {key: value.to(rounded.dtype) for key, value in weights.items()}
    call = torch.func.functional_call(model, weights, (tokens[None],), tie_weights=False)
    return call.logits[0]


def token_logprobs(logits, targets):
    return torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]


def loss_value(name, logprobs, datum):
    """The sum over the tokens of one datum of the Tinker protocol's loss."""
    if name == "cross_entropy":
        return -(datum["weights"] * logprobs).sum()
    advantages = datum["advantages"]
    # A masked position counts nothing even where its ratio overflows.
    ratio = torch.where(advantages == 0, 0, logprobs - datum["logprobs"]).exp()
    if name == "importance_sampling":
        return -(ratio * advantages).sum()
    clipped = ratio.clamp(LOSSES[name]["clip_low_threshold"], LOSSES[name]["clip_high_threshold"])
    if name == "ppo":
        return -torch.minimum(ratio * advantages, clipped * advantages).sum()
    return -(clipped.detach() * logprobs * advantages).sum()


def gradients(logits_of, lora, name, datums):
    """Per-datum values and logprobs, and the gradient of the sum over the datums for every A and B."""
    values, logprobs = [], []
    total = 0.0
    for datum in datums:
        scored = token_logprobs(logits_of(datum["tokens"]), datum["target_tokens"])
        value = loss_value(name, scored, datum)
        values.append(value.item())
        logprobs.append(scored.detach())
        total = total + value
    keys = sorted(lora)
    computed = torch.autograd.grad(total, [lora[key] for key in keys])
    return values, logprobs, dict(zip(keys, computed))


def two_steps(logits_of, lora, datums):
    """Two AdamW steps on the cross-entropy sum, its gradient taken anew for the second.

    Returns, per step, the unclipped gradient, its norm, the parameters and Adam's moments after it.
    """
    keys = sorted(lora)
    parameters = [lora[key] for key in keys]
    optimizer = torch.optim.AdamW(
        parameters, lr=ADAM["learning_rate"], betas=(ADAM["beta1"], ADAM["beta2"]), eps=ADAM["eps"],
        weight_decay=ADAM["weight_decay"], foreach=False,
    )
    steps = []
    for _ in range(2):
        _, _, computed = gradients(logits_of, lora, "cross_entropy", datums)
        for key in keys:
            lora[key].grad = computed[key].clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, ADAM["grad_clip_norm"], foreach=False)
        optimizer.step()
        steps.append({
            "norm": norm.item(),
            "gradient": computed,
            "parameter": {key: lora[key].detach().clone() for key in keys},
            "first_moment": {key: optimizer.state[lora[key]]["exp_avg"].clone() for key in keys},
            "second_moment": {key: optimizer.state[lora[key]]["exp_avg_sq"].clone() for key in keys},
        })
    return steps
