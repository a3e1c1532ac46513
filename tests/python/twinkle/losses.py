"""Every loss against its formula, from the log-probabilities that came with it."""

import math
import statistics

from kit import expect, features, learned, log_sigmoid, mask, mean_loss, near, step, sums

TOLERANCE = 2e-4


def loss_of(world, name: str, rows, seed_steps: int = 0, settings=None, **inputs) -> tuple[dict, object]:
    model = world.trained()
    for _ in range(seed_steps):
        step(model, rows)
    model.set_loss(name, **(settings or {}))
    return model.forward_backward(inputs=rows, **inputs).result, model


def test_cross_entropy_by_name_is_a_mean_and_a_sum_on_request(world):
    world.sign_in()
    rows = features(11)
    tokens = sum(sum(mask(row)) for row in rows)
    for name in ("CrossEntropyLoss", "ChunkedCrossEntropyLoss"):
        result, _ = loss_of(world, name, rows)
        near(result["loss"], mean_loss(rows, result["logps"]), TOLERANCE, name)
    result, _ = loss_of(world, "CrossEntropyLoss", rows, settings={"reduction": "sum"})
    near(result["loss"], tokens * mean_loss(rows, result["logps"]), tokens * TOLERANCE, "the sum")
    fresh = world.adapter()
    result = fresh.forward_backward(inputs=rows).result
    near(result["loss"], tokens * mean_loss(rows, result["logps"]), tokens * TOLERANCE, "a fresh adapter's sum")


def test_dynamic_fine_tuning_weighs_each_token_by_its_probability(world):
    world.sign_in()
    rows = features(12)
    result, _ = loss_of(world, "CrossEntropyLoss", rows, settings={"dft": True})
    values = [logp for line in learned(rows, result["logps"]) for logp in line]
    near(result["loss"], statistics.mean(-logp * math.exp(logp) for logp in values), TOLERANCE, "dft")


def test_grpo_without_old_log_probabilities_is_minus_the_mean_advantage(world):
    world.sign_in()
    rows, advantages = features(13), [1.0, -0.5, 2.0, 0.25]
    result, _ = loss_of(world, "GRPOLoss", rows, advantages=advantages)
    near(result["loss"], -statistics.mean(advantages), TOLERANCE, "the loss")


def test_policy_losses_follow_their_formulas(world):
    world.sign_in()
    rows, advantages = features(14), [1.0, -0.5, 2.0, -0.25]
    base, _ = loss_of(world, "CrossEntropyLoss", rows)
    old = learned(rows, base["logps"])
    # Another policy than the one that drew the tokens, so that ratios are not 1.
    model = world.trained(lr=3e-3)
    for _ in range(3):
        step(model, rows)
    new = learned(rows, model.forward_only(inputs=rows).result["logps"])

    def ratios(line, old_line):
        return [math.exp(a - b) for a, b in zip(line, old_line)]

    def clipped(ratio, advantage, low=0.2, high=0.2):
        return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)

    per_token = [
        [clipped(ratio, advantage) for ratio in ratios(line, old_line)]
        for line, old_line, advantage in zip(new, old, advantages)
    ]
    count = sum(len(line) for line in per_token)
    total = sum(map(sum, per_token))

    def gspo():
        values = []
        for line, old_line, advantage in zip(new, old, advantages):
            ratio = math.exp(statistics.mean(a - b for a, b in zip(line, old_line)))
            values.append(clipped(ratio, advantage))
        return statistics.mean(values)

    def sapo():
        values = []
        for line, old_line, advantage in zip(new, old, advantages):
            values.append(statistics.mean(-advantage * 4 / (1 + math.exp(-(ratio - 1))) for ratio in ratios(line, old_line)))
        return statistics.mean(values)

    def cispo():
        value = 0.0
        for line, old_line, advantage in zip(new, old, advantages):
            value += sum(-min(r, 1.2) * advantage * logp for r, logp in zip(ratios(line, old_line), line))
        return value / count

    wanted = {
        "GRPOLoss": statistics.mean(statistics.mean(line) for line in per_token),
        "PPOLoss": total / count,
        "GSPOLoss": gspo(),
        "SAPOLoss": sapo(),
        "CISPOLoss": cispo(),
        "BNPOLoss": total / count,
        "DRGRPOLoss": total / (len(rows) * 1024),
    }
    wrong = []
    for name, value in wanted.items():
        model.set_loss(name)
        loss = model.forward_backward(inputs=rows, advantages=advantages, old_logps=old).result["loss"]
        if abs(loss - value) > TOLERANCE * max(1.0, abs(value)):
            wrong.append(f"`{name}` is {loss}, its formula {value}")
        model.zero_grad()
    expect(not wrong, "; ".join(wrong))


def test_preference_losses_follow_their_formulas(world):
    world.sign_in()
    rows = features(15)
    model = world.trained(lr=3e-3)
    reference = model.forward_only(inputs=rows, disable_lora=True).result
    model.set_loss("DPOLoss", beta=0.1)
    first = model.forward_backward(inputs=rows, ref_outputs=reference).result["loss"]
    near(first, math.log(2), 1e-5, "the first loss of DPO")
    model.clip_grad_and_step()
    for _ in range(2):
        step(model, rows, ref_outputs=reference)
    now = model.forward_only(inputs=rows).result["logps"]
    now_sums, reference_sums = sums(rows, now), sums(rows, reference["logps"])
    pairs = list(zip(now_sums[::2], now_sums[1::2], reference_sums[::2], reference_sums[1::2]))
    lengths = [sum(mask(row)) for row in rows]
    averages = [value / length for value, length in zip(now_sums, lengths)]
    odds = [average - math.log1p(-math.exp(average)) for average in averages]
    margins = [0.1 * ((c - rc) - (r - rr)) for c, r, rc, rr in pairs]
    chosen_nll = -sum(now_sums[::2]) / sum(lengths[::2])
    wanted = {
        ("DPOLoss", "sigmoid"): statistics.mean(-log_sigmoid(z) for z in margins),
        ("DPOLoss", "hinge"): statistics.mean(max(0.0, 1 - z) for z in margins),
        ("DPOLoss", "ipo"): statistics.mean((z - 1 / 0.2) ** 2 for z in margins),
        ("SimPOLoss", None): statistics.mean(
            -log_sigmoid(2.5 * (c - r) - 0.5) for c, r in zip(averages[::2], averages[1::2])
        ),
        ("CPOLoss", None): statistics.mean(-log_sigmoid(0.1 * (c - r)) for c, r, _, _ in pairs) + chosen_nll,
        ("ORPOLoss", None): statistics.mean(-log_sigmoid(c - r) for c, r in zip(odds[::2], odds[1::2])) * 0.1 + chosen_nll,
    }
    wrong = []
    for (name, kind), value in wanted.items():
        model.set_loss(name, **({"loss_type": kind, "beta": 0.1} if kind else {}))
        inputs = {"ref_outputs": reference} if kind else {}
        loss = model.forward_backward(inputs=rows, **inputs).result["loss"]
        if abs(loss - value) > TOLERANCE * max(1.0, abs(value)):
            wrong.append(f"`{name}` {kind or ''} is {loss}, its formula {value}")
        model.zero_grad()
    expect(not wrong, "; ".join(wrong))


def test_the_flow_of_dpo_keeps_working_with_its_metric(world):
    """Upstream, `DPOMetric` with `ref_outputs` makes every later pass of the adapter fail."""
    world.sign_in()
    rows = features(16)
    model = world.trained(loss="DPOLoss", lr=1e-2)
    model.add_metric("DPOMetric", beta=0.1)
    reference = model.forward_only(inputs=rows, disable_lora=True).result
    for _ in range(3):
        step(model, rows, ref_outputs=reference)
    metrics = model.calculate_metric(is_training=True).result
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        expect(name in metrics, f"`{name}` is not among {sorted(metrics)}")
    expect(metrics["rewards/accuracies"].endswith("%"), f"the accuracy is {metrics['rewards/accuracies']}")
    expect(float(metrics["rewards/margins"]) > 0, f"the margin is {metrics['rewards/margins']} after three steps")
    step(model, rows, ref_outputs=reference)


def test_embeddings_are_normal_and_infonce_pulls_pairs_together(world):
    world.sign_in()
    rows = features(17, count=4)
    for index, row in enumerate(rows):
        row["labels"] = [1 if index % 2 == 0 else 0]
    model = world.trained(loss="InfonceLoss", lr=1e-2)
    first = model.forward_backward(inputs=rows, task="embedding").result
    lengths = [math.sqrt(sum(value * value for value in row)) for row in first["embeddings"]]
    expect(all(abs(length - 1) < 1e-4 for length in lengths), f"embeddings have the lengths {lengths}")
    model.clip_grad_and_step()
    for _ in range(5):
        last = step(model, rows, task="embedding")
    expect(last["loss"] < first["loss"], f"the loss went from {first['loss']} to {last['loss']}")


def test_distillation_from_the_model_itself_costs_nothing(world):
    world.sign_in()
    rows = features(18, count=2, shortest=8, longest=8)
    model = world.trained()
    logits = model.forward_only(inputs=rows, return_logits=True).result["logits"]
    expect(len(logits) == 2 and len(logits[0]) == 8, "logits are not [batch, length, vocabulary]")
    top_logprobs, top_indices = [], []
    for row in logits:
        top_logprobs.append([])
        top_indices.append([])
        for line in row:
            ids = sorted(range(len(line)), key=lambda token: -line[token])
            high = max(line)
            whole = high + math.log(sum(math.exp(value - high) for value in line))
            top_indices[-1].append(ids)
            top_logprobs[-1].append([line[token] - whole for token in ids])
    model.set_loss("GKDLoss", beta=0.5)
    loss = model.forward_backward(
        inputs=rows, teacher_topk_logprobs=top_logprobs, teacher_topk_indices=top_indices
    ).result["loss"]
    near(loss, 0.0, 1e-5, "the divergence from itself")
