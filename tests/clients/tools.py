"""Injected tools through the official SDKs: several turns read as one response.

The model's behaviour is scripted in a header that the bridge passes on (docs/simulator.md).
"""

import asyncio
import json
import os
import pathlib
import subprocess

import anthropic

from apis import MODEL, TOOL, Chained, Chat, Messages, Responses, Unstored, dumped, scripted
from bridge import check_record
from everything import ECHO, SUM, check_injected

NPM = pathlib.Path(os.environ["KEYBRIDGE_TEST_NPM"])
SDKS_MJS = pathlib.Path(__file__).with_name("sdks.mjs")
OWN_KEY = "sk-own-0123456789abcdef"
PROMPT = "What is the weather in Paris?"


def echo(message):
    return {"call": ECHO, "arguments": {"message": message}}


WEATHER_CALL = {"call": "get_weather", "arguments": {"city": "Paris"}}
# Three turns in one response, with two calls in the second turn.
SEVERAL = [
    [{"thinking": "I echo."}, {"text": "First. "}, echo("one")],
    [{"thinking": "Twice more."}, {"text": "Second. "}, echo("two"),
     {"call": SUM, "arguments": {"a": 2, "b": 3}}],
    [{"thinking": "That is all."}, {"text": "{result}"}],
]
ANSWER = "First. Second. Echo: two The sum of 2 and 3 is 5."
# An injected call and a client call, in one turn and in two.
TOGETHER = [
    [{"thinking": "Both."}, {"text": "I look. "}, echo("hidden"), WEATHER_CALL],
    [{"text": "Got {result}."}],
]
AFTERWARDS = [
    [{"thinking": "I echo."}, {"text": "First. "}, echo("hidden")],
    [{"thinking": "I look."}, {"text": "Second. "}, WEATHER_CALL],
    [{"text": "Got {result}."}],
]
# In JSON, a string with only this content.
HIDDEN_RESULT = '"Echo: hidden"'
GOODBYE = [[{"text": "Goodbye."}]]

APIS = {
    "Messages": Messages,
    "Chat Completions": Chat,
    "Responses": Responses,
    "Responses, not stored": Unstored,
    "Responses, chained": Chained,
}
ENDED = {"messages": "end_turn", "chat_completions": "stop", "responses": "completed"}


def begun(bridge, api, user):
    """Creates a client with a first prompt; returns it and its token."""
    token = bridge.user(user)
    client = api(bridge, token)
    client.say(PROMPT)
    return client, token


def check_merged(api, final):
    """Checks for one response without a trace of the calls between its turns."""
    assert api.text(final) == ANSWER, api.text(final)
    assert api.calls(final) == [], final
    assert api.kinds(final) == api.parts * 3, api.kinds(final)
    assert api.stopped(final) == ENDED[api.dialect], final
    api.check(final, turns=3)


def check_merged_record(bridge, api, record, client):
    check_record(record, client=client, kind="centralized", hint=None, provider=api.provider,
                 dialect=api.dialect)
    assert (record["inner_turns"], record["attempts"]) == (2, 3), record
    assert "inject_tools" in record["body_edits"], record["body_edits"]
    check_injected(bridge, record, [
        ("echo", {"message": "one"}), ("echo", {"message": "two"}), ("get-sum", {"a": 2, "b": 3})])
    assert len({call["provider_response_id"] for call in record["tool_usages"]}) == 2


def python_sdk(bridge, name, api):
    client, token = begun(bridge, api, f"tools-{name}")
    finals = [client.whole(SEVERAL), client.stream(SEVERAL),
              asyncio.run(client.not_blocking(SEVERAL))]
    for final in finals:
        check_merged(api, dumped(final))
        if api is Chat:
            thoughts = final.choices[0].message.reasoning_content
            assert thoughts == "I echo.Twice more.That is all.", thoughts
    sdk = "Anthropic SDK (Python)" if api is Messages else "OpenAI SDK (Python)"
    records = bridge.records(f"tools-{name}")
    assert [record["streaming"] for record in records] == [False, True, True], records
    for record in records:
        check_merged_record(bridge, api, record, sdk)
    for exchange in bridge.check_exchanges(token):
        assert ECHO in exchange["body"], "the tools were offered in each turn"
    bridge.check_log(token, PROMPT)


def no_usage_asked_for(bridge):
    """Plain Chat Completions streams: no chunk without choices if usage was not requested."""
    client, _token = begun(bridge, Chat, "tools-no-usage")
    text, reasons = "", []
    for chunk in client.client.chat.completions.create(stream=True, **client.words(SEVERAL)):
        dumped(chunk)
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        reasons.append(choice.finish_reason)
    assert text == ANSWER, text
    assert [reason for reason in reasons if reason] == ["stop"] and reasons[-1] == "stop", reasons
    (record,) = bridge.records("tools-no-usage")
    check_merged_record(bridge, Chat, record, "OpenAI SDK (Python)")


def own_call(bridge, name, api, script, streaming):
    """The client sends the result of its own call; the provider also gets the hidden one with its result."""
    turns = len(script) - 1
    user = f"tools-own-{turns}-{streaming}-{name}"
    client, token = begun(bridge, api, user)
    ask = client.stream if streaming else client.whole

    first = ask(script)
    said = dumped(first)
    assert api.calls(said) == ["get_weather"], said
    assert api.text(said) == ("I look. " if turns == 1 else "First. Second. "), api.text(said)
    api.check(said, turns)
    client.go_on(first, "18 degrees")

    second = ask(script)
    said = api.text(dumped(second))
    assert said == ("Got Echo: hidden 18 degrees." if turns == 1 else "Got 18 degrees."), said
    client.go_on(second)

    client.say("Thank you.")
    third = ask(GOODBYE)
    assert api.text(dumped(third)) == "Goodbye.", third

    exchanges = bridge.check_exchanges(token)
    assert len(exchanges) == turns + 2, len(exchanges)
    if api is Chained:
        assert dumped(second)["previous_response_id"] == first.id, second
        check_chained(exchanges, turns)
    else:
        for exchange in exchanges[turns:]:
            body = json.loads(exchange["body"])
            history = json.dumps(body["input"] if "input" in body else body["messages"])
            assert history.count(ECHO) == history.count(HIDDEN_RESULT) == 1, history
    check_own_call_records(bridge, bridge.records(user), turns)


def check_chained(exchanges, turns):
    """Checks that each request continues from the provider's latest response, whichever the client names."""
    for earlier, later in zip(exchanges[turns - 1:], exchanges[turns:]):
        previous = json.loads(later["body"])["previous_response_id"]
        assert f'"id":"{previous}"' in earlier["response"], (previous, earlier["response"])
    hidden = HIDDEN_RESULT in exchanges[turns]["body"]
    assert hidden == (turns == 1), "the provider waits for the hidden result of the same turn"


def check_own_call_records(bridge, records, turns):
    first, second, third = records
    assert [record["inner_turns"] for record in records] == [turns - 1, 0, 0], records
    check_injected(bridge, first, [("echo", {"message": "hidden"})])
    own = [call for call in first["tool_usages"] if not call["injected"]]
    assert [(call["tool"], call["result_bytes"]) for call in own] == [
        ("get_weather", len("18 degrees"))], own
    assert second["tool_usages"] == third["tool_usages"] == []
    assert second["parent_id"] == first["id"] and second["thread_id"] == first["thread_id"]


def live(bridge, name, api):
    """The model's output arrives at once, while the provider still holds back the rest."""
    client, _token = begun(bridge, api, f"tools-live-{name}")
    holds = ["within", "later"]
    script = [
        [{"text": "Early. "}, {"hold": f"within-{name}"}, echo("one")],
        [{"text": "Later. "}, {"hold": f"later-{name}"}, {"text": "{result}"}],
    ]
    text = ""

    def seen(delta):
        nonlocal text
        text += delta
        expected = "Early. " if len(holds) == 2 else "Early. Later. "
        if holds and text == expected:
            # The provider aborts the stream without this release.
            bridge.release(f"{holds.pop(0)}-{name}")

    try:
        final = client.stream(script, seen)
    finally:
        for hold in holds:
            bridge.release(f"{hold}-{name}")
    assert holds == [], f"the client saw {text!r} only"
    said = api.text(json.loads(final.model_dump_json(warnings=False)))
    assert said == "Early. Later. Echo: one", said
    assert all(exchange["problems"] == [] for exchange in bridge.exchanges())


def tool_runner(bridge, streaming):
    """The Anthropic SDK's own tool loop, which calls the client's function."""
    token = bridge.user(f"tools-runner-{streaming}")
    called = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Returns the weather.

        Args:
            city: Where
        """
        called.append(city)
        return "18 degrees"

    client = Messages(bridge, token)
    client.say(PROMPT)
    words = {**client.words(AFTERWARDS), "tools": [get_weather]}
    # Otherwise the provider stores the conversation: see `held_by_the_provider`.
    runner = client.client.beta.messages.tool_runner(**words, stream=streaming, thread=False)
    messages = [each.get_final_message() if streaming else each for each in runner]
    said = [Messages.text(dumped(message)) for message in messages]
    assert said == ["First. Second. ", "Got 18 degrees."] and called == ["Paris"], (said, called)
    exchanges = bridge.check_exchanges(token)
    assert len(exchanges) == 3 and HIDDEN_RESULT in exchanges[2]["body"], exchanges


def held_by_the_provider(bridge):
    """Message threads: the provider rejects tools in a request that continues one, and allows each response
    to be continued only once. So these requests pass unchanged."""
    token = bridge.user("tools-thread")
    client = Messages(bridge, token)
    client.say(PROMPT)
    thread = {"type": "create"}
    for _ in range(2):
        words = client.words(GOODBYE)
        del words["tools"]
        said = client.client.beta.messages.create(
            **words, thread=thread, betas=["message-threads-2026-08-12"])
        assert Messages.text(dumped(said)) == "Goodbye.", said
        thread = {"type": "continue", "previous_message_id": said.id}
    for exchange in bridge.check_exchanges(token):
        assert "bmcp_" not in exchange["body"], exchange["body"]
    for record in bridge.records("tools-thread"):
        assert record["body_edits"] == [], record


def own_key(bridge, api):
    """With the user's own key, each turn is requested with that key."""
    user = f"tools-own-key-{api.dialect}"
    token = bridge.user(user)
    client = api(bridge, OWN_KEY, default_headers={"X-AI-Governance-Token": token})
    client.say(PROMPT)
    check_merged(api, dumped(client.stream(SEVERAL)))
    (record,) = bridge.records(user)
    assert (record["credential_kind"], record["inner_turns"]) == ("byok", 2), record
    assert len(bridge.check_exchanges(token, f"Bearer {OWN_KEY}")) == 3
    bridge.check_log(token, OWN_KEY, PROMPT)


def javascript_sdks(bridge):
    token = bridge.user("tools-javascript")
    given = {"url": bridge.url, "token": token, "headers": scripted(SEVERAL), "prompt": PROMPT,
             "models": MODEL, "tools": TOOL}
    done = subprocess.run(
        ["node", SDKS_MJS, NPM], input=json.dumps(given), text=True, capture_output=True,
        timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    answers = json.loads(done.stdout)
    assert answers.pop("seen") > 30, "events were looked at"
    assert "bmcp_" not in done.stdout, done.stdout
    assert set(answers) == {"messages", "chat", "responses"}, answers
    for api, name in [(Messages, "messages"), (Chat, "chat"), (Responses, "responses")]:
        check_merged(api, answers[name])
    records = bridge.records("tools-javascript")
    clients = ["Anthropic SDK (JavaScript)", "OpenAI SDK (JavaScript)", "OpenAI SDK (JavaScript)"]
    for record, api, client in zip(records, [Messages, Chat, Responses], clients, strict=True):
        check_merged_record(bridge, api, record, client)
    bridge.check_exchanges(token)


def tests():
    """The tests by name."""
    found = {}

    def add(name, test, *arguments):
        found[f"injected tools, {name}"] = lambda bridge: test(bridge, *arguments)

    for name, api in APIS.items():
        word = name.lower().replace(" ", "-").replace(",", "")
        if api is not Chained:
            add(name, python_sdk, word, api)
            add(f"live, {name}", live, word, api)
        for way, streaming in [("whole", False), ("stream", True)]:
            add(f"beside an own one, {name}, {way}", own_call, word, api, TOGETHER, streaming)
            add(f"before an own one, {name}, {way}", own_call, word, api, AFTERWARDS, streaming)
    add("Chat Completions without usage", no_usage_asked_for)
    add("JavaScript SDKs", javascript_sdks)
    add("the SDK's tool runner, whole", tool_runner, False)
    add("the SDK's tool runner, stream", tool_runner, True)
    add("message threads", held_by_the_provider)
    for name, api in [("Messages", Messages), ("Responses", Responses)]:
        add(f"own key, {name}", own_key, api)
    return found


TESTS = tests()
