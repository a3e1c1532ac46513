"""Samples with the Tinker client: from the base model, or from the checkpoint that ADAPTER names.

    ADAPTER=twinkle://…/sampler_weights/name python cookbook/client/tinker/self_host/sample.py
"""

import os

from twinkle_client import init_tinker_client

init_tinker_client()

from tinker import ServiceClient, types  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

BASE_MODEL = os.environ.get("BASE_MODEL", "Qwen/Qwen3-0.6B")
MODEL_PATH = os.environ.get("MODEL_PATH", BASE_MODEL)
ADAPTER = os.environ.get("ADAPTER")

tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
service = ServiceClient(
    base_url=os.environ.get("TWINKLE_SERVER_URL", "http://127.0.0.1:8000"),
    api_key=os.environ.get("API_KEY", "EMPTY_TOKEN"),
)
sampling = service.create_sampling_client(model_path=ADAPTER, base_model=None if ADAPTER else BASE_MODEL)

messages = [{"role": "user", "content": "Who are you?"}]
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
prompt = types.ModelInput.from_ints(tokenizer.encode(text, add_special_tokens=False))
parameters = types.SamplingParams(max_tokens=48, temperature=0.7, top_p=0.95, seed=7)
result = sampling.sample(prompt=prompt, num_samples=2, sampling_params=parameters).result()
for sequence in result.sequences:
    words = tokenizer.decode(sequence.tokens, skip_special_tokens=True)
    print(f"answer ({len(sequence.tokens)} tokens, logprob {sum(sequence.logprobs):.2f}): {words}")
