"""Claude Code and Codex, headless: prompts that make the model call tools and finish."""

import base64
import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
import threading
import time

from bridge import Bridge, check_record, mask
from everything import ECHO, check_injected

NPM = pathlib.Path(os.environ["KEYBRIDGE_TEST_NPM"]) / "node_modules"
CLAUDE = NPM / ".bin/claude"
CODEX = NPM / ".bin/codex"
PROMPT = "Use your shell tool once, then tell me what it printed."
ANSWER = "keybridge-tool-ok"
# These make the simulated model call the bridge's tool, then the agent's.
INJECTED_PROMPT = "Use the injected tool once, then tell me what it printed."
SHELL_PROMPT = "Use the injected tool, then the shell."
AGAIN_PROMPT = "Thank you, that is all."
INJECTED_ANSWER = "keybridge-injected-ok"
INJECTED_NAMES = "bmcp_"
OWN_KEY = "sk-ant-api03-own-0123456789abcdef"
OWN_BEARER = "sk-ant-oat01-own-0123456789abcdef"
LIMIT_SECONDS = 120


def run(words, env, home):
    env = {"HOME": home, "PATH": os.environ["PATH"], "TERM": "dumb", **env}
    done = subprocess.run(
        [str(word) for word in words], env=env, cwd=home, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def claude_env(bridge, credentials, provider="anthropic"):
    return {
        "ANTHROPIC_BASE_URL": f"{bridge.url}/{provider}",
        "ANTHROPIC_MODEL": "claude-opus-5-5",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "1",
        "DISABLE_AUTOUPDATER": "1",
        "IS_SANDBOX": "1",
        **credentials,
    }


def claude_says(bridge, home, prompt, credentials, *words):
    """Runs Claude Code; returns its output."""
    env = claude_env(bridge, credentials)
    return run([CLAUDE, "-p", prompt, "--allowedTools", "Bash", *words], env, home)


def claude_chats(bridge, home, prompts, credentials):
    """Runs Claude Code with one prompt after the other; returns its output."""
    words = ["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
    env = {"HOME": home, "PATH": os.environ["PATH"], "TERM": "dumb",
           **claude_env(bridge, credentials)}
    process = subprocess.Popen(
        [str(CLAUDE), *words], env=env, cwd=home, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    limit = threading.Timer(LIMIT_SECONDS, process.kill)
    limit.start()
    out = ""
    try:
        for prompt in prompts:
            message = {"role": "user", "content": prompt}
            process.stdin.write(json.dumps({"type": "user", "message": message}) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                out += line
                if json.loads(line)["type"] == "result":
                    break
        process.stdin.close()
        out += process.stdout.read()
        assert process.wait() == 0, out
    finally:
        limit.cancel()
        process.kill()
        process.wait()
    return out


def claude(bridge, user, credential_env, kind, secret):
    token = bridge.user(user)
    credentials = {credential_env: secret or token}
    if kind == "byok":
        credentials["ANTHROPIC_CUSTOM_HEADERS"] = f"X-AI-Governance-Token: {token}"
    with tempfile.TemporaryDirectory() as home:
        out = claude_says(bridge, home, PROMPT, credentials)
    assert ANSWER in out, out
    check_agent(bridge, user, token, client="Claude Code", kind=kind, secret=secret,
                provider="anthropic", dialect="messages")
    credential = secret and (secret if credential_env == "ANTHROPIC_API_KEY" else f"Bearer {secret}")
    bridge.check_exchanges(token, credential)
    bridge.check_log(token, secret or token, PROMPT)


def check_agent(bridge, user, token, *, client, kind, secret, provider, dialect):
    """Checks for one session, one thread from prompt to response, and one tool call with its result."""
    records = bridge.records(user)
    for record in records:
        check_record(record, client=client, kind=kind, hint=secret and mask(secret),
                     provider=provider, dialect=dialect)
    assert len({record["client_session_id"] for record in records}) == 1, "one session"
    assert records[0]["client_session_id"]
    calling = [record for record in records if record["tool_usages"]]
    assert len(calling) == 1, [record["tool_usages"] for record in records]
    call = calling[0]["tool_usages"][0]
    assert call["result_bytes"] > 0 and ANSWER in json.dumps(call["arguments"]), call
    thread = [record for record in records if record["thread_id"] == calling[0]["thread_id"]]
    assert len(thread) == 2 and thread[1]["parent_id"] == thread[0]["id"], "one thread"
    prompts = [row["prompt"] for record in thread for row in record["prompts"]]
    assert prompts == [PROMPT], prompts
    read = bridge.rest(token, "/api/v1/interceptions")["items"]
    assert {item["id"] for item in read} == {record["id"] for record in records}, "one's own records"
    (session,) = bridge.cli("sessions", "--user", user)
    assert session["requests"] == len(records) and session["tools"] == 1, session


def jwt():
    """A fake ChatGPT login, of which only the format matters."""
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
    now = int(time.time())
    claims = {
        "iat": now, "exp": now + 86_400, "email": "dev@example.com",
        "https://api.openai.com/auth": {
            "chatgpt_plan_type": "pro", "chatgpt_account_id": "account", "user_id": "user"},
    }
    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}.c2ln"


def codex_says(bridge, home, prompt, token, *words, login="token", secret=None, kind="centralized"):
    """Runs Codex; returns its output."""
    provider = {"name": "keybridge", "base_url": f"{bridge.url}/openai/v1", "wire_api": "responses"}
    if login == "chatgpt":
        provider["requires_openai_auth"] = True
    else:
        provider["env_key"] = "TEST_KEY"
    lines = ['model = "gpt-5.5"', 'model_provider = "keybridge"', "[model_providers.keybridge]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in provider.items()]
    if kind == "byok":
        lines.append(f'http_headers = {{ "X-AI-Governance-Token" = "{token}" }}')
    codex_home = pathlib.Path(home) / ".codex"
    codex_home.mkdir(exist_ok=True)
    (codex_home / "config.toml").write_text("\n".join(lines) + "\n")
    if login == "chatgpt":
        tokens = {"id_token": secret, "access_token": secret, "refresh_token": "none",
                  "account_id": "account"}
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        (codex_home / "auth.json").write_text(json.dumps(
            {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens,
             "last_refresh": stamp}))
    env = {"CODEX_HOME": str(codex_home), "TEST_KEY": secret or token}
    flags = ["--skip-git-repo-check", "-s", "danger-full-access"]
    return run([CODEX, "exec", *flags, *words, prompt], env, home)


def codex(bridge, user, login, kind):
    token = bridge.user(user)
    secret = {"token": None, "key": "sk-own-0123456789abcdef", "chatgpt": jwt()}[login]
    with tempfile.TemporaryDirectory() as home:
        out = codex_says(bridge, home, PROMPT, token, login=login, secret=secret, kind=kind)
    assert ANSWER in out, out
    check_agent(bridge, user, token, client="Codex", kind=kind, secret=secret,
                provider="openai", dialect="responses")
    bridge.check_exchanges(token, secret and f"Bearer {secret}")
    bridge.check_log(token, secret or token, PROMPT)


TESTS = {
    "Claude Code, company's key": lambda bridge: claude(
        bridge, "claude-centralized", "ANTHROPIC_AUTH_TOKEN", "centralized", None),
    "Claude Code, own key": lambda bridge: claude(
        bridge, "claude-key", "ANTHROPIC_API_KEY", "byok", OWN_KEY),
    "Claude Code, own subscription": lambda bridge: claude(
        bridge, "claude-oauth", "CLAUDE_CODE_OAUTH_TOKEN", "byok", OWN_BEARER),
    "Codex, company's key": lambda bridge: codex(bridge, "codex-centralized", "token", "centralized"),
    "Codex, own key": lambda bridge: codex(bridge, "codex-key", "key", "byok"),
    "Codex, own subscription": lambda bridge: codex(bridge, "codex-chatgpt", "chatgpt", "byok"),
}


# Anthropic's models on the simulated Bedrock, of several ages; it rejects what Bedrock rejects.
BEDROCK_MODELS = {
    "haiku-4-5": "eu.anthropic.claude-haiku-4-5-20251001-v1:0",
    "opus-4-6": "us.anthropic.claude-opus-4-6-v1",
    "opus-5-5": "us.anthropic.claude-opus-5-5",
}


def bedrock_bridge():
    """A bridge with a provider for each model on Bedrock."""
    return Bridge("".join(
        f"""[[providers]]
name = "{name}"
type = "bedrock"
[providers.bedrock]
region = "eu-central-1"
model = "{model}"
access_key_id = "AKIASIMULATED0000000"
secret_access_key = "simulated-secret-access-key"
""" for name, model in BEDROCK_MODELS.items()))


def claude_on_bedrock(bridge, name):
    user = f"claude-{name}"
    token = bridge.user(user)
    env = claude_env(bridge, {"ANTHROPIC_AUTH_TOKEN": token}, name)
    with tempfile.TemporaryDirectory() as home:
        out = run([CLAUDE, "-p", PROMPT, "--allowedTools", "Bash"], env, home)
    assert ANSWER in out, out
    check_agent(bridge, user, token, client="Claude Code", kind="centralized", secret=None,
                provider=name, dialect="messages")
    problems = [exchange["problems"] for exchange in bridge.exchanges()]
    assert problems and not any(problems), problems


BEDROCK = {
    f"Claude Code, {name} on Bedrock": lambda bridge, name=name: claude_on_bedrock(bridge, name)
    for name in BEDROCK_MODELS
}


class Agent:
    """An agent that does not know about injected tools."""

    def __init__(self, bridge, home, token):
        self.bridge, self.home, self.token = bridge, home, token


class ClaudeCode(Agent):
    user, name, provider, dialect = "injected-claude", "Claude Code", "anthropic", "messages"

    def says(self, prompt, again=False, **env):
        """Runs the agent; returns its output and the final message in it."""
        words = ["--output-format", "stream-json", "--verbose", *(["--continue"] if again else [])]
        env = {"ANTHROPIC_AUTH_TOKEN": self.token, **env}
        out = claude_says(self.bridge, self.home, prompt, env, *words)
        (answer,) = [event["result"] for event in events(out) if event["type"] == "result"]
        return out, answer


class Codex(Agent):
    user, name, provider, dialect = "injected-codex", "Codex", "openai", "responses"

    def says(self, prompt, again=False):
        words = ["--json", *(["resume", "--last"] if again else [])]
        out = codex_says(self.bridge, self.home, prompt, self.token, *words)
        items = [event["item"] for event in events(out) if event["type"] == "item.completed"]
        return out, [item["text"] for item in items if item["type"] == "agent_message"][-1]


def events(out):
    return [json.loads(line) for line in out.splitlines()]


@contextlib.contextmanager
def agent(bridge, kind, case):
    user = f"{kind.user}-{case}"
    with tempfile.TemporaryDirectory() as home:
        yield kind(bridge, home, bridge.user(user)), user


def check_silent(out, home, answer):
    """Checks that the output and the stored session of an agent have no trace of injected calls."""
    assert INJECTED_NAMES not in out, out
    kept = {path: path.read_bytes() for path in pathlib.Path(home).rglob("*") if path.is_file()}
    assert any(answer.encode() in content for content in kept.values()), "there is a session file"
    traces = [path for path, content in kept.items() if INJECTED_NAMES.encode() in content]
    assert not traces, traces


def injected_records(bridge, kind, user, turns):
    """Checks the records of one session; `turns` are the inner turns of each."""
    records = bridge.records(user)
    for record in records:
        check_record(record, client=kind.name, kind="centralized", hint=None,
                     provider=kind.provider, dialect=kind.dialect)
    assert [record["inner_turns"] for record in records] == turns, records
    assert len({record["client_session_id"] for record in records}) == 1, "one session"
    assert records[0]["client_session_id"]
    check_injected(bridge, records[0], [("echo", {"message": INJECTED_ANSWER})])
    (session,) = bridge.cli("sessions", "--user", user)
    assert session["requests"] == len(records), session
    assert session["tools"] == sum(len(record["tool_usages"]) for record in records), session
    return records


def offers(exchange):
    """Whether a request contains injected tools."""
    return INJECTED_NAMES in json.dumps(json.loads(exchange["body"] or "{}").get("tools"))


def injected(bridge, kind):
    """Only the bridge's tool is called: the agent receives the model's response and nothing else."""
    with agent(bridge, kind, "alone") as (made, user):
        out, answer = made.says(INJECTED_PROMPT)
        assert INJECTED_ANSWER in answer, out
        check_silent(out, made.home, INJECTED_ANSWER)
    (record,) = injected_records(bridge, kind, user, [1])
    assert [row["prompt"] for row in record["prompts"]] == [INJECTED_PROMPT], record["prompts"]
    first, second = bridge.check_exchanges(made.token)
    assert offers(first) and offers(second)
    bridge.check_log(made.token, INJECTED_PROMPT, INJECTED_ANSWER)


def injected_and_shell(bridge, kind):
    """The agent's tool is called after the bridge's; then another process resumes the session."""
    with agent(bridge, kind, "shell") as (made, user):
        out, answer = made.says(SHELL_PROMPT)
        assert ANSWER in answer, out
        check_silent(out, made.home, ANSWER)
        out, answer = made.says(AGAIN_PROMPT, again=True)
        assert answer.startswith("Hello"), out
        check_silent(out, made.home, ANSWER)
    first, second, third = injected_records(bridge, kind, user, [1, 0, 0])
    (own,) = [call for call in first["tool_usages"] if not call["injected"]]
    assert ANSWER in json.dumps(own["arguments"]) and own["result_bytes"] > 0, own
    assert own["server_url"] is None and own["duration_ms"] is None, own
    assert second["thread_id"] == first["thread_id"] and second["parent_id"] == first["id"]
    prompts = [row["prompt"] for record in (first, second, third) for row in record["prompts"]]
    assert prompts == [SHELL_PROMPT, AGAIN_PROMPT], prompts
    for record in (second, third):
        assert "restore_hidden_calls" in record["body_edits"], record["body_edits"]
    exchanges = bridge.check_exchanges(made.token)
    assert len(exchanges) == 4 and all(offers(exchange) for exchange in exchanges)
    for exchange in exchanges[1:]:
        # The provider has the arguments of the call and the result each time.
        assert exchange["body"].count(INJECTED_ANSWER) == 2, exchange["body"][-2000:]


def small_model(bridge):
    """Claude Code's small model handles its side tasks and gets no injected tools."""
    with agent(bridge, ClaudeCode, "small") as (made, user):
        out, answer = made.says(INJECTED_PROMPT, ANTHROPIC_MODEL="claude-haiku-4-5")
    # The model has only the agent's tools.
    assert ANSWER in answer and INJECTED_ANSWER not in answer, out
    exchanges = bridge.check_exchanges(made.token)
    assert not any(offers(exchange) for exchange in exchanges)
    for record in bridge.records(user):
        assert "haiku" in record["model"] and record["body_edits"] == [], record


def no_compaction(bridge):
    """Inner turns that each fill two fifths of the window are not taken for one that overflows it."""
    turns = 5
    calls = [[{"call": ECHO, "arguments": {"message": str(turn)}}] for turn in range(turns - 1)]
    script = [[*blocks, {"cached_tokens": 60_000}] for blocks in [*calls, [{"text": "Done."}]]]
    user, prompts = "injected-claude-context", 4
    token = bridge.user(user)
    env = {
        "ANTHROPIC_AUTH_TOKEN": token,
        "ANTHROPIC_MODEL": "claude-sonnet-4-5",
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": "150000",
        "ANTHROPIC_CUSTOM_HEADERS": f"x-sim-turns: {json.dumps(script)}",
    }
    with tempfile.TemporaryDirectory() as home:
        out = claude_chats(bridge, home, [f"Ask number {n}." for n in range(prompts)], env)
    answers = [event for event in events(out) if event["type"] == "result"]
    assert [answer["result"] for answer in answers] == ["Done."] * prompts, out
    assert "compact_boundary" not in out, out
    answered = [record for record in bridge.records(user) if record["inner_turns"]]
    assert [record["inner_turns"] for record in answered] == [turns - 1] * prompts, answered
    for record in answered:
        rows = record["token_usages"]
        assert [row["cache_read_input_tokens"] for row in rows] == [60_000] * turns, rows


INJECTED = {
    "Claude Code, injected tool": lambda bridge: injected(bridge, ClaudeCode),
    "Claude Code, injected tool, then its own": lambda bridge: injected_and_shell(
        bridge, ClaudeCode),
    "Claude Code, small model": small_model,
    "Claude Code, context of inner turns": no_compaction,
    "Codex, injected tool": lambda bridge: injected(bridge, Codex),
    "Codex, injected tool, then its own": lambda bridge: injected_and_shell(bridge, Codex),
}
