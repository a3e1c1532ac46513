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


def _qwen3_5(**overrides):
    """The text half of Qwen3.5: a quarter of each head rotates, every other layer is a Gated DeltaNet."""
    config = _common(
        vocab_size=320,
        num_hidden_layers=3,
        head_dim=32,
        attention_bias=False,
        linear_conv_kernel_dim=4,
        linear_key_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_value_head_dim=24,
        mamba_ssm_dtype="float32",
    )
    config.update(overrides)
    return {key: value for key, value in config.items() if key != "intermediate_size" or value is not None}


def _mrope(**overrides):
    return {
        "rope_type": "default", "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1], "mrope_interleaved": True,
        **overrides,
    }


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
    # Experts one by one in the file, as published; the two best of six, renormalised.
    "qwen3_moe": _common(
        architectures=["Qwen3MoeForCausalLM"],
        model_type="qwen3_moe",
        vocab_size=320,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        moe_intermediate_size=32,
        num_experts=6,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        head_dim=16,
        attention_bias=False,
        rope_theta=1000000.0,
        use_sliding_window=False,
        tie_word_embeddings=False,
        torch_dtype="float32",
    ),
    # The middle layer is dense, the others use three of eight experts with their probabilities as they are.
    "qwen3_moe_mixed": _common(
        architectures=["Qwen3MoeForCausalLM"],
        model_type="qwen3_moe",
        vocab_size=320,
        num_hidden_layers=3,
        decoder_sparse_step=1,
        mlp_only_layers=[1],
        moe_intermediate_size=24,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=False,
        head_dim=24,
        attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        use_sliding_window=False,
        tie_word_embeddings=True,
        dtype="float32",
    ),
    # The text model alone, its layers by `full_attention_interval`.
    "qwen3_5": _qwen3_5(
        architectures=["Qwen3_5ForCausalLM"],
        model_type="qwen3_5_text",
        full_attention_interval=2,
        rope_parameters=_mrope(rope_theta=10000.0),
        tie_word_embeddings=True,
        dtype="float32",
    ),
    # As published: the text model's keys and weights are nested, beside a vision tower and a multi-token prediction head.
    "qwen3_5_vl": {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "image_token_id": 311,
        "vision_start_token_id": 312,
        "vision_end_token_id": 313,
        "video_token_id": 314,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "text_config": _qwen3_5(
            model_type="qwen3_5_text",
            layer_types=["linear_attention", "linear_attention", "full_attention"],
            linear_num_key_heads=1,
            linear_num_value_heads=3,
            linear_key_head_dim=32,
            linear_value_head_dim=16,
            mtp_num_hidden_layers=1,
            mtp_use_dedicated_embeddings=False,
            rms_norm_eps=1e-5,
            rope_parameters=_mrope(rope_theta=1000000.0),
            tie_word_embeddings=False,
            dtype="float32",
        ),
        "vision_config": {
            "model_type": "qwen3_5", "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
            "out_hidden_size": 48, "patch_size": 4, "num_position_embeddings": 16,
        },
    },
    # Nested, experts fused in the file, a shared expert beside them.
    "qwen3_5_moe": {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "tie_word_embeddings": False,
        "text_config": _qwen3_5(
            model_type="qwen3_5_moe_text",
            num_hidden_layers=2,
            layer_types=["full_attention", "linear_attention"],
            intermediate_size=None,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=40,
            num_experts=6,
            num_experts_per_tok=2,
            rope_parameters=_mrope(rope_theta=10000.0),
            tie_word_embeddings=False,
            dtype="float32",
        ),
        "vision_config": {
            "model_type": "qwen3_5_moe", "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
            "out_hidden_size": 48, "patch_size": 4, "num_position_embeddings": 16,
        },
    },
    # The long-context form of Qwen3: sequences longer than the context it stretches.
    "qwen3_yarn": _common(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        vocab_size=320,
        head_dim=32,
        attention_bias=False,
        max_position_embeddings=256,
        rope_theta=10000.0,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        use_sliding_window=False,
        tie_word_embeddings=True,
        torch_dtype="float32",
    ),
    # Positions divided by four, in the oldest spelling of the key.
    "llama_linear": _common(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        vocab_size=320,
        attention_bias=True,
        mlp_bias=True,
        rope_theta=10000.0,
        rope_scaling={"type": "linear", "factor": 4.0},
        tie_word_embeddings=False,
        torch_dtype="float32",
    ),
    # The middle layer's heads do not rotate.
    "smollm3": _common(
        architectures=["SmolLM3ForCausalLM"],
        model_type="smollm3",
        vocab_size=320,
        num_hidden_layers=3,
        rms_norm_eps=1e-5,
        attention_bias=False,
        mlp_bias=False,
        no_rope_layers=[1, 0, 1],
        no_rope_layer_interval=4,
        pad_token_id=300,
        rope_theta=10000.0,
        rope_scaling=None,
        use_sliding_window=False,
        sliding_window=None,
        max_window_layers=3,
        tie_word_embeddings=True,
        torch_dtype="float32",
    ),
}

SHARDED = {"qwen2_untied"}
# These keep the logits of every sequence, two adapters, moments and scores; the others what a new layer is judged by.
WHOLE = {"llama3", "llama3_tied", "qwen2", "qwen2_untied", "qwen3"}
# The variants whose weights and names are those of the published multimodal checkpoints.
NESTED = {"qwen3_5_vl", "qwen3_5_moe"}
# The variants whose files hold every expert by itself.
SINGLE_EXPERTS = {"qwen3_moe", "qwen3_moe_mixed"}


def text_config(config):
    return config.get("text_config", config)


def random_weights(model, generator):
    """Fills every parameter of `model` in place, in the order of their names."""
    config = model.config
    zero_centred = config.model_type.startswith("qwen3_5")
    has_key_norm = config.model_type.startswith("qwen3")

    def normal(parameter, deviation):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)

    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name.endswith("norm.weight") and zero_centred and not name.endswith("linear_attn.norm.weight"):
                parameter.copy_(-0.4 + 0.8 * torch.rand(parameter.shape, generator=generator))
            elif name.endswith("A_log"):
                parameter.copy_((0.05 + 7.95 * torch.rand(parameter.shape, generator=generator)).log())
            elif name.endswith("dt_bias"):
                parameter.copy_(-4.0 + 5.0 * torch.rand(parameter.shape, generator=generator))
            elif name.endswith("conv1d.weight"):
                normal(parameter, 1.2 / math.sqrt(parameter.shape[-1]))
            elif name.endswith("norm.weight"):
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
                normal(parameter, 1.2 / math.sqrt(parameter.shape[-1]))
