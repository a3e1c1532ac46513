#!/usr/bin/env python3
"""Writes the golden fixtures: tiny random models, and what Hugging Face and PEFT compute with them.

    .venvs/reference/bin/python tests/golden/generate.py                 # writes tests/golden/fixtures
    .venvs/reference/bin/python tests/golden/generate.py --check         # recomputes and compares
    .venvs/reference/bin/python tests/golden/generate.py --seed 7 --out /tmp/held-out

Everything runs on the CPU in one thread from one seed. The versions of the references are pinned below:
other versions may round elsewhere. README.md names every file and key. A value is only written after two
independent computations of it agreed, and after the mutations at the end of this file were found to show.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy
import peft
import safetensors
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

sys.path.insert(0, str(Path(__file__).parent))
import adapters  # noqa: E402
import losses  # noqa: E402
import models  # noqa: E402
import oracle  # noqa: E402
import sampling  # noqa: E402
from models import load, logits_of  # noqa: E402
from mutations import mutations  # noqa: E402
from variants import VARIANTS, WHOLE  # noqa: E402

PINNED = {
    torch: "2.11.0", transformers: "5.23.0", peft: "0.21.0", safetensors: "0.8.0", tokenizers: "0.23.3", numpy: "2.4.6",
}
LENGTHS = [1, 5, 63, 64, 65, 130]
# The adapters' logits are kept for these sequences only, for size.
ADAPTER_SEQUENCES = [1, 4]
DATUM_LENGTHS = [5, 64, 17]
GENERATED = 16
SMALLEST_MARGIN = 5e-3
# The logits of these are kept for the smaller fixtures, and the residual stream of this one for all.
KEPT_SEQUENCES = [0, 1, 4]
HIDDEN_SEQUENCES = [4]
# Two computations of one fp32 value must agree this well before it is written; a recurrence over a sequence adds noise.
AGREEMENT_LOGITS = 5e-5
AGREEMENT_GRADIENT = 4e-5
AGREEMENT_LOGITS_DELTA = 4e-4
AGREEMENT_GRADIENT_DELTA = 2e-4
# Of the router's logits, between the last expert chosen and the next.
ROUTER_GAP = 4e-4
# The same for bf16, and of how many tokens.
CLEAR_GAP = 0.1
CLEAR_LENGTH = 12


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent / "fixtures"
    parser.add_argument("--out", type=Path, default=here, help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=20261121, help="default: %(default)s")
    parser.add_argument("--only", nargs="*", choices=sorted(VARIANTS), help="write these variants only")
    parser.add_argument("--check", action="store_true", help="write to a temporary folder and compare with --out")
    arguments = parser.parse_args()

    check_versions()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    # An adapter on a tied head is what we want: a delta on the output side only.
    warnings.filterwarnings("ignore", message=".*ensure_weight_tying.*")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    names = arguments.only or list(VARIANTS)
    if not arguments.check:
        write_all(arguments.out, names, arguments.seed)
        return
    with tempfile.TemporaryDirectory() as temporary:
        write_all(Path(temporary), names, arguments.seed)
        compare(arguments.out, Path(temporary), names)


def check_versions():
    for module, wanted in PINNED.items():
        found = module.__version__.split("+")[0]
        if found != wanted:
            sys.exit(f"error: `{module.__name__}` is {found}, the fixtures are made with {wanted}")


def write_all(out, names, seed):
    out.mkdir(parents=True, exist_ok=True)
    sampling.write(out.parent / "sampling.json" if out.name == "fixtures" else out / "sampling.json", seed)
    for name in names:
        directory = out / name
        directory.mkdir(exist_ok=True)
        write_variant(name, directory, seed + list(VARIANTS).index(name))
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        print(f"{name}: {size / 1e6:.2f} MB", flush=True)


def write_variant(name, directory, seed):
    generator = torch.Generator().manual_seed(seed)
    special = models.write(name, directory, generator)
    model = load(directory)
    vocabulary = model.config.vocab_size
    tensors, facts = {}, {"seed": seed, "vocabulary": vocabulary, "special_tokens": special}

    sequences = [routed_clearly(model, length, generator) for length in LENGTHS]
    rounded = load(directory, torch.bfloat16)
    facts["noise"] = base_logits(name, model, rounded, sequences, tensors, generator)
    facts["mutations"] = mutations(directory, sequences, tensors)
    datums = [random_datum(vocabulary, length, generator) for length in DATUM_LENGTHS]
    for index, datum in enumerate(datums):
        tensors.update({f"datum.{index}.{key}": value for key, value in datum.items() if key != "noise"})

    facts["generations"] = generations(model, generator, special, None)
    facts["adapters"] = {}
    inputs = [datum["tokens"] for datum in datums] + [sequences[index] for index in ADAPTER_SEQUENCES]
    names = adapters.FULL if name in WHOLE else adapters.FULL[:1]
    for adapter in names:
        lora = attach(name, adapter, directory, inputs, generator)
        if adapter == "attn_mlp":
            generated = lora.wrapped if lora.by_peft else lora.merged()
            facts["generations"] += generations(generated, generator, special, adapter)
        if losses.FIXTURES.get(name) == adapter:
            losses.write(directory, lora.logits, lora.logits_again, lora.parameters, vocabulary, seed, AGREEMENT_GRADIENT)
        facts["adapters"][adapter] = adapter_values(name, lora, rounded, sequences, datums, tensors, generator)
    save_file(other_formats(name, directory, sequences, datums, inputs, seed), directory / "formats.safetensors")

    if name in WHOLE:
        scored = [(None, f"tokens.{i}", f"logits.{i}") for i in ADAPTER_SEQUENCES]
        scored += [(name, f"tokens.{i}", f"{name}.logits.{i}") for name in names for i in ADAPTER_SEQUENCES]
        cases = [(adapter, tensors[tokens].numpy(), tensors[logits].numpy()) for adapter, tokens, logits in scored]
        sampling.write_scores(directory / "scores.json", cases, seed)
    hidden = {f"hidden.{i}": models.hidden_states(model, sequences[i]).contiguous() for i in HIDDEN_SEQUENCES}
    save_file(hidden, directory / "hidden.safetensors")
    facts["adam"] = oracle.ADAM
    facts["losses"] = oracle.LOSSES
    facts["versions"] = {module.__name__: version for module, version in PINNED.items()}
    tensors = {key: small_integers(value).contiguous() for key, value in tensors.items()}
    save_file(tensors, directory / "golden.safetensors")
    (directory / "golden.json").write_text(json.dumps(facts, indent=1) + "\n")


def routed_clearly(model, length, generator, gap=ROUTER_GAP):
    """Random tokens for which no rounding can change which experts they go to."""
    while True:
        tokens = torch.randint(0, model.config.vocab_size, (length,), generator=generator)
        if models.router_gap(model, tokens) >= gap:
            return tokens


def small_integers(tensor):
    return tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor


# === the base model ===

def base_logits(name, model, rounded, sequences, tensors, generator):
    """Logits and logprobs in fp32, logits in bf16; returns how far fp64, SDPA and bf16 are away."""
    double, sdpa = models.another(model, "eager").double(), models.another(model, "sdpa")
    noise = {"float64_max_abs": 0.0, "sdpa_max_abs": 0.0}
    for index, tokens in enumerate(sequences):
        with torch.no_grad():
            logits = logits_of(model)(tokens)
            noise["float64_max_abs"] = max(noise["float64_max_abs"], max_abs(logits_of(double)(tokens), logits))
            noise["sdpa_max_abs"] = max(noise["sdpa_max_abs"], max_abs(logits_of(sdpa)(tokens), logits))
        tensors[f"tokens.{index}"] = tokens
        tensors[f"logprobs.{index}"] = oracle.token_logprobs(logits[:-1], tokens[1:])
        if name in WHOLE or index in KEPT_SEQUENCES:
            tensors[f"logits.{index}"] = logits
    limit, _ = limits(model)
    assert noise["float64_max_abs"] < limit and noise["sdpa_max_abs"] < limit, noise

    compared = [(sequences[index], f".{index}") for index in range(len(sequences)) if f"logits.{index}" in tensors]
    if models.has_experts(model):
        # Here no bf16 sends a token to another expert.
        tokens = routed_clearly(model, CLEAR_LENGTH, generator, CLEAR_GAP)
        tensors["clear.tokens"], tensors["clear.logits"] = tokens, logits_of(model)(tokens).detach()
        compared = [(tokens, None)]
    differences, divergences = [], []
    for tokens, suffix in compared:
        with torch.no_grad():
            logits, bf16 = logits_of(model)(tokens), logits_of(rounded)(tokens)
        exact = torch.log_softmax(logits.double(), -1)
        differences.append(max_abs(bf16, logits))
        divergences.append((exact.exp() * (exact - torch.log_softmax(bf16.double(), -1))).sum(-1).mean().item())
        if name in WHOLE:
            tensors[f"logits_bf16{suffix}"] = bf16
    noise["bfloat16_max_abs"], noise["bfloat16_mean_kl"] = max(differences), max(divergences)
    return noise


def max_abs(left, right):
    return (left.double() - right.double()).abs().max().item()


# === adapters ===

def attach(name, adapter, directory, inputs, generator):
    """A random adapter, saved: one that leaves no choice of an expert to rounding and no norm with next to nothing."""
    while True:
        lora = adapters.Adapter(adapter, lambda: load(directory), generator)
        merged = lora.merged()
        if min(models.router_gap(merged, tokens) for tokens in inputs) < ROUTER_GAP:
            continue
        with torch.no_grad():
            difference = max(max_abs(lora.logits(tokens), lora.logits_again(tokens)) for tokens in inputs)
        if difference < limits(merged)[0]:
            lora.save(directory / adapter, name, lambda: load(directory))
            return lora
        assert models.has_delta(merged), (adapter, difference)


def limits(model):
    if models.has_delta(model):
        return AGREEMENT_LOGITS_DELTA, AGREEMENT_GRADIENT_DELTA
    return AGREEMENT_LOGITS, AGREEMENT_GRADIENT


def other_formats(name, directory, sequences, datums, inputs, seed):
    """Logits of one sequence and the gradient of cross entropy, for the adapters in the other formats."""
    generator = torch.Generator().manual_seed(seed + 1000)
    tensors = {}
    for adapter in [name for name in adapters.SPECS if name not in adapters.FULL]:
        lora = attach(name, adapter, directory, inputs, generator)
        limit_logits, limit_gradient = limits(lora.base)
        with torch.no_grad():
            logits = lora.logits(sequences[1])
            difference = max_abs(logits, lora.logits_again(sequences[1]))
            assert difference < limit_logits, (adapter, difference)
        tensors[f"{adapter}.logits.1"] = logits
        tensors.update(checked_gradients(lora, "cross_entropy", datums, limit_gradient)[2])
    return {key: value.contiguous() for key, value in tensors.items()}


def checked_gradients(lora, loss, datums, limit):
    values, logprobs, computed = oracle.gradients(lora.logits, lora.parameters, loss, datums)
    _, _, again = oracle.gradients(lora.logits_again, lora.parameters, loss, datums)
    tensors = {}
    for key, gradient in computed.items():
        difference = max_abs(gradient, again[key]) / gradient.abs().max().item()
        assert difference < limit, (lora.name, loss, key, difference)
        tensors[f"{lora.name}.{loss}.gradient.{key}"] = gradient
    return values, logprobs, tensors


def adapter_values(name, lora, rounded, sequences, datums, tensors, generator):
    adapter, parameters = lora.name, lora.parameters
    limit_logits, limit_gradient = limits(lora.base)
    datums = [with_old_logprobs(lora, datum) for datum in datums]
    for index, datum in enumerate(datums):
        tensors[f"{adapter}.datum.{index}.logprobs"] = datum["logprobs"]

    facts = {"rank": lora.rank, "alpha": lora.alpha, "losses": {}, "steps": []}
    for index in ADAPTER_SEQUENCES:
        with torch.no_grad():
            logits = lora.logits(sequences[index])
            assert max_abs(logits, lora.logits_again(sequences[index])) < limit_logits
        tensors[f"{adapter}.logits.{index}"] = logits

    for loss in oracle.LOSSES:
        values, logprobs, computed = checked_gradients(lora, loss, datums, limit_gradient)
        tensors.update(computed)
        facts["losses"][loss] = {"per_datum": values, "sum": sum(values)}
    for index, scored in enumerate(logprobs):
        tensors[f"{adapter}.datum.{index}.scored"] = scored

    compared = datums
    if models.has_experts(lora.base):
        # One sequence, each token after the other, in which no bf16 sends a token to another expert.
        tokens = routed_clearly(lora.merged(), CLEAR_LENGTH, generator, CLEAR_GAP)
        tensors[f"{adapter}.clear.tokens"] = tokens
        compared = [{"tokens": tokens, "target_tokens": tokens.roll(-1), "weights": torch.ones(CLEAR_LENGTH)}]
    facts["bfloat16_gradient"] = rounded_gradient(lora, rounded, compared)

    for index, step in enumerate(oracle.two_steps(lora.logits, parameters, datums)):
        facts["steps"].append({"gradient_norm": step["norm"]})
        assert step["norm"] > 2 * oracle.ADAM["grad_clip_norm"], "the clipping must show"
        # The first step's gradient is the cross-entropy gradient above, and its moments follow from it.
        kept = ["parameter"] if index == 0 or name not in WHOLE else ["gradient", "parameter", "first_moment", "second_moment"]
        for kind in kept:
            for key, value in step[kind].items():
                tensors[f"{adapter}.step{index + 1}.{kind}.{key}"] = value
    return facts


def rounded_gradient(lora, rounded, datums):
    """The direction and the length of the reference's own gradient in bf16, against that in fp32."""
    def flat(logits_of):
        _, _, computed = oracle.gradients(logits_of, lora.parameters, "cross_entropy", datums)
        return torch.cat([computed[key].double().flatten() for key in sorted(computed)])

    found, exact = flat(lambda tokens: lora.rounded_logits(rounded, tokens)), flat(lora.logits)
    return {"cosine": (found @ exact / (found.norm() * exact.norm())).item(), "norm_ratio": (found.norm() / exact.norm()).item()}


def random_datum(vocabulary, length, generator):
    """A datum with the inputs of every loss; the first third is masked by its advantages as a prompt would be.

    `noise` is how far the old policy's logprobs are from the adapter's own, so that the ratios of ppo and
    cispo fall on both sides of every threshold, whatever the adapter.
    """
    tokens = torch.randint(0, vocabulary, (length,), generator=generator)
    targets = torch.cat([tokens[1:], torch.randint(0, vocabulary, (1,), generator=generator)])
    choices = torch.tensor([0.0, 0.5, 1.0, -0.3])
    weights = choices[torch.randint(0, len(choices), (length,), generator=generator)]
    weights[-4:] = torch.tensor([0.5, 1.0, -0.3, 0.0])
    advantages = torch.randn(length, generator=generator)
    advantages[: length // 3] = 0.0
    # In steps of 0.05, which keeps the ratios off the thresholds.
    noise = (12 * torch.randn(length, generator=generator)).round() / 20
    noise[-3:] = torch.tensor([0.05, 0.4, -1.6])
    return {
        "tokens": tokens, "target_tokens": targets, "weights": weights, "advantages": advantages, "noise": noise,
    }


def with_old_logprobs(lora, datum):
    with torch.no_grad():
        scored = oracle.token_logprobs(lora.logits(datum["tokens"]), datum["target_tokens"])
    ratios = torch.exp(-datum["noise"])
    for settings in oracle.LOSSES.values():
        for threshold in settings.values():
            assert (ratios - threshold).abs().min() > 1e-4, "rounding must not decide what is clipped"
    masked = datum["advantages"] == 0
    return {**datum, "logprobs": torch.where(masked, 0.0, scored + datum["noise"])}


# === generation ===

def generations(model, generator, special, adapter):
    """Greedy continuations in which the best token is ahead of the second by a margin rounding cannot close."""
    wanted = [1, 7, 40] if adapter is None else [9]
    found = []
    for length in wanted:
        for _ in range(400):
            prompt = torch.randint(0, special["size"], (length,), generator=generator)
            candidate = greedy(model, prompt)
            if candidate["smallest_margin"] >= SMALLEST_MARGIN and not set(candidate["tokens"]) & set(special["stops"]):
                break
        else:
            raise RuntimeError(f"no prompt of {length} tokens has a margin of {SMALLEST_MARGIN}")
        found.append({"adapter": adapter, **candidate})
    return found


def greedy(model, prompt):
    tokens, margins, logprobs = prompt.tolist(), [], []
    for _ in range(GENERATED):
        with torch.no_grad():
            logits = logits_of(model)(torch.tensor(tokens))[-1]
        best = logits.topk(2).values
        margins.append((best[0] - best[1]).item())
        token = logits.argmax().item()
        logprobs.append(torch.log_softmax(logits, -1)[token].item())
        tokens.append(token)
    length = len(prompt)
    if min(margins) >= SMALLEST_MARGIN:
        settings = GenerationConfig(max_new_tokens=GENERATED, do_sample=False, use_cache=True, pad_token_id=0)
        model.generation_config = settings
        mask = torch.ones_like(prompt)[None]
        cached = model.generate(input_ids=prompt[None], attention_mask=mask, generation_config=settings)[0].tolist()
        assert cached == tokens, "the cached decode disagrees with the full pass"
    return {
        "prompt": tokens[:length], "tokens": tokens[length:], "logprobs": logprobs, "smallest_margin": min(margins),
    }


# === --check ===

def compare(committed, fresh, names):
    failures = []
    for name in names:
        for path in sorted((fresh / name).rglob("*")):
            relative = path.relative_to(fresh)
            other = committed / relative
            if path.is_dir():
                continue
            if not other.exists():
                failures.append(f"{relative}: missing")
            elif path.suffix == ".safetensors":
                left, right = load_file(path), load_file(other)
                if left.keys() != right.keys():
                    failures.append(f"{relative}: other keys")
                    continue
                for key in left:
                    limit = 1e-4 * max(1.0, right[key].double().abs().max().item()) if left[key].numel() else 0
                    if "bf16" not in key and left[key].numel() and max_abs(left[key], right[key]) > limit:
                        failures.append(f"{relative}: `{key}` differs by {max_abs(left[key], right[key]):.1e}")
            elif path.name != "golden.json" and path.read_bytes() != other.read_bytes():
                failures.append(f"{relative}: differs")
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        sys.exit(1)
    print("the fixtures are what this script computes")


if __name__ == "__main__":
    main()
