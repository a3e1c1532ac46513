#!/usr/bin/env python3
"""What Twinkle's own patch of SDK 0.16.1 sends, over plain HTTP.

A key that need not begin with `tml-`, as a bearer token in one of two headers; routing headers; no configuration
routes; JSON alone; checkpoints named `twinkle://`.
"""

import uuid

import blackbox
from blackbox import expect

TOKEN = "EMPTY_TOKEN"
OTHER_TOKEN = "another one, of any form"


class Client:
    """Speaks as the patched SDK does: each request carries the token twice and an id under four names."""

    def __init__(self, base_url, token=TOKEN, headers=("Authorization", "Twinkle-Authorization")):
        self.base_url, self.token, self.headers = base_url, token, headers

    def sent(self):
        request = uuid.uuid4().hex
        names = ("x-request-id", "X-Ray-Serve-Request-Id", "serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id")
        return {**{name: f"Bearer {self.token}" for name in self.headers}, **{name: request for name in names}}

    def try_post(self, route, body):
        status, answer, _ = blackbox.post(self.base_url, route, body, key=None, headers=self.sent())
        return status, answer

    def post(self, route, body):
        status, answer = self.try_post(route, body)
        expect(status == 200, f"{route} answered {status}: {answer}")
        return answer

    def operation(self, route, body):
        """Submits and polls with the same headers until it is done."""
        future = self.post(route, body)["request_id"]
        while True:
            status, answer = self.try_post("retrieve_future", {"request_id": future})
            if status == 408 or (status == 200 and answer.get("type") == "try_again"):
                continue
            expect(status == 200 and "error" not in answer, f"{route} ended in {status}: {answer}")
            return answer


def main():
    options = blackbox.parser(__doc__)
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    client = Client(arguments.base_url)

    session = client.post("create_session", {"tags": [], "user_metadata": None, "sdk_version": "0.16.1"})["session_id"]
    client.post("session_heartbeat", {"session_id": session})
    created = {"session_id": session, "model_seq_id": 0, "base_model": arguments.model, "lora_config": {"rank": 8}}
    run = client.operation("create_model", created)["model_id"]

    tokens = blackbox.sequences(seed=2)[0]
    passed = client.operation("forward_backward", {
        "forward_backward_input": {"data": [datum(tokens)], "loss_fn": "cross_entropy", "loss_fn_config": None},
        "model_id": run, "seq_id": 1,
    })
    expect(len(passed["loss_fn_outputs"][0]["logprobs"]["data"]) == len(tokens) - 1, f"logprobs are missing: {passed}")
    client.operation("optim_step", {"adam_params": blackbox.ADAM | {"learning_rate": 1e-3}, "model_id": run, "seq_id": 2})
    state = client.operation("save_weights", {"model_id": run, "path": "state", "seq_id": 3})["path"]
    sampler = client.operation("save_weights_for_sampler", {"model_id": run, "path": "sampler", "seq_id": 4})["path"]

    paths(client, session, arguments.model, tokens, state, sampler)
    tenants(client, session, run)


def datum(tokens):
    """As 0.16.1 writes it: without the types of chunks and with shapes."""
    count = len(tokens) - 1
    return {
        "model_input": {"chunks": [{"tokens": tokens[:-1]}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": tokens[1:], "dtype": "int64", "shape": [count]},
            "weights": {"data": [1.0] * count, "dtype": "float32", "shape": [count]},
        },
    }


def paths(client, session, model, tokens, state, sampler):
    """Twinkle's scheme names the same checkpoints."""
    state, sampler = (path.replace("tinker://", "twinkle://") for path in (state, sampler))
    info = client.post("weights_info", {"tinker_path": state})
    expect(info["base_model"] == model and info["lora_rank"] == 8, f"weights_info of `{state}` is {info}")
    request = {"session_id": session, "model_seq_id": 1, "base_model": model, "lora_config": {"rank": 8}}
    second = client.operation("create_model", request)["model_id"]
    client.operation("load_weights", {"model_id": second, "path": state, "optimizer": True, "seq_id": 1})
    request = {"session_id": session, "sampling_session_seq_id": 0, "model_path": sampler}
    sampling = client.post("create_sampling_session", request)["sampling_session_id"]
    result = client.operation("asample", {
        "sampling_session_id": sampling, "seq_id": 0, "num_samples": 1,
        "prompt": {"chunks": [{"tokens": tokens[:4]}]}, "sampling_params": {"max_tokens": 3, "temperature": 0.0, "stop": []},
    })
    expect(len(result["sequences"][0]["tokens"]) == 3, f"the sample is {result}")


def tenants(client, session, run):
    """The token is the tenant, in either header; what another one owns does not exist."""
    heartbeat = {"session_id": session}
    for headers in (("Authorization",), ("Twinkle-Authorization",)):
        alone = Client(client.base_url, headers=headers)
        status, answer = alone.try_post("session_heartbeat", heartbeat)
        expect(status == 200, f"the token in {headers[0]} alone is answered {status}: {answer}")
        other = Client(client.base_url, OTHER_TOKEN, headers)
        for route, body in (("session_heartbeat", heartbeat), ("get_info", {"model_id": run})):
            status, answer = other.try_post(route, body)
            expect(status == 404, f"{route} of another tenant is answered {status}: {answer}")
    status, answer = Client(client.base_url, headers=()).try_post("session_heartbeat", heartbeat)
    expect(status == 401, f"without a token a heartbeat is answered {status}: {answer}")


if __name__ == "__main__":
    blackbox.run(main)
