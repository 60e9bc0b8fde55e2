#!/usr/bin/env python3
"""What the official `openai` client makes of the server. Run by `run_client`, which starts one.

usage: client.py BASE_URL      needs: openai; a server with the chat template of `run_client`
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai

MODEL = "default"
PROMPT = "Ownership is Rust's most unique feature, and"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["trait", "struct"]},
        "fields": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["name", "kind", "fields"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {"days": {"type": "integer"}}},
    },
}
STRICT = {
    "type": "object",
    "properties": {"zone": {"$ref": "#/$defs/Zone"}},
    "required": ["zone"],
    "additionalProperties": False,
    "$defs": {"Zone": {"enum": ["UTC", "CET"], "type": "string"}},
}
# Small models call no tools by themselves: the reply's form makes this one do it.
CALL = r'Well\. <tool_call>\{"name": "weather", "arguments": \{"days": [1-9]\}\}</tool_call>'
THOUGHT = r"<think>[a-z]{5,9}</think>[a-z]{4,8}"


def refused(error, status, call, param=None, code=None):
    """The call raises this error, in OpenAI's shape, and the message holds nothing of the request."""
    try:
        call()
    except error as raised:
        assert raised.status_code == status, raised
        assert (raised.param, raised.code) == (param, code), raised
        assert raised.type == "invalid_request_error", raised
        assert "canary" not in str(raised), raised
        assert raised.response.headers["x-request-id"] == raised.request_id, raised.request_id
    else:
        raise AssertionError(f"expected {error.__name__}")


def complete(client, **settings):
    return client.completions.create(model=MODEL, **{"prompt": PROMPT, "max_tokens": 16, **settings})


def chat(client, **settings):
    messages = [{"role": "user", "content": "What is a slice?"}]
    defaults = {"messages": messages, "max_completion_tokens": 24}
    return client.chat.completions.create(model=MODEL, **{**defaults, **settings})


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "amnesic")
    assert client.models.retrieve(MODEL).id == MODEL
    refused(openai.NotFoundError, 404, lambda: client.models.retrieve("canary"), "model", "model_not_found")


def test_completions(client):
    reply = complete(client)
    (choice,) = reply.choices
    assert reply.object == "text_completion" and reply.id.startswith("cmpl-") and reply.model == MODEL
    assert choice.text and choice.finish_reason == "length" and choice.logprobs is None
    usage = reply.usage
    assert usage.completion_tokens == 16 and usage.total_tokens == usage.prompt_tokens + 16
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert complete(client).choices[0].text == choice.text, "greedy is always the same"
    # 16 is OpenAI's default, too
    assert complete(client, max_tokens=openai.omit).usage.completion_tokens == 16
    # usage counts what the prompt has in tokens, however it comes
    echoed = complete(client, prompt=[40, 41, 42], echo=True, max_tokens=1)
    assert echoed.choices[0].text.startswith("HIJ") and echoed.usage.prompt_tokens == 3, echoed


def test_several_prompts_and_choices(client):
    settings = {"temperature": 1.0, "seed": 7}
    reply = complete(client, prompt=[PROMPT, "A trait"], n=3, **settings)
    assert [choice.index for choice in reply.choices] == list(range(6))
    assert len({choice.text for choice in reply.choices}) == 6
    alone = complete(client, prompt="A trait", n=3, **settings)
    assert [choice.text for choice in alone.choices] == [choice.text for choice in reply.choices[3:]]
    assert reply.usage.completion_tokens == 6 * 16
    arrays = complete(client, prompt=[[40, 41], [42]], echo=True, max_tokens=1)
    assert [choice.text[:1] for choice in arrays.choices] == ["H", "J"]


def test_sampling(client):
    drawn = {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.5, "seed": -3}
    more = {"top_k": 40, "min_p": 0.01, "typical_p": 0.95, "repetition_penalty": 1.1, "min_tokens": 4}
    first, second = (complete(client, **drawn, extra_body=more).choices[0].text for _ in range(2))
    assert first == second, "a seed makes it reproducible"
    assert complete(client, **{**drawn, "seed": 4}, extra_body=more).choices[0].text != first
    greedy = complete(client).choices[0].text
    assert complete(client, temperature=2.0, seed=1, extra_body={"top_k": 1}).choices[0].text == greedy
    # one token is certain, so it is all that comes
    assert complete(client, logit_bias={"40": 100}, max_tokens=4).choices[0].text == "HHHH"
    # an end token that ends nothing
    ends = complete(client, logit_bias={"0": 100}, max_tokens=5)
    assert (ends.choices[0].finish_reason, ends.usage.completion_tokens) == ("stop", 0)
    goes_on = complete(client, logit_bias={"0": 100}, max_tokens=5, extra_body={"ignore_eos": True})
    assert (goes_on.choices[0].finish_reason, goes_on.usage.completion_tokens) == ("length", 5)


def test_stops(client):
    text = complete(client, max_tokens=40).choices[0].text
    word = text.split()[3]
    for stop in (word, ["\u0000", word]):
        choice = complete(client, max_tokens=40, stop=stop).choices[0]
        assert choice.finish_reason == "stop" and choice.text == text[: text.index(word)]
    by_token = complete(client, logit_bias={"40": 100}, extra_body={"stop_token_ids": [40]})
    assert (by_token.choices[0].text, by_token.choices[0].finish_reason) == ("", "stop")


def test_logprobs(client):
    choice = complete(client, logprobs=3).choices[0]
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text and len(told.tokens) == 16
    for token, logprob, top, offset in zip(told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset):
        assert len(top) == 3 and top[token] == logprob == max(top.values()) <= 0, "greedy takes the likeliest"
        assert choice.text[offset:].startswith(token)
    # the prompt's, from the second token on
    echoed = complete(client, logprobs=1, echo=True, max_tokens=0)
    assert echoed.usage.completion_tokens == 0 and echoed.choices[0].text == PROMPT
    told = echoed.choices[0].logprobs
    assert "".join(told.tokens) == PROMPT and len(told.tokens) == echoed.usage.prompt_tokens
    assert told.token_logprobs[0] is None and all(logprob <= 0 for logprob in told.token_logprobs[1:])
    extended = complete(client, extra_body={"prompt_logprobs": 2}).choices[0].prompt_logprobs
    assert extended[0] is None and len(extended) == echoed.usage.prompt_tokens
    likeliest = [min(entry.values(), key=lambda one: one["rank"]) for entry in extended[1:]]
    assert all(one["rank"] == 1 for one in likeliest)
    assert sum(len(entry) in (2, 3) for entry in extended[1:]) == len(extended) - 1


def test_streams(client):
    settings = {"n": 2, "temperature": 1.0, "seed": 1, "logprobs": 1, "max_tokens": 32}
    whole = complete(client, **settings)
    texts, tokens, reasons, usage = ["", ""], [[], []], [None, None], None
    for chunk in complete(client, stream=True, stream_options={"include_usage": True}, **settings):
        assert usage is None, "usage comes last"
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def said(chunk):
    """The text that a chunk of a completion or of a chat adds."""
    choice = chunk.choices[0]
    return (choice.delta.content if hasattr(choice, "delta") else choice.text) or ""


def test_obfuscation(client):
    settings = {"stream": True, "temperature": 1.0, "seed": 5}
    for ask in (complete, chat):
        padded = list(ask(client, **settings))
        plain = list(ask(client, stream_options={"include_obfuscation": False}, **settings))
        fillings = [getattr(chunk, "obfuscation", None) for chunk in padded]
        assert all(isinstance(filling, str) for filling in fillings), "it is on unless it is switched off"
        assert len(set(fillings)) > len(fillings) // 2, "it is random"
        assert all(getattr(chunk, "obfuscation", None) is None for chunk in plain)
        assert "".join(map(said, padded)) == "".join(map(said, plain)) != ""
        lengths, bare = ({len(chunk.to_json(indent=None).encode()) for chunk in chunks} for chunks in (padded, plain))
        assert len(lengths) == 1 < len(bare), "what differs in length does not with it"
    wrong = {"stream": True, "stream_options": {"include_obfuscation": "canary"}}
    refused(openai.BadRequestError, 400, lambda: complete(client, **wrong), "stream_options.include_obfuscation")


def test_chat(client):
    reply = chat(client, n=2, temperature=1.0, seed=3, logprobs=True, top_logprobs=2)
    assert reply.object == "chat.completion" and reply.id.startswith("chatcmpl-")
    assert [choice.index for choice in reply.choices] == [0, 1]
    for choice in reply.choices:
        assert choice.message.role == "assistant" and choice.message.content and choice.message.tool_calls is None
        entries = choice.logprobs.content
        assert b"".join(bytes(entry.bytes) for entry in entries).decode() == choice.message.content
        assert all(len(entry.top_logprobs) == 2 for entry in entries)
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "a slice?"}]}]
    lines = [{"role": "user", "content": "What is\na slice?"}]
    first, second = (chat(client, messages=messages) for messages in (parts, lines))
    assert first.choices[0].message.content == second.choices[0].message.content
    # a chat is its rendered prompt
    prompt = "<|im_start|>user\nWhat is\na slice?<|im_end|>\n<|im_start|>assistant\n"
    plain = complete(client, prompt=prompt, max_tokens=24)
    assert (plain.choices[0].text, plain.usage) == (first.choices[0].message.content, first.usage)


def collect(chunks):
    """Deltas added up: content, reasoning, calls, finish reason, tokens with logprobs, usage."""
    content, reasoning, calls, finish, logprobs, usage = "", "", [], None, 0, None
    for number, chunk in enumerate(chunks):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert finish is None, "the finish reason comes last"
            assert (choice.delta.role == "assistant") == (number == 0)
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            for part in choice.delta.tool_calls or []:
                if part.index == len(calls):
                    calls.append(part)  # the first part of a call has its id and its name
                else:
                    assert (part.index, part.id, part.function.name) == (len(calls) - 1, None, None)
                    calls[-1].function.arguments += part.function.arguments
            logprobs += len(choice.logprobs.content) if choice.logprobs else 0
            finish = choice.finish_reason
    return content, reasoning, calls, finish, logprobs, usage


def test_chat_streams(client):
    settings = {"temperature": 1.0, "seed": 3, "logprobs": True}
    whole = chat(client, **settings)
    chunks = chat(client, stream=True, stream_options={"include_usage": True}, **settings)
    content, reasoning, calls, finish, logprobs, usage = collect(chunks)
    assert (content, finish) == (whole.choices[0].message.content, whole.choices[0].finish_reason)
    assert (reasoning, calls, usage) == ("", [], whole.usage)
    assert logprobs == usage.completion_tokens


def test_tools(client):
    form = {"extra_body": {"structured_outputs": {"regex": CALL}}, "max_completion_tokens": 200}
    choice = chat(client, tools=[TOOL], **form).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content.strip() == "Well."
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments)["days"] in range(1, 10)
    content, _, calls, finish, _, _ = collect(chat(client, tools=[TOOL], stream=True, **form))
    assert (content, finish) == (choice.message.content, "tool_calls")
    assert [(call.index, call.id, call.function.arguments) for call in calls] == [(0, call.id, call.function.arguments)]
    # the call and its answer go back as they came
    answer = {"role": "tool", "tool_call_id": call.id, "content": "sun"}
    messages = [{"role": "user", "content": "Rain?"}, choice.message, answer]
    assert chat(client, messages=messages, tools=[TOOL]).choices[0].message.content is not None
    # without tools, or with none to be called, it is text
    for settings in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        plain = chat(client, **settings, **form).choices[0]
        assert "<tool_call>" in plain.message.content and plain.finish_reason == "stop"


def test_tool_choice(client):
    """Of a small model that calls no tools by itself: the grammar makes it, in the checkpoint's own format."""
    clock = {"type": "function", "function": {"name": "clock", "parameters": STRICT, "strict": True}}
    weather = {"type": "function", "function": {"name": "weather", "parameters": STRICT}}
    settings = {"tools": [weather, clock], "max_completion_tokens": 120, "temperature": 1.0}
    for seed in range(4):
        choice = chat(client, tool_choice="required", parallel_tool_calls=False, seed=seed, **settings).choices[0]
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert call.function.name in ("clock", "weather")
        assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")
        named = {"type": "function", "function": {"name": "clock"}}
        choice = chat(client, tool_choice=named, seed=seed, parallel_tool_calls=False, **settings).choices[0]
        assert [call.function.name for call in choice.message.tool_calls] == ["clock"]
    several = chat(client, tool_choice="required", seed=1, **{**settings, "max_completion_tokens": 400}).choices[0]
    assert all(json.loads(call.function.arguments)["zone"] for call in several.message.tool_calls)
    content, _, calls, finish, _, _ = collect(chat(client, tool_choice=named, stream=True, seed=1, parallel_tool_calls=False, **settings))
    assert (content, finish, calls[0].function.name) == ("", "tool_calls", "clock")
    # left to itself the model talks, and what it may call is held to its schema
    assert chat(client, tool_choice="auto", seed=1, **settings).choices[0].message is not None
    assert chat(client, tool_choice="none", seed=1, **settings).choices[0].message.tool_calls is None


def test_history(client):
    """Calls of earlier turns, as clients write their arguments."""
    for arguments in ("", "{}", None, {"zone": "UTC"}, '{"zone": "UTC"}'):
        call = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": arguments}}
        messages = [
            {"role": "user", "content": "How late is it?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "noon"},
        ]
        assert chat(client, messages=messages).choices[0].message.content is not None


def test_ignored_fields(client):
    raw = client.chat.completions.with_raw_response
    messages = [{"role": "user", "content": "x", "mood": "canary"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 2, "extra_body": {"frobnicate": "canary", "a b": 1}}
    response = raw.create(**body)
    assert response.headers["x-amnesic-ignored"] == "messages[0].mood, frobnicate, #5", response.headers
    plain = raw.create(model=MODEL, messages=[{"role": "user", "content": "x"}], max_tokens=2)
    assert "x-amnesic-ignored" not in plain.headers
    assert response.parse().choices[0].message.content == plain.parse().choices[0].message.content


def test_limits(client):
    whole = complete(client, max_tokens=-1, extra_body={"ignore_eos": True})
    assert whole.usage.total_tokens == 1024 and whole.choices[0].finish_reason == "length"
    assert complete(client, max_tokens=None).usage.completion_tokens == 16
    for effort in ("none", "low", "high"):
        assert chat(client, reasoning_effort=effort).choices[0].message.content
    refused(openai.BadRequestError, 400, lambda: chat(client, reasoning_effort="canary"), "reasoning_effort")


def test_lenient_schemas(client):
    schema = {"type": "array", "items": {"type": "string", "maxLength": 3}, "uniqueItems": True, "maxItems": 2}

    def ask(**named):
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **named}}
        return client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], response_format=form, max_tokens=60
        )

    lenient = ask(strict=False)
    assert lenient.headers["x-amnesic-not-enforced"] == "uniqueItems"
    assert isinstance(json.loads(lenient.parse().choices[0].message.content), list)
    refused(openai.BadRequestError, 400, lambda: ask(strict=True), "response_format")


def test_reasoning(client):
    form = {"extra_body": {"structured_outputs": {"regex": THOUGHT}}, "max_completion_tokens": 100, "seed": 1}
    message = chat(client, **form).choices[0].message
    assert 5 <= len(message.reasoning_content) <= 9 and 4 <= len(message.content) <= 8
    content, reasoning, *_ = collect(chat(client, stream=True, **form))
    assert (content, reasoning) == (message.content, message.reasoning_content)
    # a prompt that ends within a thought: the value is the content all the same
    form["extra_body"] = {"structured_outputs": {"regex": "[a-z]{5,9}"}, "chat_template_kwargs": {"thinking": True}}
    message = chat(client, **form).choices[0].message
    assert 5 <= len(message.content) <= 9 and not getattr(message, "reasoning_content", None)
    content, reasoning, *_ = collect(chat(client, stream=True, **form))
    assert (content, reasoning) == (message.content, "")


def test_structured_output(client):
    named = {"name": "item", "strict": True, "schema": SCHEMA}
    settings = {"response_format": {"type": "json_schema", "json_schema": named}, "max_completion_tokens": 200}
    reply = chat(client, n=4, temperature=1.0, seed=2, **settings)
    for choice in reply.choices:
        item = json.loads(choice.message.content)
        assert choice.finish_reason == "stop" and list(item) == ["name", "kind", "fields"], "the schema's order"
        assert len(item["name"]) <= 12 and item["kind"] in ("trait", "struct") and item["fields"] in range(10)
    content, *_ = collect(chat(client, stream=True, **settings))
    assert list(json.loads(content)) == ["name", "kind", "fields"]
    free = chat(client, response_format={"type": "json_object"}, max_completion_tokens=60)
    assert free.choices[0].message.content.lstrip().startswith("{")
    canary = {"name": "n", "schema": {"type": "canary"}}
    wrong = lambda: chat(client, response_format={"type": "json_schema", "json_schema": canary})
    refused(openai.BadRequestError, 400, wrong, "response_format")


def test_errors(client):
    bad = openai.BadRequestError
    refused(bad, 400, lambda: complete(client, temperature=3), "temperature")
    refused(bad, 400, lambda: complete(client, max_tokens=5000), "prompt", "context_length_exceeded")
    refused(bad, 400, lambda: complete(client, best_of=3), "best_of", "unsupported_parameter")
    changing = lambda: complete(client, extra_body={"guided_regex": "canary"})
    refused(bad, 400, changing, "guided_regex", "unsupported_parameter")
    refused(bad, 400, lambda: chat(client, messages=[]), "messages")
    refused(bad, 400, lambda: chat(client, store=True), "store", "unsupported_parameter")
    refused(bad, 400, lambda: chat(client, logprobs=True, top_logprobs=21), "top_logprobs")
    forced = lambda: chat(client, tool_choice="required")
    refused(bad, 400, forced, "tool_choice")
    named = {"type": "function", "function": {"name": "canary"}}
    refused(bad, 400, lambda: chat(client, tools=[TOOL], tool_choice=named), "tool_choice.function.name")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "canary"}}]}]
    refused(bad, 400, lambda: chat(client, messages=image), "messages[0].content[0].type", "unsupported_parameter")
    # the template itself refuses this role
    refused(bad, 400, lambda: chat(client, messages=[{"role": "developer", "content": "canary"}]), "messages")
    unknown = lambda: client.completions.create(model="canary", prompt="x")
    refused(openai.NotFoundError, 404, unknown, "model", "model_not_found")
    embed = lambda: client.embeddings.create(model=MODEL, input="x")
    refused(bad, 400, embed, "model", "unsupported_task")
    refused(openai.NotFoundError, 404, lambda: client.images.generate(model=MODEL, prompt="x"), None, "unknown_url")
    refused(bad, 400, lambda: list(complete(client, stream=True, top_p=2)), "top_p")


def test_leaving(client):
    settings = {"max_tokens": 300, "n": 32, "temperature": 1.0, "extra_body": {"ignore_eos": True}}
    start = time.monotonic()
    with complete(client, stream=True, **settings) as stream:
        next(iter(stream))
    assert complete(client).usage.completion_tokens == 16
    left = time.monotonic() - start
    whole = time.monotonic()
    complete(client, **settings)
    assert left < (time.monotonic() - whole) / 2, "a closed stream costs no more time"


def test_many_at_once(client):
    def ask(number):
        settings = {"prompt": f"Chapter {number}: ", "temperature": 1.0, "seed": number, "max_tokens": 48}
        if number % 2:
            return "".join(chunk.choices[0].text for chunk in complete(client, stream=True, **settings))
        return complete(client, **settings).choices[0].text

    alone = [ask(number) for number in range(16)]
    together = threading.Barrier(16)
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda number: together.wait() is not None and ask(number), range(16)))
    assert replies == alone, "a reply is the same alone and in company"


def main():
    client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120)
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    for name, test in tests:
        start = time.monotonic()
        test(client)
        print(f"{name} ok ({time.monotonic() - start:.1f} s)", flush=True)
    print(f"{len(tests)} tests passed with openai {openai.__version__}")


if __name__ == "__main__":
    main()
