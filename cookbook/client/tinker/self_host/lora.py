"""LoRA training with the Tinker client, unchanged but for the first two lines.

    python cookbook/client/server/transformer/server.py     # in another terminal
    python cookbook/client/tinker/self_host/lora.py         # pip install tinker, and twinkle-kit or ./python

TWINKLE_SERVER_URL says where, API_KEY who asks, BASE_MODEL which model and MODEL_PATH where its tokenizer is.
"""

import os

from twinkle_client import init_tinker_client

init_tinker_client()

from tinker import ServiceClient, types  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

BASE_MODEL = os.environ.get("BASE_MODEL", "Qwen/Qwen3-0.6B")
MODEL_PATH = os.environ.get("MODEL_PATH", BASE_MODEL)
STEPS = int(os.environ.get("STEPS", "12"))
SENTENCES = [
    "The river is wide and slow in the evening.",
    "A small boat waits under the old bridge.",
    "Nobody remembers who built the tower by the sea.",
    "In winter the garden sleeps under the snow.",
]

tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
service = ServiceClient(
    base_url=os.environ.get("TWINKLE_SERVER_URL", "http://127.0.0.1:8000"),
    api_key=os.environ.get("API_KEY", "EMPTY_TOKEN"),
)
training = service.create_lora_training_client(base_model=BASE_MODEL, rank=16)


def datum(text: str) -> types.Datum:
    """Each token is predicted from those before it."""
    tokens = tokenizer.encode(text)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )


data = [datum(sentence) for sentence in SENTENCES]
count = sum(len(item.loss_fn_inputs["weights"].data) for item in data)
for step in range(STEPS):
    # Both are on their way before the first is awaited.
    result = training.forward_backward(data, "cross_entropy")
    stepped = training.optim_step(types.AdamParams(learning_rate=2e-3))
    logprobs = [output["logprobs"].tolist() for output in result.result().loss_fn_outputs]
    stepped.result()
    print(f"step {step}: loss {-sum(map(sum, logprobs)) / count:.4f}")

print(f"saved: {training.save_state('lora-last').result().path}")
