"""A tiny byte-level BPE tokenizer with each family's special tokens and a chat template."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SENTENCES = [
    "Who are you? I am a small model that helps with tests.",
    "The quick brown fox jumps over the lazy dog, and the dog looks at the fox.",
    "Hello! How can I help you today? Please tell me what you need.",
    "One, two, three, four, five, six, seven, eight, nine, ten.",
    "你好！我是一个很小的模型。你是谁？",
]

# The split of Qwen2 and, but for the digits, of Llama 3.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

QWEN_TEMPLATE = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

FAMILIES = {
    "qwen": {
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "bos": None,
        "eos": "<|im_end|>",
        "pad": "<|endoftext|>",
        "stops": ["<|im_end|>", "<|endoftext|>"],
        "template": QWEN_TEMPLATE,
    },
    "llama": {
        "special": [
            "<|begin_of_text|>", "<|end_of_text|>",
            "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
        ],
        "bos": "<|begin_of_text|>",
        "eos": "<|eot_id|>",
        "pad": None,
        "stops": ["<|end_of_text|>", "<|eot_id|>"],
        "template": LLAMA_TEMPLATE,
    },
}


def write(directory: Path, family: str) -> dict:
    """Writes the tokenizer's files; returns the ids of `bos` (or None), `eos` and the `stops`."""
    spec = FAMILIES[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(spec["special"])
    tokenizer.save(str(directory / "tokenizer.json"))

    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "eos_token": spec["eos"],
        "clean_up_tokenization_spaces": False,
    }
    for key in ("bos", "pad"):
        if spec[key] is not None:
            settings[f"{key}_token"] = spec[key]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (directory / "chat_template.jinja").write_text(spec["template"])
    return {
        "bos": tokenizer.token_to_id(spec["bos"]) if spec["bos"] else None,
        "eos": tokenizer.token_to_id(spec["eos"]),
        "stops": [tokenizer.token_to_id(token) for token in spec["stops"]],
        "size": tokenizer.get_vocab_size(),
    }
