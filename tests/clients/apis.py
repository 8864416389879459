"""The APIs with injected tools, each used through its official Python SDK."""

import json

import anthropic
import openai

MODEL = {"messages": "claude-opus-5-5", "chat": "gpt-5.5", "responses": "gpt-5.5"}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
# A client tool in the format of each API.
TOOL = {
    "messages": {"name": "get_weather", "input_schema": WEATHER},
    "chat": {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    "responses": {"type": "function", "name": "get_weather", "parameters": WEATHER,
                  "strict": False},
}


def scripted(script):
    return {"x-sim-turns": json.dumps(script)}


def dumped(thing):
    """Converts an SDK object to plain JSON and checks that it does not mention injected tools."""
    text = thing.model_dump_json(exclude_none=True, warnings=False)
    assert "bmcp_" not in text, text
    return json.loads(text)


class Messages:
    """The Messages API through its SDK."""

    dialect, provider = "messages", "anthropic"
    # The parts of a turn with thinking and text.
    parts = ["thinking", "text"]

    def __init__(self, bridge, token, **options):
        self.base = {"base_url": f"{bridge.url}/anthropic", "api_key": token, "max_retries": 0,
                     "timeout": 60, **options}
        self.client = anthropic.Anthropic(**self.base)
        self.history = []

    def words(self, script):
        return {"model": MODEL["messages"], "max_tokens": 2000, "messages": self.history,
                "tools": [TOOL["messages"]], "extra_headers": scripted(script)}

    def whole(self, script):
        return self.client.messages.create(**self.words(script))

    def stream(self, script, seen=lambda event: None):
        with self.client.messages.stream(**self.words(script)) as stream:
            for event in stream:
                dumped(event)
                seen(event.text if event.type == "text" else "")
            return stream.get_final_message()

    async def not_blocking(self, script):
        async with anthropic.AsyncAnthropic(**self.base) as client:
            async with client.messages.stream(**self.words(script)) as stream:
                return await stream.get_final_message()

    def say(self, text):
        self.history.append({"role": "user", "content": text})

    def go_on(self, final, result=None):
        self.history.append({"role": "assistant", "content": final.content})
        if result:
            call = next(block for block in final.content if block.type == "tool_use")
            assert call.input == {"city": "Paris"}, call
            self.history.append({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": result}]})

    @staticmethod
    def text(final):
        return "".join(block["text"] for block in final["content"] if block["type"] == "text")

    @staticmethod
    def calls(final):
        return [block["name"] for block in final["content"] if block["type"] == "tool_use"]

    @staticmethod
    def kinds(final):
        return [block["type"] for block in final["content"]]

    @staticmethod
    def stopped(final):
        return final["stop_reason"]

    @staticmethod
    def check(final, turns):
        """Checks what only this API has."""
        usage = final["usage"]
        assert (usage["input_tokens"], usage["output_tokens"]) == (25 * turns, 12 * turns), usage
        thoughts = [block for block in final["content"] if block["type"] == "thinking"]
        assert all(block["signature"] and block["thinking"] for block in thoughts), thoughts


class Chat:
    """Chat Completions through its SDK."""

    dialect, provider = "chat_completions", "openai"
    parts = []

    def __init__(self, bridge, token, **options):
        self.base = {"base_url": f"{bridge.url}/openai/v1", "api_key": token, "max_retries": 0,
                     "timeout": 60, **options}
        self.client = openai.OpenAI(**self.base)
        self.history = []

    def words(self, script):
        return {"model": MODEL["chat"], "messages": self.history, "tools": [TOOL["chat"]],
                "extra_headers": scripted(script)}

    def whole(self, script):
        return self.client.chat.completions.create(**self.words(script))

    def stream(self, script, seen=lambda event: None):
        with self.client.chat.completions.stream(
                **self.words(script), stream_options={"include_usage": True}) as stream:
            for event in stream:
                dumped(event)
                seen(event.delta if event.type == "content.delta" else "")
            return stream.get_final_completion()

    async def not_blocking(self, script):
        async with openai.AsyncOpenAI(**self.base) as client:
            async with client.chat.completions.stream(
                    **self.words(script), stream_options={"include_usage": True}) as stream:
                return await stream.get_final_completion()

    def say(self, text):
        self.history.append({"role": "user", "content": text})

    def go_on(self, final, result=None):
        message = final.choices[0].message
        self.history.append(message)
        if result:
            (call,) = message.tool_calls
            assert json.loads(call.function.arguments) == {"city": "Paris"}, call
            self.history.append({"role": "tool", "tool_call_id": call.id, "content": result})

    @staticmethod
    def text(final):
        return final["choices"][0]["message"].get("content") or ""

    @staticmethod
    def calls(final):
        calls = final["choices"][0]["message"].get("tool_calls") or []
        return [call["function"]["name"] for call in calls]

    @staticmethod
    def kinds(_final):
        return []

    @staticmethod
    def stopped(final):
        return final["choices"][0]["finish_reason"]

    @staticmethod
    def check(final, turns):
        usage = final["usage"]
        counts = (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"])
        assert counts == (25 * turns, 12 * turns, 37 * turns), usage
        assert final["object"] == "chat.completion" and len(final["choices"]) == 1, final


class Responses:
    """The Responses API through its SDK, with the history in the request."""

    dialect, provider = "responses", "openai"
    parts = ["reasoning", "message"]
    extra = {}

    def __init__(self, bridge, token, **options):
        self.base = {"base_url": f"{bridge.url}/openai/v1", "api_key": token, "max_retries": 0,
                     "timeout": 60, **options}
        self.client = openai.OpenAI(**self.base)
        self.history = []

    def words(self, script):
        return {"model": MODEL["responses"], "input": self.history, "tools": [TOOL["responses"]],
                "extra_headers": scripted(script), **self.extra}

    def whole(self, script):
        return self.client.responses.create(**self.words(script))

    def stream(self, script, seen=lambda event: None):
        numbers = []
        items = []
        with self.client.responses.stream(**self.words(script)) as stream:
            for event in stream:
                dumped(event)
                numbers.append(event.sequence_number)
                if event.type == "response.output_item.added":
                    items.append(event.output_index)
                seen(event.delta if event.type == "response.output_text.delta" else "")
            final = stream.get_final_response()
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
        assert items == list(range(len(final.output))), items
        return final

    async def not_blocking(self, script):
        async with openai.AsyncOpenAI(**self.base) as client:
            async with client.responses.stream(**self.words(script)) as stream:
                return await stream.get_final_response()

    def say(self, text):
        self.history.append({"role": "user", "content": text})

    def go_on(self, final, result=None):
        self.history += final.output
        self.answer(final, result)

    def answer(self, final, result):
        if result:
            (call,) = [item for item in final.output if item.type == "function_call"]
            assert json.loads(call.arguments) == {"city": "Paris"}, call
            self.history.append({
                "type": "function_call_output", "call_id": call.call_id, "output": result})

    @staticmethod
    def text(final):
        messages = [item for item in final["output"] if item["type"] == "message"]
        return "".join(part["text"] for message in messages for part in message["content"])

    @staticmethod
    def calls(final):
        return [item["name"] for item in final["output"] if item["type"] == "function_call"]

    @staticmethod
    def kinds(final):
        return [item["type"] for item in final["output"]]

    @staticmethod
    def stopped(final):
        return final["status"]

    @staticmethod
    def check(final, turns):
        usage = final["usage"]
        counts = (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"])
        assert counts == (25 * turns, 12 * turns, 37 * turns), usage
        assert [tool["name"] for tool in final["tools"]] == ["get_weather"], final["tools"]
        assert final["parallel_tool_calls"] is True, final


class Unstored(Responses):
    """Reasoning is sent back and forth encrypted; the provider stores nothing."""

    extra = {"store": False, "include": ["reasoning.encrypted_content"]}


class Chained(Responses):
    """The provider stores the history; requests name the response that they continue from."""

    previous = None

    def words(self, script):
        words = super().words(script)
        if self.previous:
            words["previous_response_id"] = self.previous
        return words

    def go_on(self, final, result=None):
        self.previous = final.id
        self.history = []
        self.answer(final, result)
