"""Two tenants of one server: what is not yours does not exist."""

from kit import LoraConfig, expect, features, refused, step, use
from twinkle.dataset import DatasetMeta
from twinkle_client.dataset import Dataset
from twinkle_client.http import set_api_key
from twinkle_client.model import MultiLoraTransformersModel


def test_each_gets_what_it_would_get_alone(world):
    rows = features(41)
    alice, bob = world.sign_in("alice-41"), world.sign_in("bob-41")
    models = {}
    for client in (alice, bob):
        use(client)
        models[client] = world.trained()
    losses = {alice: [], bob: []}
    for turn in range(6):
        client = (alice, bob)[turn % 2]
        use(client)
        losses[client].append(step(models[client], rows)["loss"])
    expect(losses[alice][-1] < losses[alice][0] and losses[bob][-1] < losses[bob][0], f"losses: {losses.values()}")


def test_the_same_name_is_two_adapters(world):
    rows = features(42)
    results = {}
    for key in ("alice-42", "bob-42"):
        world.sign_in(key)
        model = MultiLoraTransformersModel(model_id=world.model)
        model.add_adapter_to_model("default", LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        model.set_optimizer("AdamW", lr=1e-2)
        if key.startswith("alice"):
            step(model, rows)
        results[key] = model.forward_only(inputs=rows).result["logps"]
    expect(results["alice-42"] != results["bob-42"], "one's step changed the other's adapter")


def test_a_foreign_key_finds_nothing(world):
    rows = features(43)
    alice = world.sign_in("alice-43")
    model = world.trained()
    step(model, rows)
    saved = model.save(name="private")
    run = saved.twinkle_path.removeprefix("twinkle://").partition("/")[0]
    path = world.folder / "private.jsonl"
    path.write_text('{"query": "a", "response": "b"}\n')
    dataset = Dataset(DatasetMeta(str(path)))
    before = model.forward_only(inputs=rows).result["logps"]

    # Another key that knows everything: session, adapter, object, run, path.
    set_api_key("bob-43")
    for call in (
        lambda: model.forward_backward(inputs=rows),
        lambda: model.forward_only(inputs=rows),
        lambda: model.step(),
        lambda: model.save(name="stolen"),
        lambda: model.set_optimizer("SGD"),
        lambda: model.get_state_dict(),
        lambda: len(dataset),
    ):
        refused(call, 400, 403, 404)
    beat = world.post("twinkle/session_heartbeat", {"session_id": alice._session_id}, key="bob-43")
    expect(beat.status_code == 404, f"a foreign session's heartbeat is answered {beat.status_code}")
    for route in (f"training_runs/{run}", f"training_runs/{run}/checkpoints", f"checkpoint_path/{run}/weights/private"):
        answer = world.get(f"twinkle/{route}", key="bob-43")
        expect(answer.status_code == 404, f"{route} is answered {answer.status_code}: {answer.text}")
    unknown = world.get(f"twinkle/training_runs/{run[:-1]}x", key="bob-43").json()["detail"]
    foreign = world.get(f"twinkle/training_runs/{run}", key="bob-43").json()["detail"]
    expect(unknown.replace(f"{run[:-1]}x", "") == foreign.replace(run, ""), f"{unknown!r} against {foreign!r}")

    bob = world.sign_in("bob-43")
    other = world.adapter()
    refused(lambda: other.load(saved.twinkle_path), 400, 403, 404)
    refused(lambda: other.resume_from_checkpoint(saved.twinkle_path), 400, 403, 404)
    refused(lambda: world.sampler().sample([{"input_ids": [5, 6]}], adapter_uri=saved.twinkle_path), 400, 403, 404)
    expect(bob.list_training_runs() == [] or all(r.training_run_id != run for r in bob.list_training_runs()), "listed")

    use(alice)
    expect(model.forward_only(inputs=rows).result["logps"] == before, "the adapter has changed")
    expect(len(dataset) == 1, "the data set has changed")


def test_one_tenants_template_is_not_anothers(world):
    """Upstream a sampler has one template for everybody."""
    question = {"messages": [{"role": "user", "content": "Hi"}]}
    alice, bob = world.sign_in("alice-44"), world.sign_in("bob-44")
    use(alice)
    first = world.sampler()
    first.set_template("Template", default_system="Be brief.")
    use(bob)
    second = world.sampler()
    second.set_template("Template")
    parameters = {"max_tokens": 1, "temperature": 0.0}
    prompts = {}
    for client, sampler in ((alice, first), (bob, second)):
        use(client)
        answer = sampler.sample([question], sampling_params=parameters)[0].sequences[0]
        prompts[client] = answer.new_input_feature["input_ids"]
    expect(len(prompts[alice]) > len(prompts[bob]), "the second template replaced the first one")


def test_mistakes_name_what_is_known_and_change_nothing(world):
    world.sign_in("alice-45")
    model = world.trained()
    rows = features(45)
    before = model.forward_only(inputs=rows).result["logps"]
    refused(lambda: model.set_loss("CrossEntropyLos"), 400, words=("CrossEntropyLoss",))
    refused(lambda: model.set_optimizer("AdamX"), 400, words=("Adam",))
    refused(lambda: model.set_lr_scheduler("Linear"), 400, words=("LinearLR",))
    refused(lambda: model.set_template("Tmplate"), 400, words=("Template",))
    refused(lambda: model.set_processor("Processor"), 400, words=("InputProcessor",))
    refused(lambda: model.add_metric("Metric"), 400, words=("LossMetric",))
    refused(lambda: model.set_loss("ms://somebody/plugin"), 400)
    refused(lambda: model.apply_patch("ms://somebody/patch"), 400)
    refused(lambda: model.forward_backward(inputs=[]), 400)
    refused(lambda: model.forward_backward(inputs=[{"labels": [1]}]), 400)
    refused(lambda: model.forward_backward(inputs=[{"input_ids": [1, 2], "labels": [1]}]), 400)
    refused(lambda: model.forward_backward(inputs=[{"input_ids": [10**6], "labels": [1]}]), 400)
    refused(lambda: model.load("twinkle://nobody/weights/x"), 400, 404)
    refused(lambda: model.load("/etc/passwd"), 400, 403, 404)
    refused(lambda: model.resume_from_checkpoint("../../x"), 400, 404)
    other = MultiLoraTransformersModel(model_id=world.model)
    for name in ("../x", "~root", "/etc/x"):
        refused(lambda: other.add_adapter_to_model(name, LoraConfig(r=8)), 400, words=("adapter_name",))
    refused(lambda: other.add_adapter_to_model("huge", LoraConfig(r=4096)), 400, words=("4096",))
    refused(lambda: other.add_adapter_to_model("whole", None), 400, words=("config",))
    refused(lambda: other.forward(inputs=rows), 400, 404, 422)
    model.adapter_name, name = "unknown", model.adapter_name
    refused(lambda: model.forward_only(inputs=rows), 400, 404, words=("unknown",))
    model.adapter_name = name
    expect(model.forward_only(inputs=rows).result["logps"] == before, "a refused request changed the adapter")
