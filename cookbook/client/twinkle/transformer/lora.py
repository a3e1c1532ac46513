"""LoRA training with data that is prepared on the server, gradients over two batches, and a way to go on.

    python cookbook/client/twinkle/transformer/server.py     # in another terminal
    python cookbook/client/twinkle/transformer/lora.py
    RESUME=twinkle://…/weights/last python cookbook/client/twinkle/transformer/lora.py

DATASET is a file below the server's TWINKLE_DATA_DIRS, or an id of a hub.
"""

import os

from peft import LoraConfig
from twinkle.dataset import DatasetMeta
from twinkle_client import init_twinkle_client
from twinkle_client.dataloader import DataLoader
from twinkle_client.dataset import Dataset
from twinkle_client.model import MultiLoraTransformersModel

BASE_MODEL = os.environ.get("BASE_MODEL", "Qwen/Qwen3-0.6B")
DATASET = os.environ.get("DATASET", "self_cognition.jsonl")
RESUME = os.environ.get("RESUME")
EPOCHS = int(os.environ.get("EPOCHS", "4"))

client = init_twinkle_client(
    base_url=os.environ.get("TWINKLE_SERVER_URL"), api_key=os.environ.get("TWINKLE_SERVER_TOKEN")
)
print(f"models: {[model.model_name for model in client.get_server_capabilities().supported_models]}")

dataset = Dataset(DatasetMeta(DATASET))
dataset.set_template("Template", model_id=BASE_MODEL, max_length=512)
dataset.map("SelfCognitionProcessor", init_args={"model_name": "Twinkle", "model_author": "its friends"})
dataset.encode()
dataloader = DataLoader(dataset, batch_size=4)

model = MultiLoraTransformersModel(model_id=BASE_MODEL)
model.add_adapter_to_model(
    "lora", LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), gradient_accumulation_steps=2
)
model.set_template("Template")
model.set_processor("InputProcessor", padding_side="right")
model.set_loss("CrossEntropyLoss", reduction="sum")
model.set_optimizer("Adam", lr=2e-3, weight_decay=0.0)
model.set_lr_scheduler("LinearLR")
print(model.get_train_configs().result)

if RESUME:
    progress = model.resume_from_checkpoint(RESUME)
    dataloader.resume_from_checkpoint(progress["consumed_train_samples"])
    print(f"resumed: {progress}")

for epoch in range(EPOCHS):
    for batch in dataloader:
        output = model.forward_backward(inputs=batch).result
        model.clip_grad_norm(1.0)
        model.step()
        model.zero_grad()
        model.lr_step()
    print(f"epoch {epoch}: {model.calculate_metric(is_training=True).result}")

state = dataloader.get_state()
saved = model.save(name="last", save_optimizer=True, consumed_train_samples=state["consumed_train_samples"])
print(f"saved: {saved.twinkle_path}")
for run in client.list_training_runs():
    names = [checkpoint.checkpoint_id for checkpoint in client.list_checkpoints(run.training_run_id)]
    print(f"run {run.training_run_id} of {run.base_model}: {names}")
client.close()
