#!/usr/bin/env python3
"""Checks and measures the programs beside this file on a machine with an NVIDIA GPU; writes what it saw as Markdown.

    python3 run.py --out results            # everything
    python3 run.py --out results --dry-run  # the same way with tiny models on the CPU, to try the script itself

`cargo xtask gpu` puts this file into a folder together with the programs, so that nothing has to be compiled here. Needed
is a Python with torch 2.11 for CUDA, whose libtorch the programs use, and transformers, peft and safetensors for the
comparison (left out with `--ours-only`). It does, in this order:

1. the golden fixtures on the GPU, forward and backward, fp32 and bf16;
2. the card's matrix peak, measured: bf16 products of 8192 × 8192;
3. for models of 0.5, 4 and 7 billion parameters with random weights: trained tokens per second and peak memory of this
   server and of PyTorch + PEFT, with the share of the measured peak.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHAPES = ["qwen2.5-0.5b", "qwen2.5-4b", "qwen2.5-7b"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and random models")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--ours-only", action="store_true", help="do not compare with PyTorch + PEFT")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each side")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    report = bench.goldens() + bench.training()
    path = arguments.out / "gpu.md"
    path.write_text(f"# On {bench.card()}\n\nWritten by `benches/gpu/run.py`.\n{report}")
    print(path.read_text())
    return 1 if bench.failed else 0


class Bench:
    def __init__(self, arguments):
        import torch

        self.arguments, self.torch, self.failed = arguments, torch, False
        self.cuda = not arguments.dry_run
        if self.cuda and not torch.cuda.is_available():
            sys.exit("error: torch sees no CUDA device\nhint: `--dry-run` tries this script on the CPU")
        libraries = [Path(torch.__file__).parent / "lib"]
        packages = Path(torch.__file__).parent.parent
        libraries += sorted(packages.glob("nvidia/*/lib")) + sorted(packages.glob("nvidia/*/*/lib"))
        known = os.environ.get("LD_LIBRARY_PATH")
        self.environment = {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join([*map(str, libraries), *([known] if known else [])]),
            "TWINKLE_TEST_FIXTURES": str(HERE / "fixtures"),
            "TWINKLE_TEST_DEVICE": "cuda" if self.cuda else "cpu",
        }

    def card(self):
        return self.torch.cuda.get_device_name(0) if self.cuda else "the CPU (dry run)"

    def goldens(self):
        """Every golden test; the report has a line for each program."""
        lines = ["\n## Golden fixtures\n\n| tests | passed | failed |\n| --- | ---: | ---: |\n"]
        for program in sorted((HERE / "bin").glob("golden-*")):
            done = subprocess.run([program, "--test-threads=1"], env=self.environment, text=True, stdout=subprocess.PIPE)
            results = [line.rsplit(" ", 1)[-1] for line in done.stdout.splitlines() if line.startswith("test ") and "..." in line]
            passed, failed = results.count("ok"), results.count("FAILED")
            self.failed |= done.returncode != 0 or passed == 0
            if done.returncode != 0:
                print(done.stdout)
            lines.append(f"| {program.name.removeprefix('golden-')} | {passed} | {failed} |\n")
        return "".join(lines)

    def training(self):
        peak = self.matrix_peak()
        lines = [
            f"\n## Training\n\nThe matrix peak measured here is {peak / 1e12:.0f} TFLOP/s (bf16). A step is a forward-backward over the batch and "
            "an AdamW step, LoRA rank 16 on attention and MLP, bf16. PEFT is PyTorch eager + PEFT in one process. The share counts the "
            "products with the frozen weights and the causal attention, forward and back.\n\n"
            "| model | step | tokens/s | share of the peak | PEFT | ratio | memory | PEFT |\n"
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        ]
        for shape in ["tiny"] if self.arguments.dry_run else SHAPES:
            folder = self.arguments.out / shape
            script = HERE / "reference" / "make_model.py"
            subprocess.run([sys.executable, script, "--shape", shape, "--out", folder], check=True, env=self.environment)
            config = json.loads((folder / "config.json").read_text())
            count, length = (2, 32) if self.arguments.dry_run else (16, 512)
            ours, our_memory = self.measured(self.ours(folder, count, length))
            theirs, their_memory = (None, 0) if self.arguments.ours_only else self.measured(self.theirs(folder, count, length))
            speed = ours["alone"][0]["ours"]["tokens_per_second"]
            share = speed * operations_per_token(config, length) / peak
            reference = median(theirs["tokens_per_second"]) if theirs else float("nan")
            lines.append(
                f"| {shape} | {count} × {length} | {speed:.0f} | {100 * share:.0f} % | {reference:.0f} | {speed / reference:.2f} "
                f"| {our_memory / 2**30:.1f} GiB | {their_memory / 2**30:.1f} GiB |\n"
            )
        return "".join(lines)

    def matrix_peak(self):
        """Operations per second of the fastest of a few products of two large bf16 matrices."""
        size = 8192 if self.cuda else 512
        left, right = (self.torch.randn(size, size, dtype=self.torch.bfloat16, device="cuda" if self.cuda else "cpu") for _ in "ab")
        best = float("inf")
        for _ in range(10):
            started = time.perf_counter()
            for _ in range(5):
                left @ right
            if self.cuda:
                self.torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - started) / 5)
        return 2 * size**3 / best

    def ours(self, folder, count, length):
        command = [HERE / "bin" / "training", "--server", HERE / "bin" / "twinkle-server", "--model-dir", folder, "--ours-only", "--one-tenant"]
        command += ["--batch", count, "--length", length, "--rounds", 1, "--steps", self.arguments.steps]
        return [*command, "--device", "CUDA" if self.cuda else "CPU"]

    def theirs(self, folder, count, length):
        command = [sys.executable, HERE / "reference" / "hf_peft.py", "--model-dir", folder, "--lengths", ",".join([str(length)] * count)]
        return [*command, "--steps", self.arguments.steps, "--device", "cuda:0" if self.cuda else "cpu"]

    def measured(self, command):
        """The JSON object a program prints last, and how much of the card's memory was taken meanwhile, in bytes."""
        before, most, done = self.memory(), 0, threading.Event()

        def watch():
            nonlocal most
            while not done.wait(0.1):
                most = max(most, self.memory() - before)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            result = subprocess.run(list(map(str, command)), env=self.environment, check=True, text=True, stdout=subprocess.PIPE)
        finally:
            done.set()
            watcher.join()
        return json.loads(result.stdout.splitlines()[-1]), most

    def memory(self):
        if not self.cuda:
            return 0
        free, total = self.torch.cuda.mem_get_info()
        return total - free


def operations_per_token(config, length):
    """Floating-point operations of one trained token: 4 per weight (forward, and the gradient of the input), and attention."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim", hidden // heads)
    queries, keys = heads * width, config["num_key_value_heads"] * width
    layer = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * config["intermediate_size"]
    weights = config["num_hidden_layers"] * layer + config["vocab_size"] * hidden
    # Two products of length × length × width per head, half of it masked, and two and a half times that on the way back.
    attention = 3.5 * 2 * config["num_hidden_layers"] * queries * length
    return 4 * weights + attention


def median(numbers):
    return sorted(numbers)[len(numbers) // 2]


if __name__ == "__main__":
    sys.exit(main())
