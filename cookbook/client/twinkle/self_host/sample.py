"""Asks a served model, with an adapter where ADAPTER names one.

    ADAPTER=twinkle://…/weights/epoch-3 python cookbook/client/twinkle/self_host/sample.py
"""

import os

from twinkle_client import init_twinkle_client
from twinkle_client.sampler import vLLMSampler

BASE_MODEL = os.environ.get("BASE_MODEL", "Qwen/Qwen3-0.6B")
QUESTIONS = ["Who are you?", "What is your name?"]

client = init_twinkle_client(
    base_url=os.environ.get("TWINKLE_SERVER_URL"), api_key=os.environ.get("TWINKLE_SERVER_TOKEN")
)
sampler = vLLMSampler(model_id=BASE_MODEL)
sampler.set_template("Template")

prompts = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
answers = sampler.sample(
    prompts,
    sampling_params={"max_tokens": 48, "temperature": 0.7, "top_p": 0.95, "seed": 7, "num_samples": 2, "logprobs": 1},
    adapter_uri=os.environ.get("ADAPTER"),
)
for question, answer in zip(QUESTIONS, answers):
    print(f"question: {question}")
    for sequence in answer.sequences:
        likelihood = sum(entry[0][1] for entry in sequence.logprobs)
        print(f"  answer ({len(sequence.tokens)} tokens, logprob {likelihood:.2f}): {sequence.decoded}")
client.close()
