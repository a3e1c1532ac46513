#!/usr/bin/env python3
"""The OpenAI door through OpenAI's own client: models, chats, completions, streams, logprobs, tools and mistakes."""

import argparse
import asyncio
import faulthandler
import json

import openai

CALL_TEXT = '<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
MESSAGES = [{"role": "user", "content": "hi"}]


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--base-url", required=True)
    options.add_argument("--model", required=True)
    options.add_argument("--key", required=True)
    options.add_argument("--checkpoint", required=True, help="weights that think, speak and call a tool")
    options.add_argument("--run", required=True, help="the run that saved them")
    arguments = options.parse_args()
    faulthandler.dump_traceback_later(240, exit=True)

    client = openai.OpenAI(base_url=f"{arguments.base_url}/v1", api_key=arguments.key, max_retries=0)
    below = openai.OpenAI(base_url=f"{arguments.base_url}/api/v1", api_key=arguments.key, max_retries=0)
    model = arguments.model
    models(client, below, model, arguments)
    chats(client, below, model)
    streams(client, model)
    logprobs(client, model)
    stops(client, arguments.checkpoint)
    penalties(client, model)
    biases(client, model)
    completions(client, model)
    scored_prompts(client, model)
    tools(client, arguments)
    mistakes(client, arguments)
    asyncio.run(at_once(arguments))
    print("the OpenAI door answers as its client expects")


def models(client, below, model, arguments):
    for door in (client, below):
        listed = door.models.list().data
        expect([entry.id for entry in listed] == [model], listed)
        expect(listed[0].object == "model" and listed[0].owned_by == "twinkle", listed)
    for name in (model, arguments.run, arguments.checkpoint):
        expect(client.models.retrieve(name).id == name, name)
    refused(openai.NotFoundError, "model", client.models.retrieve, "tiny/nothing")


def chats(client, below, model):
    def chat(door=client, **changes):
        return door.chat.completions.create(model=model, messages=MESSAGES, max_tokens=12, **changes)

    greedy = chat(temperature=0)
    expect(greedy.object == "chat.completion" and greedy.id.startswith("chatcmpl-"), greedy)
    expect(greedy.model == model and greedy.choices[0].message.role == "assistant", greedy)
    usage = greedy.usage
    expect(usage.prompt_tokens > 5 and 1 <= usage.completion_tokens <= 12, usage)
    expect(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage)
    expect(greedy.choices[0].finish_reason in ("stop", "length"), greedy)
    expect(chat(below, temperature=0).choices[0].message.content == greedy.choices[0].message.content, "two doors")

    drawn = chat(seed=7, n=3)
    texts = [choice.message.content for choice in drawn.choices]
    expect([choice.index for choice in drawn.choices] == [0, 1, 2] and len(set(texts)) > 1, texts)
    expect([choice.message.content for choice in chat(seed=7, n=3).choices] == texts, "a seed repeats its samples")
    expect([choice.message.content for choice in chat(seed=8, n=3).choices] != texts, "another seed draws others")
    expect(drawn.usage.completion_tokens <= 36 and drawn.usage.prompt_tokens == usage.prompt_tokens, drawn.usage)

    short = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=9, max_completion_tokens=2, extra_body={"ignore_eos": True}
    )
    expect(short.usage.completion_tokens == 2 and short.choices[0].finish_reason == "length", short)
    chat(user="u", metadata={"a": "b"}, store=False, response_format={"type": "text"}, logit_bias={})


def pieces(stream):
    """The whole of a streamed chat: content, reasoning and calls by choice, reasons, usage, logprob entries."""
    content, reasoning, calls, reasons, entries, usage = {}, {}, {}, {}, {}, None
    for chunk in stream:
        expect(chunk.object == "chat.completion.chunk", chunk)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            index, delta = choice.index, choice.delta
            expect(delta.role == "assistant" if index not in content else delta.role is None, chunk)
            content[index] = content.get(index, "") + (delta.content or "")
            reasoning[index] = reasoning.get(index, "") + (getattr(delta, "reasoning_content", None) or "")
            calls.setdefault(index, []).extend(delta.tool_calls or [])
            if choice.logprobs:
                entries.setdefault(index, []).extend(choice.logprobs.content)
            if choice.finish_reason:
                expect(index not in reasons, "a choice ends once")
                reasons[index] = choice.finish_reason
    return content, reasoning, calls, reasons, entries, usage


def streams(client, model):
    asked = {"model": model, "messages": MESSAGES, "max_tokens": 20, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**asked)
    content, _, _, reasons, _, usage = pieces(client.chat.completions.create(**asked, stream=True))
    expect(usage is None, "usage was not asked for")
    for choice in whole.choices:
        expect(content[choice.index] == choice.message.content, (content, choice))
        expect(reasons[choice.index] == choice.finish_reason, (reasons, choice))
    counted = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    expect(pieces(counted)[5] == whole.usage, "a stream counts as a whole answer does")

    endless = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(endless))
    endless.close()
    refused(openai.BadRequestError, "temperature", client.chat.completions.create, **asked | {"temperature": -1},
            stream=True)


def logprobs(client, model):
    asked = {"model": model, "messages": MESSAGES, "max_tokens": 10, "temperature": 0, "logprobs": True,
             "top_logprobs": 3}
    whole = client.chat.completions.create(**asked)
    entries = whole.choices[0].logprobs.content
    expect(len(entries) == whole.usage.completion_tokens, "one entry for each drawn token")
    for entry in entries:
        top = entry.top_logprobs
        expect(len(top) == 3 and top[0].token == entry.token, "the greedy token is the likeliest")
        expect(abs(top[0].logprob - entry.logprob) < 1e-6 and entry.logprob <= 0, entry)
        expect(top[0].logprob >= top[1].logprob >= top[2].logprob, top)
    for entry in entries:
        expect(entry.token.startswith("bytes:") or entry.token.encode() == bytes(entry.bytes), entry)
    streamed = pieces(client.chat.completions.create(**asked, stream=True))[4][0]
    expect(streamed == entries, "a stream has the same logprobs")
    plain = client.chat.completions.create(**asked | {"logprobs": False, "top_logprobs": None})
    expect(plain.choices[0].logprobs is None, plain)
    refused(openai.BadRequestError, "top_logprobs", client.chat.completions.create, **asked | {"logprobs": False})


def stops(client, model):
    asked = {"model": model, "messages": MESSAGES, "max_tokens": 200, "temperature": 0,
             "extra_body": {"separate_reasoning": False}}
    for stop, expected in (("think>ok<", "<think>hm</"), (["never seen", "ok"], "<think>hm</think>"), ("<", "")):
        cut = client.chat.completions.create(**asked, stop=stop).choices[0]
        expect((cut.message.content, cut.finish_reason) == (expected, "stop"), (stop, cut))
        content, _, _, reasons, _, _ = pieces(client.chat.completions.create(**asked, stop=stop, stream=True))
        expect((content[0], reasons[0]) == (expected, "stop"), f"a stream ends elsewhere at {stop}: {content}")


def penalties(client, model):
    asked = {"model": model, "prompt": "abc", "max_tokens": 24, "temperature": 0, "logprobs": 1}

    def different(**changes):
        extra = {"ignore_eos": True} | changes.pop("extra_body", {})
        return len(set(client.completions.create(**asked, **changes, extra_body=extra).choices[0].logprobs.tokens))

    plain = different()
    expect(different(frequency_penalty=2.0, presence_penalty=2.0) > plain, "penalties make the text more various")
    expect(different(extra_body={"repetition_penalty": 5.0}) > plain, "so does a repetition penalty")


def completions(client, model):
    def complete(prompt, **changes):
        return client.completions.create(model=model, prompt=prompt, **{"max_tokens": 6, "temperature": 0} | changes)

    one = complete("one")
    expect(one.object == "text_completion" and one.id.startswith("cmpl-"), one)
    both = complete(["one", "two"], n=2)
    expect([choice.index for choice in both.choices] == [0, 1, 2, 3], both)
    expect(both.choices[0].text == both.choices[1].text == one.choices[0].text, "greedy choices of one prompt")
    expect(both.usage.prompt_tokens == one.usage.prompt_tokens + complete("two").usage.prompt_tokens, both.usage)
    expect(both.usage.completion_tokens <= 24, both.usage)
    tokens = [5, 6, 7]
    expect(complete(tokens).usage.prompt_tokens == 3, "tokens are a prompt too")
    expect(complete([tokens, [8]]).usage.prompt_tokens == 4, "so are lists of tokens")
    expect(complete("one", max_tokens=None, extra_body={"ignore_eos": True}).usage.completion_tokens == 16, "default")
    expect(complete("one", echo=True).choices[0].text == "one" + one.choices[0].text, "an echo goes before")
    repeated = complete("one", echo=True, max_tokens=0)
    expect((repeated.choices[0].text, repeated.usage.completion_tokens) == ("one", 0), repeated)

    texts, usage = {}, None
    streamed = complete(["one", "two"], n=2, stream=True, echo=True, stream_options={"include_usage": True})
    for chunk in streamed:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    expect(texts[0] == "one" + one.choices[0].text and texts[3] == "two" + both.choices[3].text, texts)
    expect(usage == both.usage, (usage, both.usage))


def scored_prompts(client, model):
    asked = {"model": model, "prompt": "a short text", "echo": True, "logprobs": 2, "temperature": 0}
    scored = client.completions.create(**asked, max_tokens=0)
    lists = scored.choices[0].logprobs
    count = scored.usage.prompt_tokens
    expect(len(lists.tokens) == len(lists.token_logprobs) == len(lists.text_offset) == count, lists)
    expect(lists.token_logprobs[0] is None and all(value <= 0 for value in lists.token_logprobs[1:]), lists)
    expect("".join(lists.tokens) == "a short text", lists.tokens)
    more = client.completions.create(**asked, max_tokens=3)
    longer = more.choices[0].logprobs
    expect(longer.token_logprobs[:count] == lists.token_logprobs, "a prompt's logprobs do not depend on what follows")
    expect(len(longer.tokens) == count + more.usage.completion_tokens, longer)
    expect(all(1 <= len(top) <= 3 for top in longer.top_logprobs[1:]), longer.top_logprobs)


def tools(client, arguments):
    def chat(model, **changes):
        asked = {"model": model, "messages": MESSAGES, "max_tokens": 200, "temperature": 0}
        return client.chat.completions.create(**asked | changes)

    for model in (arguments.checkpoint, arguments.run):
        choice = chat(model, tools=TOOLS).choices[0]
        expect(choice.finish_reason == "tool_calls", choice)
        message = choice.message
        expect((message.content, message.reasoning_content) == ("ok", "hm"), message)
        expect([call.function.name for call in message.tool_calls] == ["f"], message)
        expect(json.loads(message.tool_calls[0].function.arguments) == {"a": 1}, message)
        expect(message.tool_calls[0].id.startswith("call_"), message)
    added = chat(arguments.model, tools=TOOLS, extra_body={"adapter_uri": arguments.checkpoint})
    expect(added.choices[0].finish_reason == "tool_calls", added)

    content, reasoning, calls, reasons, _, _ = pieces(chat(arguments.checkpoint, tools=TOOLS, stream=True))
    expect((content[0], reasoning[0], reasons[0]) == ("ok", "hm", "tool_calls"), (content, reasoning, reasons))
    begun, *rest = calls[0]
    expect((begun.index, begun.function.name, begun.type) == (0, "f", "function") and begun.id, calls)
    expect(rest and all((piece.index, piece.id, piece.function.name) == (0, None, None) for piece in rest), calls)
    arguments_told = "".join(piece.function.arguments for piece in calls[0])
    expect(arguments_told == message.tool_calls[0].function.arguments, (arguments_told, message))
    with chat_stream(client, arguments.checkpoint) as stream:
        joined = stream.get_final_completion().choices[0].message
    expect(joined.tool_calls[0].function.arguments == arguments_told, joined)

    alone = chat(arguments.checkpoint, tools=TOOLS, parallel_tool_calls=False).choices[0]
    expect(alone.finish_reason == "tool_calls" and len(alone.message.tool_calls) == 1, alone)
    for forced in ("required", {"type": "function", "function": {"name": "f"}}):
        choice = chat(arguments.model, tools=TOOLS, tool_choice=forced, max_tokens=8).choices[0]
        expect([call.function.name for call in choice.message.tool_calls] == ["f"], choice)
        asked = {"tools": TOOLS, "tool_choice": forced, "max_tokens": 8, "stream": True}
        streamed = pieces(chat(arguments.model, **asked))[2][0]
        expect(streamed[0].function.name == "f", streamed)
        told = "".join(piece.function.arguments for piece in streamed)
        expect(told == choice.message.tool_calls[0].function.arguments, (told, choice))

    unoffered = chat(arguments.checkpoint, tools=TOOLS, tool_choice="none").choices[0]
    expect((unoffered.message.content, unoffered.finish_reason) == ("ok" + CALL_TEXT, "stop"), unoffered)
    together = chat(arguments.checkpoint, extra_body={"separate_reasoning": False}).choices[0].message
    expect(together.content == "<think>hm</think>ok" + CALL_TEXT, together)

    # What the model called and what the tool said goes back into the conversation.
    turns = MESSAGES + [message.model_dump(), {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "7"}]
    turns[1]["content"] = turns[1]["content"] or ""
    expect(chat(arguments.model, messages=turns, tools=TOOLS, max_tokens=3).usage.completion_tokens <= 3, "a tool's turn")


def chat_stream(client, model):
    """The stream helper of the client, which joins the pieces itself. It takes tools that say `strict` only."""
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    strict = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}]
    asked = {"model": model, "messages": MESSAGES, "max_tokens": 200, "temperature": 0, "tools": strict}
    return client.chat.completions.stream(**asked)


def biases(client, model):
    """A token that is favoured is drawn, one that is held back is not, and nobody else notices."""

    def tokens(**changes):
        asked = {"model": model, "prompt": "abc", "max_tokens": 8, "temperature": 0, "logprobs": 1}
        extra = {"ignore_eos": True}
        return client.completions.create(**asked, extra_body=extra, **changes).choices[0].logprobs.tokens

    plain = tokens()
    favoured = tokens(logit_bias={"70": 100})
    expect(len(set(favoured)) == 1 and favoured != plain, (favoured, plain))
    expect(favoured[0] not in tokens(logit_bias={"70": -100}), "a token that is held back")
    expect(tokens(logit_bias={"70": 0}) == plain == tokens(logit_bias={}), "a bias of nothing changes nothing")
    chat = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=4, logit_bias={"70": 100}, logprobs=True,
        extra_body={"ignore_eos": True})
    expect({entry.token for entry in chat.choices[0].logprobs.content} == set(favoured), chat)


def refused(kind, field, call, *positional, **named):
    """The call fails with this exception, whose body names the field."""
    try:
        call(*positional, **named)
    except openai.APIStatusError as error:
        expect(type(error) is kind, f"{field}: {type(error).__name__} is not {kind.__name__}: {error}")
        body = error.response.json()["error"]
        expect(set(body) == {"message", "type", "param", "code"}, body)
        expect(body["param"] == field, f"`{field}` is not named: {body}")
        expect(body["message"] and "Traceback" not in body["message"], body)
        return
    raise AssertionError(f"{field} was accepted")


def mistakes(client, arguments):
    def chat(**changes):
        return client.chat.completions.create(**{"model": arguments.model, "messages": MESSAGES, "max_tokens": 2} | changes)

    def complete(**changes):
        return client.completions.create(**{"model": arguments.model, "prompt": "a", "max_tokens": 2} | changes)

    bad = openai.BadRequestError
    for call in (chat, complete):
        refused(bad, "temperature", call, temperature=-1)
        refused(bad, "top_p", call, top_p=0)
        refused(bad, "n", call, n=0)
        refused(bad, "n", call, n=100_000)
        refused(bad, "stop", call, stop=[""])
        refused(bad, "frequency_penalty", call, frequency_penalty=1e9)
        refused(bad, "logit_bias", call, logit_bias={"5": 101})
        refused(bad, "logit_bias", call, logit_bias={"10000000": 1})
        refused(bad, "logit_bias", call, logit_bias={"the": 1})
        refused(bad, "logit_bias", call, extra_body={"logit_bias": [5]})
        refused(bad, "temprature", call, extra_body={"temprature": 1})
        refused(bad, "max_tokens", call, max_tokens=100_000)
        refused(bad, "stream_options", call, stream_options={"include_usage": True})
        refused(openai.NotFoundError, "model", call, model="tiny/nothing")
        refused(openai.NotFoundError, "model", call, model=arguments.checkpoint + "x")
        refused(openai.NotFoundError, "model", call, model="tinker://nonsense")
        refused(bad, "adapter_uri", call, extra_body={"adapter_uri": "/etc/passwd"})
    refused(bad, "messages", chat, messages=[])
    refused(bad, "messages[0].role", chat, messages=[{"content": "no role"}])
    refused(bad, "messages", chat, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
    refused(bad, "response_format", chat, response_format={"type": "json_object"})
    refused(bad, "tool_choice", chat, tools=TOOLS * 2, tool_choice="required")
    refused(bad, "tool_choice", chat, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "g"}})
    refused(bad, "tool_choice", chat, tools=TOOLS, tool_choice="any")
    refused(bad, "tool_choice", chat, tool_choice="required")
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    refused(bad, "tool_choice", chat, tools=TOOLS, tool_choice="required", extra_body=thinking)
    refused(bad, "tools", chat, tools=[{"type": "code_interpreter"}])
    refused(bad, "prompt", complete, prompt="")
    refused(bad, "best_of", complete, best_of=3)
    refused(bad, "suffix", complete, suffix="x")

    stranger = openai.OpenAI(base_url=client.base_url, api_key="tml-stranger", max_retries=0)
    for name in (arguments.checkpoint, arguments.run):
        refused(openai.NotFoundError, "model", stranger.chat.completions.create, model=name, messages=MESSAGES)
    nobody = openai.OpenAI(base_url=client.base_url, api_key="x", max_retries=0, default_headers={"Authorization": ""})
    refused(openai.AuthenticationError, None, nobody.models.list)
    refused(openai.NotFoundError, None, client.embeddings.create, model=arguments.model, input="a")


async def at_once(arguments):
    client = openai.AsyncOpenAI(base_url=f"{arguments.base_url}/v1", api_key=arguments.key, max_retries=0)

    async def one(number):
        asked = {"model": arguments.model, "messages": MESSAGES, "max_tokens": 16, "seed": number}
        whole = await client.chat.completions.create(**asked)
        text = ""
        async for chunk in await client.chat.completions.create(**asked, stream=True):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        expect(text == whole.choices[0].message.content, (text, whole))

    await asyncio.gather(*(one(number) for number in range(8)))


if __name__ == "__main__":
    main()
