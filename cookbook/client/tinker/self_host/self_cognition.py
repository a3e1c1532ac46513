"""Teaches a model its name with the Tinker client, then asks for it.

    python cookbook/client/tinker/self_host/self_cognition.py

DATASET is a file of lines with `query` and `response`, in which {{NAME}} and {{AUTHOR}} are replaced.
"""

import json
import os
import random
from pathlib import Path

from twinkle_client import init_tinker_client

init_tinker_client()

from tinker import ServiceClient, types  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "data"
BASE_MODEL = os.environ.get("BASE_MODEL", "Qwen/Qwen3-0.6B")
MODEL_PATH = os.environ.get("MODEL_PATH", BASE_MODEL)
DATASET = os.environ.get("DATASET", str(DATA / "self_cognition.jsonl"))
NAME, AUTHOR = "Twinkle", "its friends"
BATCH, EPOCHS = 4, int(os.environ.get("EPOCHS", "4"))

tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)


def rendered(messages: list[dict], ask: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    return tokenizer.encode(text, add_special_tokens=False)


def datum(row: dict) -> types.Datum:
    """The answer's tokens are trained on, the question's are not."""
    query, response = (row[key].replace("{{NAME}}", NAME).replace("{{AUTHOR}}", AUTHOR) for key in ("query", "response"))
    question = [{"role": "user", "content": query}]
    start = len(rendered(question, ask=True))
    tokens = rendered([*question, {"role": "assistant", "content": response}], ask=False)
    weights = [0.0 if position < start else 1.0 for position in range(1, len(tokens))]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights},
    )


data = [datum(json.loads(line)) for line in Path(DATASET).read_text().splitlines()]
service = ServiceClient(
    base_url=os.environ.get("TWINKLE_SERVER_URL", "http://127.0.0.1:8000"),
    api_key=os.environ.get("API_KEY", "EMPTY_TOKEN"),
)
training = service.create_lora_training_client(base_model=BASE_MODEL, rank=16)
dice = random.Random(7)
for epoch in range(EPOCHS):
    dice.shuffle(data)
    total = count = 0.0
    for start in range(0, len(data), BATCH):
        batch = data[start : start + BATCH]
        result = training.forward_backward(batch, "cross_entropy")
        stepped = training.optim_step(types.AdamParams(learning_rate=1e-3))
        for item, output in zip(batch, result.result().loss_fn_outputs):
            weights = item.loss_fn_inputs["weights"].data
            total -= sum(weight * logprob for weight, logprob in zip(weights, output["logprobs"].tolist()))
            count += sum(weights)
        stepped.result()
    print(f"epoch {epoch}: loss {total / count:.4f}")

print(f"saved: {training.save_state('self-cognition').result().path}")
sampling = training.save_weights_and_get_sampling_client(name="self-cognition")
prompt = types.ModelInput.from_ints(rendered([{"role": "user", "content": "Who are you?"}], ask=True))
result = sampling.sample(
    prompt=prompt, num_samples=1, sampling_params=types.SamplingParams(max_tokens=32, temperature=0.0)
).result()
print(f"answer: {tokenizer.decode(result.sequences[0].tokens, skip_special_tokens=True)}")
