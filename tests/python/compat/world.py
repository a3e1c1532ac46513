"""The clients, runs and checkpoints the scenarios share, made when first needed."""

import functools
import re
import time

import blackbox
import tinker
from blackbox import types
from scenario import LIMIT, resolve

KEY = f"tml-compat-{tinker.__version__.replace('.', '-')}"


class World:
    def __init__(self, base_url, model):
        self.base_url, self.model = base_url, model
        self._names = 0

    # What exists.

    @functools.cached_property
    def service(self):
        return tinker.ServiceClient(base_url=self.base_url, api_key=KEY)

    @functools.cached_property
    def rest(self):
        return self.service.create_rest_client()

    @functools.cached_property
    def admin(self):
        return tinker.AdminClient(base_url=self.base_url, api_key=KEY)

    @functools.cached_property
    def run(self):
        """A run that took a step; scenarios may train it on."""
        run = self.new_run()
        resolve(run.forward_backward, self.data, "cross_entropy")
        resolve(run.optim_step, blackbox.adam(1e-2))
        return run

    def new_run(self, **options):
        return resolve(self.service.create_lora_training_client, base_model=self.model, rank=8, seed=7, **options)

    @functools.cached_property
    def state(self):
        """The path of a checkpoint to go on from."""
        return resolve(self.run.save_state, "state").path

    @functools.cached_property
    def weights(self):
        """The path of weights for a sampler."""
        return resolve(self.run.save_weights_for_sampler, "weights").path

    def new_state(self):
        """The path of a checkpoint of the caller's own, to spoil."""
        return resolve(self.run.save_state, self.name("state")).path

    def new_weights(self):
        return resolve(self.run.save_weights_for_sampler, self.name("weights")).path

    @functools.cached_property
    def external(self):
        """The path of exported weights."""
        return resolve(self.run.save_weights_external, "external").path

    @functools.cached_property
    def sampler(self):
        """Samples from `weights`."""
        return resolve(self.service.create_sampling_client, model_path=self.weights)

    @functools.cached_property
    def base(self):
        """Samples from the base model."""
        return resolve(self.service.create_sampling_client, base_model=self.model)

    @functools.cached_property
    def loss(self):
        """A loss the server runs; a session makes each only once."""
        import service

        return resolve(self.service.create_custom_loss, service.squared, input_ranks={"logprobs": 1, "weights": 1})

    def as_future(self, client):
        """A future of this client, to be used as the client itself."""
        from concurrent.futures import Future

        from tinker.lib.public_interfaces import AwaitableConcurrentFuture

        done = Future()
        done.set_result(client)
        training = isinstance(client, tinker.TrainingClient)
        kind = tinker.BackcompatTrainingClientFuture if training else tinker.BackcompatSamplingClientFuture
        return kind(AwaitableConcurrentFuture(done))

    def session_of(self, service=None):
        return (service or self.service).holder.get_session_id()

    def name(self, start):
        """A name no other scenario uses."""
        self._names += 1
        return f"{start}-{self._names}"

    # Data.

    tokens = blackbox.sequences(seed=4)[0]
    data = [blackbox.datum(tokens) for tokens in blackbox.sequences(seed=4)]
    prompt = types.ModelInput.from_ints(blackbox.sequences(seed=4)[0][:5])

    @staticmethod
    def sampling(**changes):
        return types.SamplingParams(**{"max_tokens": 4, "temperature": 1.0, "seed": 3, "stop": [], **changes})

    def datum(self, **inputs):
        """Predict each token from those before it, with these inputs beside the targets."""
        tokens = self.tokens
        return types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={"target_tokens": tokens[1:], **inputs},
        )

    def policy_data(self):
        """Samples with their probabilities and advantages, as reinforcement learning has them."""
        count = len(self.tokens) - 1
        return [self.datum(logprobs=[-2.0] * count, advantages=[-0.5] * count)]

    # Texts.

    def plain(self, text):
        """Without what differs from run to run."""
        text = text.replace(self.base_url, "<server>").replace(self.base_url.removeprefix("http://"), "<server>")
        text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "ID", text)
        text = re.sub(r"\b[0-9a-f]{16,64}\b", "ID", text)
        text = re.sub(r"/tmp/\S+?(?=[`'\"\s,)]|$)", "<file>", text)
        return " ".join(text.split())


def until(condition, what):
    """Waits for something the server does by itself."""
    deadline = time.monotonic() + LIMIT / 2
    while not condition():
        blackbox.expect(time.monotonic() < deadline, f"{what}, even after {LIMIT / 2:.0f} s")
        time.sleep(0.05)
