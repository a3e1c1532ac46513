"""The tiny models: their `config.json` and their random weights.

The weights are not drawn as Hugging Face would initialise them. Norms differ from one, biases from
zero, and the input of a norm is small where that makes epsilon count; otherwise a swapped norm, a
forgotten bias or a wrong epsilon would hide inside the tolerances.
"""

import math

import torch

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Far below the real 8192, so that the frequencies of a head of 16 fall on all three branches.
    "original_max_position_embeddings": 64,
}


def _common(**overrides):
    config = {
        "vocab_size": 336,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }
    config.update(overrides)
    return config


VARIANTS = {
    # Older spelling of the rope keys and of the dtype, as Llama 3.1 was published.
    "llama3": _common(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_size=64,
        intermediate_size=96,
        rms_norm_eps=1e-5,
        attention_bias=False,
        mlp_bias=False,
        pretraining_tp=1,
        rope_theta=500000.0,
        rope_scaling=LLAMA3_SCALING,
        tie_word_embeddings=False,
        torch_dtype="float32",
    ),
    # Newer spelling, a head dimension that is not hidden / heads, three query heads per group.
    "llama3_tied": _common(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        vocab_size=320,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        rms_norm_eps=1e-5,
        attention_bias=False,
        mlp_bias=False,
        rope_parameters={**LLAMA3_SCALING, "rope_theta": 10000.0, "factor": 32.0},
        tie_word_embeddings=True,
        dtype="float32",
    ),
    "qwen2": _common(
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        num_hidden_layers=3,
        rope_theta=1000000.0,
        use_sliding_window=False,
        sliding_window=4096,
        max_window_layers=3,
        tie_word_embeddings=True,
        torch_dtype="float32",
    ),
    # Sharded, with an index.
    "qwen2_untied": _common(
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        vocab_size=352,
        num_attention_heads=6,
        num_key_value_heads=2,
        hidden_size=96,
        intermediate_size=128,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        use_sliding_window=False,
        tie_word_embeddings=False,
        dtype="float32",
    ),
    # heads * head_dim is 128, hidden is 48: nothing may assume that they are equal.
    "qwen3": _common(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        head_dim=32,
        attention_bias=False,
        rope_theta=1000000.0,
        rope_scaling=None,
        use_sliding_window=False,
        sliding_window=None,
        max_window_layers=2,
        tie_word_embeddings=False,
        torch_dtype="float32",
    ),
}

SHARDED = {"qwen2_untied"}


def random_weights(model, generator):
    """Fills every parameter of `model` in place, in the order of their names."""
    config = model.config
    has_key_norm = config.model_type == "qwen3"

    def normal(parameter, deviation):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)

    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name.endswith("norm.weight"):
                parameter.copy_(0.6 + 0.8 * torch.rand(parameter.shape, generator=generator))
            elif name.endswith(".bias"):
                normal(parameter, 0.5)
            elif name == "model.embed_tokens.weight":
                tied = config.tie_word_embeddings
                normal(parameter, 2.0 / math.sqrt(config.hidden_size) if tied else 0.01)
            elif name == "lm_head.weight":
                normal(parameter, 2.0 / math.sqrt(config.hidden_size))
            elif name.endswith("k_proj.weight") and has_key_norm:
                normal(parameter, 0.01 / math.sqrt(parameter.shape[1]))
            else:
                normal(parameter, 1.2 / math.sqrt(parameter.shape[1]))
