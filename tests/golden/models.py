"""A tiny model's folder: `config.json` as in `variants.py`, its weights as such a checkpoint names them, and loading it."""

import json

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import tokenizer
from variants import NESTED, SHARDED, SINGLE_EXPERTS, VARIANTS, random_weights, text_config


def write(name, directory, generator):
    """config.json exactly as written in variants.py, so that older spellings of keys stay; random weights; a tokenizer."""
    config = dict(VARIANTS[name])
    text = dict(text_config(config))
    special = tokenizer.write(directory, "llama" if config["model_type"] == "llama" else "qwen")
    assert special["size"] <= text["vocab_size"]
    if special["bos"] is not None:
        text["bos_token_id"] = special["bos"]
    text["eos_token_id"] = special["eos"]
    config = {**config, "text_config": text} if "text_config" in config else text
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": special["stops"]}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")

    model = AutoModelForCausalLM.from_config(read_config(directory), attn_implementation="eager")
    random_weights(model, generator)
    weights = on_disk(name, model, generator)
    if name not in SHARDED:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return special
    shards = [{}, {}]
    for index, key in enumerate(sorted(weights)):
        shards[index % 2][key] = weights[key]
    weight_map = {}
    for index, shard in enumerate(shards):
        file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    index = {
        "metadata": {"total_size": sum(value.numel() * 4 for value in weights.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return special


def on_disk(name, model, generator):
    """The weights under the names of a published checkpoint of this architecture."""
    weights = {key: value.detach().contiguous() for key, value in model.named_parameters()}
    if name in SINGLE_EXPERTS:
        weights = {key: value for fused in weights.items() for key, value in single_experts(*fused)}
    if name in NESTED:
        weights = {key.replace("model.", "model.language_model.", 1): value for key, value in weights.items()}
        # What a text engine leaves out: the vision tower and the multi-token prediction head.
        for stray in ("model.visual.patch_embed.proj.weight", "model.visual.blocks.0.mlp.linear_fc1.bias", "mtp.fc.weight"):
            weights[stray] = torch.randn(3, 5, generator=generator)
    return weights


def single_experts(key, value):
    if key.endswith(".experts.gate_up_proj"):
        prefix = key.removesuffix("gate_up_proj")
        for expert, matrix in enumerate(value):
            for part, half in zip(("gate_proj", "up_proj"), matrix.chunk(2)):
                yield f"{prefix}{expert}.{part}.weight", half.contiguous()
    elif key.endswith(".experts.down_proj"):
        prefix = key.removesuffix("down_proj")
        for expert, matrix in enumerate(value):
            yield f"{prefix}{expert}.down_proj.weight", matrix.contiguous()
    else:
        yield key, value


def read_config(directory):
    config = AutoConfig.from_pretrained(directory)
    return config.get_text_config() if hasattr(config, "text_config") else config


def load(directory, dtype=torch.float32, **changes):
    config = read_config(directory)
    for key, value in changes.items():
        setattr(config, key, value)
    model, report = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=dtype, attn_implementation="eager", experts_implementation="eager",
        output_loading_info=True,
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval().requires_grad_(False)


def another(model, attention):
    """The same weights in a model that computes attention in another way."""
    copy = AutoModelForCausalLM.from_config(model.config, attn_implementation=attention, experts_implementation="eager")
    copy.load_state_dict(model.state_dict())
    return copy.eval().requires_grad_(False)


def has_experts(model):
    return hasattr(model.config, "num_experts_per_tok")


def has_delta(model):
    return any(kind == "linear_attention" for kind in getattr(model.config, "layer_types", None) or [])


def is_zero_centred(model):
    return model.config.model_type.startswith("qwen3_5")


def logits_of(model):
    return lambda tokens: model(input_ids=tokens[None], use_cache=False).logits[0]


def hidden_states(model, tokens):
    """The residual stream after each decoder layer, before the final norm: `[L, n, H]`."""
    caught = []
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output: caught.append(output[0] if isinstance(output, tuple) else output))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        logits_of(model)(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack([state.reshape(len(tokens), -1) for state in caught])


def router_gap(model, tokens):
    """How far the last expert chosen and the first one not chosen are apart, the least over tokens and layers."""
    gaps, hooks = [torch.inf], []

    def measure(router, inputs, _output):
        logits = torch.nn.functional.linear(inputs[0].reshape(-1, router.weight.shape[1]).float(), router.weight.float())
        best = logits.topk(router.top_k + 1).values
        gaps.append((best[:, -2] - best[:, -1]).min().item())

    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            hooks.append(module.register_forward_hook(measure))
    with torch.no_grad():
        logits_of(model)(tokens)
    for hook in hooks:
        hook.remove()
    return min(gaps)
