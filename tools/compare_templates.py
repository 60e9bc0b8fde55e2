#!/usr/bin/env python3
"""Render chats with published templates as transformers does, for tests to compare.

usage: python tools/compare_templates.py FOLDER OUT.json
       AMNESIC_TEMPLATES=OUT.json cargo test --lib published_templates -- --nocapture

needs: transformers, jinja2

FOLDER has templates: files *.jinja, and tokenizer_config.json files with a chat_template
at any depth. Each of them renders each of the chats below. OUT.json has the prompts, and
why jinja2 refused where it did. Arguments of calls that are sent as a text are rendered
a second time as an object: an engine may hand over either, as the template needs.
"""

import copy
import datetime
import json
import os
import sys

from make_chat_fixtures import NOW, SPECIAL, FixedDate, call
from transformers.utils import chat_template_utils

CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "Name of the city"}}, "required": ["city"]}
NESTED = {
    "type": "object",
    "properties": {
        "query": {"type": ["string", "null"], "description": "What to look for"},
        "filters": {
            "type": "array",
            "description": "Conditions",
            "items": {
                "type": "object",
                "properties": {
                    "field": {"type": "string", "enum": ["name", "date", "it's"]},
                    "range": {
                        "type": "object",
                        "properties": {
                            "low": {"type": "number", "default": 0.5},
                            "high": {"type": "integer", "default": 10, "nullable": True},
                            "bounds": {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}}},
                        },
                        "required": ["low"],
                    },
                },
            },
        },
        "mode": {"anyOf": [{"type": "string"}, {"type": "integer"}], "description": "Ünï <b>"},
        "limit": {"type": "integer", "minimum": 1, "maximum": 1e20, "default": 3},
        "exact": {"type": "boolean", "default": True},
        "options": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["query", "filters"],
}


def function(name, description, parameters, **more):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters, **more}}


ONE = [function("weather", "The weather \"now\" in a <city>: 5 °C", CITY)]
MANY = ONE + [
    function("search", "Looks for things.\nIn two lines.", NESTED),
    function("stop", "", {"type": "object", "properties": {}}),
]
RETURNS = [function("weather", "The weather", CITY, **{"return": {"type": "string", "description": "A text"}})]

SYSTEM = {"role": "system", "content": "You are brief.\n"}
DEVELOPER = {"role": "developer", "content": "Answer in verse."}
USER = {"role": "user", "content": " What's up in Zürich? <b>&amp;</b> \"quoted\" {{ not code }} "}
MORE = {"role": "user", "content": "And then?"}
ANSWER = {"role": "assistant", "content": "Not much."}
THINKS = {"role": "assistant", "content": "<think>\nHmm.\n</think>\n\nNot much."}
REASONED = {"role": "assistant", "content": "Fine.", "reasoning_content": "\nThe user asks.\n"}
ID, ID2 = "abcdefghi", "123456789"
ARGUMENTS = {"city": "Zürich", "days": 2, "x": [1.0, None, True, "\n"], "deep": {"a": {"b": []}}}
CALLS = [call(ID, "weather", {"city": "Zürich"})]
RICH = [call(ID, "weather", ARGUMENTS)]
PARALLEL = CALLS + [call(ID2, "stop", {})]
TEXT_CALLS = [call(ID, "weather", '{"city": "Zürich", "days": 2}')]
RESULT = {"role": "tool", "content": '{"sky": "blue"}', "tool_call_id": ID, "name": "weather"}
RESULT2 = {"role": "tool", "content": "done", "tool_call_id": ID2, "name": "stop"}


def calling(calls, content="", **more):
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


def parts(*items):
    return [{"type": "text", "text": item} if isinstance(item, str) else item for item in items]


# under both names: templates know the one or the other
THOUGHT_CALL = calling(CALLS, "", reasoning_content="It may rain.", thinking="It may rain.")
ANSWERED = {**ANSWER, "reasoning_content": "Dry.", "thinking": "Dry."}

IMAGE = {"type": "image"}
URL = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
DOCUMENTS = [{"title": "One", "text": "First text."}, {"title": "Two", "text": "Second \"text\"."}]


def chat(messages, tools=None, generate=True, **variables):
    return {"messages": messages, "tools": tools, "add_generation_prompt": generate, "variables": variables}

RULED = [
    function(
        "book",
        "Books.",
        {
            "type": "object",
            "properties": {
                "who": {"type": "array", "items": {"$ref": "#/$defs/person"}, "minItems": 1},
                "when": {"oneOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": None},
                "class": {"enum": ["first", 2, None, True], "title": "Class"},
            },
            "required": [],
            "$defs": {"person": {"type": "object", "properties": {"name": {"type": "string"}}, "additionalProperties": False}},
        },
        strict=True,
    )
]
NO_DESCRIPTION = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
NO_ARGUMENTS = [call(ID, "stop", {})]
DEEP = [call(ID, "search", {"query": "a \"b\"\n<c> & 'd' ünï 🦀", "filters": [{"field": "it's", "range": {"low": -0.5e-7}}, []], "exact": False})]
CODE = "```py\nprint({'a': 1}['a'])  # {% if x %} {{ y }} <|im_end|> </s> [INST]\n```\n\ttab \\n"
LONG = [{"role": ["user", "assistant"][turn % 2], "content": f"Turn {turn}.\n" * (turn % 3 + 1)} for turn in range(13)]
PLAIN = {"role": "tool", "content": "It is\n\"blue\".", "tool_call_id": ID, "name": "weather"}
LISTED = {"role": "tool", "content": '[1, {"a": [true, null]}, "x"]', "tool_call_id": ID, "name": "weather"}
EMPTY = {"role": "tool", "content": "", "tool_call_id": ID, "name": "weather"}
THOUGHT = {"reasoning_content": "I need the weather."}


CHATS = {
    "user": chat([USER]),
    "user, no generation prompt": chat([USER], generate=False),
    "system": chat([SYSTEM, USER]),
    "developer": chat([DEVELOPER, USER]),
    "turns": chat([SYSTEM, USER, ANSWER, MORE]),
    "turns, ended": chat([USER, ANSWER], generate=False),
    "turns with thoughts in the content": chat([SYSTEM, USER, THINKS, MORE]),
    "reasoning_content": chat([USER, REASONED, MORE]),
    "reasoning_content, last": chat([USER, REASONED], generate=False),
    "thinking off": chat([SYSTEM, USER], enable_thinking=False, thinking=False),
    "thinking on": chat([SYSTEM, USER], enable_thinking=True, thinking=True),
    "reasoning effort": chat([SYSTEM, USER], reasoning_effort="high"),
    "one tool": chat([USER], ONE),
    "one tool, system": chat([SYSTEM, USER], ONE),
    "a tool with a return": chat([USER], RETURNS),
    "many tools": chat([SYSTEM, USER], MANY),
    "empty list of tools": chat([USER], []),
    "a call": chat([USER, calling(CALLS), RESULT], ONE),
    "a call, content null": chat([USER, calling(CALLS, None), RESULT], ONE),
    "a call, no content": chat([USER, {"role": "assistant", "tool_calls": CALLS}, RESULT], ONE),
    "a call with text": chat([USER, calling(CALLS, "Let me see."), RESULT, ANSWER, MORE], MANY),
    "a call with rich arguments": chat([SYSTEM, USER, calling(RICH), RESULT], MANY),
    "a call, arguments sent as text": chat([USER, calling(TEXT_CALLS), RESULT], ONE),
    "a call, arguments sent as text, content null": chat([USER, calling(TEXT_CALLS, None), RESULT], ONE),
    "parallel calls": chat([USER, calling(PARALLEL), RESULT, RESULT2, ANSWER, MORE], MANY),
    "parallel calls, thoughts": chat([USER, calling(PARALLEL, "", reasoning_content="Both."), RESULT, RESULT2], MANY),
    "a thought and a call": chat([USER, THOUGHT_CALL, RESULT], ONE),
    "a thought, a call and an answer": chat([SYSTEM, USER, THOUGHT_CALL, RESULT, ANSWERED, MORE], ONE),
    "thoughts in two rounds of calls": chat([USER, THOUGHT_CALL, RESULT, THOUGHT_CALL, RESULT], ONE),
    "a thought, a call and an answer, ended": chat([USER, THOUGHT_CALL, RESULT, ANSWERED], ONE, False),
    "calls in two turns": chat([SYSTEM, USER, calling(CALLS), RESULT, ANSWER, MORE, calling(CALLS), RESULT], ONE),
    "calls without tools": chat([USER, calling(CALLS), RESULT]),
    "the call is last": chat([USER, calling(CALLS)], ONE, False),
    "content parts": chat([{"role": "user", "content": parts("One.", "Two.")}]),
    "content parts everywhere": chat(
        [
            {"role": "system", "content": parts("Brief.")},
            {"role": "user", "content": parts("One.")},
            {"role": "assistant", "content": parts("Two.")},
            {"role": "user", "content": parts("Three.")},
        ]
    ),
    "an image": chat([{"role": "user", "content": parts(IMAGE, "What is it?")}]),
    "an image by address": chat([SYSTEM, {"role": "user", "content": parts("What is it?", URL)}]),
    "documents": chat([USER], documents=DOCUMENTS),
    "two users": chat([USER, MORE]),
    "an empty system message": chat([{"role": "system", "content": ""}, USER]),
    "thirteen turns": chat(LONG),
    "thirteen turns, system, tools": chat([SYSTEM, *LONG], MANY),
    "many scripts": chat([{"role": "user", "content": "שלום, नमस्ते, 你好\u3000こんにちは\u00a0👩\u200d👧 \u2028 e\u0301"}]),
    "an empty user message": chat([{"role": "user", "content": ""}]),
    "only spaces": chat([{"role": "user", "content": " \n\t "}, {"role": "assistant", "content": "  x  \n"}, MORE]),
    "code and marks in the text": chat([{"role": "system", "content": CODE}, {"role": "user", "content": CODE}, ANSWER, MORE]),
    "the assistant begins": chat([ANSWER, USER]),
    "a system message alone": chat([SYSTEM]),
    "two system messages": chat([SYSTEM, SYSTEM, USER]),
    "a system message later": chat([USER, ANSWER, SYSTEM, MORE]),
    "a name": chat([{"role": "user", "name": "Ann", "content": "Hello."}]),
    "a tool with references": chat([USER], RULED),
    "a tool without a description": chat([USER], NO_DESCRIPTION),
    "a tool, thinking off": chat([SYSTEM, USER], ONE, enable_thinking=False, thinking=False),
    "a tool, low effort": chat([USER], ONE, reasoning_effort="low"),
    "a tool in the system message": chat([SYSTEM, USER], ONE, tools_in_user_message=False),
    "tools that are built in": chat([USER], ONE, builtin_tools=["brave_search", "code_interpreter", "browser", "python"]),
    "a date": chat([USER], date_string="01 Feb 2026"),
    "documents and tools": chat([USER], ONE, documents=DOCUMENTS),
    "a call without arguments": chat([USER, calling(NO_ARGUMENTS), RESULT2, ANSWER, MORE], MANY),
    "a call with deep arguments": chat([USER, calling(DEEP), RESULT], MANY),
    "a result that is no JSON": chat([USER, calling(CALLS), PLAIN], ONE),
    "a result that is a list": chat([USER, calling(CALLS), LISTED], ONE),
    "a result that is empty": chat([USER, calling(CALLS), EMPTY], ONE),
    "a user after a result": chat([USER, calling(CALLS), RESULT, MORE], ONE),
    "a call with thoughts": chat([USER, calling(CALLS, **THOUGHT), RESULT], ONE),
    "a call with thoughts and text": chat([USER, calling(CALLS, "One moment.", **THOUGHT), RESULT], ONE),
    "a call with thoughts, content null": chat([USER, calling(CALLS, None, **THOUGHT), RESULT], ONE),
    "a call with thoughts, then an answer with others": chat([USER, calling(CALLS, **THOUGHT), RESULT, REASONED, MORE], ONE),
    "a call with thoughts, the last": chat([USER, calling(CALLS, **THOUGHT)], ONE, False),
    "three calls with thoughts, one after the other": chat(
        [SYSTEM, USER, calling(CALLS, **THOUGHT), RESULT, calling(RICH, **THOUGHT), RESULT, calling(CALLS, "So.", **THOUGHT), RESULT],
        MANY,
    ),
    "thoughts in two turns": chat([SYSTEM, USER, REASONED, MORE, REASONED, MORE]),
}


def templates(folder):
    """Names and texts of the templates under a folder."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            path = os.path.join(root, file)
            name = os.path.relpath(path, folder)
            if file.endswith(".jinja"):
                with open(path, encoding="utf-8", newline="") as opened:
                    found[name] = opened.read()
            elif file == "tokenizer_config.json":
                with open(path, encoding="utf-8") as opened:
                    template = json.load(opened).get("chat_template")
                named = [{"name": "default", "template": template}] if isinstance(template, str) else template
                for one in named or []:
                    found[f"{name}: {one['name']}"] = one["template"]
    return found


def render(template, given):
    """The prompt, or why there is none."""
    given = copy.deepcopy(given)
    variables = given.pop("variables")
    messages = given.pop("messages")
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[messages], chat_template=template, **given, **SPECIAL, **variables
        )
        return {"text": rendered[0]}
    except Exception as error:  # whatever a template makes Python say
        return {"error": f"{type(error).__name__}: {error}"}


def with_objects(given):
    """The chat with the arguments of calls as objects, if it has texts."""
    given = copy.deepcopy(given)
    changed = False
    for message in given["messages"]:
        for one in message.get("tool_calls") or []:
            if isinstance(one["function"]["arguments"], str):
                one["function"]["arguments"] = json.loads(one["function"]["arguments"])
                changed = True
    return given if changed else None


def main():
    folder, out = sys.argv[1:]
    chat_template_utils.datetime = FixedDate
    found = templates(folder)
    cases = []
    for name, template in found.items():
        for about, given in CHATS.items():
            case = {"template": name, "chat": about, **render(template, given)}
            objects = with_objects(given)
            if objects:
                case["objects"] = render(template, objects)
            cases.append(case)
    written = {"now": NOW, "special": SPECIAL, "templates": found, "chats": CHATS, "cases": cases}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(written, file, ensure_ascii=False)
    refused = sum("error" in case for case in cases)
    print(f"{len(found)} templates, {len(CHATS)} chats, {len(cases)} cases, {refused} of them refused by jinja2")


if __name__ == "__main__":
    main()
