"""All weights of a model instead of an adapter, where the server trains them."""

from kit import expect, features, refused, step
from twinkle_client.model import MultiLoraTransformersModel


def test_one_tenant_trains_all_weights(world):
    world = world.of_full_training()
    world.sign_in("owner")
    model = MultiLoraTransformersModel(model_id=world.model)
    refused(lambda: world.adapter(), 400, words=("config",))
    model.add_adapter_to_model("whole", None)
    model.set_optimizer("AdamW", lr=2e-3, weight_decay=0.0)
    model.set_loss("CrossEntropyLoss")
    rows = features(81)
    base = model.forward_only(inputs=rows).result["logps"]
    losses = [step(model, rows)["loss"] for _ in range(8)]
    expect(losses[-1] < 0.7 * losses[0], f"losses: {losses}")
    saved = model.save(name="whole", save_optimizer=True)
    trained = model.forward_only(inputs=rows).result["logps"]
    expect(trained != base, "nothing was trained")
    step(model, rows)
    progress = model.resume_from_checkpoint(saved.twinkle_path)
    expect(progress["cur_step"] == 8, f"the progress is {progress}")
    expect(model.forward_only(inputs=rows).result["logps"] == trained, "the checkpoint is another one")

    world.sign_in("second")
    other = MultiLoraTransformersModel(model_id=world.model)
    refused(lambda: other.add_adapter_to_model("whole", None), 409)
    answer = world.sampler().sample([{"input_ids": [5, 6, 7]}], sampling_params={"max_tokens": 2, "temperature": 0.0})
    expect(len(answer[0].sequences[0].tokens) == 2, "the base model cannot be sampled meanwhile")
    world.sign_out()
