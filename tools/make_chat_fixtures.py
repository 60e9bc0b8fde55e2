#!/usr/bin/env python3
"""Write tests/fixtures/chat/cases.json and constructs.json with transformers as the reference.

usage: python tools/make_chat_fixtures.py

needs: transformers, jinja2

Each template below is written here, in the style of a family of models. A case is a
template, what it is given, and what transformers renders: its text, or `null` where
the template refuses the messages. `now` is fixed, in UTC. A construct is a line of
chat_constructs.py and what jinja2 makes of it, or `null` where it refuses.
"""

import copy
import datetime
import json
import os

import chat_constructs
import jinja2
from transformers.utils import chat_template_utils

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOW = 1_752_503_696  # Mon Jul 14 2025, 14:34:56 UTC
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

HERMES = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nYou may call functions. Signatures within <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nReply with <tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <object>}\\n</tool_call><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

THINKING = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{#- The system message comes first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "Respond in the format {\\"name\\": function name, \\"parameters\\": dictionary of argument name and its value}.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
"""

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

PHI3 = """\
{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

R1 = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + content + '<|end_of_sentence|>'}}{%- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|><think>\\n'}}{% endif %}"""

EXOTIC = """\
{%- macro turn(name, text, mark='#') -%}
    {{ mark ~ ' ' ~ name | upper ~ ': ' ~ text.strip() }}
{% endmacro -%}
{%- macro show(value) -%}
    {%- if value is mapping -%}
        {%- for k, v in value.items() -%}{{ k }}={{ show(v) }};{%- endfor -%}
    {%- elif value is string -%}
        "{{ value | replace('"', "'") }}"
    {%- elif value is sequence -%}
        ({% for v in value %}{{ show(v) }}{{ ',' if not loop.last else '' }}{% endfor %})
    {%- else -%}
        {{ value }}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(count=0, words=[]) -%}
{%- for message in messages -%}
    {%- if message.role == 'developer' %}{% continue %}{% endif -%}
    {%- if ns.count >= 4 %}{% break %}{% endif -%}
    {%- if loop.previtem is defined and loop.previtem.role == message.role -%}
        (again)
    {%- endif -%}
    {% if message.role == 'assistant' %}{% generation %}
    {{- turn(message.role, message.content, mark='>') }}
    {%- endgeneration %}{% else -%}
    {{ turn(message.role, message.content) -}}
    {% endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {%- set ns.words = ns.words + message.content.split() -%}
    {%- if loop.nextitem is not defined %}|last {{ loop.revindex }}/{{ loop.length }}{% endif %}
{%- endfor %}

{{ ns.words[:3] }} {{ ns.words[::-1][:2] | join('+') }} {{ ns.words | length }} {{ ns.words[1:3] | tojson }}
{{ {'a': 1, "b": [true, none, 1.5, 'it\\'s'], 'c': {}} }}|{{ true }}|{{ none }}|{{ 7 // 2 }}|{{ 7 / 2 }}|{{ 2 ** 3 }}|{{ -7 % 3 }}
{{ {'z': 1, 'a': ['é', '<&>', "\\t"], 'e': [], 'f': {}} | tojson }} {{ [1, {'k': 'v'}] | tojson(indent=2) }} {{ {'b': 1e20, 'a': 0.1} | tojson(sort_keys=true) }} {{ 'é' | tojson(ensure_ascii=true) }} {{ {'a': [1, 2]} | tojson(separators=(',', ':')) }}
{{ 'a,b,,c'.split(',') }} {{ 'a b  c'.split() | length }} {{ 'a-b-c'.split('-', 1) }} {{ 'abcab'.find('b') }} {{ 'Ünï'.find('ï') }} {{ 'xxabcxx'.strip('x') }} {{ 'hello world'.title() }} {{ 'Abc'.lower() ~ 'd'.upper() }} {{ 'a.b'.replace('.', '!') }} {{ 'aaa'.count('a') }}
{{ 'prefix-rest'.startswith('prefix') }} {{ 'f.txt'.endswith(('.md', '.txt')) }} {{ 'x' in 'xyz' }} {{ 'k' in {'k': 1} }} {{ 3 not in [1, 2] }} {{ 'yes' if messages | length > 2 else 'no' }} {{ (missing is defined) or 'missing' }} {{ missing | default('d') }} {{ '' or 'or' }}
{{ range(3) | list }} {{ range(5, 0, -2) | list }} {{ [3, 1, 2] | sort }} {{ ['b', 'a', 'b'] | unique | list }} {{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'in', ['user', 'system']) | list | length }} {{ [1, 2, 3] | first }}{{ [1, 2, 3] | last }}
{{ {'b': 2, 'a': 1} | dictsort | tojson }} {{ {'b': 2, 'a': 1}.keys() | list }} {{ {'b': 2}.get('x', 'none') }} {{ {'b': 2}.get('b') }} {{ {'x': 1}.values() | list }} {{ {'x': 1} | items | list | tojson }}
{%- for a, b in [(1, 2), [3, 4]] recursive %}{{ loop.cycle('o', 'e') }}{{ a + b }}{% else %}none{% endfor %}
{% set block %}  captured {{ bos_token }} {% endset %}[{{ block | trim }}] {{ block | length }} {{ show({'p': {'q': [1, 'two', none]}, 'r': true}) }}
{% for x in [] %}{% else %}empty{% endfor %} {{ '%s-%s' if false else 'raw' }} {% raw %}{{ not rendered }}{% endraw %} {{ strftime_now('%A %-d %B %Y, %H:%M %j %p %y') }} {{ 'tail' -}}
   {# gone #}   {{- '!' }}{% filter upper %} loud {% endfilter %}
{{ 'line
break' }} {{ "tab\\tquote\\"" }} {{ 'multi' 'ple' if false else 1 == 1.0 }} {{ 'a' < 'b' and not 2 > 3 }} {{ 10 | string ~ 'x' }} {{ '42' | int + 1 }} {{ 'abc'[1] }}{{ 'abc'[-1] }}{{ 'abcdef'[1:5:2] }} {{ 'a\\nb' | indent(2) }} {{ 'text' | capitalize }}
"""

# What the template of gpt-oss makes of past turns.
HARMONY = """\
{%- set last = namespace(name=none) %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and 'tool_calls' in message %}
        {%- set later = namespace(final=false) %}
        {%- for other in messages[loop.index:] if other.role == 'assistant' and 'tool_calls' not in other %}
            {%- set later.final = true %}
        {%- endfor %}
        {%- if message.content and message.thinking %}
            {{- raise_exception('Content and thinking beside a call.') }}
        {%- endif %}
        {%- set analysis = message.content or message.thinking %}
        {%- if analysis and not later.final %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + analysis + '<|end|>' }}
        {%- endif %}
        {%- set called = message.tool_calls[0].function %}
        {{- '<|start|>assistant to=functions.' + called.name + '<|channel|>commentary json<|message|>' }}
        {{- called.arguments|tojson + '<|call|>' }}
        {%- set last.name = called.name %}
    {%- elif message.role == 'assistant' %}
        {%- if loop.last and not add_generation_prompt and 'thinking' in message %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
        {%- endif %}
        {%- set end = '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + end }}
        {%- set last.name = none %}
    {%- elif message.role == 'tool' %}
        {%- if last.name is none %}
            {{- raise_exception('A result without a call.') }}
        {%- endif %}
        {{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' }}
        {{- message.content|tojson + '<|end|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
"""

# What templates do with content that is null, and with arguments that came as a text.
CONTENT_IS_NONE = """\
<|endoftext|>{% for m in messages %}{% if m['role'] == 'assistant' and m['content'] is none %}[CALLS{% for c in m['tool_calls'] %} {{ c['function']['name'] }}{% endfor %}]{% endif %}{% if m['role'] == 'assistant' and m['content'] is not none %}[SAID {{ m['content'] }}]{% endif %}{% if m['role'] == 'tool' %}[GOT {{ m['content'] }}]{% endif %}{% endfor %}"""

CONTENT_OTHERWISE = """\
{% for m in messages %}{{ m.content }}|{{ m.content is string }}|{{ m.content is defined }}|{{ m.content == none }}|{{ m.content or '-' }}|{{ m.content | default('d', true) }}|{% if not m.content %}empty{% endif %}|{{ m.get('content') is none }}|{{ m['content'] | string | length }}
{% endfor %}"""

ARGUMENTS_AS_TEXT = """\
<|endoftext|>{% for m in messages %}{% if m['tool_calls'] %}{{ '[CALL ' + m['tool_calls'][0]['function']['name'] + ' ' + m['tool_calls'][0]['function']['arguments'] + ']' }}{% endif %}{% endfor %}"""

ARGUMENTS_TESTED = """\
{% for m in messages %}{% for c in m.tool_calls or [] %}{% set a = c.function.arguments %}{% if a is string %}text {{ a }} {{ a | tojson }} {{ a | length }} {{ a[:2] }}{% elif a is mapping %}object {{ a | tojson }} {{ a | length }}{% endif %};{% endfor %}{% endfor %}"""

ARGUMENTS_NOT_MAPPING = """\
{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.function.arguments is mapping %}{{ c.function.arguments | tojson }}{% else %}{{ c.function.arguments }}{% endif %};{{ 'a' ~ c.function.arguments }};{% endfor %}{% endfor %}"""

ARGUMENTS_AS_OBJECT = """\
{% for m in messages %}{% for c in m.tool_calls or [] %}{% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }};{% endfor %}{% for k, v in c.function.arguments | items %}{{ k }}{% endfor %}{{ c.function.arguments | tojson }}{{ c['function'] | tojson }}{{ c | tojson(indent=1) }}{{ c.function.arguments.city }}{{ 'city' in c.function.arguments }}{{ c.function.arguments | length }}{% for k in c.function.arguments | dictsort %}{{ k }}{% endfor %}{{ c.function.arguments.get('x') }}{% if c.function.arguments %}some{% endif %};{% endfor %}{% endfor %}"""

ARGUMENTS_MUST_BE_OBJECT = """\
{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.function.arguments is not mapping %}{{ raise_exception('arguments must be an object') }}{% endif %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"""

NONE_IS_ITERABLE = """\
{%- if tools is iterable and tools | length > 0 %}T{%- else %}no tools{%- endif %}"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather \"now\" in a <city> & around: 5 °C",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "enum": ["Zürich", "Åre"]},
                    "days": {"type": "integer", "default": 3, "minimum": 0.5},
                    "a": {"type": "array", "items": {}},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "stop", "description": "", "parameters": {"type": "object", "properties": {}}},
    },
]


def call(id, name, arguments):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "  Be brief.\n"}
USER = {"role": "user", "content": " What's up in Zürich? <b>&amp;</b> \"quoted\" {{ not code }} "}
ANSWER = {"role": "assistant", "content": "<think>\nHmm.\n</think>\n\nNot much. "}
THOUGHT = {"role": "assistant", "content": "Fine.", "reasoning_content": "\nThe user asks.\n"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [call("abcdefghi", "weather", {"city": "Zürich", "days": 2, "x": [1.0, None, True, "\n"]})],
}
CALLS = {**CALL, "content": "Two.", "tool_calls": CALL["tool_calls"] + [call("123456789", "stop", {})]}
RESULT = {"role": "tool", "content": '{"sky": "blue"}', "tool_call_id": "abcdefghi"}
RESULT2 = {"role": "tool", "content": "done", "tool_call_id": "123456789", "name": "stop"}
DEVELOPER = {"role": "developer", "content": "Hidden."}

PLAIN = [USER]
WITH_SYSTEM = [SYSTEM, USER]
TURNS = [SYSTEM, USER, ANSWER, USER]
ENDED = [SYSTEM, USER, THOUGHT]
USED = [USER, CALL, RESULT]
USED_TWICE = [SYSTEM, USER, CALLS, RESULT, RESULT2, THOUGHT, USER]
TWICE = [USER, USER]
MIXED = [SYSTEM, DEVELOPER, USER, USER, ANSWER, USER]

# thoughts under both names, as a request brings them
THOUGHTS = {"reasoning_content": "It may rain.", "thinking": "It may rain."}
THOUGHT_CALL = {**CALL, "content": "", **THOUGHTS}
ANSWERED = {"role": "assistant", "content": "Dry.", "reasoning_content": "No rain.", "thinking": "No rain."}
HARMONIES = [
    [USER, THOUGHT_CALL, RESULT],
    [USER, THOUGHT_CALL, RESULT, ANSWERED, USER],
    [USER, THOUGHT_CALL, RESULT, ANSWERED],
    [USER, THOUGHT_CALL, RESULT, THOUGHT_CALL, RESULT],
    [USER, {**THOUGHT_CALL, "content": "I look."}, RESULT],
    [USER, CALL, RESULT],
]

NULL_CALL = {**CALL, "content": None}
TEXT_CALL = {**CALL, "tool_calls": [call("abcdefghi", "weather", '{"city":  "Zürich", "x": [1.0, null]}')]}
BARE_CALL = {**CALL, "tool_calls": [call("abcdefghi", "stop", "{}")]}

# Conversations whose calls have arguments as a text, and the templates that look at them: these see the text, any other
# the object.
USED_AS_NULL = [USER, NULL_CALL, RESULT]
USED_AS_TEXT = [[USER, TEXT_CALL, RESULT], [USER, {**TEXT_CALL, "content": None}, RESULT], [USER, BARE_CALL, RESULT]]
CALLED = {
    "content_is_none": CONTENT_IS_NONE,
    "content_otherwise": CONTENT_OTHERWISE,
    "arguments_as_text": ARGUMENTS_AS_TEXT,
    "arguments_tested": ARGUMENTS_TESTED,
    "arguments_not_mapping": ARGUMENTS_NOT_MAPPING,
    "arguments_as_object": ARGUMENTS_AS_OBJECT,
    "arguments_must_be_object": ARGUMENTS_MUST_BE_OBJECT,
    "none_is_iterable": NONE_IS_ITERABLE,
}
SEES_TEXT = {"arguments_as_text", "arguments_tested", "arguments_not_mapping"}

CONVERSATIONS = [PLAIN, WITH_SYSTEM, TURNS, ENDED, USED, USED_TWICE, TWICE, MIXED]
TEMPLATES = {
    "chatml": CHATML,
    "hermes": HERMES,
    "thinking": THINKING,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "llama2": LLAMA2,
    "gemma": GEMMA,
    "phi3": PHI3,
    "r1": R1,
    "exotic": EXOTIC,
    "harmony": HARMONY,
    **CALLED,
}
WITH_TOOLS = {"hermes", "llama3", "mistral"}


class FixedDate(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


def case(name, messages, tools, generate, variables):
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[messages],
            tools=tools or None,
            chat_template=TEMPLATES[name],
            add_generation_prompt=generate,
            **SPECIAL,
            **variables,
        )
        text = rendered[0]
    except jinja2.TemplateError as error:
        assert type(error) is jinja2.TemplateError, error  # raise_exception, not a mistake in the template
        text = None
    except TypeError:
        text = None  # an object cannot be concatenated
    return {
        "template": name,
        "messages": messages,
        "tools": bool(tools),
        "add_generation_prompt": generate,
        "variables": variables,
        "text": text,
    }


def with_objects(messages):
    """Messages with the arguments of calls as objects."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for one in message.get("tool_calls") or []:
            if isinstance(one["function"]["arguments"], str):
                one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    return messages


def called_cases():
    """Chats with content that is null, and with arguments as a text and as an object."""
    for name in [*CALLED, "hermes", "thinking", "llama3"]:
        tools = TOOLS if name in WITH_TOOLS else []
        for messages in [PLAIN, USED, USED_AS_NULL] if name in CALLED else [USED_AS_NULL]:
            if not (name == "thinking" and messages is USED_AS_NULL):  # it wants a content
                yield case(name, messages, tools, True, {})
        for messages in USED_AS_TEXT[:1] + USED_AS_TEXT[2:] if name == "thinking" else USED_AS_TEXT:
            seen = messages if name in SEES_TEXT else with_objects(messages)
            yield {**case(name, seen, tools, True, {}), "messages": messages}


def construct(template):
    variables = chat_constructs.VARIABLES
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[[USER]], chat_template=template, **variables
        )
        return {"template": template, "text": rendered[0]}
    except Exception as error:
        print(f"refused: {template[:60]!r}: {type(error).__name__}: {error}")
        return {"template": template, "text": None}


def write(name, written):
    path = os.path.join(ROOT, "tests", "fixtures", "chat", name)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(written, file, ensure_ascii=False, indent=1)
        file.write("\n")
    print(f"{path}: {os.path.getsize(path)} bytes")


def main():
    chat_template_utils.datetime = FixedDate
    constructs = [construct(template) for template in chat_constructs.constructs()]
    write("constructs.json", {"now": NOW, "variables": chat_constructs.VARIABLES, "constructs": constructs})
    cases = []
    for name in [name for name in TEMPLATES if name not in CALLED]:
        for messages in CONVERSATIONS if name != "harmony" else []:
            for tools in [[], TOOLS] if name in WITH_TOOLS else [[]]:
                for generate in [False, True]:
                    cases.append(case(name, messages, tools, generate, {}))
        if name == "harmony":
            for messages in HARMONIES:
                cases += [case(name, messages, [], generate, {}) for generate in [False, True]]
        if name == "thinking":
            cases.append(case(name, WITH_SYSTEM, [], True, {"enable_thinking": False}))
    cases += called_cases()
    written = {"now": NOW, "special": SPECIAL, "templates": TEMPLATES, "tools": TOOLS, "cases": cases}
    write("cases.json", written)
    print(f"{len(cases)} cases, {len(constructs)} constructs")


if __name__ == "__main__":
    main()
