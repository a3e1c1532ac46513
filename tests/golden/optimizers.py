"""What torch's optimizers and learning-rate schedules do, as `optimizers.json`.

Every optimizer steps two matrices and a vector (Muon: the matrices) with the same gradients, with its defaults and with
each of its settings changed. Two more schedules, which torch does not have, are written as their formulas say.

    .venvs/reference/bin/python tests/golden/optimizers.py [--check]
"""

import json
import math
import sys
from pathlib import Path

import torch

PATH = Path(__file__).with_name("optimizers.json")
SHAPES = [(3, 5), (4, 2), (3,)]
STEPS = 8
SHOWN = [1, 2, 8]

OPTIMIZERS = [
    ("AdamW", {}),
    ("AdamW", {"lr": 1e-2, "betas": [0.8, 0.95], "eps": 1e-5, "weight_decay": 0.1}),
    ("AdamW", {"amsgrad": True}),
    ("AdamW", {"maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 1e-2, "weight_decay": 0.1}),
    ("Adam", {"lr": 1e-2, "weight_decay": 0.1, "decoupled_weight_decay": True, "amsgrad": True}),
    ("SGD", {}),
    ("SGD", {"lr": 1e-2, "momentum": 0.9}),
    ("SGD", {"lr": 1e-2, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adamax", {}),
    ("Adamax", {"lr": 1e-2, "betas": [0.8, 0.95], "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("NAdam", {}),
    ("NAdam", {"lr": 1e-2, "weight_decay": 0.1, "momentum_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    ("RAdam", {}),
    ("RAdam", {"lr": 1e-2, "betas": [0.8, 0.9], "weight_decay": 0.1}),
    ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.3, "maximize": True}),
    ("Adadelta", {}),
    ("Adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "weight_decay": 0.1}),
    ("RMSprop", {"centered": True, "alpha": 0.9}),
    ("RMSprop", {"centered": True, "momentum": 0.9, "eps": 1e-3, "maximize": True}),
    ("Adafactor", {}),
    ("Adafactor", {"lr": 0.5, "beta2_decay": -0.5, "eps": [1e-6, 1e-2], "d": 1.5, "weight_decay": 0.1}),
    ("Muon", {}),
    ("Muon", {"lr": 1e-2, "momentum": 0.8, "nesterov": False, "ns_steps": 3, "adjust_lr_fn": "match_rms_adamw"}),
]

# name, settings, steps, optimizer, its settings.
SCHEDULES = [
    ("ConstantLR", {}, 8, "SGD", {}),
    ("ConstantLR", {"factor": 0.5, "total_iters": 3}, 6, "SGD", {}),
    ("LinearLR", {}, 8, "SGD", {}),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.2, "total_iters": 7}, 10, "SGD", {}),
    ("StepLR", {"step_size": 3}, 10, "SGD", {}),
    ("MultiStepLR", {"milestones": [2, 5, 5, 7], "gamma": 0.5}, 9, "SGD", {}),
    ("ExponentialLR", {"gamma": 0.9}, 9, "SGD", {}),
    ("PolynomialLR", {}, 8, "SGD", {}),
    ("PolynomialLR", {"total_iters": 7, "power": 2.5}, 9, "SGD", {}),
    ("CosineAnnealingLR", {"T_max": 6}, 26, "SGD", {}),
    ("CosineAnnealingLR", {"T_max": 5, "eta_min": 1e-3}, 12, "SGD", {}),
    ("CosineAnnealingWarmRestarts", {"T_0": 4}, 14, "SGD", {}),
    ("CosineAnnealingWarmRestarts", {"T_0": 2, "T_mult": 2, "eta_min": 1e-3}, 20, "SGD", {}),
    ("OneCycleLR", {"max_lr": 0.1, "total_steps": 12}, 11, "AdamW", {}),
    ("OneCycleLR", {"max_lr": 0.1, "epochs": 3, "steps_per_epoch": 4, "anneal_strategy": "linear", "three_phase": True,
                    "pct_start": 0.4, "div_factor": 10.0, "final_div_factor": 100.0}, 11, "SGD", {"momentum": 0.9}),
    ("OneCycleLR", {"max_lr": 0.1, "total_steps": 9, "cycle_momentum": False}, 8, "Adagrad", {}),
    ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4}, 20, "SGD", {"momentum": 0.9}),
    ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "step_size_down": 5, "mode": "triangular2"}, 20,
     "AdamW", {}),
    ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4, "mode": "exp_range", "gamma": 0.95,
                  "cycle_momentum": False}, 20, "Adagrad", {}),
    ("CosineWarmupScheduler", {"num_warmup_steps": 3, "num_training_steps": 12}, 14, "SGD", {}),
    ("CosineWarmupScheduler", {"num_warmup_steps": 0, "num_training_steps": 6, "num_cycles": 1.5}, 8, "SGD", {}),
    ("LinearWarmupScheduler", {"num_warmup_steps": 3, "num_training_steps": 12}, 14, "SGD", {}),
]


def numbers(shape, seed):
    """Normal numbers of three decimals, so that their text is short and means the same fp32."""
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=random) * 1000).round() / 1000


def flat(tensors):
    return [value for tensor in tensors for value in tensor.reshape(-1).tolist()]


def optimizer_case(name, settings):
    shapes = SHAPES[:2] if name == "Muon" else SHAPES
    parameters = [torch.nn.Parameter(numbers(shape, seed)) for seed, shape in enumerate(shapes)]
    optimizer = getattr(torch.optim, name)(parameters, **settings)
    after = {}
    for step in range(1, STEPS + 1):
        for number, parameter in enumerate(parameters):
            # The first row of the first matrix gets no gradient in the second step.
            parameter.grad = numbers(parameter.shape, 100 * step + number)
            if step == 2 and number == 0:
                parameter.grad[0] = 0.0
        optimizer.step()
        if step in SHOWN:
            after[step] = flat(parameters)
    return {"name": name, "settings": settings, "after": after}


def warm_up(name, settings):
    """The schedules that torch lacks, as factors of the learning rate."""
    warm, total = settings["num_warmup_steps"], settings["num_training_steps"]

    def factor(step):
        if step < warm:
            return step / max(1, warm)
        if name == "LinearWarmupScheduler":
            return max(0.0, (total - step) / max(1, total - warm))
        progress = (step - warm) / max(1, total - warm)
        return max(0.0, 0.5 * (1 + math.cos(math.pi * settings.get("num_cycles", 0.5) * 2.0 * progress)))

    return factor


def schedule_case(name, settings, steps, optimizer_name, optimizer_settings):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = getattr(torch.optim, optimizer_name)([parameter], **{"lr": 0.05, **optimizer_settings})
    module = torch.optim.lr_scheduler
    if hasattr(module, name):
        scheduler = getattr(module, name)(optimizer, **settings)
    else:
        scheduler = module.LambdaLR(optimizer, warm_up(name, settings))
    group = optimizer.param_groups[0]
    rates, momenta = [], []
    for step in range(steps + 1):
        if step > 0:
            optimizer.step()
            scheduler.step()
        rates.append(group["lr"])
        momenta.append(group["betas"][0] if "betas" in group else group.get("momentum"))
    return {
        "name": name, "settings": settings, "optimizer": optimizer_name, "optimizer_settings": optimizer_settings,
        "rates": rates, "momenta": momenta,
    }


def clip_case(norm_type, max_norm):
    gradients = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for number, parameter in enumerate(gradients):
        parameter.grad = numbers(parameter.shape, 100 + number)
    norm = torch.nn.utils.clip_grad_norm_(gradients, max_norm, norm_type=norm_type)
    return {"norm_type": "two" if norm_type == 2 else "infinity", "max_norm": max_norm, "norm": norm.item(),
            "after": flat([parameter.grad for parameter in gradients])}


def main():
    shapes = [list(shape) for shape in SHAPES]
    made = {
        "shapes": shapes,
        "parameters": flat([numbers(shape, seed) for seed, shape in enumerate(SHAPES)]),
        "gradients": [
            flat([numbers(shape, 100 * step + number) for number, shape in enumerate(SHAPES)])
            for step in range(1, STEPS + 1)
        ],
        "optimizers": [optimizer_case(*case) for case in OPTIMIZERS],
        "schedules": [schedule_case(*case) for case in SCHEDULES],
        "clips": [clip_case(2, 1.0), clip_case(2, 100.0), clip_case(math.inf, 0.5)],
        "versions": {"torch": torch.__version__},
    }
    for place in range(SHAPES[0][1]):
        made["gradients"][1][place] = 0.0
    text = json.dumps(made, separators=(",", ":"), allow_nan=False)
    if "--check" in sys.argv:
        sys.exit(0 if PATH.read_text() == text else f"{PATH.name} is not what torch computes")
    PATH.write_text(text)


if __name__ == "__main__":
    main()
