"""Saving, loading, going on, listing, deleting."""

import os

from kit import expect, features, refused, step
from twinkle_client.manager import TwinkleClientError


def test_training_goes_on_from_a_checkpoint_in_the_same_bits(world):
    world.sign_in()
    rows = features(21)
    model = world.trained()
    model.set_lr_scheduler("CosineAnnealingLR", T_max=10)
    for _ in range(3):
        step(model, rows)
    saved = model.save(name="ck one!", save_optimizer=True, consumed_train_samples=12)
    expect(saved.twinkle_path.startswith("twinkle://") and saved.twinkle_path.endswith("/weights/ck_one_"), saved.twinkle_path)
    logps = model.forward_only(inputs=rows).result["logps"]
    went_on = [step(model, rows)["loss"] for _ in range(2)]

    other = world.trained()
    other.set_lr_scheduler("CosineAnnealingLR", T_max=10)
    progress = other.resume_from_checkpoint(saved.twinkle_path)
    wanted = {"cur_step": 3, "consumed_train_samples": 12, "gradient_accumulation_steps": 1}
    expect({key: progress[key] for key in wanted} == wanted, f"the progress is {progress}")
    expect(other.forward_only(inputs=rows).result["logps"] == logps, "the weights differ")
    expect([step(other, rows)["loss"] for _ in range(2)] == went_on, "the losses differ")

    weights_only = world.trained()
    progress = weights_only.resume_from_checkpoint(saved.twinkle_path, resume_only_model=True)
    expect(progress["consumed_train_samples"] == 12, f"the progress is {progress}")
    loaded = world.adapter()
    loaded.load(saved.twinkle_path)
    for model in (weights_only, loaded):
        expect(model.forward_only(inputs=rows).result["logps"] == logps, "the weights differ")


def test_runs_and_checkpoints_are_listed_found_and_deleted(world):
    client = world.sign_in()
    model = world.trained()
    rows = features(22)
    step(model, rows)
    first = model.save(name="first")
    step(model, rows)
    second = model.save(name="second", save_optimizer=True)
    sampler = model.save(name="ignored", is_sampler=True)
    runs, cursor = client.list_training_runs_with_cursor()
    expect(len(runs) == 1 and cursor.total_count == 1, f"runs: {runs}, cursor: {cursor}")
    run = runs[0]
    expect(run.base_model == world.model and run.is_lora and run.lora_rank == 8, f"the run is {run}")
    expect(run.training_run_id in first.twinkle_path, f"{run.training_run_id} is not in {first.twinkle_path}")
    expect((run.user_metadata or {}).get("adapter_name") == model.adapter_name, f"metadata: {run.user_metadata}")
    expect(client.get_training_run(run.training_run_id).training_run_id == run.training_run_id, "another run")
    expect([found.training_run_id for found in client.find_training_run_by_model(world.model)], "not found by its model")

    listed = client.list_checkpoints(run.training_run_id)
    names = [checkpoint.checkpoint_id for checkpoint in listed]
    expect(names[:2] == ["weights/first", "weights/second"], f"checkpoints: {names}")
    expect(len(names) == len(set(names)) == 3, f"one checkpoint for the sampler, once: {names}")
    expect(all(checkpoint.size_bytes > 0 for checkpoint in listed), f"sizes: {[c.size_bytes for c in listed]}")
    found = client.get_checkpoint_path(run.training_run_id, "weights/first")
    expect(found.twinkle_path == first.twinkle_path, f"{found.twinkle_path} is not {first.twinkle_path}")
    expect(os.path.isfile(os.path.join(found.path, "adapter_model.safetensors")), f"no adapter in {found.path}")
    expect(client.get_checkpoint_twinkle_path(run.training_run_id, "weights/second") == second.twinkle_path, "")
    expect(os.path.isdir(client.get_latest_checkpoint_path(run.training_run_id)), "no latest checkpoint")
    info = client.get_weights_info(second.twinkle_path)
    expect((info.base_model, info.is_lora, info.lora_rank) == (world.model, True, 8), f"weights info: {info}")
    expect(info.training_run_id == run.training_run_id, f"weights info: {info}")
    expect("/sampler_weights/" in sampler.twinkle_path, sampler.twinkle_path)

    expect(client.delete_checkpoint(run.training_run_id, "weights/first").success, "not deleted")
    names = [checkpoint.checkpoint_id for checkpoint in client.list_checkpoints(run.training_run_id)]
    expect("weights/first" not in names and "weights/second" in names, f"checkpoints: {names}")
    refused(lambda: model.load(first.twinkle_path), 404)
    for broken in (lambda: client.get_checkpoint_path(run.training_run_id, "weights/first"),
                   lambda: client.delete_checkpoint(run.training_run_id, "weights/../../x")):
        try:
            broken()
        except (TwinkleClientError, OSError):
            continue
        raise AssertionError("a checkpoint that is gone was found")


def test_a_checkpoint_opens_in_peft(world):
    from safetensors import safe_open

    client = world.sign_in("peft user")
    model = world.trained(r=4)
    step(model, features(23))
    saved = model.save(name="for peft")
    run, _, name = saved.twinkle_path.removeprefix("twinkle://").partition("/")
    folder = client.get_checkpoint_path(run, name).path
    with safe_open(os.path.join(folder, "adapter_model.safetensors"), "numpy") as tensors:
        names = list(tensors.keys())
        expect(all(name.startswith("base_model.model.") for name in names), f"names: {names[:2]}")
        ranks = {tensors.get_slice(name).get_shape()[0] for name in names if "lora_A" in name}
    expect(ranks == {4}, f"ranks: {ranks}")
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(folder)
    expect((config.r, config.lora_alpha) == (4, 16), f"the configuration says {config.r}, {config.lora_alpha}")


def test_an_upload_that_fails_says_why(world):
    """The package waits for the upload and raises; the node of the tests may not reach any hub."""
    world.sign_in()
    model = world.trained()
    saved = model.save(name="upload")
    try:
        model.upload_to_hub(saved.twinkle_path, "somebody/something", hub_token="hub-secret", poll_interval=0.05)
    except (RuntimeError, OSError) as error:
        expect("hub-secret" not in str(error), f"the token is told: {error}")
    else:
        raise AssertionError("an upload without a network was completed")


def test_names_are_made_up_and_overwritten(world):
    world.sign_in()
    model = world.trained()
    rows = features(24)
    unnamed = model.save(name=None)
    expect(len(unnamed.twinkle_path.rpartition("/")[2]) >= 15, unnamed.twinkle_path)
    model.save(name="again")
    step(model, rows)
    after = model.forward_only(inputs=rows).result["logps"]
    again = model.save(name="again")
    other = world.adapter()
    other.load(again.twinkle_path)
    expect(other.forward_only(inputs=rows).result["logps"] == after, "the older checkpoint of that name was loaded")
