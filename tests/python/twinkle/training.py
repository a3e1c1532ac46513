"""Adapters, passes, steps, metrics."""

import math

from kit import expect, features, mean_loss, near, plain, step, use
from twinkle_client.model import MultiLoraTransformersModel


def test_a_session_asks_what_the_server_has(world):
    client = world.sign_in()
    expect(client.health_check(), "the health check fails")
    models = [model.model_name for model in client.get_server_capabilities().supported_models]
    expect(world.model in models, f"`{world.model}` is not among {models}")
    before = client.get_capacity_info()
    world.adapter()
    after = client.get_capacity_info()
    expect(after.max_loras > 0 and after.used_loras == before.used_loras + 1, f"capacity went from {before} to {after}")
    expect(after.free_loras == after.max_loras - after.used_loras, f"capacity does not add up: {after}")
    client.close()


def test_supervised_training_learns_and_says_so(world):
    world.sign_in()
    model = world.trained()
    model.set_lr_scheduler("LinearLR", start_factor=1.0, end_factor=0.5, total_iters=4)
    rows = features(1)
    first = step(model, rows)
    expect(first["logits"] is None, "logits were not asked for")
    width = max(row["length"] for row in rows)
    shape = [len(line) for line in first["logps"]]
    expect(shape == [width] * len(rows), f"logps are {shape}, not {len(rows)} lines of {width}")
    near(first["loss"], mean_loss(rows, first["logps"]), 1e-4, "the mean loss")
    metrics = model.calculate_metric(is_training=True).result
    expect(metrics["loss"] == f"{first['loss']:.4f}", f"the metric's loss is {metrics['loss']}, the pass's {first['loss']}")
    expect(float(metrics["grad_norm"]) > 0, f"grad_norm is {metrics['grad_norm']}")
    rates = [value for name, value in metrics.items() if name.startswith("learning rate")]
    expect(rates and abs(float(rates[0]) - 8.75e-3) < 1e-8, f"after one of four steps from 1e-2 to 5e-3: {metrics}")
    expect(isinstance(metrics["iters"], int) and metrics["speed"].endswith("iters/s"), f"metrics are {metrics}")
    expect(metrics["total time elapse"].split()[-1] in ("seconds", "minutes"), f"metrics are {metrics}")
    for _ in range(12):
        last = step(model, rows)
    expect(last["loss"] < 0.5 * first["loss"], f"the loss went from {first['loss']} to {last['loss']}")


def test_a_pass_in_three_calls_is_the_pass_in_one(world):
    world.sign_in()
    model = world.trained()
    rows = features(2)
    output = model.forward(inputs=rows).result
    loss = model.calculate_loss().result
    model.backward()
    norm = model.clip_grad_norm(max_grad_norm=1e9).result
    model.zero_grad()
    whole = model.forward_backward(inputs=rows).result
    expect(loss == whole["loss"], f"the loss is {loss} in calls, {whole['loss']} in one")
    expect(output["logps"] == whole["logps"], "log-probabilities differ")
    expect(model.clip_grad_norm(max_grad_norm=1e9).result == norm, "the gradients' norms differ")


def test_forward_only_changes_nothing_and_can_ask_the_base_model(world):
    world.sign_in()
    model = world.trained()
    rows = features(3)
    base = model.forward_only(inputs=rows, disable_lora=True).result["logps"]
    expect(model.forward_only(inputs=rows).result["logps"] == base, "a fresh adapter is not the base model")
    step(model, rows)
    expect(model.forward_only(inputs=rows).result["logps"] != base, "a step changed nothing")
    expect(model.forward_only(inputs=rows, disable_lora=True).result["logps"] == base, "the base model has changed")


def test_two_batches_are_one_step_when_gradients_accumulate(world):
    """The mean over the tokens of both, as if they were one batch; upstream waits for a third batch at first."""
    world.sign_in()
    rows = features(4, count=6)
    model = world.adapter(gradient_accumulation_steps=2)
    model.set_loss("CrossEntropyLoss", reduction="sum")
    model.set_optimizer("SGD", lr=0.1, weight_decay=0.0)
    before = model.forward_only(inputs=rows).result["logps"]
    model.forward_backward(inputs=rows[:4])
    expect(model.clip_grad_norm(max_grad_norm=1e9).result == "None", "a norm before the window is full")
    model.step()
    model.zero_grad()
    expect(model.forward_only(inputs=rows).result["logps"] == before, "a step before the window is full")
    model.forward_backward(inputs=rows[4:])
    norm = float(model.clip_grad_norm(max_grad_norm=1e9).result)
    model.step()
    model.zero_grad()
    expect(model.forward_only(inputs=rows).result["logps"] != before, "no step when the window is full")

    whole = world.adapter()
    whole.load(model.save(name="window").twinkle_path)
    # Gradients at the same point: of both batches at once, and one after the other.
    whole.set_loss("CrossEntropyLoss", reduction="sum")
    whole.set_optimizer("SGD", lr=0.1, weight_decay=0.0)
    whole.forward_backward(inputs=rows)
    at_once = float(whole.clip_grad_norm(max_grad_norm=1e9).result)
    model.forward_backward(inputs=rows[:4])
    model.clip_grad_norm(max_grad_norm=1e9)
    model.forward_backward(inputs=rows[4:])
    near(float(model.clip_grad_norm(max_grad_norm=1e9).result), at_once, 1e-4 * at_once, f"the norm (at first {norm})")


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(world):
    world.sign_in()
    rows = features(5)
    model = world.trained(optimizer="SGD", lr=1.0)
    model.forward_backward(inputs=rows)
    norm = float(model.clip_grad_norm(max_grad_norm=1e-3).result)
    expect(norm > 1e-2, f"the norm before clipping is {norm}")
    model.step()
    # A fresh adapter's B is 0 and its A has no gradient: the step is B.
    state = model.get_state_dict().result
    moved = math.sqrt(sum(squares(value) for name, value in state.items() if "lora_B" in name))
    near(moved, 1e-3, 1e-6, "the length of the step")


def squares(value) -> float:
    return sum(map(squares, value)) if isinstance(value, list) else value * value


def test_every_optimizer_and_schedule_goes_by_its_name(world):
    world.sign_in()
    rows = features(6)
    model = world.adapter()
    optimizers = ["Adam", "AdamW", "SGD", "Adamax", "NAdam", "RAdam", "Adagrad", "RMSprop", "Adafactor"]
    for optimizer in optimizers:
        model.set_optimizer(optimizer, lr=1e-3)
        before = model.forward_only(inputs=rows).result["logps"]
        step(model, rows)
        expect(model.forward_only(inputs=rows).result["logps"] != before, f"`{optimizer}` moved nothing")
    schedules = [
        ("LinearLR", {}),
        ("ConstantLR", {}),
        ("StepLR", {"step_size": 2}),
        ("MultiStepLR", {"milestones": [2, 4]}),
        ("ExponentialLR", {"gamma": 0.9}),
        ("CosineAnnealingLR", {"T_max": 8}),
        ("CosineAnnealingWarmRestarts", {"T_0": 4}),
        ("PolynomialLR", {"total_iters": 8}),
        ("OneCycleLR", {"max_lr": 1e-2, "total_steps": 8}),
        ("CyclicLR", {"base_lr": 1e-4, "max_lr": 1e-2, "cycle_momentum": False}),
        ("CosineWarmupScheduler", {"num_warmup_steps": 2, "num_training_steps": 8}),
        ("LinearWarmupScheduler", {"num_warmup_steps": 2, "num_training_steps": 8}),
    ]
    for schedule, options in schedules:
        model.set_optimizer("AdamW", lr=1e-3)
        model.set_lr_scheduler(schedule, **options)
        step(model, rows)


def test_the_rate_follows_its_formula(world):
    """torch is the reference."""
    import torch

    world.sign_in()
    rows = features(7, count=2)
    for name, options in [("LinearLR", {"total_iters": 3}), ("CosineAnnealingLR", {"T_max": 4}), ("StepLR", {"step_size": 2})]:
        parameter = torch.nn.Parameter(torch.zeros(1))
        reference = torch.optim.AdamW([parameter], lr=1e-3)
        schedule = getattr(torch.optim.lr_scheduler, name)(reference, **options)
        model = world.trained(lr=1e-3)
        model.set_lr_scheduler(name, **options)
        for _ in range(4):
            step(model, rows)
            reference.step()
            schedule.step()
            metrics = model.calculate_metric(is_training=True).result
            rate = next(float(value) for key, value in metrics.items() if key.startswith("learning rate"))
            wanted = reference.param_groups[0]["lr"]
            near(rate, wanted, 1e-6 * wanted + 1e-12, f"the rate of `{name}`")


def test_settings_are_shown_and_weights_can_be_read(world):
    world.sign_in()
    model = world.trained(r=4)
    text = model.get_train_configs().result
    for word in ("AdamW", "0.01", "lora_A", '"r": 4'):
        expect(word in text, f"`{word}` is not in the settings:\n{text}")
    state = model.get_state_dict().result
    expect(any("lora_A" in name for name in state) and any("lora_B" in name for name in state), f"names: {list(state)[:4]}")
    expect(all(math.isfinite(flat(value)) for value in state.values()), "weights are not finite numbers")


def flat(value) -> float:
    """The sum of a nested list."""
    return sum(map(flat, value)) if isinstance(value, list) else float(value)


def test_text_is_encoded_by_the_adapters_template(world):
    from twinkle.template import Template

    world.sign_in()
    def conversation() -> dict:
        """A new one every time: the package's template writes into what it is given."""
        return {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A star."}]}

    here = Template(model_id=world.model_path).batch_encode([conversation()])
    rows = [{key: plain(row[key]) for key in ("input_ids", "labels", "attention_mask", "position_ids")} for row in here]
    model = world.trained()
    model.set_template("Template")
    of_text = model.forward_only(inputs=[conversation()]).result["logps"]
    of_tokens = model.forward_only(inputs=rows).result["logps"]
    expect(of_text == of_tokens, f"text gives other log-probabilities than the tokens it is: {of_text} {of_tokens}")


def test_metrics_can_be_added_and_count_since_they_were_last_asked(world):
    world.sign_in()
    model = world.trained()
    rows = features(8)
    losses = [step(model, rows)["loss"] for _ in range(3)]
    metrics = model.calculate_metric(is_training=True).result
    near(float(metrics["loss"]), sum(losses) / 3, 1e-3, "the mean of three losses")
    loss = step(model, rows)["loss"]
    near(float(model.calculate_metric(is_training=True).result["loss"]), loss, 1e-3, "the loss since then")
    model.add_metric("GRPOMetric", is_training=True)
    model.set_loss("GRPOLoss")
    step(model, rows, advantages=[1.0, -1.0, 0.5, -0.5])
    metrics = model.calculate_metric(is_training=True).result
    expect(any(name.startswith("train/") for name in metrics), f"no numbers of GRPO among {sorted(metrics)}")


def test_a_repeated_adapter_is_the_live_one(world):
    """A client that was restarted adds its adapter again; upstream's optimizer would be gone and a slot lost."""
    from kit import LoraConfig

    client = world.sign_in()
    model = world.trained()
    rows = features(9)
    for _ in range(2):
        step(model, rows)
    before = model.forward_only(inputs=rows).result["logps"]
    used = client.get_capacity_info().used_loras
    again = MultiLoraTransformersModel(model_id=world.model)
    again.add_adapter_to_model(model.adapter_name, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    expect(client.get_capacity_info().used_loras == used, "the repetition took another slot")
    expect(again.forward_only(inputs=rows).result["logps"] == before, "the repetition changed the adapter")
    step(again, rows)
    use(client)
