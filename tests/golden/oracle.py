"""LoRA, the losses and the optimizer, twice: with PEFT and as W + s·B·A through a functional call.

Nothing here is taken from the program under test. The two ways must agree before a value is written.
"""

import math

import torch
from peft import LoraConfig, get_peft_model

ALPHA = 32
ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "attn_mlp": {"rank": 4, "targets": ATTENTION_AND_MLP},
    "attn_mlp_unembed": {"rank": 6, "targets": [*ATTENTION_AND_MLP, "lm_head"]},
}
ADAM = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.01, "grad_clip_norm": 0.5}
LOSSES = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
}


def attach(model, name, generator):
    """Wraps `model` in a PEFT adapter whose A is kaiming-uniform(a=√5) and whose B is not zero."""
    spec = ADAPTERS[name]
    peft = get_peft_model(model, LoraConfig(
        task_type="CAUSAL_LM", r=spec["rank"], lora_alpha=ALPHA, lora_dropout=0.0, bias="none",
        target_modules=spec["targets"],
    ))
    # Makes s·B·A·x about 0.4 of W·x.
    deviation = 0.4 * spec["rank"] / ALPHA / math.sqrt(spec["rank"] / 3)
    with torch.no_grad():
        for key, parameter in sorted(lora_parameters(peft).items()):
            if key.endswith("lora_A"):
                bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    return peft


def lora_parameters(peft):
    """`{"model.layers.0.self_attn.q_proj.lora_A": parameter, …}`"""
    parameters = {}
    for name, parameter in peft.named_parameters():
        if ".lora_" in name:
            parameters[name.removeprefix("base_model.model.").removesuffix(".default.weight")] = parameter
    return parameters


def functional_logits(model, lora, rank, tokens):
    """The logits of `model` with every adapted weight replaced by W + s·B·A. A tied head is replaced alone."""
    weights = {}
    for key in lora:
        if key.endswith(".lora_A"):
            module = key.removesuffix(".lora_A")
            base = model.get_submodule(module).weight.detach()
            weights[f"{module}.weight"] = base + (ALPHA / rank) * lora[f"{module}.lora_B"] @ lora[key]
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
