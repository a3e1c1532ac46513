#!/usr/bin/env python3
"""Writes a checkpoint with random weights in the shape of a published model, for measuring speed and memory.

    .venvs/reference/bin/python benches/reference/make_model.py --shape qwen2.5-0.5b --out .models/random-qwen2.5-0.5b

The folder is in the Hugging Face layout: `config.json`, bf16 `model.safetensors`, and a small tokenizer of our own, whose
ids are the first few hundred of the vocabulary. A folder that is already complete is left as it is.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/golden"))
import tokenizer  # noqa: E402

QWEN2_5_0_5B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "max_window_layers": 24,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}
QWEN2_5_7B = {
    **QWEN2_5_0_5B,
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
}
QWEN3_MOE_0_5B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    # Small, so that the head does not hide the experts.
    "vocab_size": 32768,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "moe_intermediate_size": 192,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}
SHAPES = {
    "qwen2.5-0.5b": QWEN2_5_0_5B,
    # About four billion numbers, in the proportions of the others.
    "qwen2.5-4b": {**QWEN2_5_7B, "hidden_size": 2560, "intermediate_size": 13824, "num_hidden_layers": 32,
                   "num_attention_heads": 20, "max_window_layers": 32, "tie_word_embeddings": True},
    "qwen2.5-7b": QWEN2_5_7B,
    # In the proportions of Qwen3-30B-A3B: of 0.52 billion numbers a token uses 0.12.
    "qwen3-moe-0.5b": QWEN3_MOE_0_5B,
    # The same with few layers and a small vocabulary: to try the benchmark itself.
    "tiny": {**QWEN2_5_0_5B, "num_hidden_layers": 2, "vocab_size": 32768, "max_window_layers": 2},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.out
    if (out / "config.json").exists():
        print(f"{out} is already there")
        return
    out.mkdir(parents=True, exist_ok=True)
    config = dict(SHAPES[arguments.shape])
    special = tokenizer.write(out, "qwen")
    config["eos_token_id"] = special["eos"]
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": special["stops"]}, indent=2) + "\n")
    # Billions of numbers are drawn where that is fast.
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(arguments.seed)
    save_file(weights(config, generator), out / "model.safetensors", metadata={"format": "pt"})
    # Last, and in one piece: its presence says that the folder is complete.
    temporary = out / "config.json.part"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, out / "config.json")
    print(f"{out}: {(out / 'model.safetensors').stat().st_size / 1e9:.2f} GB")


def weights(config, generator):
    """Normal(0, 0.02) as an untrained model; norms are one, biases zero."""
    hidden = config["hidden_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    query, key_value = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    experts = config.get("num_experts", 0)

    def normal(*shape):
        values = torch.empty(shape, device=generator.device)
        return values.normal_(0.0, config["initializer_range"], generator=generator).to("cpu", torch.bfloat16)

    def constant(value, size):
        return torch.full((size,), value, dtype=torch.bfloat16)

    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden), "model.norm.weight": constant(1.0, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = constant(1.0, hidden)
        for name, rows in (("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)):
            tensors[f"{prefix}.self_attn.{name}.weight"] = normal(rows, hidden)
            if not experts:
                tensors[f"{prefix}.self_attn.{name}.bias"] = constant(0.0, rows)
        tensors[f"{prefix}.self_attn.o_proj.weight"] = normal(hidden, query)
        if experts:
            for norm in ("q_norm", "k_norm"):
                tensors[f"{prefix}.self_attn.{norm}.weight"] = constant(1.0, head)
            tensors[f"{prefix}.mlp.gate.weight"] = normal(experts, hidden)
        mlps = [f"{prefix}.mlp.experts.{expert}" for expert in range(experts)] or [f"{prefix}.mlp"]
        width = config["moe_intermediate_size"] if experts else config["intermediate_size"]
        for mlp in mlps:
            tensors[f"{mlp}.gate_proj.weight"] = normal(width, hidden)
            tensors[f"{mlp}.up_proj.weight"] = normal(width, hidden)
            tensors[f"{mlp}.down_proj.weight"] = normal(hidden, width)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(config["vocab_size"], hidden)
    return tensors


if __name__ == "__main__":
    main()
