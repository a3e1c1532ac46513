"""Gradients of all weights, as transformers and autograd have them: `full_weights.json`.

Per weight the gradient's norm and its products with two waves, `cos(0.37 i)` and `cos(1.13 i + 0.5)`: no vector that is
wrong anywhere has all three, and the file stays small. The loss is the cross entropy of the datums in `golden.safetensors`.

    .venvs/reference/bin/python tests/golden/full_weights.py [--check]
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import models
from variants import SINGLE_EXPERTS

HERE = Path(__file__).parent
PATH = HERE / "full_weights.json"
VARIANTS = ["llama3", "llama3_tied", "qwen2", "qwen3", "qwen3_moe", "qwen3_moe_mixed", "qwen3_5", "qwen3_5_moe"]
DATUMS = 3


def waves(length):
    places = torch.arange(length, dtype=torch.float64)
    return [torch.cos(0.37 * places), torch.cos(1.13 * places + 0.5)]


def variant(name):
    folder = HERE / "fixtures" / name
    golden = load_file(folder / "golden.safetensors")
    model = models.load(folder).requires_grad_(True)
    total = 0.0
    for number in range(DATUMS):
        tokens = golden[f"datum.{number}.tokens"].long()
        targets = golden[f"datum.{number}.target_tokens"].long()
        logprobs = model(tokens[None]).logits[0].log_softmax(-1).gather(1, targets[:, None])[:, 0]
        total = total - (golden[f"datum.{number}.weights"] * logprobs).sum()
    total.backward()
    named = [(weight, parameter.grad) for weight, parameter in model.named_parameters()]
    if name in SINGLE_EXPERTS:
        # As the files have them: a tensor for each expert.
        named = [part for fused in named for part in models.single_experts(*fused)]
    gradients = {}
    for weight, gradient in named:
        flat = gradient.double().reshape(-1)
        gradients[weight] = [flat.norm().item()] + [flat.dot(wave).item() for wave in waves(len(flat))]
    return {"loss": total.item(), "gradients": gradients}


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.7g}")


def main():
    made = {name: rounded(variant(name)) for name in VARIANTS}
    if "--check" in sys.argv:
        # Sums in another order differ in the last digits.
        known = json.loads(PATH.read_text())
        for name, facts in made.items():
            for weight, numbers in facts["gradients"].items():
                for now, then in zip(numbers, known[name]["gradients"][weight], strict=True):
                    if abs(now - then) > 1e-4 * numbers[0]:
                        sys.exit(f"{name} {weight}: {now}, not {then}")
        return
    PATH.write_text(json.dumps(made, separators=(",", ":")))


if __name__ == "__main__":
    main()
