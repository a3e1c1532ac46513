#!/usr/bin/env python3
"""How fast training could be at most if nothing but the matrix products with the frozen weights took time.

    .venvs/reference/bin/python benches/reference/matrix_floor.py --model-dir DIR --rows 2048 --dtype bfloat16 --steps 2

Per layer every projection is multiplied forward (`x Wᵀ`) and back (`dy W`, the gradient of its input), then the head
likewise, by torch, with the weights of the checkpoint and `--rows` rows at once, of which every expert has its share. The
weights' own gradients are not formed, since the base is frozen. The last line of the output is one JSON object with
`tokens_per_second`, one number per measured step.
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
    linear = [module.weight.detach() for module in model.modules() if isinstance(module, torch.nn.Linear)]
    products = [(weight, arguments.rows) for weight in linear]
    for name, parameter in model.named_parameters():
        if ".experts." in name and parameter.dim() == 3:
            # Every expert has an even share of the rows.
            share = arguments.rows * model.config.num_experts_per_tok // len(parameter)
            products += [(weight, share) for weight in parameter.detach()]
    rows = {width: torch.randn(arguments.rows, width).to(dtype) for weight, _ in products for width in weight.shape}
    speeds = []
    with torch.no_grad():
        for step in range(arguments.steps + 1):
            started = time.perf_counter()
            for weight, count in products:
                torch.mm(rows[weight.shape[1]][:count], weight.t())
                torch.mm(rows[weight.shape[0]][:count], weight)
            if step > 0:
                speeds.append(arguments.rows / (time.perf_counter() - started))
    print(json.dumps({"tokens_per_second": speeds}))


if __name__ == "__main__":
    main()
