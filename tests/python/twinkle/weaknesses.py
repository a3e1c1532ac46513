"""What the original does badly, point by point: here it does not happen."""

import os

from kit import LoraConfig, expect, features, near, refused, step, sums
from twinkle.dataset import DatasetMeta
from twinkle_client.dataset import Dataset
from twinkle_client.model import MultiLoraTransformersModel


def test_2_no_path_leads_out_of_a_tenants_folder(world):
    client = world.sign_in("weak-2")
    model = world.trained()
    for path in ("/etc", "/", world.model_path):
        refused(lambda: model.load(path), 400, 403, 404)
        refused(lambda: world.sampler().sample([{"input_ids": [5]}], adapter_uri=path), 400, 403, 404)
        refused(lambda: model.upload_to_hub(path, "ms://me/mine", hub_token="none"), 400, 403, 404)
    refused(lambda: Dataset(DatasetMeta("/etc/passwd")), 400, 403, 404)
    for run in ("..", "%2e%2e", "..%2f.."):
        status, text = world.get_as_written(f"twinkle/training_runs/{run}/checkpoints")
        expect(status in (400, 404), f"run `{run}` is answered {status}: {text}")
    other = MultiLoraTransformersModel(model_id=world.model)
    refused(lambda: other.add_adapter_to_model("elsewhere", LoraConfig(r=4), save_dir="/tmp"), 400, 403, 404)
    expect(not os.path.exists("/tmp/twinkle_metadata.json"), "something was written where a client wished")
    client.close()


def test_3_no_slot_is_lost_and_failed_requests_leave_none(world):
    client = world.sign_in("weak-3")
    before = client.get_capacity_info().used_loras
    model = MultiLoraTransformersModel(model_id=world.model)
    for _ in range(4):
        refused(lambda: model.add_adapter_to_model("broken", LoraConfig(r=4096)), 400)
    model.add_adapter_to_model("one", LoraConfig(r=8, target_modules="all-linear"))
    for _ in range(3):
        model.add_adapter_to_model("one", LoraConfig(r=8, target_modules="all-linear"))
    refused(lambda: model.add_adapter_to_model("one", LoraConfig(r=4, target_modules="all-linear")), 400, 409)
    expect(client.get_capacity_info().used_loras == before + 1, "slots are lost")


def test_6_checkpoints_have_sizes_and_one_name(world):
    client = world.sign_in("weak-6")
    model = world.trained()
    for _ in range(4):
        saved = model.save(name="x", is_sampler=True)
    run = saved.twinkle_path.removeprefix("twinkle://").partition("/")[0]
    listed = client.list_checkpoints(run)
    names = [checkpoint.checkpoint_id for checkpoint in listed]
    expect(len(names) == len(set(names)) <= 2, f"listed: {names}")
    expect(all(checkpoint.size_bytes > 0 for checkpoint in listed), f"listed: {listed}")
    expect(client.get_training_run(run).last_sampler_checkpoint, "the run does not know its sampler checkpoint")
    for name in names:
        client.delete_checkpoint(run, name)
    expect(client.list_checkpoints(run) == [], "they are still listed")


def test_7_steps_normalise_also_without_clipping(world):
    """The mean over all tokens, whether gradients are clipped or not."""
    world.sign_in("weak-7")
    rows = features(57)
    outcomes = []
    for clip in (True, False):
        model = world.adapter()
        model.set_loss("CrossEntropyLoss", reduction="sum")
        model.set_optimizer("SGD", lr=1.0, weight_decay=0.0)
        before = sum(sums(rows, model.forward_only(inputs=rows).result["logps"]))
        model.forward_backward(inputs=rows)
        if clip:
            model.clip_grad_norm(max_grad_norm=1e9)
        model.step()
        model.zero_grad()
        outcomes.append(sum(sums(rows, model.forward_only(inputs=rows).result["logps"])) - before)
    # Adapters begin with other random numbers, so the steps are alike and not equal.
    expect(0.2 < outcomes[1] / outcomes[0] < 5, f"with clipping {outcomes[0]}, without {outcomes[1]}")


def test_9_forward_has_log_probabilities_and_weights_are_json(world):
    world.sign_in("weak-9")
    model = world.trained()
    rows = features(59)
    expect(model.forward(inputs=rows).result["logps"], "`forward` gives nothing")
    model.calculate_loss()
    model.backward()
    expect(len(model.get_state_dict().result) > 4, "no weights")


def test_11_mistakes_are_answers_not_tracebacks(world):
    client = world.sign_in("weak-11")
    headers = {"X-Twinkle-Session-Id": client._session_id}
    model = f"model/{world.model}/twinkle"
    for route, body in [
        (f"{model}/forward_backward", {"adapter_name": None, "inputs": []}),
        (f"{model}/forward_backward", {"adapter_name": 7}),
        (f"{model}/set_loss", {"adapter_name": "x"}),
        (f"{model}/clip_grad_norm", {"adapter_name": "x", "max_grad_norm": "much"}),
        (f"sampler/{world.model}/twinkle/sample", {"inputs": "text"}),
        ("processor/twinkle/create", {"processor_type": "robot", "class_type": "R2"}),
        ("processor/twinkle/call", {"processor_id": 5, "function": "__len__"}),
        ("twinkle/create_session", {"metadata": "text"}),
        ("twinkle/weights_info", {}),
    ]:
        answer = world.post(route, body, key="weak-11", headers=headers)
        expect(400 <= answer.status_code < 500, f"{route} with {body} is answered {answer.status_code}: {answer.text}")
        expect(answer.status_code != 410, f"{route} says that an iterator has ended")
        expect("detail" in answer.json() and "Traceback" not in answer.text, f"{route}: {answer.text}")


def test_nobody_gets_in_without_a_key(world):
    answer = world.post("twinkle/create_session", {"metadata": None}, headers={"Authorization": ""})
    expect(answer.status_code in (401, 403), f"no key is answered {answer.status_code}: {answer.text}")
    for value in ("Bearer weak-key", "weak-key"):
        answer = world.post("twinkle/create_session", {}, headers={"Authorization": "", "Twinkle-Authorization": value})
        expect(answer.status_code == 200, f"`Twinkle-Authorization: {value}` is answered {answer.status_code}: {answer.text}")


def test_default_weight_decay_is_the_originals(world):
    """An optimizer by name has the original's decay of 0.01, so that results are comparable."""
    world.sign_in("weak-decay")
    model = world.adapter()
    model.set_optimizer("SGD", lr=1.0)
    before = model.get_state_dict().result
    step(model, features(60))
    after = model.get_state_dict().result
    # The first gradient of A is 0, because B is: what is left is the decay.
    name = next(name for name in before if "lora_A" in name)
    near(after[name][0][0], 0.99 * before[name][0][0], 1e-6, f"`{name}`")
