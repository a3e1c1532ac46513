"""What torch's autograd makes of the losses of Twinkle's own protocol, as `native_losses.json`.

Every loss with its defaults and with each of its settings, in fp64 on a few rows of logits or embeddings: the value and the
gradient by every logit. One loss of each kind once more through a network, with PEFT in fp32: the value, and of each adapter
matrix's gradient its length and its product with a known vector.

    .venvs/reference/bin/python tests/golden/native_losses.py [--check]
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

PATH = Path(__file__).with_name("native_losses.json")
FIXTURES = Path(__file__).with_name("fixtures")
VOCABULARY = 7
LENGTHS = [5, 3, 6, 4]
WIDTH = 5
IGNORED = -100

# Name of the case, of the loss, its settings, and what is different about its data.
CASES = [
    ("ce_mean", "CrossEntropyLoss", {}, {}),
    ("ce_sum", "CrossEntropyLoss", {"reduction": "sum"}, {}),
    ("ce_dft", "CrossEntropyLoss", {"dft": True}, {}),
    ("ce_dft_sum", "CrossEntropyLoss", {"dft": True, "reduction": "sum"}, {}),
    ("ce_warm", "CrossEntropyLoss", {}, {"temperature": 1.7}),
    ("chunked", "ChunkedCrossEntropyLoss", {"chunk_size": 4}, {}),
    ("fused", "LigerFusedLinearCrossEntropyLoss", {}, {}),
    ("fused_smooth", "LigerFusedLinearCrossEntropyLoss", {"reduction": "mean", "label_smoothing": 0.3}, {}),
    ("fused_capped", "LigerFusedLinearCrossEntropyLoss", {"softcap": 1.5, "label_smoothing": 0.1}, {"temperature": 0.8}),
    ("grpo", "GRPOLoss", {}, {}),
    ("grpo_own", "GRPOLoss", {}, {"without": ["old_logps"]}),
    ("grpo_nothing", "GRPOLoss", {}, {"without": ["advantages"]}),
    ("grpo_all", "GRPOLoss", {"epsilon": 0.1, "epsilon_high": 0.4, "beta": 0.3, "entropy_coef": 0.2}, {}),
    ("grpo_beta_without_reference", "GRPOLoss", {"beta": 0.3}, {"without": ["ref_logps"]}),
    ("grpo_far", "GRPOLoss", {}, {"far": True}),
    ("ppo", "PPOLoss", {"beta": 0.1}, {}),
    ("ppo_sequences", "PPOLoss", {"loss_agg_mode": "seq-mean-token-mean"}, {}),
    ("gspo", "GSPOLoss", {}, {}),
    ("gspo_own", "GSPOLoss", {}, {"without": ["old_logps"]}),
    ("gspo_all", "GSPOLoss", {"epsilon": 0.05, "epsilon_high": 0.3, "beta": 0.2, "entropy_coef": 0.1}, {}),
    ("sapo", "SAPOLoss", {}, {}),
    ("sapo_taus", "SAPOLoss", {"tau_pos": 2.0, "tau_neg": 3.0, "beta": 0.2}, {}),
    ("cispo", "CISPOLoss", {}, {}),
    ("cispo_items", "CISPOLoss", {"epsilon": 0.4, "num_items_in_batch": 24}, {}),
    ("bnpo", "BNPOLoss", {}, {}),
    ("drgrpo", "DRGRPOLoss", {"max_completion_length": 16, "epsilon_high": 0.3}, {}),
    ("dpo", "DPOLoss", {}, {}),
    ("dpo_smooth", "DPOLoss", {"beta": 0.5, "label_smoothing": 0.2, "sft_weight": 0.7}, {}),
    ("dpo_hinge", "DPOLoss", {"loss_type": "hinge", "beta": 0.4}, {}),
    ("dpo_ipo", "DPOLoss", {"loss_type": "ipo", "beta": 0.3}, {}),
    ("dpo_kto", "DPOLoss", {"loss_type": "kto_pair", "beta": 0.6}, {}),
    ("dpo_free", "DPOLoss", {"reference_free": True}, {}),
    ("dpo_nothing", "DPOLoss", {"sft_weight": 1.0}, {"without": ["ref_logps"]}),
    ("simpo", "SimPOLoss", {}, {}),
    ("simpo_settings", "SimPOLoss", {"beta": 1.5, "gamma": -0.2}, {}),
    ("cpo", "CPOLoss", {}, {}),
    ("cpo_settings", "CPOLoss", {"beta": 0.7, "bc_coef": 0.2}, {}),
    ("orpo", "ORPOLoss", {}, {}),
    ("orpo_settings", "ORPOLoss", {"lambda_orpo": 1.3}, {}),
    ("gkd", "GKDLoss", {}, {}),
    ("gkd_forward", "GKDLoss", {"beta": 0.0}, {}),
    ("gkd_reverse", "GKDLoss", {"beta": 1.0, "temperature": 0.7}, {}),
    ("gkd_mixed", "GKDLoss", {"beta": 0.2, "temperature": 2.0}, {"temperature": 1.3}),
    ("mse", "MSELoss", {}, {}),
    ("infonce", "InfonceLoss", {}, {}),
    ("infonce_groups", "InfonceLoss", {"use_batch": False, "temperature": 0.5}, {}),
    ("infonce_all", "InfonceLoss", {"include_qq": True, "include_dd": True, "temperature": 0.3}, {}),
    ("infonce_masked", "InfonceLoss", {"include_qq": True, "include_dd": True, "mask_fake_negative": True,
                                       "fake_neg_margin": 0.05}, {}),
    ("infonce_hard", "InfonceLoss", {"hard_negatives": 2}, {}),
]
# Those that go through the network once more.
NETWORK = ["ce_warm", "fused_capped", "grpo_all", "gspo_all", "dpo_smooth", "gkd_mixed", "mse", "infonce_all"]
NETWORK_MODEL = ("llama3_tied", "attn_mlp_unembed")
NETWORK_LENGTHS = [9, 14, 6, 11]


def per_token(logits, labels):
    """Log-probabilities of the labels, those of token 0 where nothing is to be learned; and the mask."""
    mask = labels != IGNORED
    rows = torch.log_softmax(logits, -1)
    return rows.gather(-1, labels.where(mask, torch.zeros_like(labels))[..., None])[..., 0], mask.to(logits.dtype), rows


def cross_entropy(settings, data, logits, default):
    labels = data["labels"]
    cap = settings.get("softcap")
    if cap is not None:
        logits = cap * torch.tanh(logits * data["temperature"] / cap) / data["temperature"]
    total = settings.get("reduction", default)
    if settings.get("dft"):
        logps, mask, _ = per_token(logits, labels)
        value = -(logps * logps.exp() * mask).sum()
        value = value if total == "sum" else value / mask.sum()
    else:
        value = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction=total,
                                label_smoothing=settings.get("label_smoothing", 0.0))
    return value, (labels != IGNORED).sum().item() if total == "sum" else 0


def policy(name, settings, data, logits):
    logps, mask, rows = per_token(logits, data["labels"])
    if data.get("advantages") is None:
        return (logps * 0).sum(), 0
    old = data["old_logps"] if data.get("old_logps") is not None else logps.detach()
    advantages = data["advantages"]
    difference = (logps - old).clamp(-20, 20)
    lengths = mask.sum(-1, keepdim=True)
    if name == "GSPOLoss":
        difference = ((difference * mask).sum(-1, keepdim=True) / lengths).expand_as(logps)
    ratio = difference.exp()
    epsilon = settings.get("epsilon", 0.2)
    low, high = 1 - epsilon, 1 + settings.get("epsilon_high", epsilon)
    counted = ratio[mask.bool()]
    assert min((counted - bound).abs().min() for bound in (low, high)) > 1e-4, (name, "a ratio on its bound")
    if name == "SAPOLoss":
        tau = torch.where(advantages > 0, settings.get("tau_pos", 1.0), settings.get("tau_neg", 1.0))
        loss = -advantages * torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    elif name == "CISPOLoss":
        loss = -torch.minimum(ratio, torch.tensor(1 + epsilon, dtype=ratio.dtype)).detach() * advantages * logps
    else:
        loss = torch.maximum(-ratio * advantages, -ratio.clamp(low, high) * advantages)
    reference = data.get("ref_logps")
    if settings.get("beta", 0) > 0 and reference is not None:
        loss = loss + settings["beta"] * ((reference - logps).exp() - 1 - (reference - logps))
    if settings.get("entropy_coef", 0) > 0:
        loss = loss - settings["entropy_coef"] * torch.distributions.Categorical(logits=logits).entropy()
    assert torch.equal(rows.exp().sum(-1).round(), torch.ones_like(mask))
    loss = loss * mask
    if name in ("GRPOLoss", "GSPOLoss", "SAPOLoss") or settings.get("loss_agg_mode") == "seq-mean-token-mean":
        return (loss.sum(-1) / lengths[:, 0]).mean(), 0
    if name == "DRGRPOLoss":
        return loss.sum() / (len(mask) * settings.get("max_completion_length", 1024)), 0
    return loss.sum() / settings.get("num_items_in_batch", mask.sum()), 0


def preference(name, settings, data, logits):
    logps, mask, _ = per_token(logits, data["labels"])
    sums, lengths = (logps * mask).sum(-1), mask.sum(-1)
    (chosen, rejected), means = (sums[::2], sums[1::2]), sums / lengths
    nll = -sums[::2].sum() / lengths[::2].sum()
    if name == "SimPOLoss":
        margin = settings.get("beta", 2.5) * (means[::2] - means[1::2]) - settings.get("gamma", 0.5)
        return -F.logsigmoid(margin).mean(), 0
    if name == "CPOLoss":
        margin = settings.get("beta", 0.1) * (chosen - rejected)
        return -F.logsigmoid(margin).mean() + settings.get("bc_coef", 1.0) * nll, 0
    if name == "ORPOLoss":
        odds = torch.logit(means.exp())
        return nll - settings.get("lambda_orpo", 0.1) * F.logsigmoid(odds[::2] - odds[1::2]).mean(), 0
    beta = settings.get("beta", 0.1)
    if not settings.get("reference_free"):
        if data.get("ref_logps") is None:
            return (logps * 0).sum(), 0
        reference = (data["ref_logps"] * mask).sum(-1)
        chosen, rejected = chosen - reference[::2], rejected - reference[1::2]
    margin = beta * (chosen - rejected)
    kind = settings.get("loss_type", "sigmoid")
    if kind == "sigmoid":
        target = torch.full_like(margin, 1 - settings.get("label_smoothing", 0.0))
        loss = F.binary_cross_entropy_with_logits(margin, target, reduction="none")
    elif kind == "hinge":
        loss = F.relu(1 - margin)
    elif kind == "ipo":
        loss = (margin - 1 / (2 * beta)).square()
    else:
        loss = 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
    return loss.mean() + settings.get("sft_weight", 0.0) * nll, 0


def distillation(settings, data, logits):
    mask, beta = data["labels"] != IGNORED, settings.get("beta", 0.5)
    scale = settings.get("temperature", 1.0)
    student = torch.softmax(logits.gather(-1, data["candidates"])[mask] / scale, -1)
    teacher = torch.softmax(data["teacher_logprobs"][mask] / scale, -1)

    def divergence(p, q):
        return (p * (p / q).log()).sum(-1)

    if beta == 0:
        return divergence(teacher, student).mean(), 0
    if beta == 1:
        return divergence(student, teacher).mean(), 0
    middle = (1 - beta) * student + beta * teacher
    return (beta * divergence(teacher, middle) + (1 - beta) * divergence(student, middle)).mean(), 0


def squared_error(data, logits):
    mask = data["labels"] != IGNORED
    return F.mse_loss(logits.gather(-1, data["candidates"])[mask], data["target_logits"][mask]), 0


def contrastive(settings, data, rows):
    embeddings = F.normalize(rows, dim=-1)
    groups, batch = [], settings.get("use_batch", True)
    for place, label in enumerate(data["label"]):
        groups.append([place]) if label else groups[-1].append(place)
    hard = settings.get("hard_negatives")
    if hard is not None:
        groups = [group[:2] + [group[2 + i % (len(group) - 2)] for i in range(hard)] for group in groups]
    documents = [place for group in groups for place in group[1:]]
    losses = []
    for own, group in enumerate(groups):
        anchor, positive = embeddings[group[0]], embeddings[group[1]]
        pool = documents if batch else group[1:]
        target = sum(len(other) - 1 for other in groups[:own]) if batch else 0
        near = embeddings[pool] @ anchor
        limit = near[target].item() + settings.get("fake_neg_margin", 0.1)
        parts = [near]
        if batch and settings.get("include_qq"):
            parts.append(embeddings[[other[0] for other in groups if other is not group]] @ anchor)
        if batch and settings.get("mask_fake_negative"):
            assert all((part - limit).abs().min() > 1e-4 for part in parts)
            parts = [part.masked_fill(part > limit, -math.inf) for part in parts]
        if batch and settings.get("include_dd"):
            parts.append(embeddings[[place for i, place in enumerate(pool) if i != target]] @ positive)
        scores = torch.cat(parts) / settings.get("temperature", 0.1)
        losses.append(F.cross_entropy(scores[None], torch.tensor([target])))
    return torch.stack(losses).mean(), 0


def loss_of(name, settings, data, scored):
    """`scored`: padded logits, divided by the temperature; or rows whose direction is an embedding."""
    if "CrossEntropy" in name:
        return cross_entropy(settings, data, scored, "sum" if name.startswith("Liger") else "mean")
    if name in ("DPOLoss", "SimPOLoss", "CPOLoss", "ORPOLoss"):
        return preference(name, settings, data, scored)
    if name == "GKDLoss":
        return distillation(settings, data, scored)
    if name == "MSELoss":
        return squared_error(data, scored)
    if name == "InfonceLoss":
        return contrastive(settings, data, scored)
    return policy(name, settings, data, scored)


def short(tensor):
    """Numbers of few digits, so that their text is short and means the same fp32."""
    return (tensor * 1000).round() / 1000


def random_data(name, changes, lengths, vocabulary, logps, random):
    """Padded inputs for a loss on sequences of these lengths; `logps` are of every token, `[B, T, V]`."""
    def normal(*shape):
        return short(torch.randn(*shape, generator=random, dtype=torch.float64))

    batch, longest = len(lengths), max(lengths)
    labels = torch.randint(0, vocabulary, (batch, longest), generator=random)
    place = torch.arange(longest)[None].expand(batch, -1)
    # The first position of each is a prompt.
    labels[(place >= torch.tensor(lengths)[:, None]) | (place == 0)] = IGNORED
    data = {"labels": labels, "temperature": changes.get("temperature", 1.0)}
    scored = logps.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    if name in ("GKDLoss", "MSELoss"):
        order = torch.rand(batch, longest, vocabulary, generator=random).argsort(-1)
        data["candidates"] = order[..., :4]
        data["teacher_logprobs" if name == "GKDLoss" else "target_logits"] = normal(batch, longest, 4)
    elif name == "InfonceLoss":
        data["label"] = [1, 0, 0, 0, 1, 0, 0] if batch == 7 else [1, 0, 1, 0]
    elif "CrossEntropy" not in name:
        data["ref_logps"] = short(scored + 0.5 * normal(batch, longest))
        data["old_logps"] = short(scored + 0.3 * normal(batch, longest))
        data["advantages"] = normal(batch, longest)
        if changes.get("far"):
            data["old_logps"] -= torch.tensor([0.0, 30.0])[torch.arange(longest) % 2]
    for absent in changes.get("without", []):
        del data[absent]
    return data


def written(data, lengths):
    """The data of each sequence, without its padding."""
    if "label" in data:
        return [{"label": label} for label in data["label"]]
    names = [name for name in data if name not in ("labels", "temperature")]
    each = []
    for number, length in enumerate(lengths):
        labels = data["labels"][number, :length]
        own = {name: data[name][number, :length].flatten().tolist() for name in names}
        own["mask"] = (labels != IGNORED).int().tolist()
        own["target_tokens"] = own.pop("candidates", labels.clamp(min=0).tolist())
        each.append(own)
    return each


def rounded(values):
    return [float(f"{value:.9g}") for value in values]


def rows_cases():
    random = torch.Generator().manual_seed(11)
    logits = short(1.5 * torch.randn(len(LENGTHS), max(LENGTHS), VOCABULARY, generator=random, dtype=torch.float64))
    rows = short(torch.randn(7, WIDTH, generator=random, dtype=torch.float64))
    cases = {}
    for case, name, settings, changes in CASES:
        if name == "InfonceLoss":
            leaf = rows.clone().requires_grad_()
            data = random_data(name, changes, [1] * 7, VOCABULARY, torch.zeros(7, 1, VOCABULARY), random)
            value, tokens = loss_of(name, settings, data, leaf)
            each = [[leaf_row] for leaf_row in range(7)]
        else:
            leaf = logits.clone().requires_grad_()
            scaled = leaf / changes.get("temperature", 1.0)
            data = random_data(name, changes, LENGTHS, VOCABULARY, scaled.detach().log_softmax(-1), random)
            value, tokens = loss_of(name, settings, data, scaled)
            each = [range(length) for length in LENGTHS]
        gradient = torch.autograd.grad(value, leaf)[0]
        if name == "InfonceLoss":
            gradients = [rounded(gradient[number].tolist()) for number in range(7)]
        else:
            gradients = [rounded(gradient[n, :len(own)].flatten().tolist()) for n, own in enumerate(each)]
        cases[case] = {
            "loss": name, "settings": settings, "temperature": changes.get("temperature", 1.0),
            "data": written(data, LENGTHS), "value": value.item(), "num_tokens": tokens, "gradients": gradients,
        }
    shown = [rounded(logits[n, :length].flatten().tolist()) for n, length in enumerate(LENGTHS)]
    return {"vocabulary": VOCABULARY, "logits": shown, "rows": [rounded(row) for row in rows.tolist()], "cases": cases}


def fingerprint(tensor):
    """The length of a tensor and its product with cos(0.37 i + 0.1)."""
    flat = tensor.detach().double().flatten()
    pattern = torch.cos(0.37 * torch.arange(len(flat), dtype=torch.float64) + 0.1)
    return rounded([flat.norm().item(), (flat @ pattern).item()])


def network():
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    variant, adapter = NETWORK_MODEL
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(FIXTURES / variant, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, FIXTURES / variant / adapter, is_trainable=True).eval()
    lora = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    random = torch.Generator().manual_seed(5)
    vocabulary, lengths = base.config.vocab_size, NETWORK_LENGTHS
    tokens = [torch.randint(0, vocabulary, (length,), generator=random) for length in lengths]

    def outputs():
        return [model(own[None], output_hidden_states=True) for own in tokens]

    def padded(found):
        return torch.nn.utils.rnn.pad_sequence([one.logits[0] for one in found], batch_first=True)

    def last_rows(found):
        return torch.stack([one.hidden_states[-1][0, -1] for one in found])

    with torch.no_grad():
        found = outputs()
        entropies = [torch.distributions.Categorical(logits=one.logits[0]).entropy() for one in found]
        embeddings = F.normalize(last_rows(found), dim=-1)
        with model.disable_adapter():
            bare = outputs()
        bare_entropies = [torch.distributions.Categorical(logits=one.logits[0]).entropy() for one in bare]
    result = {
        "variant": variant, "adapter": adapter, "tokens": [own.tolist() for own in tokens],
        "entropies": [rounded(own.tolist()) for own in entropies],
        "bare_entropies": [rounded(own.tolist()) for own in bare_entropies],
        "logits": [fingerprint(one.logits[0]) for one in found],
        "embeddings": [rounded(own.tolist()) for own in embeddings], "cases": {},
    }
    for case, name, settings, changes in CASES:
        if case not in NETWORK:
            continue
        found = outputs()
        scaled = padded(found) / changes.get("temperature", 1.0)
        data = random_data(name, changes, lengths, vocabulary, scaled.detach().double().log_softmax(-1), random)
        data = {key: it.float() if torch.is_tensor(it) and it.is_floating_point() else it for key, it in data.items()}
        value, count = loss_of(name, settings, data, last_rows(found) if name == "InfonceLoss" else scaled)
        used = torch.autograd.grad(value, list(lora.values()), allow_unused=True)
        gradients = {}
        for (key, parameter), gradient in zip(lora.items(), used):
            module, _, side = key.removeprefix("base_model.model.").removesuffix(".default.weight").rpartition(".")
            gradients[f"{module}.{side}"] = fingerprint(torch.zeros_like(parameter) if gradient is None else gradient)
        result["cases"][case] = {
            "loss": name, "settings": settings, "temperature": changes.get("temperature", 1.0),
            "data": written(data, lengths), "value": value.item(), "num_tokens": count, "gradients": gradients,
        }
    return result


def agrees(old, new, path=""):
    if isinstance(new, dict):
        assert old.keys() == new.keys(), path
        return all(agrees(old[key], new[key], f"{path}.{key}") for key in new)
    if isinstance(new, list):
        assert len(old) == len(new), path
        return all(agrees(a, b, f"{path}.{place}") for place, (a, b) in enumerate(zip(old, new)))
    if isinstance(new, float):
        assert math.isclose(old, new, rel_tol=1e-4, abs_tol=1e-6), (path, old, new)
    else:
        assert old == new, (path, old, new)
    return True


def main():
    torch.set_num_threads(1)
    found = {"rows": rows_cases(), "network": network()}
    if "--check" in sys.argv[1:]:
        agrees(json.loads(PATH.read_text()), found)
        print("the same")
        return
    lines = json.dumps(found, separators=(",", ":")).replace('},"', '},\n"')
    PATH.write_text(lines + "\n")


main()
