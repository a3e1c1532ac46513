"""LoRA, the losses and the optimizer, twice: with PEFT and as W + s·B·A through a functional call.

Nothing here is taken from the program under test. The two ways must agree before a value is written.
"""

import copy
import math

import torch
from peft import LoraConfig, get_peft_model

ALPHA = 32
ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DELTA = ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"]
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


class Adapter:
    """An adapter on every linear map but the router, whose logits are computed twice.

    PEFT wraps what is a module. Experts are slices of one parameter, which PEFT adapts for some models and in other
    shapes: a model with experts is adapted through the functional call, and the second computation is in fp64.
    """

    def __init__(self, model, base, name, generator):
        spec = ADAPTERS[name]
        self.name, self.base, self.rank, self.targets = name, base, spec["rank"], list(spec["targets"])
        if any(".linear_attn." in module for module, _ in base.named_modules()):
            self.targets += DELTA
        self.config = LoraConfig(
            task_type="CAUSAL_LM", r=self.rank, lora_alpha=ALPHA, lora_dropout=0.0, bias="none",
            target_modules=self.targets,
        )
        self.has_experts = bool(expert_modules(base))
        if self.has_experts:
            self.parameters = linear_parameters(base, self.targets, self.rank) | expert_parameters(base, self.rank)
            self.double = copy.deepcopy(base).double()
        else:
            self.wrapped = get_peft_model(model, self.config)
            self.parameters = lora_parameters(self.wrapped)
        fill(self.parameters, self.rank, generator)

    def logits(self, tokens):
        if self.has_experts:
            return functional_logits(self.base, self.parameters, self.rank, tokens)
        return self.wrapped(input_ids=tokens[None], use_cache=False).logits[0]

    def logits_again(self, tokens):
        if self.has_experts:
            doubled = {key: value.double() for key, value in self.parameters.items()}
            return functional_logits(self.double, doubled, self.rank, tokens)
        return functional_logits(self.base, self.parameters, self.rank, tokens)

    def merged(self):
        """A model with the sums as its weights. A tied head gets weights of its own."""
        merged = copy.deepcopy(self.base)
        for key, value in adapted_weights(merged, self.parameters, self.rank).items():
            module, _, parameter = key.rpartition(".")
            setattr(merged.get_submodule(module), parameter, torch.nn.Parameter(value.detach(), requires_grad=False))
        return merged


def fill(lora, rank, generator):
    # Makes s·B·A·x about 0.4 of W·x.
    deviation = 0.4 * rank / ALPHA / math.sqrt(rank / 3)
    with torch.no_grad():
        for key, parameter in sorted(lora.items()):
            if key.endswith("lora_A"):
                bound = 1 / math.sqrt(parameter.shape[-1])
                parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)


def expert_modules(model):
    return [name for name, module in model.named_modules() if name.endswith(".experts") and hasattr(module, "gate_up_proj")]


def linear_parameters(model, leaves, rank):
    """Of every linear module with one of these names: `{"model.layers.0.self_attn.q_proj.lora_A": [r, in], …}`"""
    lora = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in leaves:
            lora[f"{name}.lora_A"] = torch.zeros(rank, module.in_features, requires_grad=True)
            lora[f"{name}.lora_B"] = torch.zeros(module.out_features, rank, requires_grad=True)
    return lora


def expert_parameters(model, rank):
    """Every expert its own A and B: `{"model.layers.0.mlp.experts.gate_proj.lora_A": [E, r, in], …}`"""
    lora = {}
    for module in expert_modules(model):
        count, doubled, hidden = model.get_submodule(module).gate_up_proj.shape
        for part, wide, narrow in [
            ("gate_proj", doubled // 2, hidden), ("up_proj", doubled // 2, hidden), ("down_proj", hidden, doubled // 2),
        ]:
            lora[f"{module}.{part}.lora_A"] = torch.zeros(count, rank, narrow, requires_grad=True)
            lora[f"{module}.{part}.lora_B"] = torch.zeros(count, wide, rank, requires_grad=True)
    return lora


def lora_parameters(peft):
    """`{"model.layers.0.self_attn.q_proj.lora_A": parameter, …}`"""
    parameters = {}
    for name, parameter in peft.named_parameters():
        if ".lora_" in name:
            parameters[name.removeprefix("base_model.model.").removesuffix(".default.weight")] = parameter
    return parameters


def adapted_weights(model, lora, rank):
    """`{"model.layers.0.self_attn.q_proj.weight": W + s·B·A, …}`"""
    weights, scale = {}, ALPHA / rank
    for key in lora:
        if not key.endswith(".lora_A"):
            continue
        module = key.removesuffix(".lora_A")
        if ".experts." not in module:
            base = model.get_submodule(module).weight.detach()
            weights[f"{module}.weight"] = base + scale * lora[f"{module}.lora_B"] @ lora[key]
    for experts in {key.rpartition(".experts.")[0] + ".experts" for key in lora if ".experts." in key}:
        gate, up, down = (
            lora[f"{experts}.{part}.lora_B"] @ lora[f"{experts}.{part}.lora_A"]
            for part in ("gate_proj", "up_proj", "down_proj")
        )
        base = model.get_submodule(experts)
        weights[f"{experts}.gate_up_proj"] = base.gate_up_proj.detach() + scale * torch.cat([gate, up], 1)
        weights[f"{experts}.down_proj"] = base.down_proj.detach() + scale * down
    return weights


def functional_logits(model, lora, rank, tokens):
    """The logits of `model` with every adapted weight replaced by W + s·B·A. A tied head is replaced alone."""
    call = torch.func.functional_call(model, adapted_weights(model, lora, rank), (tokens[None],), tie_weights=False)
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
