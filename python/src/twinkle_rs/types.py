"""What requests are made of; the same names as in the `tinker` package, whose objects are taken as well."""

from dataclasses import asdict, dataclass, field

# The label of a position that is not trained on.
IGNORED = -100


@dataclass
class ModelInput:
    """Token ids."""

    tokens: list[int]

    @classmethod
    def from_ints(cls, tokens) -> "ModelInput":
        return cls(ints(tokens))

    def to_ints(self) -> list[int]:
        return list(self.tokens)

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass
class Datum:
    """One sequence and what its loss needs, each value aligned with the tokens."""

    model_input: ModelInput
    loss_fn_inputs: dict[str, list]


@dataclass
class SamplingParams:
    """How tokens are drawn; `max_tokens` of None is the server's limit."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop: str | list | None = None


@dataclass
class AdamParams:
    """One step of AdamW."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass
class ForwardBackwardOutput:
    """The loss in `metrics` and, for each datum, its tokens' log-probabilities."""

    metrics: dict[str, float]
    loss_fn_outputs: list[dict]

    @property
    def loss(self) -> float | None:
        return self.metrics.get("loss:sum", self.metrics.get("loss:mean"))


@dataclass
class Saved:
    """Where a checkpoint is."""

    path: str


@dataclass
class SampledSequence:
    tokens: list[int]
    logprobs: list[float] | None = None
    stop_reason: str | None = None


@dataclass
class SampleResponse:
    sequences: list[SampledSequence] = field(default_factory=list)
    prompt_logprobs: list[float | None] | None = None


def ints(values) -> list[int]:
    """A list, an array or a tensor of one or two dimensions, the second with one row, as a list of whole numbers."""
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return [int(value) for value in values]


def tokens_of(prompt) -> list[int]:
    """The ids of a `ModelInput`, ours or tinker's, of an encoded feature, or of a plain list."""
    if hasattr(prompt, "to_ints"):
        return ints(prompt.to_ints())
    if isinstance(prompt, dict):
        return ints(prompt["input_ids"])
    return ints(prompt)


def datum_of(item) -> dict:
    """The wire form of a datum: one of ours, one of tinker's, or a feature that a template encoded.

    A feature's labels say at each position which token comes next, as Twinkle's templates write them: -100 is not
    trained on. They are not shifted again.
    """
    if isinstance(item, dict) and "input_ids" in item:
        return from_feature(item)
    inputs = {name: tensor(values) for name, values in item.loss_fn_inputs.items()}
    return {"model_input": chunks(tokens_of(item.model_input)), "loss_fn_inputs": inputs}


def from_feature(feature: dict) -> dict:
    tokens = ints(feature["input_ids"])
    if "labels" not in feature:
        raise ValueError("a feature to train on needs `labels`")
    labels = ints(feature["labels"])
    if len(labels) != len(tokens):
        raise ValueError(f"a feature has {len(tokens)} tokens and {len(labels)} labels")
    kept = sum(ints(feature["attention_mask"])) if "attention_mask" in feature else len(tokens)
    tokens, labels = tokens[:kept], labels[:kept]
    return {
        "model_input": chunks(tokens),
        "loss_fn_inputs": {
            "target_tokens": tensor([0 if label == IGNORED else label for label in labels]),
            "weights": tensor([0.0 if label == IGNORED else 1.0 for label in labels]),
        },
    }


def chunks(tokens: list[int]) -> dict:
    return {"chunks": [{"tokens": tokens, "type": "encoded_text"}]}


def tensor(values) -> dict:
    """A column as the wire has it: whole numbers stay whole."""
    if isinstance(values, dict):
        return values
    if hasattr(values, "data") and hasattr(values, "dtype") and isinstance(values.data, list):
        values = values.data
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    return {"data": values, "dtype": "int64" if whole else "float32", "shape": [len(values)]}


def adam(params) -> dict:
    """Ours, tinker's or a dict."""
    if isinstance(params, dict):
        return params
    if isinstance(params, AdamParams):
        return asdict(params)
    return params.model_dump(exclude_none=True)


def sampling(params) -> dict:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        params = asdict(params)
    elif not isinstance(params, dict):
        params = params.model_dump()
    return {name: value for name, value in params.items() if value is not None}
