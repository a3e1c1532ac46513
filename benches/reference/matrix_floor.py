#!/usr/bin/env python3
"""How fast training could be at most if nothing but the matrix products with the frozen weights took time.

    .venvs/reference/bin/python benches/reference/matrix_floor.py --model-dir DIR --rows 2048 --dtype bfloat16 --steps 2

Per layer every projection is multiplied forward (`x Wᵀ`) and back (`dy W`, the gradient of its input), then the head
likewise, by torch, with the weights of the checkpoint and `--rows` rows at once. The weights' own gradients are not formed, since
the base is frozen. The last line of the output is one JSON object with `tokens_per_second`, one number per measured step.
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=2, help="measured steps; one more warms up")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    model = AutoModelForCausalLM.from_pretrained(arguments.model_dir, dtype=dtype)
    weights = [module.weight.detach() for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {weight.shape[1]: torch.randn(arguments.rows, weight.shape[1]).to(dtype) for weight in weights}
    outputs = {weight.shape[0]: torch.randn(arguments.rows, weight.shape[0]).to(dtype) for weight in weights}
    speeds = []
    with torch.no_grad():
        for step in range(arguments.steps + 1):
            started = time.perf_counter()
            for weight in weights:
                torch.mm(inputs[weight.shape[1]], weight.t())
                torch.mm(outputs[weight.shape[0]], weight)
            if step > 0:
                speeds.append(arguments.rows / (time.perf_counter() - started))
    print(json.dumps({"tokens_per_second": speeds}))


if __name__ == "__main__":
    main()
