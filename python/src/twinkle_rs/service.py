"""Training and sampling, in the words of the documents.

    service = ServiceClient(base_url="http://127.0.0.1:8000", api_key="…")
    training = service.create_lora_training_client(base_model="Qwen/Qwen3.5-4B", rank=16)
    for batch in batches:
        training.forward_backward(batch, "cross_entropy")
        training.optim_step(learning_rate=1e-4)
    training.save_state("my-lora-checkpoint")
"""

import itertools
import threading

from . import types
from .connection import Connection, TwinkleError, resolve_key, resolve_url
from .futures import Future, Unasked
from .manager import Heartbeat, current

SCHEMES = ("twinkle://", "tinker://")
# Dialect of the protocol: JSON, as this release of the `tinker` package speaks it.
DIALECT = "0.16.1"


class ServiceClient:
    """A session with a server.

    Without arguments it asks where `init_twinkle_client` did, else what the environment names: `TWINKLE_SERVER_URL` or
    `TINKER_BASE_URL`, and `API_KEY`, `TINKER_API_KEY`, `TWINKLE_SERVER_TOKEN` or `MODELSCOPE_TOKEN`.
    """

    def __init__(self, base_url: str | None = None, api_key: str | None = None, user_metadata: dict | None = None):
        shared = current()
        if shared is not None:
            base_url, api_key = base_url or shared.url, api_key or shared.key
        self._connection = Connection(resolve_url(base_url), resolve_key(api_key))
        body = {"tags": [], "user_metadata": user_metadata, "sdk_version": DIALECT}
        self.session_id = self._connection.post("create_session", body)["session_id"]
        self._heartbeat = Heartbeat(self._connection, "session_heartbeat", self.session_id)
        self._runs, self._samplers = itertools.count(), itertools.count()
        # Checkpoints by the names they were saved under here.
        self._saved: dict[str, str] = {}

    def close(self) -> None:
        """Ends the heartbeats; what is on the server stays until its time is over."""
        self._heartbeat.stop()

    def get_server_capabilities(self) -> dict:
        """The models that can be asked for."""
        return self._connection.get("get_server_capabilities")

    def create_lora_training_client(
        self, base_model: str, rank: int = 32, seed: int | None = None, **options
    ) -> "TrainingClient":
        """A new adapter; `options` are further fields of the LoRA configuration, such as `train_mlp`."""
        config = {"rank": rank, **({} if seed is None else {"seed": seed}), **options}
        return self._create(base_model, config)

    def create_full_training_client(self, base_model: str) -> "TrainingClient":
        """All weights of a model, where the server trains them."""
        return self._create(base_model, None)

    def create_training_client_from_state(self, path: str, with_optimizer: bool = False) -> "TrainingClient":
        """A new run that goes on from a checkpoint."""
        path = self._resolve(path)
        info = self._connection.post("weights_info", {"tinker_path": path})
        training = self.create_lora_training_client(info["base_model"], rank=info.get("lora_rank") or 32)
        training.load_state(path, optimizer=with_optimizer).result()
        return training

    def create_sampling_client(self, model_path: str | None = None, base_model: str | None = None) -> "SamplingClient":
        """A sampler of a checkpoint or, without one, of the base model.

        `model_path` is what `save_state` gave, `twinkle://` and the name alone, or the name alone.
        """
        if model_path is None and base_model is None:
            raise ValueError("give `model_path`, `base_model` or both")
        body = {"session_id": self.session_id, "sampling_session_seq_id": next(self._samplers)}
        body |= {"model_path": self._resolve(model_path)} if model_path else {"base_model": base_model}
        created = self._connection.post("create_sampling_session", body)
        return SamplingClient(self._connection, created["sampling_session_id"])

    def _create(self, base_model: str, lora_config: dict | None) -> "TrainingClient":
        body = {
            "session_id": self.session_id,
            "model_seq_id": next(self._runs),
            "base_model": base_model,
            "lora_config": lora_config,
        }
        request = self._connection.post("create_model", body)["request_id"]
        run = Future(self._connection, request, lambda answer: answer["model_id"]).result()
        return TrainingClient(self, run)

    def _resolve(self, path: str) -> str:
        """`twinkle://name` and `name` are the checkpoint of that name; the newest of this tenant."""
        bare = path
        for scheme in SCHEMES:
            bare = bare.removeprefix(scheme)
        if "/" in bare:
            return path
        return self._saved.get(bare) or self._newest(bare)

    def _newest(self, name: str) -> str:
        runs = self._connection.get("training_runs?limit=100")["training_runs"]
        found = []
        for run in runs:
            listed = self._connection.get(f"training_runs/{run['training_run_id']}/checkpoints")["checkpoints"]
            found += [item for item in listed if item["checkpoint_id"].rpartition("/")[2] == name]
        if not found:
            raise TwinkleError(f"no run of this key has a checkpoint `{name}`")
        newest = max(found, key=lambda item: item["time"])
        return newest["tinker_path"]


class TrainingClient:
    """One run. Operations are done in the order of the calls; each returns a future at once."""

    def __init__(self, service: ServiceClient, model_id: str):
        self.model_id = model_id
        self._service, self._connection = service, service._connection
        self._numbers, self._unasked = itertools.count(1), Unasked()
        # The order of numbers is the order of calls, also with several threads.
        self._lock = threading.Lock()

    def forward_backward(self, data, loss_fn: str = "cross_entropy", loss_fn_config: dict | None = None) -> Future:
        """Adds a batch's gradients: data, or features that a template encoded."""
        return self._pass("forward_backward", "forward_backward_input", data, loss_fn, loss_fn_config)

    def forward(self, data, loss_fn: str = "cross_entropy", loss_fn_config: dict | None = None) -> Future:
        """The loss and the log-probabilities without gradients."""
        return self._pass("forward", "forward_input", data, loss_fn, loss_fn_config)

    def optim_step(self, adam_params=None, *, learning_rate: float | None = None) -> Future:
        """One step of AdamW with the gradients so far, which are zero afterwards."""
        if adam_params is None:
            defaults = types.AdamParams()
            adam_params = types.AdamParams(learning_rate=defaults.learning_rate if learning_rate is None else learning_rate)
        elif learning_rate is not None:
            raise ValueError("give `adam_params` or `learning_rate`, not both")
        return self._submit("optim_step", {"adam_params": types.adam(adam_params)}, lambda answer: answer)

    def save_state(self, name: str | None = None) -> types.Saved:
        """Saves adapter and optimizer and returns where. Waits for all earlier operations, and raises their errors."""
        self._unasked.settle()
        saved = self._submit("save_weights", {"path": name}, _saved).result()
        if name is not None:
            self._service._saved[name] = saved.path
        return saved

    def save_weights_for_sampler(self, name: str | None = None) -> types.Saved:
        """Saves the adapter alone."""
        self._unasked.settle()
        return self._submit("save_weights_for_sampler", {"path": name}, _saved).result()

    def save_weights_and_get_sampling_client(self, name: str = "sampler") -> "SamplingClient":
        """A sampler of the adapter as it is now."""
        return self._service.create_sampling_client(model_path=self.save_weights_for_sampler(name).path)

    def load_state(self, path: str, optimizer: bool = False) -> Future:
        """Puts a checkpoint's adapter, and its optimizer if asked, in the place of this run's."""
        body = {"path": self._service._resolve(path), "optimizer": optimizer}
        return self._submit("load_weights", body, lambda answer: answer)

    def get_info(self) -> dict:
        return self._connection.post("get_info", {"model_id": self.model_id})

    def _pass(self, route: str, field: str, data, loss_fn: str, loss_fn_config: dict | None) -> Future:
        data = [types.datum_of(item) for item in ([data] if isinstance(data, dict) else data)]
        body = {field: {"data": data, "loss_fn": loss_fn, "loss_fn_config": loss_fn_config}}
        return self._submit(
            route, body, lambda answer: types.ForwardBackwardOutput(answer["metrics"], answer["loss_fn_outputs"])
        )

    def _submit(self, route: str, body: dict, convert) -> Future:
        with self._lock:
            body = {**body, "model_id": self.model_id, "seq_id": next(self._numbers)}
            request = self._connection.post(route, body)["request_id"]
            return self._unasked.add(Future(self._connection, request, convert))


class SamplingClient:
    """Draws tokens."""

    def __init__(self, connection: Connection, sampling_session_id: str):
        self._connection, self._session = connection, sampling_session_id
        self._numbers = itertools.count()

    def sample(self, prompt, sampling_params=None, num_samples: int = 1, include_prompt_logprobs: bool = False) -> Future:
        """A future of a `types.SampleResponse`; the prompt is token ids in any form `types.tokens_of` takes."""
        body = {
            "sampling_session_id": self._session,
            "seq_id": next(self._numbers),
            "num_samples": num_samples,
            "prompt": types.chunks(types.tokens_of(prompt)),
            "sampling_params": types.sampling(sampling_params),
            "prompt_logprobs": include_prompt_logprobs,
        }
        request = self._connection.post("asample", body)["request_id"]
        return Future(self._connection, request, _sampled)


def _saved(answer: dict) -> types.Saved:
    return types.Saved(answer["path"])


def _sampled(answer: dict) -> types.SampleResponse:
    sequences = [
        types.SampledSequence(sequence["tokens"], sequence.get("logprobs"), sequence.get("stop_reason"))
        for sequence in answer["sequences"]
    ]
    return types.SampleResponse(sequences, answer.get("prompt_logprobs"))
