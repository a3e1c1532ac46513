#!/usr/bin/env python3
"""Loads what the program wrote in PEFT and transformers, and compares logits with W + s·B·A.

    cargo build --workspace --bins
    .venvs/reference/bin/python tests/golden/check_exports.py target/debug/twinkle-server

Every adapter of every fixture is converted for PEFT and loaded there, and merged and loaded as a model of its own. Run by
hand: the program's own tests need no Python.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

FIXTURES = Path(__file__).parent / "fixtures"
TOKENS = torch.arange(1, 40)
ALLOWED, ALLOWED_DELTA = 1e-4, 1e-3


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def load_as_published(folder):
    """The model with the names of its checkpoint; the vision tower of the fixtures is not a real one."""
    if "text_config" not in json.loads((folder / "config.json").read_text()):
        return load(folder)
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", ignore_mismatched_sizes=True
    ).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS[None], use_cache=False).logits[0]


def formats(model):
    """The formats that PEFT 0.21 reads whole. One module per expert it joins for Qwen3-MoE alone, without dense layers."""
    if not model.startswith(("qwen3_moe", "qwen3_5_moe")):
        return ["peft"]
    return ["peft", "peft-fused"] if model == "qwen3_moe" else ["peft-fused"]


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
    disable_progress_bar()
    set_verbosity_error()
    failures = 0
    for model in sorted(FIXTURES.iterdir()):
        allowed = ALLOWED_DELTA if "qwen3_5" in model.name else ALLOWED
        for adapter in sorted(path.parent for path in model.glob("*/adapter_config.json")):
            with tempfile.TemporaryDirectory() as temporary:
                merged = Path(temporary) / "merged"
                words = ["--model", model, "--adapter", adapter]
                run(program, "merge", *words, "--output", merged)
                expected = logits(load(merged))
                results = [f"merged moves the logits by {(expected - logits(load(model))).abs().max():.1e}"]
                for form in formats(model.name):
                    exported = Path(temporary) / form
                    run(program, "convert", *words, "--format", form, "--output", exported)
                    adapted = PeftModel.from_pretrained(load_as_published(model), exported)
                    error = (logits(adapted) - expected).abs().max().item()
                    failures += error > allowed
                    results.append(f"{form} is off the merged by {error:.1e}" + (" FAILED" if error > allowed else ""))
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
