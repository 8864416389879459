"""Injected tools of a real MCP server, with the official SDKs and with agents: their readers must take
every merged answer for one of the provider's own, and never see an injected call."""

import asyncio
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import anthropic
import openai

import agents
from agents import CLAUDE, CODEX, NPM

ANSWER = "keybridge-injected-ok"
PROMPT = "Use the injected tool and tell me the answer."
BOTH = "Use the injected tool, then the shell tool, and tell me the answers."
START_SECONDS = 30
OWN = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
SDKS_JS = pathlib.Path(__file__).with_name("sdks.mjs")


class Everything:
    """The MCP server that shows everything, on a free port."""

    def __enter__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/mcp"
        self.process = subprocess.Popen(
            [NPM / ".bin/mcp-server-everything", "streamableHttp"],
            env={"PATH": os.environ["PATH"], "PORT": str(port)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, "no MCP server"
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=30)

    def _answers(self):
        try:
            urllib.request.urlopen(self.url, timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


def echo(message):
    return {"call": "bmcp_everything_echo", "arguments": {"message": message}}


def script(*turns):
    return {"x-sim-turns": json.dumps(turns)}


# Thoughts, texts, two calls in one turn, then another, then the answer.
STORY = script(
    [{"thinking": "let me see"}, {"text": "I look. "}, echo("one"), echo("two")],
    [{"thinking": "and once more"}, {"text": "Again. "},
     {"call": "bmcp_everything_get-sum", "arguments": {"a": 2, "b": 40}}],
    [{"thinking": "so"}, {"text": "It is {result}"}],
)
TOLD = "I look. Again. It is The sum of 2 and 40 is 42."
TURNS = 3
# The model calls a tool of the bridge and one of the client at once.
MIXED = script(
    [{"thinking": "both"}, {"text": "Both. "}, echo("hidden"),
     {"call": "own_tool", "arguments": {"x": 1}}],
    [{"text": "Now I know: {result}"}],
)


def check_answer(whole, text, tokens):
    """What an SDK made of an answer: all text, no injected call, the figures of all turns."""
    assert text == TOLD, text
    assert "bmcp_" not in whole, whole
    assert tokens == (TURNS * 25, TURNS * 12), tokens


def check_records(bridge, user, token, count):
    records = bridge.records(user)
    assert len(records) == count, len(records)
    for record in records:
        assert record["outcome"] == "completed" and record["inner_turns"] == TURNS - 1, record
        assert len(record["token_usages"]) == TURNS
        tools = [(row["tool"], row["injected"]) for row in record["tool_usages"]]
        assert tools == [("echo", True), ("echo", True), ("get-sum", True)], tools
        for row in record["tool_usages"]:
            assert row["server_url"].endswith("/mcp") and row["duration_ms"] is not None
            assert row["result_bytes"] > 0 and not row["invocation_error"], row
        assert len(record["thoughts"]) == TURNS, record["thoughts"]
    bridge.check_exchanges(token)


def anthropic_sdk(bridge):
    token = bridge.user("tools-anthropic")
    options = {"base_url": f"{bridge.url}/anthropic", "auth_token": token, "max_retries": 0}
    client = anthropic.Anthropic(**options)
    ask = {"model": "claude-opus-5-5", "max_tokens": 1000, "extra_headers": STORY,
           "messages": [{"role": "user", "content": "hi"}]}

    def check(message):
        text = "".join(block.text for block in message.content if block.type == "text")
        kinds = [block.type for block in message.content]
        assert kinds == ["thinking", "text"] * 3, kinds
        usage = message.usage
        check_answer(message.model_dump_json(), text, (usage.input_tokens, usage.output_tokens))

    check(client.messages.create(**ask))
    with client.messages.stream(**ask) as stream:
        assert "".join(stream.text_stream) == TOLD
        check(stream.get_final_message())

    async def at_once():
        asynchronous = anthropic.AsyncAnthropic(**options)
        async with asynchronous.messages.stream(**ask) as stream:
            return await stream.get_final_message()
    check(asyncio.run(at_once()))
    check_records(bridge, "tools-anthropic", token, 3)


def chat_sdk(bridge):
    token = bridge.user("tools-chat")
    client = openai.OpenAI(base_url=f"{bridge.url}/openai/v1", api_key=token, max_retries=0)
    ask = {"model": "gpt-5.5", "messages": [{"role": "user", "content": "hi"}],
           "extra_headers": STORY}

    def check(completion):
        usage = completion.usage
        check_answer(completion.model_dump_json(), completion.choices[0].message.content,
                     (usage.prompt_tokens, usage.completion_tokens))
        assert completion.choices[0].finish_reason == "stop"
        assert not completion.choices[0].message.tool_calls

    check(client.chat.completions.create(**ask))
    with client.chat.completions.stream(
            **ask, stream_options={"include_usage": True}) as stream:
        for _event in stream:
            pass
        check(stream.get_final_completion())
    text = "".join(chunk.choices[0].delta.content or ""
                   for chunk in client.chat.completions.create(**ask, stream=True))
    assert text == TOLD, text
    check_records(bridge, "tools-chat", token, 3)


def responses_sdk(bridge):
    token = bridge.user("tools-responses")
    client = openai.OpenAI(base_url=f"{bridge.url}/openai/v1", api_key=token, max_retries=0)
    ask = {"model": "gpt-5.5", "input": "hi", "extra_headers": STORY}

    def check(response):
        usage = response.usage
        check_answer(response.model_dump_json(), response.output_text,
                     (usage.input_tokens, usage.output_tokens))
        kinds = [item.type for item in response.output]
        assert kinds == ["reasoning", "message"] * 3, kinds

    check(client.responses.create(**ask))
    with client.responses.stream(**ask) as stream:
        for _event in stream:
            pass
        final = stream.get_final_response()
    check(final)
    check_records(bridge, "tools-responses", token, 2)
    # The client knows the first turn's id; the provider goes on from the last one.
    after = client.responses.create(
        model="gpt-5.5", input="and now?", previous_response_id=final.id,
        extra_headers=script([{"text": "after"}]))
    assert after.output_text == "after" and after.previous_response_id == final.id
    bridge.check_exchanges(token)


def first_text(bridge):
    """The first text of a Responses stream comes while the provider holds back the rest."""
    token = bridge.user("tools-first")
    client = openai.OpenAI(base_url=f"{bridge.url}/openai/v1", api_key=token, max_retries=0)
    turns = script([{"text": "first"}, {"hold": "rest"}, echo("x")], [{"text": "last"}])
    with client.responses.stream(model="gpt-5.5", input="hi", extra_headers=turns) as stream:
        seen = ""
        for event in stream:
            if event.type == "response.output_text.delta":
                seen += event.delta
            if seen == "first":
                # Until this, the provider writes no further: it gives up after 30 s.
                release = urllib.request.Request(f"{bridge.sim}/_sim/release/rest", method="POST")
                urllib.request.urlopen(release, timeout=10).close()
                seen += "."
        assert stream.get_final_response().output_text == "firstlast"
    bridge.check_exchanges(token)


def hidden_beside_own(bridge):
    """A client that answers its own call as its SDK has it; the hidden one is put back."""
    token = bridge.user("tools-mixed")
    claude = anthropic.Anthropic(
        base_url=f"{bridge.url}/anthropic", auth_token=token, max_retries=0)
    gpt = openai.OpenAI(base_url=f"{bridge.url}/openai/v1", api_key=token, max_retries=0)
    question = {"role": "user", "content": "hi"}

    ask = {"model": "claude-opus-5-5", "max_tokens": 1000, "extra_headers": MIXED,
           "tools": [{"name": "own_tool", "input_schema": OWN}]}
    with claude.messages.stream(**ask, messages=[question]) as stream:
        message = stream.get_final_message()
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert call.name == "own_tool" and call.input == {"x": 1}, call
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "mine"}
    after = claude.messages.create(**ask, messages=[
        question, {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]}])
    assert "Echo: hidden" in after.content[0].text and "mine" in after.content[0].text, after

    function = {"name": "own_tool", "parameters": OWN}
    ask = {"model": "gpt-5.5", "extra_headers": MIXED,
           "tools": [{"type": "function", "function": function}]}
    with gpt.chat.completions.stream(**ask, messages=[question]) as stream:
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "own_tool", call
    said = {"role": "assistant", "content": message.content,
            "tool_calls": [{"id": call.id, "type": "function", "function": {
                "name": call.function.name, "arguments": call.function.arguments}}]}
    after = gpt.chat.completions.create(**ask, messages=[
        question, said, {"role": "tool", "tool_call_id": call.id, "content": "mine"}])
    text = after.choices[0].message.content
    assert "Echo: hidden" in text and "mine" in text, text

    ask = {"model": "gpt-5.5", "extra_headers": MIXED,
           "tools": [{"type": "function", "strict": False, **function}]}
    for chained in (False, True):
        with gpt.responses.stream(**ask, input=[question]) as stream:
            response = stream.get_final_response()
        (call,) = [item for item in response.output if item.type == "function_call"]
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "mine"}
        if chained:
            after = gpt.responses.create(
                **ask, input=[output], previous_response_id=response.id)
        else:
            kept = [item.model_dump(exclude_none=True, exclude={"parsed_arguments"})
                    for item in response.output]
            after = gpt.responses.create(**ask, input=[question, *kept, output])
        assert "mine" in after.output_text and "hidden" in after.output_text, after.output_text

    exchanges = bridge.check_exchanges(token)
    assert all("Echo: hidden" in exchange["body"] for exchange in exchanges[1::2])
    edits = [record["body_edits"][0] for record in bridge.records("tools-mixed")]
    assert edits[1::2] == ["restore_hidden_calls"] * 4, edits


def javascript_sdks(bridge):
    """The readers of the JavaScript SDKs take the same streams."""
    token = bridge.user("tools-js")
    env = {"PATH": os.environ["PATH"], "NODE_PATH": str(NPM), "BRIDGE": bridge.url, "TOKEN": token,
           "TURNS": STORY["x-sim-turns"], "MODULES": str(NPM)}
    done = subprocess.run(["node", SDKS_JS], env=env, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        told = json.loads(line)
        check_answer(told["whole"], told["text"], tuple(told["tokens"]))
    check_records(bridge, "tools-js", token, 3)


def check_agent(bridge, user, token, home, out, prompt, client):
    """The agent has the tool's answer, and nowhere in its files the call."""
    assert ("keybridge-tool-ok" if prompt == BOTH else ANSWER) in out, out
    assert "bmcp_" not in out, out
    for file in pathlib.Path(home).rglob("*"):
        if file.is_file():
            assert b"bmcp_" not in file.read_bytes(), f"{file} has the injected call"
    records = [record for record in bridge.records(user) if record["client"] == client]
    injected = [row for record in records for row in record["tool_usages"] if row["injected"]]
    assert [row["tool"] for row in injected] == ["echo"], injected
    assert injected[0]["server_url"].endswith("/mcp") and injected[0]["result_bytes"] > 0
    assert all(record["client_session_id"] for record in records)
    if prompt == BOTH:
        edits = [edit for record in records for edit in record["body_edits"]]
        assert "restore_hidden_calls" in edits, edits
    for exchange in bridge.check_exchanges(token):
        body = json.loads(exchange["body"])
        if "haiku" in body.get("model", ""):
            assert "bmcp_" not in exchange["body"], "side tasks get no tools"


def claude(bridge, prompt):
    user = f"tools-claude-{len(prompt)}"
    token = bridge.user(user)
    env = {
        "ANTHROPIC_BASE_URL": f"{bridge.url}/anthropic", "ANTHROPIC_AUTH_TOKEN": token,
        "ANTHROPIC_MODEL": "claude-opus-5-5", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "1", "DISABLE_AUTOUPDATER": "1", "IS_SANDBOX": "1",
    }
    with tempfile.TemporaryDirectory() as home:
        out = agents.run([CLAUDE, "-p", prompt, "--allowedTools", "Bash"], env, home)
        check_agent(bridge, user, token, home, out, prompt, "Claude Code")


def codex(bridge, prompt):
    user = f"tools-codex-{len(prompt)}"
    token = bridge.user(user)
    with tempfile.TemporaryDirectory() as home:
        folder = pathlib.Path(home) / ".codex"
        folder.mkdir()
        (folder / "config.toml").write_text(
            'model = "gpt-5.5"\nmodel_provider = "keybridge"\n[model_providers.keybridge]\n'
            f'name = "keybridge"\nbase_url = "{bridge.url}/openai/v1"\n'
            'wire_api = "responses"\nenv_key = "TEST_KEY"\n')
        env = {"CODEX_HOME": str(folder), "TEST_KEY": token}
        words = [CODEX, "exec", "--skip-git-repo-check", "-s", "danger-full-access", prompt]
        out = agents.run(words, env, home)
        check_agent(bridge, user, token, home, out, prompt, "Codex")


TESTS = {
    "injected tools, Anthropic SDK": anthropic_sdk,
    "injected tools, OpenAI SDK, Chat Completions": chat_sdk,
    "injected tools, OpenAI SDK, Responses": responses_sdk,
    "injected tools, first text of a stream": first_text,
    "injected tools, beside the client's own": hidden_beside_own,
    "injected tools, JavaScript SDKs": javascript_sdks,
    "injected tools, Claude Code": lambda bridge: claude(bridge, PROMPT),
    "injected tools, Claude Code, then its shell": lambda bridge: claude(bridge, BOTH),
    "injected tools, Codex": lambda bridge: codex(bridge, PROMPT),
    "injected tools, Codex, then its shell": lambda bridge: codex(bridge, BOTH),
}
