#!/usr/bin/env python3
"""Trains a LoRA with Hugging Face transformers and PEFT, and prints how fast and how large that was.

    .venvs/reference/bin/python benches/reference/hf_peft.py --model-dir DIR --lengths 256,256,256,256 --rank 16 \\
        --dtype bfloat16 --steps 3

The last line of the output is one JSON object: `tokens_per_second` (one number per measured step; one more step warms up)
and `peak_rss_bytes`. Sequences of several lengths are padded to the longest, with an attention mask, and padding does not
count as trained tokens. A step is forward, loss, backward and AdamW on the whole batch, as a user would write it: the base
frozen, no gradient checkpointing, attention through SDPA. Every projection of attention and MLP has an
adapter, experts included; with `--train-unembed` the output head has one too, which costs PEFT much time and memory.
The run it is compared with must train the same modules. Adapters are kept in the model's dtype, the faster of PEFT's ways.
"""

import argparse
import json
import resource
import time
import warnings

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--lengths", default=",".join(8 * ["256"]), help="tokens of each sequence of the batch")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=3, help="measured steps; one more warms up")
    parser.add_argument("--device", default="cpu", help="`cpu` or `cuda:0`")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's default")
    parser.add_argument(
        "--adapter-dtype", choices=("float32", "model"), default="model",
        help="`model`: adapters in the model's dtype, three times as fast here; float32: PEFT's own default",
    )
    parser.add_argument("--train-unembed", action="store_true", help="an adapter on the output head too")
    arguments = parser.parse_args()
    if arguments.threads > 0:
        torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    for message in (".*ensure_weight_tying.*", ".*is_gradient_checkpointing.*"):
        warnings.filterwarnings("ignore", message=message)
    torch.manual_seed(0)

    model = AutoModelForCausalLM.from_pretrained(arguments.model_dir, dtype=getattr(torch, arguments.dtype)).to(arguments.device)
    targets = [*PROJECTIONS, "lm_head"] if arguments.train_unembed else PROJECTIONS
    model = get_peft_model(model, LoraConfig(
        task_type="CAUSAL_LM", r=arguments.rank, lora_alpha=32, lora_dropout=0.0, target_modules=targets,
        **experts(model.config, arguments.rank),
    ), autocast_adapter_dtype=arguments.adapter_dtype == "float32")
    model.train()
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=1e-4, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0)
    lengths = [int(length) for length in arguments.lengths.split(",")]
    inputs, labels, mask = (None if part is None else part.to(arguments.device) for part in batch(lengths))

    speeds = []
    for step in range(arguments.steps + 1):
        started = time.perf_counter()
        logits = model(input_ids=inputs, attention_mask=mask, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        # The last step's logits are not kept while the next computes its own.
        del logits, loss
        if inputs.is_cuda:
            torch.cuda.synchronize()
        if step > 0:
            speeds.append(sum(lengths) / (time.perf_counter() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens_per_second": speeds, "peak_rss_bytes": peak}))


def experts(config, rank):
    """Fused experts are parameters, not modules. Their rank is divided by the experts of a token, as the other side does."""
    count = getattr(config, "num_experts_per_tok", None)
    if not count:
        return {}
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    own = max(1, rank // count)
    return {"target_parameters": names, "rank_pattern": dict.fromkeys(["mlp.experts", *names], own)}


def batch(lengths):
    """The tokens of the other side of the comparison, (7919 · row + 104729 · column) mod 32000 + 100, padded on the right."""
    rows, columns = torch.arange(len(lengths))[:, None], torch.arange(max(lengths) + 1)[None, :]
    tokens = (7919 * rows + 104729 * columns) % 32000 + 100
    is_real = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    labels = tokens[:, 1:].masked_fill(~is_real, -100)
    # Without a mask attention takes its faster, causal path.
    mask = None if bool(is_real.all()) else is_real.long()
    return tokens[:, :-1].contiguous(), labels, mask


if __name__ == "__main__":
    main()
