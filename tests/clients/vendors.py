"""SDKs for one vendor, against simulated providers with that vendor's profile."""

import openai
import openrouter

from bridge import CENTRALIZED_KEY, Bridge, check_record, mask

OWN_KEY = "own-key-0123456789abcdef"
PROMPT = "What is the weather in Paris?"
MESSAGES = [{"role": "user", "content": PROMPT}]
VERSION = "2025-04-01-preview"
CONFIG = """
[[providers]]
name = "azure"
type = "openai"
profile = "azure-openai-deployments"
base_url = "https://resource.openai.azure.com/openai"
[[providers]]
name = "azure-v1"
type = "openai"
profile = "azure-openai"
base_url = "https://resource.openai.azure.com/openai/v1"
[[providers]]
name = "openrouter"
type = "openai"
profile = "openrouter"
[[providers]]
name = "ollama"
type = "openai"
profile = "ollama"
"""


def bridge():
    return Bridge(CONFIG)


def sent(bridge, token, name, value):
    """Checks that each exchange has one credential, in this header; returns the exchanges."""
    names = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
    exchanges = bridge.exchanges()
    assert exchanges, "nothing reached the provider"
    for exchange in exchanges:
        assert exchange["problems"] == [], (exchange["path"], exchange["problems"])
        headers = {own: text for own, text in exchange["headers"] if own in names}
        assert headers == ({name: value} if name else {}), headers
        assert token not in str(exchange), "the token was passed on"
    return exchanges


def streamed(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def azure(bridge, provider, byok):
    user = f"{provider}-{'byok' if byok else 'centralized'}"
    token = bridge.user(user)
    client = openai.AzureOpenAI(
        azure_endpoint=f"{bridge.url}/{provider}", api_key=OWN_KEY if byok else token,
        api_version=VERSION, max_retries=0, timeout=60,
        default_headers={"X-AI-Governance-Token": token} if byok else {})
    for deployment in ("sim-text", "sim-long"):
        whole = client.chat.completions.create(model=deployment, messages=MESSAGES)
        assert whole.usage.prompt_tokens == 25, whole
    text = streamed(
        client.chat.completions.create(model="sim-text", messages=MESSAGES, stream=True))
    assert text.startswith("Hello"), text
    answer = client.responses.create(model="sim-text", input=PROMPT)
    assert answer.output_text.startswith("Hello"), answer

    records = bridge.records(user)
    assert [record["model"] for record in records] == ["sim-text", "sim-long", "sim-text", "sim-text"]
    kind, key = ("byok", OWN_KEY) if byok else ("centralized", CENTRALIZED_KEY)
    for record in records[:1] + records[2:3]:
        check_record(record, client=records[0]["client"], kind=kind, hint=mask(key),
                     provider=provider, dialect="chat_completions")
    exchanges = sent(bridge, token, "api-key", mask(key))
    assert all(f"api-version={VERSION}" in exchange["path"] for exchange in exchanges), exchanges
    return [exchange["path"].split("?")[0] for exchange in exchanges]


def azure_deployments(bridge, byok=False):
    paths = azure(bridge, "azure", byok)
    names = ("sim-text", "sim-long", "sim-text")
    expected = [f"/azure/openai/deployments/{name}/chat/completions" for name in names]
    assert paths == [*expected, "/azure/openai/responses"], paths


def azure_v1(bridge):
    """The SDK for the dated API, against the newer API."""
    paths = azure(bridge, "azure-v1", byok=False)
    chat = "/azure/openai/v1/chat/completions"
    assert paths == [chat] * 3 + ["/azure/openai/v1/responses"], paths


def openrouter_sdk(bridge):
    user = "openrouter"
    token = bridge.user(user)
    with openrouter.OpenRouter(api_key=token, server_url=f"{bridge.url}/openrouter/v1") as client:
        whole = client.chat.send(model="sim-text", messages=MESSAGES)
        assert whole.choices[0].message.content.startswith("Hello"), whole
        text = streamed(client.chat.send(model="sim-text", messages=MESSAGES, stream=True))
        assert text.startswith("Hello"), text
    records = bridge.records(user)
    assert len(records) == 2, records
    for record in records:
        assert record["outcome"] == "completed" and record["provider"] == user, record
        assert record["credential_hint"] == mask(CENTRALIZED_KEY), record
        assert [row["prompt"] for row in record["prompts"]] == [PROMPT], record
    assert records[0]["token_usages"][0]["quality"] == "exact"
    sent(bridge, token, "authorization", f"Bearer {mask(CENTRALIZED_KEY)}")


def keyless(bridge):
    user = "keyless"
    token = bridge.user(user)
    client = openai.OpenAI(
        base_url=f"{bridge.url}/ollama/v1", api_key=token, max_retries=0, timeout=60)
    whole = client.chat.completions.create(model="sim-text", messages=MESSAGES)
    assert whole.choices[0].message.content.startswith("Hello"), whole
    (record,) = bridge.records(user)
    assert (record["credential_kind"], record["credential_source"]) == ("centralized", "none")
    assert record["credential_hint"] is None, record
    sent(bridge, token, None, None)


TESTS = {
    "AzureOpenAI (Python), deployments": azure_deployments,
    "AzureOpenAI (Python), deployments, BYOK": lambda bridge: azure_deployments(bridge, byok=True),
    "AzureOpenAI (Python), the v1 API": azure_v1,
    "OpenRouter SDK (Python)": openrouter_sdk,
    "OpenAI SDK (Python), a server without keys": keyless,
}
