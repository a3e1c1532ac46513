"""Known mistakes, made on purpose: each must move the logits well beyond the tolerance they are compared with."""

import torch

import models
from models import load, logits_of

# Ten times the tolerance of the logits.
SHOWS = 1e-3


def mutations(directory, sequences, tensors):
    """How far the logits move when a detail is computed wrongly."""
    def moved(model):
        with torch.no_grad():
            return max(
                (logits_of(model)(sequences[index]) - tensors[f"logits.{index}"]).abs().max().item()
                for index in range(len(sequences)) if f"logits.{index}" in tensors
            )

    def changed(change):
        model = load(directory)
        for layer in model.model.layers:
            change(layer)
        return moved(model)

    model = load(directory)
    config, layers = model.config, model.model.layers
    rope = dict(config.rope_parameters)
    found = {
        "rms_norm_eps": moved(load(directory, rms_norm_eps=1e-5 if config.rms_norm_eps == 1e-6 else 1e-6)),
        "rope_theta": moved(load(directory, rope_parameters={**rope, "rope_theta": rope["rope_theta"] * 1.05})),
    }
    if rope.get("rope_type") != "default":
        plain = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
        found["rope_scaling"] = moved(load(directory, rope_parameters=plain))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        whole = {"rope_type": "default", "rope_theta": rope["rope_theta"], "partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2]}
        found["partial_rotary_factor"] = moved(load(directory, rope_parameters=whole))

    if getattr(config, "no_rope_layers", None):
        found["no_rope_layers"] = moved(load(directory, no_rope_layers=[1] * len(layers)))

    def swap_norms(layer):
        layer.input_layernorm, layer.post_attention_layernorm = layer.post_attention_layernorm, layer.input_layernorm

    found["swapped_norms"] = changed(swap_norms)
    attention = [layer.self_attn for layer in layers if hasattr(layer, "self_attn")]
    for name in ("q_proj", "k_proj", "v_proj"):
        if getattr(attention[0], name).bias is not None:
            found[f"{name}_bias"] = changed(lambda layer: setattr(getattr(layer.self_attn, name), "bias", None))
    if hasattr(attention[0], "q_norm"):
        unit = 0.0 if models.is_zero_centred(model) else 1.0
        for name in ("q_norm", "k_norm"):
            found[name] = changed(
                lambda layer: hasattr(layer, "self_attn") and getattr(layer.self_attn, name).weight.fill_(unit)
            )
    if models.is_zero_centred(model):
        plain = load(directory)
        for module in plain.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.weight.sub_(1.0)
        found["norm_flavour"] = moved(plain)
    if hasattr(config, "norm_topk_prob"):
        renormalised = load(directory)
        for module in renormalised.modules():
            if type(module).__name__.endswith("TopKRouter"):
                module.norm_topk_prob = not config.norm_topk_prob
        found["norm_topk_prob"] = moved(renormalised)
    if hasattr(config, "num_experts_per_tok"):
        fewer = load(directory)
        for module in fewer.modules():
            if type(module).__name__.endswith("TopKRouter"):
                module.top_k -= 1
        found["num_experts_per_tok"] = moved(fewer)
    if models.has_delta(model):
        def each_delta(change):
            return changed(lambda layer: hasattr(layer, "linear_attn") and change(layer.linear_attn))

        found["a_log"] = each_delta(lambda delta: delta.A_log.add_(0.05))
        found["dt_bias"] = each_delta(lambda delta: delta.dt_bias.fill_(0.0))
        found["conv1d_reversed"] = each_delta(lambda delta: delta.conv1d.weight.copy_(delta.conv1d.weight.flip(-1)))
        found["gated_norm"] = each_delta(lambda delta: delta.norm.weight.add_(1.0))
    hidden = {name: value for name, value in found.items() if value < SHOWS}
    # A bias of the keys adds the same to every score of a query but for the rotation: small is normal, zero is not.
    assert not hidden, f"these mistakes would not show: {hidden}"
    return found
