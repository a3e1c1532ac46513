"""Which fields of requests are ignored, and which are refused: raw requests, each right but for one more field.

    python tests/python/compat/fields.py --base-url http://127.0.0.1:8000 --model NAME

Prints a list of `{"place", "field", "answer"}` as JSON: the route and the object, the field, `ignored` or the refusal.
"""

import copy
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import blackbox  # noqa: E402

KEY = "tml-compat-fields"
STRANGER = "a_field_of_the_future"

# Fields the SDK sends that could be thought to change something, each with a value that asks for it. Everything else
# a release sends is obeyed, and the scenarios see its effect.
KNOWN = {
    "create_session": [("project_id", "a-project"), ("tags", ["a"]), ("sdk_version", "0.38.0"), ("display_name", "a name")],
    "create_model": [("user_metadata", {"a": "b"}), ("optimizer_config", {"type": "adamw"})],
    "asample": [("record_stability_info", True), ("base_model", "another"), ("model_path", "tinker://a/weights/b")],
    "save_weights": [("user_metadata", {"a": "b"}), ("ttl_seconds", 3600)],
    "load_weights": [("weights_access_token", "a-token"), ("optimizer_config", {"type": "adamw"})],
}


class Requests:
    """One right request for each route, with numbers that go up."""

    def __init__(self, base_url, model):
        self.base_url, self.model, self.numbers = base_url, model, {}
        self.session = self.post("create_session", {"tags": [], "sdk_version": "0.16.1"})["session_id"]
        self.run = self.operation("create_model", self.create_model())["model_id"]
        self.state = self.operation("save_weights", self.save("save_weights"))["path"]
        self.sampling = self.post("create_sampling_session", self.create_sampling_session())["sampling_session_id"]

    def post(self, route, body):
        status, answer, _ = blackbox.post(self.base_url, route, body, KEY)
        blackbox.expect(status == 200, f"{route} answered {status}: {answer}")
        return answer

    def operation(self, route, body):
        return blackbox.raw_operation(self.base_url, route, body, KEY)

    def number(self, name, first=1):
        self.numbers[name] = self.numbers.get(name, first - 1) + 1
        return self.numbers[name]

    def create_model(self):
        return {
            "session_id": self.session, "model_seq_id": self.number("model", 0), "base_model": self.model,
            "lora_config": {"rank": 4, "seed": 1},
        }

    def create_sampling_session(self):
        return {"session_id": self.session, "sampling_session_seq_id": self.number("sampling", 0), "base_model": self.model}

    def save(self, route):
        return {"model_id": self.run, "path": f"{route}-{self.number('name')}", "seq_id": self.number("run")}

    def all(self):
        """Routes with a function that makes a right request, and the objects inside that could hold a field."""
        tokens = blackbox.sequences(seed=6)[0]
        count = len(tokens) - 1
        data = [{
            "model_input": {"chunks": [{"tokens": tokens[:-1], "type": "encoded_text"}]},
            "loss_fn_inputs": {"target_tokens": {"data": tokens[1:], "dtype": "int64", "shape": [count]}},
        }]
        passes = {"data": data, "loss_fn": "cross_entropy", "loss_fn_config": None}
        datum = [("forward_backward_input",), ("forward_backward_input", "data", 0),
                 ("forward_backward_input", "data", 0, "model_input"),
                 ("forward_backward_input", "data", 0, "model_input", "chunks", 0),
                 ("forward_backward_input", "data", 0, "loss_fn_inputs"),
                 ("forward_backward_input", "data", 0, "loss_fn_inputs", "target_tokens")]
        numbered = lambda **body: {"model_id": self.run, "seq_id": self.number("run"), **body}  # noqa: E731
        return [
            ("client/config", lambda: {"sdk_version": "0.38.0"}, [()], False),
            ("create_session", lambda: {"tags": [], "sdk_version": "0.38.0"}, [()], False),
            ("session_heartbeat", lambda: {"session_id": self.session}, [()], False),
            ("create_model", self.create_model, [(), ("lora_config",)], True),
            ("get_info", lambda: {"model_id": self.run}, [()], False),
            ("forward_backward", lambda: numbered(forward_backward_input=copy.deepcopy(passes)), [(), *datum], True),
            ("optim_step", lambda: numbered(adam_params={"learning_rate": 1e-3}), [(), ("adam_params",)], True),
            ("save_weights", lambda: self.save("save_weights"), [()], True),
            ("save_weights_for_sampler", lambda: self.save("save_weights_for_sampler"), [()], True),
            ("load_weights", lambda: {
                "session_id": self.session, "model_seq_id": self.number("model", 0), "path": self.state, "optimizer": True,
            }, [()], True),
            ("weights_info", lambda: {"tinker_path": self.state}, [()], False),
            ("create_sampling_session", self.create_sampling_session, [()], False),
            ("asample", lambda: {
                "sampling_session_id": self.sampling, "seq_id": self.number("sample", 0), "num_samples": 1,
                "prompt": {"chunks": [{"tokens": tokens[:4], "type": "encoded_text"}]},
                "sampling_params": {"max_tokens": 1, "seed": 1},
            }, [(), ("sampling_params",), ("prompt",)], True),
        ]

    def answer(self, route, body, operation):
        """`ignored`, or the words of the refusal."""
        status, answer, _ = blackbox.post(self.base_url, route, body, KEY)
        if status == 200 and operation:
            status, answer = blackbox.raw_result(self.base_url, answer["request_id"], KEY)
        if status != 200:
            detail = answer.get("detail", answer) if isinstance(answer, dict) else answer
            return f"{status}: {detail}"
        return f"failed: {answer['error']}" if "error" in answer else "ignored"


def place(route, path):
    inner = "".join("[]" if isinstance(part, int) else f".{part}" for part in path)
    return route + re.sub(r"^\.", " ", inner)


def probed(requests):
    found = []
    for route, request, paths, operation in requests.all():
        probes = [(path, STRANGER, 1) for path in paths]
        probes += [((), name, value) for name, value in KNOWN.get(route, [])]
        for path, name, value in probes:
            body = request()
            inner = body
            for part in path:
                inner = inner[part]
            inner[name] = value
            answer = requests.answer(route, body, operation)
            answer = answer.replace(requests.session, "<session>")
            if answer == "ignored" and name != STRANGER:
                answer = EFFECTS.get((route, name), "taken")
            field = "any other" if name == STRANGER else name
            found.append({"place": place(route, path), "field": field, "answer": answer})
    return found


# What is taken is used like this; where this says `ignored`, nothing looks at it.
EFFECTS = {
    ("create_session", "project_id"): "kept with the session",
    ("create_session", "tags"): "kept with the session",
    ("create_session", "sdk_version"): "kept with the session",
    ("create_session", "display_name"): "kept with the session",
    ("create_model", "user_metadata"): "kept with the run",
    ("create_model", "optimizer_config"): "obeyed",
    ("asample", "base_model"): "ignored: the sampling session decides",
    ("asample", "model_path"): "ignored: the sampling session decides",
    ("save_weights", "user_metadata"): "kept with the checkpoint",
    ("save_weights", "ttl_seconds"): "obeyed",
    ("load_weights", "optimizer_config"): "obeyed",
}


def main():
    options = blackbox.parser(__doc__)
    arguments = options.parse_args()
    blackbox.watchdog(arguments.limit)
    json.dump(probed(Requests(arguments.base_url, arguments.model)), sys.stdout, indent=1)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
