#!/usr/bin/env python3
"""What the OpenAI Agents SDK and LangChain make of the server. Run by `run_client`, which starts one.

usage: frameworks.py BASE_URL      needs: openai-agents, langchain-openai; a server with the chat template of `run_client`

The model is too small to call tools or to answer by itself: what is shown is that requests are understood, that calls are
made where they are demanded, and that replies have the form that was asked for.
"""

import asyncio
import sys
import time
from typing import Literal

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from pydantic import BaseModel, ConfigDict, Field

MODEL = "default"


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=12)
    kind: Literal["trait", "struct"]
    fields: int = Field(ge=0, le=9)


def agent(url, **settings):
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    return Agent(
        name="clerk",
        instructions="Be brief.",
        model=OpenAIChatCompletionsModel(model=MODEL, openai_client=client),
        model_settings=ModelSettings(max_tokens=120, temperature=0.0, **settings.pop("settings", {})),
        **settings,
    )


def test_agent_answers(url):
    result = Runner.run_sync(agent(url), "What is a slice?")
    assert isinstance(result.final_output, str) and result.final_output


def test_agent_calls_its_tool(url):
    asked = []

    @function_tool
    def clock(zone: Literal["UTC", "CET"]) -> str:
        """Tells the time."""
        asked.append(zone)
        return "noon"

    forced = {"tool_choice": "required", "parallel_tool_calls": False}
    result = Runner.run_sync(agent(url, tools=[clock], settings=forced), "How late is it?", max_turns=4)
    assert asked and asked[0] in ("UTC", "CET"), asked
    assert isinstance(result.final_output, str)


def test_agent_gives_a_value(url):
    result = Runner.run_sync(agent(url, output_type=Item), "Describe an item.")
    assert isinstance(result.final_output, Item)


def test_agent_streams(url):
    async def run():
        result = Runner.run_streamed(agent(url), "What is a slice?")
        deltas = [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]
        return "".join(deltas), result.final_output

    streamed, whole = asyncio.run(run())
    assert streamed == whole != ""


def chat(url, **settings):
    settings = {"temperature": 0.0, "max_tokens": 120, "max_retries": 0, **settings}
    return ChatOpenAI(base_url=url, api_key="none", model=MODEL, **settings)


@tool
def clock(zone: Literal["UTC", "CET"]) -> str:
    """Tells the time."""
    return "noon"


def test_chain_answers(url):
    messages = [SystemMessage("Be brief."), HumanMessage("What is a slice?")]
    reply = chat(url).invoke(messages)
    assert isinstance(reply, AIMessage) and reply.content and reply.usage_metadata["output_tokens"] > 0
    chunks = list(chat(url, stream_usage=True).stream(messages))
    assert "".join(chunk.content for chunk in chunks) == reply.content
    usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert usages[-1]["total_tokens"] == reply.usage_metadata["total_tokens"]
    assert [one.content for one in chat(url).batch([messages, messages])] == [reply.content] * 2


def test_chain_calls_tools(url):
    for choice in ("any", "required", "clock", True):
        for strict in (None, True):
            bound = chat(url).bind_tools([clock], tool_choice=choice, strict=strict, parallel_tool_calls=False)
            reply = bound.invoke("How late is it?")
            (call,) = reply.tool_calls
            assert call["name"] == "clock" and call["args"]["zone"] in ("UTC", "CET"), call
    answer = ToolMessage(content=clock.invoke(call["args"]), tool_call_id=call["id"])
    history = [HumanMessage("How late is it?"), reply, answer]
    assert chat(url).bind_tools([clock]).invoke(history).content is not None
    streamed = None
    for chunk in chat(url).bind_tools([clock], tool_choice="any").stream("How late is it?"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls and streamed.tool_calls[0]["args"]["zone"] in ("UTC", "CET")


def test_chain_gives_values(url):
    for method in ("json_schema", "function_calling"):
        item = chat(url).with_structured_output(Item, method=method).invoke("Describe an item.")
        assert isinstance(item, Item), method


def main():
    set_tracing_disabled(True)
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    for name, test in tests:
        start = time.monotonic()
        test(sys.argv[1])
        print(f"{name} ok ({time.monotonic() - start:.1f} s)", flush=True)
    print(f"{len(tests)} tests passed with the Agents SDK and LangChain")


if __name__ == "__main__":
    main()
