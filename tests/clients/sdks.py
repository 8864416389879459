"""The official Python SDKs: streaming or not, with tools, with the company's key and with the user's own."""

import json

import anthropic
import openai

from bridge import check_record, mask

OWN_KEY = "sk-own-0123456789abcdef"
PROMPT = "What is the weather in Paris?"
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def whose(bridge, name, byok):
    """Returns the token, the API key, extra headers and the expected credential of the record."""
    token = bridge.user(name)
    if byok:
        return token, OWN_KEY, {"X-AI-Governance-Token": token}, ("byok", mask(OWN_KEY))
    return token, token, {}, ("centralized", None)


def prompts(records):
    return [[row["prompt"] for row in record["prompts"]] for record in records]


def openai_sdk(bridge, byok):
    user = f"openai-{'byok' if byok else 'centralized'}"
    token, key, headers, (kind, hint) = whose(bridge, user, byok)
    client = openai.OpenAI(
        base_url=f"{bridge.url}/openai/v1", api_key=key, default_headers=headers,
        max_retries=0, timeout=60)
    messages = [{"role": "user", "content": PROMPT}]
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}]

    whole = client.chat.completions.create(model="sim-text", messages=messages)
    assert whole.choices[0].message.content.startswith("Hello"), whole
    assert whole.usage.prompt_tokens == 25

    called = client.chat.completions.create(model="sim-tool", messages=messages, tools=tools)
    call = called.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"

    # Usage was not requested, so no chunk may lack choices.
    text = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(model="sim-text", messages=messages, stream=True))
    assert text.startswith("Hello"), text

    with_usage = list(client.chat.completions.create(
        model="sim-parallel-tools", messages=messages, tools=tools, stream=True,
        stream_options={"include_usage": True}))
    assert with_usage[-1].choices == [] and with_usage[-1].usage.completion_tokens == 12

    messages += [called.choices[0].message.model_dump(exclude_none=True),
                 {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}]
    client.chat.completions.create(model="sim-text", messages=messages, tools=tools)

    records = bridge.records(user)
    assert len(records) == 5, len(records)
    for record in records:
        check_record(record, client="OpenAI SDK (Python)", kind=kind, hint=hint,
                     provider="openai", dialect="chat_completions")
    assert prompts(records) == [[PROMPT]] * 4 + [[]], prompts(records)
    assert [row["tool"] for row in records[3]["tool_usages"]] == ["get_weather"] * 2
    assert records[1]["tool_usages"][0]["result_bytes"] == len("18 degrees")
    assert records[4]["thread_id"] == records[1]["thread_id"] == records[1]["id"]
    assert records[4]["parent_id"] == records[1]["id"]
    assert records[2]["body_edits"] == ["include_usage"] and records[3]["body_edits"] == []
    bridge.check_exchanges(token, f"Bearer {OWN_KEY}" if byok else None)
    bridge.check_log(token, OWN_KEY, PROMPT)


def openai_responses(bridge, byok):
    user = f"responses-{'byok' if byok else 'centralized'}"
    token, key, headers, (kind, hint) = whose(bridge, user, byok)
    client = openai.OpenAI(
        base_url=f"{bridge.url}/openai/v1", api_key=key, default_headers=headers,
        max_retries=0, timeout=60)
    tools = [{"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": False}]

    whole = client.responses.create(model="sim-reasoning", input=PROMPT)
    assert whole.output_text.startswith("Hello"), whole
    with client.responses.stream(model="sim-tool", input=PROMPT, tools=tools) as stream:
        final = [event for event in stream][-1].response
    call = next(item for item in final.output if item.type == "function_call")
    client.responses.create(model="sim-text", input=[
        {"role": "user", "content": PROMPT}, call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}])
    queued = client.responses.create(model="sim-background", input=PROMPT, background=True)
    fetched = client.responses.retrieve(queued.id)
    assert (queued.status, fetched.status) == ("queued", "completed"), (queued, fetched)
    if not byok:
        try:
            client.responses.retrieve("resp_of_somebody_else")
            raise AssertionError("another user's response was fetched")
        except openai.NotFoundError as error:
            assert "resp_of_somebody_else" in str(error), error

    records = bridge.records(user)
    assert [record["endpoint"] for record in records[:5]] == \
        ["/v1/responses"] * 4 + [f"/v1/responses/{queued.id}"], records
    if not byok:
        refused = records.pop()
        assert (refused["outcome"], refused["error_kind"]) == ("refused", "object_not_owned"), refused
    assert len(records) == 5, [record["endpoint"] for record in records]
    # The figures of a queued answer come when it is fetched.
    assert records[3]["token_usages"] == [], records[3]
    for record in records[:3] + records[4:]:
        check_record(record, client="OpenAI SDK (Python)", kind=kind, hint=hint,
                     provider="openai", dialect="responses")
    assert prompts(records) == [[PROMPT], [PROMPT], [], [PROMPT], []], prompts(records)
    assert [row["source"] for row in records[0]["thoughts"]] == ["reasoning_summary"]
    used = records[1]["tool_usages"][0]
    assert used["result_bytes"] == len("18 degrees") and "Paris" in json.dumps(used["arguments"]), used
    assert records[2]["thread_id"] == records[1]["id"]
    assert records[4]["thread_id"] == records[3]["id"], records[4]
    bridge.check_exchanges(token, f"Bearer {OWN_KEY}" if byok else None)


def anthropic_sdk(bridge, byok, scheme="bearer"):
    """Current releases send the key as a bearer token, older ones in X-Api-Key."""
    user = f"anthropic-{'byok' if byok else 'centralized'}-{scheme}"
    token, key, headers, (kind, hint) = whose(bridge, user, byok)
    if scheme == "api_key":
        headers = {**headers, "X-Api-Key": key, "Authorization": anthropic.Omit()}
    client = anthropic.Anthropic(
        base_url=f"{bridge.url}/anthropic", api_key=key, default_headers=headers,
        max_retries=0, timeout=60)
    ask = {"max_tokens": 1000, "messages": [{"role": "user", "content": PROMPT}]}
    tools = [{"name": "get_weather", "input_schema": WEATHER}]

    whole = client.messages.create(model="sim-text", **ask)
    assert whole.content[0].text.startswith("Hello"), whole
    with client.messages.stream(model="sim-thinking+tool", tools=tools, **ask) as stream:
        final = stream.get_final_message()
    call = next(block for block in final.content if block.type == "tool_use")
    assert final.content[0].signature and call.input["city"] == "Paris"
    client.messages.create(model="sim-text", max_tokens=1000, tools=tools, messages=[
        *ask["messages"],
        {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in final.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id,
                                      "content": "18 degrees", "is_error": True}]}])
    counted = client.messages.count_tokens(model="sim-text", messages=ask["messages"])
    assert counted.input_tokens > 0

    records = bridge.records(user)
    assert len(records) == 3, len(records)
    for record in records:
        check_record(record, client="Anthropic SDK (Python)", kind=kind, hint=hint,
                     provider="anthropic", dialect="messages")
    if byok:
        assert records[0]["credential_scheme"] == scheme, records[0]
    assert prompts(records) == [[PROMPT], [PROMPT], []], prompts(records)
    assert [row["source"] for row in records[1]["thoughts"]] == ["thinking"]
    used = records[1]["tool_usages"][0]
    assert (used["result_bytes"], used["result_is_error"]) == (len("18 degrees"), True), used
    assert used["tool"] == "get_weather" and "Paris" in json.dumps(used["arguments"]), used
    assert records[2]["thread_id"] == records[1]["id"]
    expected = (f"Bearer {OWN_KEY}" if scheme == "bearer" else OWN_KEY) if byok else None
    bridge.check_exchanges(token, expected)


TESTS = {
    "openai SDK, chat completions, company's key": lambda bridge: openai_sdk(bridge, False),
    "openai SDK, chat completions, own key": lambda bridge: openai_sdk(bridge, True),
    "openai SDK, responses, company's key": lambda bridge: openai_responses(bridge, False),
    "openai SDK, responses, own key": lambda bridge: openai_responses(bridge, True),
    "anthropic SDK, company's key": lambda bridge: anthropic_sdk(bridge, False),
    "anthropic SDK, own key as bearer": lambda bridge: anthropic_sdk(bridge, True),
    "anthropic SDK, own key as X-Api-Key": lambda bridge: anthropic_sdk(bridge, True, "api_key"),
}
