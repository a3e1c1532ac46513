"""What torch computes with traced custom losses, as `custom_losses.json`.

Every loss is traced and encoded by the SDK itself, so that the graphs are the ones a client sends. Values and gradients
are torch's own, from the function and not from the graph.

    PYTHONPATH=<site-packages of tinker 0.38.0> .venvs/reference/bin/python tests/golden/custom_losses.py [--check]
"""

import json
import math
import operator
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tinker.lib.public_interfaces.custom_loss import encode_graph, trace_loss

PATH = Path(__file__).with_name("custom_losses.json")


def datums(candidates):
    """Two datums: logprobs, a and b like them, m of two dimensions, w without any, n whole numbers, z zeros and ones."""
    made = []
    for length in (7, 4):
        random = torch.Generator().manual_seed(length)
        shape = (length, candidates) if candidates else (length,)
        logprobs = -torch.rand(shape, generator=random) * 3 - 0.05
        inputs = {
            "a": torch.randn(shape, generator=random),
            "b": logprobs + 0.3 * torch.randn(shape, generator=random),
            "m": torch.randn((length, 3), generator=random),
            "w": torch.tensor(0.7 + 0.1 * length),
            "n": torch.randint(0, length, (length,), generator=random),
            "z": torch.randint(0, 2, shape, generator=random),
        }
        inputs["z"].view(-1)[0] = 1
        made.append((logprobs, inputs))
    return made


NAMES = ["logprobs", "a", "b", "m", "w", "n", "z"]


# The losses people write.


def dpo(logprobs, a, b, m, w, n, z):
    """Preference: the chosen half against the rejected one, by reference logprobs `b`."""
    half = logprobs.shape[0] // 2
    margin = (logprobs - b)[:half].sum() - (logprobs - b)[half:].sum()
    loss = -F.logsigmoid(w * margin)
    accuracy = (margin > 0).float()
    return loss, {"custom/dpo/margin:mean": margin, "custom/dpo/accuracy:mean": accuracy}


def bradley_terry(logprobs, a, b, m, w, n, z):
    scores = torch.stack([(logprobs * z).sum(), (logprobs * (1 - z)).sum()])
    return -torch.log_softmax(scores, dim=0)[0], {"custom/score:sum": scores[0]}


def entropy_penalised(logprobs, a, b, m, w, n, z):
    ratio = torch.exp(logprobs - b)
    mask = z.to(torch.float32)
    policy = -(ratio * a * mask).sum()
    entropy = -(torch.exp(logprobs) * logprobs * mask).sum() / torch.clamp(mask.sum(), min=1.0)
    return policy - 0.01 * entropy, {"custom/entropy:mean": entropy, "custom/ratio:mean": ratio.mean()}


def clipped_ppo(logprobs, a, b, m, w, n, z):
    ratio = (logprobs - b).exp()
    advantages = (a - a.mean()) / (a.std() + 1e-8)
    plain = ratio * advantages
    clipped = ratio.clamp(1 - 0.2, 1 + 0.2) * advantages
    kl = (b.exp() * (b - logprobs)).mean()
    loss = -torch.min(plain, clipped).sum() / math.sqrt(logprobs.shape[0]) + 0.1 * kl
    return loss, {"custom/clipped:mean": (clipped < plain).float().mean(), "custom/kl:mean": kl}


def simpo(logprobs, a, b, m, w, n, z):
    counts = z.sum().clamp(min=1)
    mean = torch.where(z.bool(), logprobs, torch.zeros_like(logprobs)).sum() / counts
    return F.softplus(-w * (mean - 0.5)), {"custom/mean:mean": mean}


def focal(logprobs, a, b, m, w, n, z):
    p = logprobs.exp()
    return -(((1 - p) ** 2) * logprobs).sum(), {}


def distillation(logprobs, a, b, m, w, n, z):
    target = torch.softmax(a.detach(), dim=-1)
    return F.kl_div(logprobs, target, reduction="sum"), {"custom/cross:sum": -(target * logprobs).sum()}


LOSSES = [dpo, bradley_terry, entropy_penalised, clipped_ppo, simpo, focal, distillation]

# One expression for each operation, of x (the logprobs) and the inputs.

UNARY = """abs neg exp exp2 expm1 sigmoid tanh sin cos tan atan sinh cosh asinh sinc erf erfc square sign ceil floor trunc
frac relu isnan isinf isfinite logical_not deg2rad rad2deg i0 sgn signbit positive round""".split()
POSITIVE = "log log2 log10 log1p sqrt rsqrt reciprocal lgamma digamma acosh".split()
UNIT = "asin acos atanh erfinv logit".split()
SPECIAL = "expit erfcx ndtr log_ndtr entr i0e i1 i1e expm1 exp2 log1p".split()
ACTIVATIONS = """relu relu6 selu silu mish hardswish hardsigmoid logsigmoid elu celu gelu leaky_relu softplus softshrink
hardshrink hardtanh softsign tanhshrink sigmoid tanh""".split()
BINARY = """add sub mul div maximum minimum fmax fmin atan2 hypot copysign logaddexp logaddexp2 eq ne lt le gt ge remainder
fmod""".split()
OPERATORS = "add sub mul truediv mod eq ne lt le gt ge".split()

EXPRESSIONS = {
    **{f"torch.{name}": f"torch.{name}(x)" for name in UNARY if name != "positive"},
    **{f"Tensor.{name}": f"(x + 1).{name}()" for name in UNARY if name not in ("sinc",)},
    **{f"positive {name}": f"torch.{name}(1.1 - x)" for name in POSITIVE},
    **{f"unit {name}": f"torch.{name}(x.exp() * 0.9 + 0.01)" for name in UNIT},
    **{f"special {name}": f"torch.special.{name}(x.exp())" for name in SPECIAL},
    **{f"F.{name}": f"F.{name}((x + 1.2) * 2)" for name in ACTIVATIONS},
    **{f"binary {name}": f"torch.{name}(x, a)" for name in BINARY},
    **{f"binary method {name}": f"x.{name}(a)" for name in BINARY},
    **{f"operator.{name}": f"operator.{name}(x, a)" for name in OPERATORS},
    **{f"operator.{name} number": f"operator.{name}(x, 0.7)" for name in OPERATORS},
    "heaviside": "torch.heaviside(x.detach(), a) * x",
    "floor_divide": "torch.floor_divide(x.detach(), a) + x.detach() // 0.7 + n // 2 + n % 3 + 7 // (n + 1)",
    "reversed": "(2 - x) + 2 / (1 - x) + 2 ** x + (3 * x)",
    "powers": "x ** 2 + x ** 3 - (1 - x) ** 0.5 + (1 - x).pow(a) + torch.float_power(1 - x, 2)",
    "alpha": "torch.add(x, a, alpha=2) + torch.sub(x, a, alpha=0.5) + torch.rsub(x, a)",
    "modes": 'torch.div(x, a, rounding_mode="floor") + x.div(a, rounding_mode="trunc")',
    "logic": "((x < -1) & (a > 0)) | ~(z > 0) ^ (x > -2)",
    "logic functions": "torch.logical_and(x < -1, a > 0).float() + torch.logical_or(z, x < -2) + torch.logical_xor(z, a > 0)",
    "clamp": "torch.clamp(x, -2, -0.5) + x.clamp(min=-1.5) + x.clip(max=a) + x.clamp_min(-1) * x.clamp_max(-0.7)",
    "where": "torch.where(x > -1, x, 0.0) + torch.where(a > 0, 1.0, x) + x.where(z > 0, a) + torch.where(z > 0, 1, 0)",
    "masked_fill": 'x.masked_fill(z == 0, 0.0) + x.masked_fill(z == 0, -1e4).exp()',
    "lerp": "torch.lerp(x, a, 0.3) + x.lerp(a, b) + torch.addcmul(x, a, b, value=0.5) + torch.addcdiv(x, a, b)",
    "xlogy": "torch.xlogy(x, 1 - a.sign() * 0.5) + torch.special.xlog1py(x, a.abs())",
    "nan_to_num": "torch.nan_to_num(a / (z * 1.0), nan=0.5, posinf=2.0, neginf=-2.0) + x",
    "isclose": "torch.isclose(x, b, rtol=0.1, atol=0.1)",
    "polygamma": "torch.polygamma(1, 1 - x) + (1 - x).polygamma(2)",
    "activations": "F.leaky_relu(x + 1, 0.2) + F.elu(x + 1, alpha=0.5) + F.softplus(x, beta=2, threshold=5) + "
    "F.hardtanh(x, -2, -1) + F.threshold(x, -1, -3) + F.gelu(x, approximate='tanh') + F.celu(x, 0.7)",
    "sum": "x.sum() + x.sum(0) + x.sum(dim=-1, keepdim=True) + torch.sum(x, (0,)) + x.sum(axis=0, dtype=torch.float64)",
    "mean": "x.mean() + x.mean(0) + torch.mean(x, dim=-1, keepdim=True) + x.nansum() + torch.nanmean(x)",
    "prod": "x.prod() + x.prod(0) + torch.prod(x, -1, keepdim=True)",
    "std": "x.std() + x.var(0) + x.std(unbiased=False) + torch.var(x, dim=0, correction=0) + x.std(-1, keepdim=True)",
    "std_mean": "torch.std_mean(x)[0] * torch.var_mean(x, dim=0)[1]",
    "extremes": "x.max() + x.min() + x.amax() + x.amin(0) + torch.max(x, a) + torch.min(x, a) + torch.amax(x)",
    "extreme pairs": "x.max(dim=0).values + x.min(0).indices + torch.max(x, 0)[0] + torch.aminmax(a).max",
    "args": "x.argmax() + x.argmin(dim=-1) + torch.argmax(x, 0, keepdim=True)",
    "medians": "x.median() + x.median(0).values + torch.nanmedian(x) + x.quantile(0.3) + torch.quantile(x, 0.5, dim=0)",
    "quantiles": "torch.quantile(x.flatten(), torch.arange(x.shape[0]) / 10.0)",
    "logsumexp": "x.logsumexp(0) + torch.logsumexp(x, dim=-1, keepdim=True)",
    "norms": "x.norm() + x.norm(p=1) + torch.norm(x, dim=0) + torch.linalg.vector_norm(x) + torch.linalg.norm(x, dim=0) + "
    "torch.dist(x, a) + x.norm(float('inf'))",
    "counts": "(x > -1).all() + (x > -1).any(0) + torch.count_nonzero(x > -1) + torch.any(a > 0)",
    "softmax": "torch.softmax(x, 0) + x.softmax(dim=-1) + F.softmax(x, dim=0) + F.log_softmax(x, dim=-1) + F.softmin(x, dim=0)",
    "log_softmax": "torch.log_softmax(x, -1) + x.log_softmax(0) + F.softmax(x, dim=0, dtype=torch.float64)",
    "cumulative": "x.cumsum(0) + torch.cumprod(x, 0) + x.logcumsumexp(0) + torch.cummax(x, 0)[0] + x.cummin(0).values",
    "diff": "torch.diff(x, dim=0)",
    "sort": "torch.sort(x, dim=0)[0] + x.sort(0, descending=True).values + torch.argsort(x, 0)",
    "topk": "x.topk(2, dim=0).values.sum() + torch.kthvalue(x, 2, dim=0)[0]",
    "search": "torch.searchsorted(torch.sort(a.flatten())[0], x) + torch.bucketize(x, torch.sort(b.flatten())[0])",
    "shape": "x.reshape(-1) + x.view(-1) + x.flatten() + torch.ravel(x) + x.view(x.size()).flatten()",
    "unsqueezed": "x.unsqueeze(0) * x.unsqueeze(-1).squeeze(-1) + torch.unsqueeze(x, 0).squeeze(0)",
    "transposed": "m.t() @ m + m.T @ m + m.transpose(0, 1) @ m + torch.permute(m, (1, 0)) @ m + m.mT @ m + x.sum()",
    "expanded": "x.unsqueeze(0).expand(2, -1).sum() + x.expand_as(a) + torch.broadcast_to(x.sum(), (2, 1))",
    "repeated": "x.flatten().repeat(2) + x.flatten().repeat_interleave(2) + torch.tile(x.flatten(), (2,))",
    "joined": "torch.cat([x, a]) + torch.cat((b, x), dim=0) + torch.stack([x, a]).flatten(0, 1) + torch.vstack([x, a]).flatten()[0]",
    "parts": "x.chunk(2)[0].sum() + x.split(2)[1].sum() + torch.unbind(x)[0] + x.narrow(0, 1, 2).sum() + x.select(0, 1)",
    "order": "x.flip(0) + torch.roll(x, 1, 0) + x.roll(shifts=(2,), dims=(0,)) + torch.flip(x, dims=[0])",
    "pad": "F.pad(x, (0, 1), value=2.0).sum() + F.pad(x.flatten(), (1, 2))",
    "diag": "torch.diag(x.flatten()) + torch.diag(torch.diag(x.flatten())) + torch.outer(x.flatten(), x.flatten()).tril()",
    "triangles": "torch.outer(x.flatten(), a.flatten()).triu(1) + torch.outer(x.flatten(), a.flatten()).diagonal()",
    "detached": "x.detach() * x + x.data * x + x.clone() + x.contiguous()",
    "kinds": "x.double() + x.to(torch.float64) + x.to(a) + x.type_as(a) + z.float() + z.bool() + n.sum().long() + x.half().float()",
    "facts": "x * x.shape[0] + x * x.size(0) + x.numel() * x.dim() + x.ndim + x.shape.numel() * x",
    "numbers": "x * (x.shape[0] // 2) + (x.shape[0] % 3) * x + x * (x.shape[0] ** 2 - 1) / 2",
    "math": "x * math.sqrt(x.shape[0]) + math.log(x.shape[0]) * x + math.exp(-x.numel()) + math.ceil(x.shape[0] / 2) * x",
    "constants": "x * math.pi + torch.clamp(x, min=-math.inf)",
    "gather": "torch.gather(x, 0, n) + x.take(n) + torch.index_select(x, 0, n) + torch.take_along_dim(x, n, 0)",
    "scatter": "torch.zeros_like(x).scatter_add(0, n, x) + torch.zeros_like(x).index_add(0, n, x) + x.scatter(0, n, 0.5)",
    "masked": "torch.masked_select(x, z > 0).sum() + x[z > 0].sum() + (x * z).nonzero().sum()",
    "index": "x[0] + x[-1] + x[1:].sum() + x[:-1].sum() + x[::2].sum() + x[..., 0].sum() + x[None].sum() + x[n].sum() + x[[0, 1]].sum()",
    "index of matrix": "m[:, 0].sum() * x + m[n, 1].sum() + m[0, 1] + m[1:3, :2].sum() + m[..., -1].sum() + m[n].sum()",
    "products": "m.T.matmul(m) + torch.mm(m.T, m) + (m.T @ x.unsqueeze(-1)).sum() + torch.mv(m.T, x).sum() + m.T.mv(x).sum()",
    "dot": "torch.dot(x, a) + x.dot(b) + torch.inner(x, a) + torch.outer(x, a)",
    "einsum": 'torch.einsum("i,i->", x, a) + torch.einsum("ij,i->j", m, x).sum() + torch.einsum("i,j->ij", [x, a])',
    "distances": "F.cosine_similarity(x, a, dim=0) + torch.cdist(m, m).sum() * x + F.normalize(x, dim=0)",
    "bmm": "torch.bmm(m.unsqueeze(0), m.t().unsqueeze(0)).sum() * x + F.linear(m, m).sum() + torch.trace(m.T @ m)",
    "made": "x * torch.arange(x.shape[0]) + torch.ones(x.shape[0], device=x.device) + torch.zeros_like(x) + torch.full_like(x, 2.0)",
    "made more": "x * torch.linspace(0, 1, x.shape[0]) + x.new_zeros(x.shape[0]) + x.new_ones(x.shape) + torch.eye(x.shape[0])",
    "made last": "torch.arange(1, x.shape[0] + 1, dtype=torch.float32) * x + torch.full((x.shape[0],), 3.0) + x.new_full((1,), 2)",
    "one_hot": "F.one_hot(n).float().mT.sum() * x + F.one_hot(n, 9).sum(0).sum()",
    "mse": "F.mse_loss(x, a) + F.mse_loss(x, a, reduction='sum') + F.mse_loss(x, a, reduction='none')",
    "l1": "F.l1_loss(x, a) + F.smooth_l1_loss(x, a, beta=0.5) + F.huber_loss(x, a, delta=0.7) + F.huber_loss(x, a, reduction='sum')",
    "bce": "F.binary_cross_entropy(x.exp(), z.float()) + F.binary_cross_entropy_with_logits(x, z.float(), reduction='none')",
    "bce weighted": "F.binary_cross_entropy_with_logits(x, z.float(), weight=a.abs(), pos_weight=w)",
    "kl": "F.kl_div(x, a.exp()) + F.kl_div(x, b, log_target=True, reduction='batchmean') + F.kl_div(x, a.exp(), reduction='none')",
    "nll": "F.nll_loss(m * x.unsqueeze(-1), n % 3) + F.cross_entropy(m * x.unsqueeze(-1), n % 3, label_smoothing=0.1)",
    "margins": "F.soft_margin_loss(x, a.sign()) + F.margin_ranking_loss(x, a, b.sign(), margin=0.1) + F.hinge_embedding_loss(x, a.sign())",
    "poisson": "F.poisson_nll_loss(x, z.float()) + F.layer_norm(x, x.shape) * 2",
    "in place": "x.clone().mul_(2).add_(a).clamp_(-3, 1) + torch.zeros_like(x).add_(x).masked_fill_(z == 0, 1.0)",
    "unfold": "x.unfold(0, 2, 1).sum() + x.movedim(0, -1).sum() + x.swapaxes(0, 0)",
    "scalar": "x * w + torch.atleast_1d(w) * x + w.unsqueeze(0) * x",
    "reward": "x * w.detach() - torch.logsumexp(torch.stack([x.sum(), w]), 0)",
    "meaningless slice": "x[x.shape[0] // 2:].sum() - x[: x.shape[0] - 1].mean()",
    "getitem of shape": "x.reshape(x.shape[:1] + (1,)).sum() + x.view(x.shape[0], 1).sum()",
    "msort": "torch.msort(x) + torch.searchsorted(torch.msort(a), x, right=True)",
    "mode": "torch.mode(z, 0)[0] * x + z.to(dtype=torch.int32).sum() * x",
    "index_fill": "x.index_fill(0, n[:2], 0.0) + torch.hstack([x, a]).sum() + torch.column_stack([x, a]).sum()",
    "masked_scatter": "torch.zeros_like(x).masked_scatter(z > 0, x)",
    "pairwise": "F.pairwise_distance(x.unsqueeze(-1), a.unsqueeze(-1)) + (x.unsqueeze(0) - x.unsqueeze(1)).abs().mean(0)",
}

# Expressions that also make sense for several candidates per position.
TABLES = """torch.exp operator.mul clamp where sum mean std extremes logsumexp softmax log_softmax cumulative diff sort
order detached facts masked""".split()


def expression_loss(expression):
    """The expression's values weighted by their places, so that an order matters, and something to differentiate."""
    source = f"""
def loss({", ".join(NAMES)}):
    x = logprobs
    r = {expression}
    r = r.to(torch.float32)
    return r.flatten().cumsum(0).sum() + 0.5 * (x * x).sum(), {{"custom/r:sum": r.sum()}}
"""
    scope = {"torch": torch, "F": F, "math": math, "operator": operator}
    exec(source, scope)
    return scope["loss"]


def case(name, loss, candidates=None):
    data = datums(candidates)
    ranks = {name: data[0][1][name].ndim for name in NAMES[1:]}
    ranks["logprobs"] = data[0][0].ndim
    handle = trace_loss(loss, ranks, "session")
    results = []
    for logprobs, inputs in data:
        x = logprobs.clone().requires_grad_(True)
        value, metrics = loss(x, *(inputs[name] for name in NAMES[1:]))
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(x.grad).all(), name
        results.append(
            {
                "value": value.item(),
                "gradient": x.grad.flatten().tolist(),
                "metrics": {key: metric.item() for key, metric in metrics.items()},
            }
        )
    return {
        "name": name,
        "candidates": candidates,
        "inputs": [{"name": item.name, "rank": item.rank} for item in handle.inputs],
        "graph": encode_graph(handle).model_dump(),
        "results": results,
    }


def cases():
    for loss in LOSSES:
        yield case(loss.__name__, loss)
        if loss.__name__ != "bradley_terry":
            yield case(f"{loss.__name__} of tables", loss, candidates=3)
    for name, expression in EXPRESSIONS.items():
        try:
            yield case(name, expression_loss(expression))
            if name in TABLES:
                yield case(f"{name} of tables", expression_loss(expression), candidates=3)
        except Exception as error:
            raise RuntimeError(f"{name}: {expression}") from error


def main():
    def tensor(value):
        kind = "int64" if value.dtype == torch.int64 else "float32"
        return {"dtype": kind, "shape": list(value.shape), "data": value.flatten().tolist()}

    def data(candidates):
        return [
            {"logprobs": tensor(logprobs), **{name: tensor(value) for name, value in inputs.items()}}
            for logprobs, inputs in datums(candidates)
        ]

    made = {"data": {"flat": data(None), "tables": data(3)}, "cases": list(cases())}
    text = json.dumps(made, separators=(",", ":")) + "\n"
    if "--check" in sys.argv:
        assert json.loads(PATH.read_text()) == json.loads(text), "custom_losses.json is not what torch says now"
    else:
        PATH.write_text(text)
    print(f"{len(made['cases'])} losses, {len(text)} bytes")


main()
