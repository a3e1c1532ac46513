"""Reinforcement learning with the Tinker client: groups of samples, rewarded for the right sum in few words.

    python cookbook/client/tinker/self_host/short_math_grpo.py
"""

import os
import random
import re
import statistics

from twinkle_client import init_tinker_client

init_tinker_client()

from tinker import ServiceClient, types  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

BASE_MODEL = os.environ.get("BASE_MODEL", "Qwen/Qwen3-0.6B")
MODEL_PATH = os.environ.get("MODEL_PATH", BASE_MODEL)
STEPS = int(os.environ.get("STEPS", "20"))
GROUPS, GROUP_SIZE = 4, 8
dice = random.Random(7)
tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)


def problem() -> tuple[list[int], int]:
    one, other = dice.randint(1, 4), dice.randint(1, 4)
    messages = [{"role": "user", "content": f"What is {one} + {other}? Answer with the number alone."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False), one + other


def reward(tokens: list[int], solution: int) -> float:
    """1 for the right number alone at the start, a little for any number."""
    number = re.match(r"\W*(\d+)", tokenizer.decode(tokens, skip_special_tokens=True))
    if number is None:
        return 0.0
    return 1.0 if int(number[1]) == solution else 0.1


def datum(prompt: list[int], tokens: list[int], logprobs: list[float], advantage: float) -> types.Datum:
    """The prompt's positions weigh nothing."""
    whole, before = prompt + tokens, len(prompt) - 1
    return types.Datum(
        model_input=types.ModelInput.from_ints(whole[:-1]),
        loss_fn_inputs={
            "target_tokens": whole[1:],
            "logprobs": [0.0] * before + logprobs,
            "advantages": [0.0] * before + [advantage] * len(tokens),
        },
    )


service = ServiceClient(
    base_url=os.environ.get("TWINKLE_SERVER_URL", "http://127.0.0.1:8000"),
    api_key=os.environ.get("API_KEY", "EMPTY_TOKEN"),
)
training = service.create_lora_training_client(base_model=BASE_MODEL, rank=8)
for step in range(STEPS):
    sampling = training.save_weights_and_get_sampling_client(name=f"step-{step}")
    problems = [problem() for _ in range(GROUPS)]
    parameters = types.SamplingParams(max_tokens=16, temperature=1.0, seed=step)
    drawn = [
        sampling.sample(prompt=types.ModelInput.from_ints(prompt), num_samples=GROUP_SIZE, sampling_params=parameters)
        for prompt, _ in problems
    ]

    data, rewards = [], []
    for (prompt, solution), group in zip(problems, drawn):
        sequences = group.result().sequences
        scores = [reward(sequence.tokens, solution) for sequence in sequences]
        rewards += scores
        spread = statistics.stdev(scores) + 1e-8
        for sequence, score in zip(sequences, scores):
            advantage = (score - statistics.mean(scores)) / spread
            data.append(datum(prompt, list(sequence.tokens), list(sequence.logprobs), advantage))

    trained = training.forward_backward(data, "importance_sampling")
    stepped = training.optim_step(types.AdamParams(learning_rate=1e-3))
    trained.result()
    stepped.result()
    print(f"step {step}: reward {statistics.mean(rewards):.3f}")
