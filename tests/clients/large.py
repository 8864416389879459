"""Copilot CLI and OpenCode, run by hand with scripts/try-client: prints their output and the records."""

import json
import os
import pathlib
import sys
import tempfile

from agents import ANSWER, PROMPT, run
from bridge import Bridge

BIN = pathlib.Path(os.environ["KEYBRIDGE_TEST_NPM"]) / "node_modules/.bin"
OWN_KEY = "sk-own-0123456789abcdef"


def copilot(bridge, token, byok, home, prompt):
    env = {
        "COPILOT_HOME": f"{home}/.copilot",
        "COPILOT_AUTO_UPDATE": "false",
        "COPILOT_OFFLINE": "true",
        "COPILOT_PROVIDER_TYPE": "openai",
        "COPILOT_PROVIDER_BASE_URL": f"{bridge.url}/openai/v1",
        "COPILOT_PROVIDER_API_KEY": OWN_KEY if byok else token,
        "COPILOT_MODEL": "gpt-5",
    }
    if byok:
        env["COPILOT_PROVIDER_HEADERS"] = f"X-AI-Governance-Token: {token}"
    words = [BIN / "copilot", "-p", prompt, "--allow-all-tools", "--no-auto-update"]
    return run(words, env, home)


def opencode(bridge, token, byok, home, prompt):
    options = {"baseURL": f"{bridge.url}/anthropic/v1", "apiKey": OWN_KEY if byok else token}
    if byok:
        options["headers"] = {"X-AI-Governance-Token": token}
    config = pathlib.Path(home) / ".config/opencode/opencode.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({
        "autoupdate": False, "share": "disabled", "model": "anthropic/claude-sonnet-4-5",
        "permission": {"bash": "allow"}, "provider": {"anthropic": {"options": options}}}))
    env = {"OPENCODE_DISABLE_AUTOUPDATE": "1", "XDG_CONFIG_HOME": f"{home}/.config"}
    return run([BIN / "opencode", "run", prompt], env, home)


def show(record):
    """Prints a line of figures, then the prompts and tool calls."""
    usages = [(row["input_tokens"], row["output_tokens"]) for row in record["token_usages"]]
    print(" ", record["outcome"], record["client"], record["endpoint"], record["model"],
          record["credential_kind"], record["credential_hint"], record["client_session_id"],
          f"thread {record['thread_id'][-6:]}", usages)
    for row in record["prompts"]:
        print("    prompt:", row["prompt"])
    for row in record["tool_usages"]:
        print("    tool:", row["tool"], row["arguments"], "->", row["result_bytes"], "bytes")


def main():
    name, prompt = sys.argv[1], " ".join(sys.argv[2:]) or PROMPT
    client = {"copilot": copilot, "opencode": opencode}[name]
    with Bridge() as bridge:
        for kind in ("centralized", "byok"):
            byok = kind == "byok"
            user = f"{name}-{kind}"
            token = bridge.user(user)
            with tempfile.TemporaryDirectory() as home:
                out = client(bridge, token, byok, home, prompt)
            print(f"== {name}, {kind}", out.strip(), sep="\n")
            for record in bridge.records(user):
                assert record["credential_kind"] == kind, record
                show(record)
            own = OWN_KEY if name == "opencode" else f"Bearer {OWN_KEY}"
            bridge.check_exchanges(token, own if byok else None)
            assert prompt != PROMPT or ANSWER in out, "the tool was not called"


if __name__ == "__main__":
    main()
