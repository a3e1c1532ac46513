"""A tokenizer for given texts, and a small transformer that predicts each token from the one before it.

A random model never writes a number or ends a turn, so every reward would be the same and every advantage 0. This one
is written down instead of trained: its embedding and its head are the two factors of the texts' table of log bigram
probabilities, and its layers are small random ones that leave the residual stream nearly as it was.
"""

import json
from pathlib import Path

import numpy
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

END = "<|endoftext|>"
SPECIAL = [END, "<|im_start|>", "<|im_end|>"]
VOCABULARY = 576
# Two places of the hidden state are not factors: a constant, and what makes all embeddings equally long.
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 256, 2, 4, 2, 32, 256
# Of each token's probability mass, the part that is spread over all tokens as they occur anywhere.
SMOOTHING = 0.1
# How strong a layer's output is beside the residual stream.
LAYER_SCALE = 0.02

# The split of Qwen2, but for a colon after a word: `User:` and `Assistant:` are one token each, so that what follows
# them differs.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+:?|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """{%- for message in messages %}
    {{- message.role | capitalize + ': ' + message.content + '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def write_tokenizer(folder: Path, texts: list[str]) -> Tokenizer:
    """A byte-level BPE of `VOCABULARY` tokens learned from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONFIG["max_position_embeddings"],
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
    })
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer


def write_model(folder: Path, tokenizer: Tokenizer, texts: list[str], seed: int):
    """Weights whose next-token probabilities are about the bigrams of `texts`, each ended by the end token."""
    end = tokenizer.token_to_id(END)
    write_json(folder / "config.json", {**CONFIG, "eos_token_id": end})
    write_json(folder / "generation_config.json", {"eos_token_id": end})
    embedding, head = factors(*log_bigrams([encoding.ids for encoding in tokenizer.encode_batch(texts)], end))
    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": numpy.ones(HIDDEN),
        "lm_head.weight": head,
    }
    dice = numpy.random.Generator(numpy.random.PCG64(seed))
    for layer in range(LAYERS):
        tensors.update(random_layer(f"model.layers.{layer}", dice))
    save_file(
        {name: numpy.ascontiguousarray(value, dtype=numpy.float32) for name, value in tensors.items()},
        str(folder / "model.safetensors"),
        metadata={"format": "pt"},
    )


def log_bigrams(sequences: list[list[int]], end: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Row a, column b: log p(b | a). And how often each a occurs."""
    counts = numpy.zeros((VOCABULARY, VOCABULARY))
    for index, tokens in enumerate(sequences):
        for one, other in zip(tokens, tokens[1:]):
            counts[one, other] += 1
        # A conversation ends, or another one follows it: base models know both.
        counts[tokens[-1], end if index % 2 else tokens[0]] += 1
    anywhere = counts.sum(axis=0) + 0.1
    anywhere /= anywhere.sum()
    totals = counts.sum(axis=1, keepdims=True)
    seen = numpy.where(totals > 0, counts / numpy.maximum(totals, 1), anywhere)
    return numpy.log((1 - SMOOTHING) * seen + SMOOTHING * anywhere), totals


def factors(table: numpy.ndarray, occurrences: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """An embedding and a head with head · norm(embedding) ≈ table, both [vocabulary, hidden].

    The frequent rows are met best. The final norm divides by a row's length, so all are made equally long with one
    more place.
    """
    rank = HIDDEN - 2
    weights = (occurrences + 1) ** 0.25
    left, values, right = numpy.linalg.svd(weights * (table - table.mean(axis=0)), full_matrices=False)
    rows = left[:, :rank] * numpy.sqrt(values[:rank]) / weights
    columns = right[:rank].T * numpy.sqrt(values[:rank])
    lengths = (rows**2).sum(axis=1)
    slack = numpy.sqrt(lengths.max() + 1 - lengths)
    embedding = numpy.column_stack([rows, numpy.ones(VOCABULARY), slack])
    scale = numpy.sqrt(HIDDEN / (embedding[0] ** 2).sum())
    head = numpy.column_stack([columns, table.mean(axis=0), numpy.zeros(VOCABULARY)])
    return embedding * scale, head / scale


def random_layer(name: str, dice: numpy.random.Generator) -> dict[str, numpy.ndarray]:
    def matrix(rows, columns, scale=1.0):
        return dice.standard_normal((rows, columns)) * scale / numpy.sqrt(columns)

    return {
        f"{name}.input_layernorm.weight": numpy.ones(HIDDEN),
        f"{name}.post_attention_layernorm.weight": numpy.ones(HIDDEN),
        f"{name}.self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN),
        f"{name}.self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
        f"{name}.self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
        f"{name}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM, LAYER_SCALE),
        f"{name}.self_attn.q_norm.weight": numpy.ones(HEAD_DIM),
        f"{name}.self_attn.k_norm.weight": numpy.ones(HEAD_DIM),
        f"{name}.mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
        f"{name}.mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
        f"{name}.mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE, LAYER_SCALE),
    }


def write_json(path: Path, value: dict):
    path.write_text(json.dumps(value, indent=2) + "\n")
