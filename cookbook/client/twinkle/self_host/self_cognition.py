"""Teaches a model its name: data and loop here, the model on the server.

    python cookbook/client/server/transformer/server.py             # in another terminal
    python cookbook/client/twinkle/self_host/self_cognition.py      # pip install twinkle-kit

TWINKLE_SERVER_URL and TWINKLE_SERVER_TOKEN say where, BASE_MODEL which of its models, MODEL_PATH where its tokenizer is
and DATASET with what: a file, or an id such as `ms://swift/self-cognition`.
"""

import os
from pathlib import Path

from peft import LoraConfig
from twinkle.dataloader import DataLoader
from twinkle.dataset import Dataset, DatasetMeta
from twinkle_client import init_twinkle_client
from twinkle_client.model import MultiLoraTransformersModel
from twinkle_client.sampler import vLLMSampler

DATA = Path(__file__).resolve().parents[2] / "data"
BASE_MODEL = os.environ.get("BASE_MODEL", "Qwen/Qwen3-0.6B")
MODEL_PATH = os.environ.get("MODEL_PATH", f"ms://{BASE_MODEL}")
DATASET = os.environ.get("DATASET", str(DATA / "self_cognition.jsonl"))
EPOCHS = int(os.environ.get("EPOCHS", "4"))

client = init_twinkle_client(
    base_url=os.environ.get("TWINKLE_SERVER_URL"), api_key=os.environ.get("TWINKLE_SERVER_TOKEN")
)

dataset = Dataset(dataset_meta=DatasetMeta(DATASET))
dataset.set_template("Template", model_id=MODEL_PATH, max_length=512)
dataset.map("SelfCognitionProcessor", init_args={"model_name": "Twinkle", "model_author": "its friends"})
dataset.encode()
dataloader = DataLoader(dataset=dataset, batch_size=4)

model = MultiLoraTransformersModel(model_id=BASE_MODEL)
model.add_adapter_to_model("self_cognition", LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
model.set_template("Template")
model.set_processor("InputProcessor", padding_side="right")
model.set_loss("CrossEntropyLoss")
model.set_optimizer("AdamW", lr=1e-3)
model.set_lr_scheduler("CosineWarmupScheduler", num_warmup_steps=2, num_training_steps=EPOCHS * len(dataloader))

saved = None
for epoch in range(EPOCHS):
    for batch in dataloader:
        model.forward_backward(inputs=batch)
        model.clip_grad_and_step()
    print(f"epoch {epoch}: {model.calculate_metric(is_training=True).result}")
    progress = dataloader.get_state()["consumed_train_samples"]
    saved = model.save(name=f"epoch-{epoch}", save_optimizer=True, consumed_train_samples=progress)
print(f"saved: {saved.twinkle_path}")

sampler = vLLMSampler(model_id=BASE_MODEL)
sampler.set_template("Template")
question = {"messages": [{"role": "system", "content": "You are a helpful assistant."},
                         {"role": "user", "content": "Who are you?"}]}
answers = sampler.sample(
    [question], sampling_params={"max_tokens": 32, "temperature": 0.0}, adapter_uri=saved.twinkle_path
)
print(f"answer: {answers[0].sequences[0].decoded}")
client.close()
