"""Reinforcement learning with groups of samples: the model learns to add small numbers in few words.

    python cookbook/client/twinkle/self_host/grpo.py

Each step saves the adapter for the sampler, draws a group of answers to each sum, rewards those that are right, and
trains on the tokens that were drawn with their own log-probabilities as the old ones.
"""

import os
import random
import re

from peft import LoraConfig
from twinkle.advantage import GRPOAdvantage
from twinkle_client import init_twinkle_client
from twinkle_client.model import MultiLoraTransformersModel
from twinkle_client.sampler import vLLMSampler

BASE_MODEL = os.environ.get("BASE_MODEL", "Qwen/Qwen3-0.6B")
STEPS = int(os.environ.get("STEPS", "20"))
GROUPS, GROUP_SIZE = 4, 8
dice = random.Random(7)


def problem() -> tuple[dict, int]:
    one, other = dice.randint(1, 4), dice.randint(1, 4)
    messages = [{"role": "user", "content": f"What is {one} + {other}? Answer with the number alone."}]
    return {"messages": messages}, one + other


def reward(text: str, solution: int) -> float:
    """1 for the right number alone at the start, a little for any number."""
    number = re.match(r"\W*(\d+)", text)
    if number is None:
        return 0.0
    return 1.0 if int(number[1]) == solution else 0.1


client = init_twinkle_client(
    base_url=os.environ.get("TWINKLE_SERVER_URL"), api_key=os.environ.get("TWINKLE_SERVER_TOKEN")
)
model = MultiLoraTransformersModel(model_id=BASE_MODEL)
model.add_adapter_to_model("grpo", LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
model.set_template("Template")
model.set_processor("InputProcessor")
model.set_loss("GRPOLoss", epsilon=0.2, beta=0.0)
model.set_optimizer("AdamW", lr=1e-3)
model.add_metric("GRPOMetric", is_training=True)
sampler = vLLMSampler(model_id=BASE_MODEL)
sampler.set_template("Template")
advantage = GRPOAdvantage()

for step in range(STEPS):
    adapter = model.save(name=f"step-{step}", is_sampler=True).twinkle_path
    prompts, solutions = zip(*(problem() for _ in range(GROUPS)))
    parameters = {"max_tokens": 16, "temperature": 1.0, "num_samples": GROUP_SIZE, "logprobs": 1, "seed": step}
    answers = sampler.sample(list(prompts), sampling_params=parameters, adapter_uri=adapter)

    inputs, old_logps, rewards = [], [], []
    for answer, solution in zip(answers, solutions):
        for sequence in answer.sequences:
            inputs.append(sequence.new_input_feature)
            old_logps.append([entry[0][1] for entry in sequence.logprobs])
            rewards.append(reward(sequence.decoded, solution))
    advantages = advantage(rewards, num_generations=GROUP_SIZE, scale="group").tolist()

    model.forward_backward(inputs=inputs, advantages=advantages, old_logps=old_logps)
    model.clip_grad_and_step()
    metrics = model.calculate_metric(is_training=True).result
    print(f"step {step}: reward {sum(rewards) / len(rewards):.3f} {metrics}")
client.close()
