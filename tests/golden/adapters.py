"""The adapters, in the three formats that are read, and what PEFT makes of them.

Each computes its logits twice, and both must agree before a value is written: with PEFT and as W + s·B·A, or, where PEFT
has no such adapter, as W + s·B·A in fp32 and in fp64.
"""

import copy
import json
import math
import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

import oracle
from variants import NESTED

ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DELTA = ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"]
SPECS = {
    # As PEFT writes them: scale alpha / rank, every expert by itself.
    "attn_mlp": {"rank": 4, "alpha": 32, "targets": [*ATTENTION_AND_MLP, *DELTA]},
    "attn_mlp_unembed": {"rank": 6, "alpha": 32, "targets": [*ATTENTION_AND_MLP, "lm_head"]},
    # Scale alpha / √rank, some modules, two of them with a rank or an alpha of their own.
    "rslora": {
        "rank": 3, "alpha": 8, "use_rslora": True, "rank_pattern": {"v_proj": 5, "in_proj_z": 2},
        "alpha_pattern": {"up_proj": 4}, "targets": ["q_proj", "v_proj", "up_proj", "gate_proj", "down_proj", *DELTA[:2]],
    },
    # As Tinker writes them: experts share the factor at the hidden side, q, k and v of a DeltaNet are apart, and the head.
    "tinker": {"rank": 4, "alpha": 32, "targets": [*ATTENTION_AND_MLP, *DELTA, "lm_head"]},
}
# Their values are complete; of the others there are logits of one sequence and one gradient.
FULL = ["attn_mlp", "attn_mlp_unembed"]


class Adapter:
    """An adapter with random factors. `parameters` has the leaves of its gradients:

    `{"model.layers.0.self_attn.q_proj.lora_A": [r, in], "model.layers.0.mlp.experts.up_proj.lora_B": [E or 1, out, r], …}`;
    q, k and v of a DeltaNet's `in_proj_qkv` are leaves of their own, whatever the format.
    """

    def __init__(self, name, load, generator):
        self.name, self.spec, self.base = name, SPECS[name], load()
        self.rank, self.alpha = self.spec["rank"], self.spec["alpha"]
        modules = {module.rpartition(".")[2] for module, found in self.base.named_modules()}
        if any(module.endswith(".experts") for module, _ in self.base.named_modules()):
            modules |= {"gate_proj", "up_proj", "down_proj"}
        self.targets = [leaf for leaf in self.spec["targets"] if leaf in modules]
        self.by_peft = name != "tinker" and not (expert_modules(self.base) or "in_proj_qkv" in modules)
        if self.by_peft:
            self.wrapped = get_peft_model(load(), self.config())
            self.parameters = peft_parameters(self.wrapped)
        else:
            self.parameters = linear_parameters(self) | expert_parameters(self)
            self.double = copy.deepcopy(self.base).double()
        self.scales = {key.removesuffix(".lora_A"): self.scale(key.removesuffix(".lora_A")) for key in self.parameters}
        self.fill(generator)

    def config(self):
        return LoraConfig(
            task_type="CAUSAL_LM", r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, bias="none",
            target_modules=self.targets, use_rslora=self.spec.get("use_rslora", False),
            rank_pattern=self.patterns("rank_pattern"), alpha_pattern=self.patterns("alpha_pattern"),
        )

    def patterns(self, kind):
        return {name: value for name, value in self.spec.get(kind, {}).items() if name in self.targets}

    def of_pattern(self, kind, module, default):
        return next((
            value for pattern, value in self.patterns(kind).items() if re.match(rf"(.*\.)?({pattern})$", module)
        ), default)

    def rank_of(self, module):
        if self.name == "tinker" and ".experts." in module:
            # A token uses `top_k` experts, each of which gets its share of the rank.
            return max(1, self.rank // self.base.config.num_experts_per_tok)
        return self.of_pattern("rank_pattern", module, self.rank)

    def scale(self, module):
        # Tinker's own tools divide by the adapter's rank, on experts too, whose factors have a share of it.
        rank = self.rank if self.name == "tinker" else self.rank_of(module)
        alpha = self.of_pattern("alpha_pattern", module, self.alpha)
        return alpha / math.sqrt(rank) if self.spec.get("use_rslora") else alpha / rank

    def fill(self, generator):
        """A is kaiming-uniform(a=√5), B not zero."""
        with torch.no_grad():
            for key, parameter in sorted(self.parameters.items()):
                if key.endswith("lora_A"):
                    bound = 1 / math.sqrt(parameter.shape[-1])
                    parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
                else:
                    # Makes s·B·A·x about 0.4 of W·x.
                    deviation = 0.4 / self.scales[key.removesuffix(".lora_B")] / math.sqrt(parameter.shape[-1] / 3)
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
            if self.name != "tinker":
                # One module to PEFT, with one A.
                for key, parameter in self.parameters.items():
                    for part in ("in_proj_k.lora_A", "in_proj_v.lora_A"):
                        if key.endswith(part):
                            parameter.copy_(self.parameters[key.replace(part, "in_proj_q.lora_A")])

    def logits(self, tokens):
        if self.by_peft:
            return self.wrapped(input_ids=tokens[None], use_cache=False).logits[0]
        return oracle.functional_logits(self.base, self.parameters, self.scales, tokens)

    def logits_again(self, tokens):
        if self.by_peft:
            return oracle.functional_logits(self.base, self.parameters, self.scales, tokens)
        doubled = {key: value.double() for key, value in self.parameters.items()}
        return oracle.functional_logits(self.double, doubled, self.scales, tokens)

    def rounded_logits(self, rounded, tokens):
        """What the model computes in a lower precision."""
        return oracle.functional_logits(self.base, self.parameters, self.scales, tokens, rounded)

    def merged(self):
        """A model with the sums as its weights. A tied head gets weights of its own."""
        merged = copy.deepcopy(self.base)
        for key, value in oracle.adapted_weights(merged, self.parameters, self.scales).items():
            module, _, parameter = key.rpartition(".")
            setattr(merged.get_submodule(module), parameter, torch.nn.Parameter(value.detach(), requires_grad=False))
        return merged

    def is_read_by_peft(self):
        """PEFT 0.21 knows the experts of Qwen3-MoE alone, scales them wrongly with rslora, and loses dense layers beside them."""
        if not expert_modules(self.base):
            return True
        is_mixed = any(module.endswith(".mlp.gate_proj") for module, _ in self.base.named_modules())
        return self.base.config.model_type == "qwen3_moe" and self.name != "rslora" and not is_mixed

    def save(self, directory, name, load):
        """Writes the adapter as its format has it. Where PEFT can read the file, it must compute the same with it."""
        config = self.config()
        config.base_model_name_or_path, config.inference_mode = name, True
        if self.by_peft:
            self.wrapped.peft_config["default"].base_model_name_or_path = name
            # PEFT would add the whole head to the file of an adapter on it.
            self.wrapped.save_pretrained(directory, save_embedding_layers=False)
        else:
            config.save_pretrained(directory)
            tensors = tinker_tensors(self.parameters) if self.name == "tinker" else peft_tensors(self.parameters)
            save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        (directory / "README.md").unlink(missing_ok=True)
        path = directory / "adapter_config.json"
        settings = json.loads(path.read_text())
        settings["target_modules"] = "all-linear" if self.name == "tinker" else sorted(settings["target_modules"])
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        if self.name != "tinker" and self.is_read_by_peft():
            tokens = torch.arange(9)
            with torch.no_grad():
                read = PeftModel.from_pretrained(load(), directory)(input_ids=tokens[None], use_cache=False).logits[0]
                assert (read - self.logits(tokens)).abs().max() < 1e-3, "PEFT reads another adapter"
        if name in NESTED and self.name != "tinker":
            tensors = {
                key.replace("base_model.model.model.", "base_model.model.model.language_model.", 1): value
                for key, value in peft_tensors(self.parameters).items()
            }
            save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def peft_parameters(peft):
    parameters = {}
    for name, parameter in peft.named_parameters():
        if ".lora_" in name:
            parameters[name.removeprefix("base_model.model.").removesuffix(".default.weight")] = parameter
    return parameters


def expert_modules(model):
    return [name for name, module in model.named_modules() if name.endswith(".experts") and hasattr(module, "gate_up_proj")]


def linear_parameters(adapter):
    lora = {}
    for name, module in adapter.base.named_modules():
        if not isinstance(module, torch.nn.Linear) or name.rpartition(".")[2] not in adapter.targets:
            continue
        parts = {name: module.out_features}
        if name.endswith(".in_proj_qkv"):
            delta = adapter.base.get_submodule(name.rpartition(".")[0])
            widths = [delta.key_dim, delta.key_dim, delta.value_dim]
            parts = {name.removesuffix("qkv") + part: width for part, width in zip("qkv", widths)}
        for part, width in parts.items():
            rank = adapter.rank_of(name)
            lora[f"{part}.lora_A"] = torch.zeros(rank, module.in_features, requires_grad=True)
            lora[f"{part}.lora_B"] = torch.zeros(width, rank, requires_grad=True)
    return lora


def expert_parameters(adapter):
    lora = {}
    for module in expert_modules(adapter.base):
        count, doubled, hidden = adapter.base.get_submodule(module).gate_up_proj.shape
        for part, wide, narrow in [
            ("gate_proj", doubled // 2, hidden), ("up_proj", doubled // 2, hidden), ("down_proj", hidden, doubled // 2),
        ]:
            a_groups, b_groups = count, count
            if adapter.name == "tinker":
                a_groups, b_groups = (count, 1) if part == "down_proj" else (1, count)
            rank = adapter.rank_of(f"{module}.{part}")
            lora[f"{module}.{part}.lora_A"] = torch.zeros(a_groups, rank, narrow, requires_grad=True)
            lora[f"{module}.{part}.lora_B"] = torch.zeros(b_groups, wide, rank, requires_grad=True)
    return lora


def peft_tensors(parameters):
    """Every expert by itself, `in_proj_qkv` as one module."""
    tensors = {}
    for key, value in parameters.items():
        module, _, factor = key.rpartition(".")
        parent, _, part = module.rpartition(".")
        value = value.detach().contiguous()
        if parent.endswith(".experts"):
            for expert, matrix in enumerate(value):
                tensors[f"base_model.model.{parent}.{expert}.{part}.{factor}.weight"] = matrix.contiguous()
        elif part == "in_proj_q":
            parts = [parameters[f"{parent}.in_proj_{part}.{factor}"].detach() for part in "qkv"]
            joined = value if factor == "lora_A" else torch.cat(parts).contiguous()
            tensors[f"base_model.model.{parent}.in_proj_qkv.{factor}.weight"] = joined
        elif part not in ("in_proj_k", "in_proj_v"):
            tensors[f"base_model.model.{module}.{factor}.weight"] = value
    return tensors


def tinker_tensors(parameters):
    """gate, up and down of the experts are w1, w3 and w2 of three dimensions, the head is `unembed_tokens`."""
    experts = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    tensors = {}
    for key, value in parameters.items():
        module, _, factor = key.rpartition(".")
        parent, _, part = module.rpartition(".")
        if parent.endswith(".experts"):
            module = f"{parent}.{experts[part]}"
        elif module == "lm_head":
            module = "model.unembed_tokens"
        tensors[f"base_model.model.{module}.{factor}.weight"] = value.detach().contiguous()
    return tensors
