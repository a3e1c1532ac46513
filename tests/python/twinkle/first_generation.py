#!/usr/bin/env python3
"""One life of an adapter with the unmodified twinkle-kit 0.1.3: other prefixes, no sessions, heartbeats per adapter."""

import argparse
import faulthandler
import json
import os
import random
import sys
import traceback
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")

from peft import LoraConfig  # noqa: E402
from twinkle.dataset import DatasetMeta  # noqa: E402
from twinkle_client import init_twinkle_client  # noqa: E402
from twinkle_client.dataloader import DataLoader  # noqa: E402
from twinkle_client.dataset import Dataset  # noqa: E402
from twinkle_client.model import MultiLoraTransformersModel  # noqa: E402
from twinkle_client.sampler import vLLMSampler  # noqa: E402


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--base-url", "--model", "--data"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    faulthandler.dump_traceback_later(200, exit=True)

    client = init_twinkle_client(base_url=options.base_url, api_key="first")
    expect(client.health_check(), "the health check fails")
    model = MultiLoraTransformersModel(f"ms://{options.model}")
    model.add_adapter_to_model("default", LoraConfig(r=8, target_modules="all-linear"), gradient_accumulation_steps=1)
    model.set_template("Template")
    model.set_processor("InputProcessor", padding_side="right")
    model.set_loss("CrossEntropyLoss")
    model.set_optimizer("Adam", lr=1e-2)
    model.set_lr_scheduler("LinearLR", start_factor=1.0)
    rows = features()
    losses = [steps(model, rows) for _ in range(8)]
    expect(losses[-1] < 0.7 * losses[0], f"losses: {losses}")
    expect("loss" in model.calculate_metric(), "no metrics")
    path = model.save(name="first", save_optimizer=True)
    expect(path.startswith("twinkle://") and path.endswith("/weights/first"), f"saved as {path}")
    model.load(path)
    model._send_adapter_heartbeat()
    run = client.list_training_runs()[0]
    names = [checkpoint.checkpoint_id for checkpoint in client.list_checkpoints(run.training_run_id)]
    expect(names == ["weights/first"], f"checkpoints: {names}")

    file = Path(options.data) / "first.jsonl"
    file.write_text((json.dumps({"query": "Who?", "response": "I am {{NAME}}."}) + "\n") * 6)
    dataset = Dataset(DatasetMeta(str(file)))
    dataset.set_template("Template", model_id=f"ms://{options.model}", max_length=256)
    dataset.map("SelfCognitionProcessor", init_args={"model_name": "Twinkle", "model_author": "us"})
    dataset.encode(batched=True)
    batches = [len(batch) for batch in DataLoader(dataset, batch_size=3)]
    expect(batches == [3, 3], f"batches: {batches}")

    sampler = vLLMSampler(f"ms://{options.model}")
    sampler.set_template("Template")
    question = {"messages": [{"role": "user", "content": "Who?"}]}
    answer = sampler.sample([question], sampling_params={"max_tokens": 4, "temperature": 0.0}, adapter_uri=path)
    expect(1 <= len(answer["sequences"][0]["tokens"]) <= 4, f"the sample is {answer}")


def steps(model, rows) -> float:
    loss = model.forward_backward(inputs=rows)["loss"]
    model.clip_grad_norm(1.0)
    model.step()
    model.zero_grad()
    model.lr_step()
    return loss


def features() -> list[dict]:
    dice = random.Random(3)
    rows = []
    for _ in range(4):
        tokens = [dice.randint(3, 249) for _ in range(10)]
        rows.append({"input_ids": tokens, "labels": [*tokens[1:], -100], "attention_mask": [1] * 10})
    return rows


if __name__ == "__main__":
    status = 0
    try:
        main()
        print("passed: first_generation.py")
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # The client's heartbeat thread need not be waited for.
    os._exit(status)
