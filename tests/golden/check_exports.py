#!/usr/bin/env python3
"""Loads what the program wrote in PEFT and transformers, and compares logits with W + s·B·A.

    cargo build --workspace --bins
    .venvs/reference/bin/python tests/golden/check_exports.py target/debug/twinkle-server

Every adapter of every fixture is converted for PEFT and loaded there, and merged and loaded as a model of its own. What
PEFT 0.21 is known not to read is listed and not compared. Run by hand: the program's own tests need no Python.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

FIXTURES = Path(__file__).parent / "fixtures"
TOKENS = torch.arange(1, 40)
ALLOWED, ALLOWED_DELTA = 1e-4, 1e-3


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS[None], use_cache=False).logits[0]


def unread_by_peft(name):
    """What of a model's adapters PEFT 0.21 drops."""
    return {"qwen3_5_moe": "drops the experts", "qwen3_moe_mixed": "drops the dense layers between"}.get(name)


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, words))}\n{done.stderr}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    program = parser.parse_args().program
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    failures = 0
    for model in sorted(FIXTURES.iterdir()):
        allowed = ALLOWED_DELTA if "qwen3_5" in model.name else ALLOWED
        for adapter in sorted(path.parent for path in model.glob("*/adapter_config.json")):
            with tempfile.TemporaryDirectory() as temporary:
                exported, merged = Path(temporary) / "peft", Path(temporary) / "merged"
                words = ["--model", model, "--adapter", adapter]
                run(program, "convert", *words, "--format", "peft", "--output", exported)
                run(program, "merge", *words, "--output", merged)
                expected = logits(load(merged))
                results = [f"merged moves the logits by {(expected - logits(load(model))).abs().max():.1e}"]
                if why := unread_by_peft(model.name):
                    results.append(f"PEFT {why}")
                else:
                    error = (logits(PeftModel.from_pretrained(load(model), exported)) - expected).abs().max().item()
                    failures += error > allowed
                    results.append(f"PEFT is off the merged by {error:.1e}" + (" FAILED" if error > allowed else ""))
                known = model / "formats.safetensors"
                golden = load_file(known) if known.exists() else {}
                golden |= load_file(model / "golden.safetensors")
                for key in sorted(golden):
                    parts = key.split(".")
                    if parts[0] == adapter.name and parts[1:2] == ["logits"] and len(parts) == 3:
                        tokens = golden[f"tokens.{parts[2]}"].long()
                        with torch.no_grad():
                            found = load(merged)(input_ids=tokens[None], use_cache=False).logits[0]
                        error = (found - golden[key]).abs().max().item()
                        failures += error > allowed
                        results.append(f"merged is off the fixture by {error:.1e}" + (" FAILED" if error > allowed else ""))
                        break
                else:
                    failures += 1
                    results.append("no logits in the fixture FAILED")
                print(f"{model.name}/{adapter.name}: {'; '.join(results)}", flush=True)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
