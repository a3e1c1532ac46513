"""Adapters as files."""

import json

from safetensors.torch import save_file

from variants import NESTED


def save(lora, directory, name):
    """As PEFT saves it: modules by their names in the checkpoint, every expert by itself."""
    lora.config.base_model_name_or_path = name
    if lora.has_experts:
        lora.config.inference_mode = True
        lora.config.save_pretrained(directory)
    else:
        # PEFT would add the whole head to the file of an adapter on it.
        lora.wrapped.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if lora.has_experts or name in NESTED:
        save_file(named(lora.parameters, name), directory / "adapter_model.safetensors", metadata={"format": "pt"})


def named(parameters, name):
    tensors = {}
    for key, value in parameters.items():
        module, _, factor = key.rpartition(".")
        if name in NESTED:
            module = module.replace("model.", "model.language_model.", 1)
        experts, _, part = module.rpartition(".")
        value = value.detach()
        if not experts.endswith(".experts"):
            tensors[f"base_model.model.{module}.{factor}.weight"] = value.contiguous()
            continue
        for expert, matrix in enumerate(value):
            tensors[f"base_model.model.{experts}.{expert}.{part}.{factor}.weight"] = matrix.contiguous()
    return tensors
