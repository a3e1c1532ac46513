"""Drawing tokens, and training on what was drawn."""

import json

from kit import IGNORED, expect, features, near, plain, refused, step
from twinkle.advantage import GRPOAdvantage
from twinkle.data_format.sampling import SamplingParams
from twinkle.template import Template
from twinkle_agentic.tools.base import Tool
from twinkle_agentic.tools.tool_manager import ToolManager
from twinkle_client.rollout import ClientMultiTurnRollout
from twinkle_client.sampler import vLLMSampler

MESSAGES = [{"role": "user", "content": "Who are you?"}]
GREEDY = {"max_tokens": 8, "temperature": 0.0, "logprobs": 1}


def question() -> dict:
    """A new one every time: the package's template writes into what it is given."""
    return {"messages": [dict(message) for message in MESSAGES]}


def test_text_and_tokens_give_the_same_answer(world):
    world.sign_in()
    sampler = world.sampler()
    sampler.set_template("Template")
    encoded = Template(model_id=world.model_path).batch_encode([question()], add_generation_prompt=True)[0]
    of_text = sampler.sample([question()], sampling_params=GREEDY)[0].sequences[0]
    of_tokens = sampler.sample([{"input_ids": encoded["input_ids"]}], sampling_params=GREEDY)[0].sequences[0]
    expect(of_text.tokens == of_tokens.tokens, f"{of_text.tokens} from text, {of_tokens.tokens} from its tokens")
    expect(isinstance(of_text.decoded, str), "nothing is decoded")
    expect(of_text.stop_reason in ("length", "stop"), f"the reason is {of_text.stop_reason}")
    prompt = list(of_text.new_input_feature["input_ids"])[: -len(of_text.tokens)]
    expect(prompt == plain(encoded["input_ids"]), "the prompt's tokens are not the template's")
    expect(of_text.new_input_feature["messages"][-1]["role"] == "assistant", "no assistant's turn in the new feature")


def test_seeds_samples_and_log_probabilities(world):
    world.sign_in()
    sampler = world.sampler()
    prompt = {"input_ids": [5, 6, 7, 8]}
    drawn = {"max_tokens": 6, "temperature": 1.0, "seed": 3, "num_samples": 3, "logprobs": 1}
    first, again = (sampler.sample([prompt], sampling_params=drawn)[0].sequences for _ in range(2))
    expect([s.tokens for s in first] == [s.tokens for s in again] and len(first) == 3, "a seed does not repeat")
    expect(len({tuple(s.tokens) for s in first}) > 1, "all samples are equal")
    for sequence in first:
        ids = [entry[0][0] for entry in sequence.logprobs]
        expect(ids == sequence.tokens, f"log-probabilities are of {ids}, not of {sequence.tokens}")
    none = sampler.sample([prompt], sampling_params={"max_tokens": 2})[0].sequences[0]
    expect(none.logprobs is None, "log-probabilities that nobody asked for")
    top = sampler.sample([prompt], sampling_params={"max_tokens": 2, "logprobs": 3, "temperature": 0.0})[0].sequences[0]
    for token, entry in zip(top.tokens, top.logprobs):
        values = [value for _, value in entry[:3]]
        expect(values == sorted(values, reverse=True), f"not sorted: {entry}")
        expect(token in [found for found, _ in entry], f"the drawn token {token} is not in {entry}")
    scored = sampler.sample([prompt], sampling_params={"max_tokens": 0, "prompt_logprobs": 2})[0]
    expect(scored.prompt_logprobs[0] is None and len(scored.prompt_logprobs) == 4, f"{scored.prompt_logprobs}")
    expect(scored.sequences[0].tokens == [], "tokens were drawn")
    outer = sampler.sample([prompt], sampling_params={"max_tokens": 2, "seed": 1}, num_samples=2)[0]
    expect(len(outer.sequences) == 2, "`num_samples` beside the parameters is ignored")


def test_a_trained_adapter_answers_in_its_own_words(world):
    """Supervised on one answer until it says it; the sampler's log-probabilities are the trainer's."""
    world.sign_in()
    model = world.trained(lr=2e-2)
    model.set_template("Template")
    answer = {"messages": [*MESSAGES, {"role": "assistant", "content": "Star."}]}
    for _ in range(25):
        loss = step(model, [answer])["loss"]
    expect(loss < 0.1, f"the loss is {loss} after 25 steps")
    adapter = model.save(name="words", is_sampler=True).twinkle_path
    sampler = world.sampler()
    sampler.set_template("Template")
    base = sampler.sample([question()], sampling_params=GREEDY)[0].sequences[0]
    trained = sampler.sample([question()], sampling_params=GREEDY, adapter_uri=adapter)[0].sequences[0]
    expect(trained.decoded.startswith("Star."), f"it says {trained.decoded!r}")
    expect(base.decoded != trained.decoded, "the base model says the same")
    feature = trained.new_input_feature
    count = sum(label != IGNORED for label in feature["labels"])
    expect(count == len(trained.tokens) and len(feature["labels"]) == len(feature["input_ids"]), f"labels: {feature['labels']}")
    logps = model.forward_only(inputs=[feature]).result["logps"]
    logps = logps if isinstance(logps[0], list) else [logps]
    trainers = [logp for logp, label in zip(logps[0], feature["labels"]) if label != IGNORED]
    for mine, theirs in zip((entry[0][1] for entry in trained.logprobs), trainers):
        near(mine, theirs, 1e-3, "the sampler's log-probability")


def test_a_loop_of_reinforcement_learning_raises_its_reward(world):
    world.sign_in()
    model = world.trained(loss="GRPOLoss", lr=2e-2)
    sampler = world.sampler()
    prompt, wanted = {"input_ids": [5, 6, 7, 8], "labels": [IGNORED] * 4}, range(0, 168)
    means = []
    for round_ in range(8):
        adapter = model.save(name=f"round{round_}", is_sampler=True).twinkle_path
        drawn = {"max_tokens": 4, "temperature": 1.0, "seed": round_, "num_samples": 16, "logprobs": 1}
        sequences = sampler.sample([prompt], sampling_params=drawn, adapter_uri=adapter)[0].sequences
        rewards = [sum(token in wanted for token in sequence.tokens) / 4 for sequence in sequences]
        means.append(sum(rewards) / len(rewards))
        advantages = GRPOAdvantage()(rewards, num_generations=16, scale="group").tolist()
        old = [[entry[0][1] for entry in sequence.logprobs] for sequence in sequences]
        model.forward_backward(
            inputs=[sequence.new_input_feature for sequence in sequences], advantages=advantages, old_logps=old
        )
        model.clip_grad_and_step()
    expect(means[-1] > means[0] + 0.1, f"rewards: {means}")


class Adder(Tool):
    """Adds two numbers."""

    calls = 0

    def __call__(self, tool_name=None, arguments=None, **more):
        type(self).calls += 1
        return "3"

    def tool_info(self):
        return {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}


def test_a_rollout_calls_a_tool_and_goes_on(world):
    """The model is taught to call a tool; the package's own rollout answers it and asks again."""
    world.sign_in()
    call = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    model = world.trained(lr=2e-2)
    model.set_template("Template")
    first = {"messages": [*MESSAGES, {"role": "assistant", "content": call}]}
    for _ in range(60):
        loss = step(model, [first])["loss"]
        if loss < 0.01:
            break
    adapter = model.save(name="caller", is_sampler=True).twinkle_path

    class Trained(vLLMSampler):
        """The rollout names no adapter."""

        def sample(self, inputs, **options):
            return super().sample(inputs, adapter_uri=adapter, **options)

    template = Template(model_id=world.model_path)
    sampler = Trained(model_id=world.model)
    sampler.set_template("Template")
    tools = ToolManager({"add": Adder()})
    parameters = SamplingParams(max_tokens=80, temperature=0.0, logprobs=1)
    rollout = ClientMultiTurnRollout(sampler, template, tools, parameters, max_turns=2)
    result = rollout([question()])[0]
    roles = [message["role"] for message in result["messages"]]
    expect(Adder.calls >= 1 and "tool" in roles, f"no tool was called (loss {loss}): {result['messages']}")
    expect(result["turns"] == 2, f"{result['turns']} turns")
    learned = sum(label != IGNORED for label in result["labels"])
    expect(learned == len(result["logprobs"]), f"{learned} labels, {len(result['logprobs'])} log-probabilities")
    model.set_loss("GRPOLoss")
    old = [[entry[0][1] for entry in result["logprobs"]]]
    row = {key: result[key] for key in ("input_ids", "labels")}
    loss = model.forward_backward(inputs=[row], advantages=[1.0], old_logps=old).result["loss"]
    near(loss, -1.0, 1e-2, "the loss of tokens that this very policy drew")


def test_a_stream_gives_the_answer_in_pieces(world):
    client = world.sign_in()
    sampler = world.sampler()
    sampler.set_template("Template")
    whole = sampler.sample([question()], sampling_params=GREEDY)[0].sequences[0]
    body = {"inputs": [question()], "sampling_params": GREEDY, "adapter_name": ""}
    route, headers = f"sampler/{world.model}/twinkle/sample_stream", {"X-Twinkle-Session-Id": client._session_id}
    answer = world.post(route, body, headers=headers)
    expect(answer.status_code == 200, f"the stream is answered {answer.status_code}: {answer.text}")
    expect("ndjson" in answer.headers["Content-Type"], answer.headers["Content-Type"])
    lines = [json.loads(line) for line in answer.text.splitlines() if line]
    text = "".join(line["delta"] for line in lines)
    expect(text == whole.decoded, f"the stream says {text!r}, the sample {whole.decoded!r}")
    expect(lines[-1]["finish_reason"] == whole.stop_reason, f"it ends with {lines[-1]}")
    two = world.post(route, {**body, "inputs": [question(), question()]}, headers=headers)
    expect(two.status_code == 400, f"two inputs are answered {two.status_code}: {two.text}")


def test_wrong_parameters_are_refused_in_words(world):
    world.sign_in()
    sampler = world.sampler()
    prompt = [{"input_ids": [5, 6, 7]}]
    for parameters, word in [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"num_samples": 0}, "num_samples"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ]:
        refused(lambda: sampler.sample(prompt, sampling_params=parameters), 400, words=(word,))
    refused(lambda: sampler.sample([]), 400)
    refused(lambda: sampler.sample([{"input_ids": [999999]}]), 400)
    refused(lambda: sampler.sample(prompt, adapter_uri="twinkle://nobody/weights/x"), 400, 404)
    refused(lambda: sampler.sample(prompt, adapter_uri="/etc"), 400, 403, 404)


def test_stop_and_penalty(world):
    world.sign_in()
    sampler = world.sampler()
    prompt = [{"input_ids": [5, 6, 7, 8]}]
    plain_ = sampler.sample(prompt, sampling_params={"max_tokens": 8, "temperature": 0.0})[0].sequences[0]
    stopped = sampler.sample(prompt, sampling_params={"max_tokens": 8, "temperature": 0.0, "stop": [plain_.tokens[2]]})
    stopped = stopped[0].sequences[0]
    expect(stopped.stop_reason == "stop" and len(stopped.tokens) <= 3, f"{stopped.tokens} for the reason {stopped.stop_reason}")
    varied = sampler.sample(prompt, sampling_params={"max_tokens": 24, "temperature": 0.0, "repetition_penalty": 5.0})
    varied = varied[0].sequences[0].tokens
    expect(len(set(varied)) >= len(varied) - 2, f"repetitions in spite of the penalty: {varied}")


def test_features_without_labels_come_back_whole(world):
    """Upstream's labels are then shorter than the tokens."""
    world.sign_in()
    row = features(31, count=1)[0]
    sequence = world.sampler().sample([{"input_ids": row["input_ids"], "mark": 7}], sampling_params=GREEDY)[0].sequences[0]
    feature = sequence.new_input_feature
    expect(len(feature["labels"]) == len(feature["input_ids"]) == len(row["input_ids"]) + len(sequence.tokens), f"{feature}")
    expect(feature.get("mark") == 7, f"what it does not know is lost: {feature}")
