#!/usr/bin/env python3
"""The optimizer, step by step, is torch's AdamW: what every setting does is read from saved checkpoints.

A run is trained with settings that change from step to step: a learning rate of 0, other betas, the default eps and a
large one, weight decay, a clip norm that bites and one that does not, a step without gradients, gradients of two
requests. The gradient of each step is measured by a probe, a run restored from the same weights: a step with both betas
and the learning rate 0 leaves it in `exp_avg`. Then the formula of the decoupled AdamW, in float64, must give the saved
parameters and moments. Where torch is installed, `torch.optim.AdamW` itself must too.
"""

import json
import math
import pathlib
import struct

import numpy

import blackbox
from blackbox import SDK, TIMEOUT, expect

try:
    import torch
except ImportError:
    torch = None

# Learning rate and the rest of each step; `batch` counts the requests whose gradients it consumes.
STEPS = [
    {"learning_rate": 1e-2},
    {"learning_rate": 0.0},
    {"learning_rate": 5e-3, "beta1": 0.5, "beta2": 0.99},
    {"learning_rate": 5e-3, "eps": 1e-2},
    {"learning_rate": 5e-3, "weight_decay": 0.3},
    {"learning_rate": 5e-3, "grad_clip_norm": 0.05},
    {"learning_rate": 5e-3, "grad_clip_norm": 1e12},
    {"learning_rate": 5e-3, "batch": 0},
    {"learning_rate": 5e-3, "beta1": 0.0, "beta2": 0.0, "weight_decay": 0.1, "grad_clip_norm": 0.5, "batch": 2},
]
MODULES = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def main():
    options = blackbox.parser(__doc__)
    options.add_argument("--checkpoints", required=True, type=pathlib.Path, help="the server's folder of checkpoints")
    options.add_argument("--tolerance", type=float, default=2e-6, help="of parameters, relative to the largest")
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    client = blackbox.service(arguments.base_url)
    run = blackbox.create_run(client, arguments.model, seed=61)
    files = Files(arguments.checkpoints)

    def save(client_of_run, name):
        return client_of_run.save_state(name).result(timeout=TIMEOUT).path

    path = save(run, "fresh")
    parameters = files.parameters(path)
    run.optim_step(blackbox.adam(1.0)).result(timeout=TIMEOUT)
    still = files.parameters(save(run, "still"))
    expect(numpy.array_equal(still, parameters), "a step without gradients moved a fresh run")
    # It counted, though: the bias corrections of a fresh run begin at the next step.
    steps, first, second = 1, numpy.zeros_like(parameters), numpy.zeros_like(parameters)
    reference = Torch(parameters) if torch else None
    if reference:
        reference.step(numpy.zeros_like(parameters), {**blackbox.ADAM, "learning_rate": 1.0})

    for number, settings in enumerate(STEPS):
        settings = dict(settings)
        batches = [
            [blackbox.datum(tokens) for tokens in blackbox.sequences(seed=70 + 10 * number + part)]
            for part in range(settings.pop("batch", 1))
        ]
        gradient = measured(client, files, path, batches, number)
        for batch in batches:
            run.forward_backward(batch, "cross_entropy").result(timeout=TIMEOUT)
        answer = run.optim_step(blackbox.adam(**settings)).result(timeout=TIMEOUT)
        settings = {**blackbox.ADAM, **settings}
        norm = float(numpy.sqrt((gradient**2).sum()))
        metrics(answer.metrics or {}, settings, norm, number)

        steps += 1
        parameters, first, second = adamw(parameters, first, second, steps, gradient, settings)
        path = save(run, f"step-{number}")
        close(f"step {number}: parameters", files.parameters(path), parameters, arguments.tolerance)
        close(f"step {number}: exp_avg", files.moments(path)[0], first, arguments.tolerance)
        close(f"step {number}: exp_avg_sq", files.moments(path)[1], second, arguments.tolerance)
        if reference:
            close(f"step {number}: torch", files.parameters(path), reference.step(gradient, settings), arguments.tolerance)
    if SDK >= (0, 38):
        kinds = client.create_rest_client().get_weights_info_by_tinker_path(path).result(), run.get_info()
        for info in kinds:
            expect(info.optimizer_config.type == "adamw", f"{type(info).__name__} names {info.optimizer_config}")
    judge = "torch's AdamW and the formula" if torch else "the formula"
    print(f"{len(STEPS)} steps are those of {judge}", flush=True)


def measured(client, files, path, batches, number):
    """The summed gradient of `batches` at the weights of a checkpoint, as a float64 vector."""
    if not batches:
        return numpy.zeros_like(files.parameters(path))
    probe = blackbox.restore_run(client, path, with_optimizer=False)
    for batch in batches:
        probe.forward_backward(batch, "cross_entropy").result(timeout=TIMEOUT)
    probe.optim_step(blackbox.adam(0.0, beta1=0.0, beta2=0.0)).result(timeout=TIMEOUT)
    saved = probe.save_state(f"probe-{number}").result(timeout=TIMEOUT).path
    expect(numpy.array_equal(files.parameters(saved), files.parameters(path)), "a learning rate of 0 moved the weights")
    return files.moments(saved)[0]


def adamw(parameters, first, second, step, gradient, settings):
    """Loshchilov & Hutter 2019, in float64, with torch's clipping before it."""
    clip = settings["grad_clip_norm"]
    if clip > 0:
        gradient = gradient * min(1.0, clip / (math.sqrt((gradient**2).sum()) + 1e-6))
    beta1, beta2, rate = settings["beta1"], settings["beta2"], settings["learning_rate"]
    parameters = parameters * (1 - rate * settings["weight_decay"])
    first = beta1 * first + (1 - beta1) * gradient
    second = beta2 * second + (1 - beta2) * gradient**2
    denominator = numpy.sqrt(second / (1 - beta2**step)) + settings["eps"]
    return parameters - rate * (first / (1 - beta1**step)) / denominator, first, second


class Torch:
    """`torch.optim.AdamW` over one flat parameter."""

    def __init__(self, parameters):
        self.parameter = torch.nn.Parameter(torch.from_numpy(parameters.copy()))
        self.optimizer = torch.optim.AdamW([self.parameter])

    def step(self, gradient, settings):
        self.parameter.grad = torch.from_numpy(gradient.copy())
        if settings["grad_clip_norm"] > 0:
            torch.nn.utils.clip_grad_norm_([self.parameter], settings["grad_clip_norm"])
        group = self.optimizer.param_groups[0]
        group.update(
            lr=settings["learning_rate"], betas=(settings["beta1"], settings["beta2"]),
            eps=settings["eps"], weight_decay=settings["weight_decay"],
        )
        self.optimizer.step()
        return self.parameter.detach().numpy().copy()


def metrics(seen, settings, norm, number):
    expect("grad_norm" in seen, f"step {number}: the metrics {seen} hold no `grad_norm`")
    difference = abs(seen["grad_norm"] - norm)
    expect(difference <= 1e-5 * norm, f"step {number}: grad_norm is {seen['grad_norm']}, measured {norm}")
    expect(seen.get("learning_rate") == settings["learning_rate"], f"step {number}: no learning rate in {seen}")


def close(what, seen, wanted, tolerance):
    scale = max(float(numpy.abs(wanted).max()), 1e-12)
    difference = float(numpy.abs(seen - wanted).max()) / scale
    expect(difference <= tolerance, f"{what}: off by {difference:.2e} of the largest value")


class Files:
    """Reads saved checkpoints: PEFT's names, and the moments in the order of the adapter's modules."""

    def __init__(self, folder):
        self.folder = folder

    def parameters(self, path):
        tensors = self.read(path, "adapter_model.safetensors")
        names = []
        for layer in range(1 + max(int(name.split(".layers.")[1].split(".")[0]) for name in tensors if ".layers." in name)):
            names += [f"base_model.model.model.layers.{layer}.{module}" for module in MODULES]
        names = [name for name in [*names, "base_model.model.lm_head"] if f"{name}.lora_A.weight" in tensors]
        parts = [tensors.pop(f"{name}.lora_{half}.weight").ravel() for name in names for half in "AB"]
        expect(not tensors, f"the adapter has tensors of another name: {sorted(tensors)}")
        return numpy.concatenate(parts).astype(numpy.float64)

    def moments(self, path):
        tensors = self.read(path, "optimizer.safetensors")
        return [tensors[name].astype(numpy.float64) for name in ("exp_avg", "exp_avg_sq")]

    def read(self, path, file):
        run, kind, name = path.removeprefix("tinker://").split("/")
        found = list(self.folder.glob(f"*/{run}/{kind}/{name}/{file}"))
        expect(len(found) == 1, f"{len(found)} files `{file}` for {path} below {self.folder}")
        content = found[0].read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        header.pop("__metadata__", None)
        tensors = {}
        for tensor, entry in header.items():
            expect(entry["dtype"] == "F32", f"`{tensor}` is {entry['dtype']}")
            start, end = entry["data_offsets"]
            tensors[tensor] = numpy.frombuffer(data[start:end], dtype="<f4").reshape(entry["shape"])
        return tensors


if __name__ == "__main__":
    blackbox.run(main)
