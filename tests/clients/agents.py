"""Claude Code and Codex, head-less: a prompt that makes the agent call a tool and finish."""

import base64
import json
import os
import pathlib
import subprocess
import tempfile
import time

from bridge import check_record, mask

NPM = pathlib.Path(os.environ["KEYBRIDGE_TEST_NPM"]) / "node_modules"
CLAUDE = NPM / ".bin/claude"
CODEX = NPM / ".bin/codex"
PROMPT = "Use your shell tool once, then tell me what it printed."
ANSWER = "keybridge-tool-ok"
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


def claude(bridge, user, credential_env, kind, secret):
    token = bridge.user(user)
    env = {
        "ANTHROPIC_BASE_URL": f"{bridge.url}/anthropic",
        "ANTHROPIC_MODEL": "claude-opus-5-5",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "1",
        "DISABLE_AUTOUPDATER": "1",
        "IS_SANDBOX": "1",
    }
    if kind == "byok":
        env["ANTHROPIC_CUSTOM_HEADERS"] = f"X-AI-Governance-Token: {token}"
        env[credential_env] = secret
    else:
        env[credential_env] = token
    with tempfile.TemporaryDirectory() as home:
        out = run([CLAUDE, "-p", PROMPT, "--allowedTools", "Bash"], env, home)
    assert ANSWER in out, out
    check_agent(bridge, user, token, client="Claude Code", kind=kind, secret=secret,
                provider="anthropic", dialect="messages")
    credential = secret and (secret if credential_env == "ANTHROPIC_API_KEY" else f"Bearer {secret}")
    bridge.check_exchanges(token, credential)
    bridge.check_log(token, secret or token, PROMPT)


def check_agent(bridge, user, token, *, client, kind, secret, provider, dialect):
    """One session, one thread from the prompt to the answer, one tool call with its result."""
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
    """A made-up ChatGPT login: only its shape counts."""
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
    now = int(time.time())
    claims = {
        "iat": now, "exp": now + 86_400, "email": "dev@example.com",
        "https://api.openai.com/auth": {
            "chatgpt_plan_type": "pro", "chatgpt_account_id": "account", "user_id": "user"},
    }
    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}.c2ln"


def codex(bridge, user, login, kind):
    token = bridge.user(user)
    secret = {"token": None, "key": "sk-own-0123456789abcdef", "chatgpt": jwt()}[login]
    provider = {"name": "keybridge", "base_url": f"{bridge.url}/openai/v1", "wire_api": "responses"}
    if login == "chatgpt":
        provider["requires_openai_auth"] = True
    else:
        provider["env_key"] = "TEST_KEY"
    lines = ['model = "gpt-5.5"', 'model_provider = "keybridge"', "[model_providers.keybridge]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in provider.items()]
    if kind == "byok":
        lines.append(f'http_headers = {{ "X-AI-Governance-Token" = "{token}" }}')
    with tempfile.TemporaryDirectory() as home:
        codex_home = pathlib.Path(home) / ".codex"
        codex_home.mkdir()
        (codex_home / "config.toml").write_text("\n".join(lines) + "\n")
        if login == "chatgpt":
            tokens = {"id_token": secret, "access_token": secret, "refresh_token": "none",
                      "account_id": "account"}
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            (codex_home / "auth.json").write_text(json.dumps(
                {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens,
                 "last_refresh": stamp}))
        env = {"CODEX_HOME": str(codex_home), "TEST_KEY": secret or token}
        words = [CODEX, "exec", "--skip-git-repo-check", "-s", "danger-full-access", PROMPT]
        out = run(words, env, home)
    assert ANSWER in out, out
    check_agent(bridge, user, token, client="Codex", kind=kind, secret=secret,
                provider="openai", dialect="responses")
    bridge.check_exchanges(token, secret and f"Bearer {secret}")
    bridge.check_log(token, secret or token, PROMPT)


TESTS = {
    "Claude Code, company's key": lambda bridge: claude(
        bridge, "claude-central", "ANTHROPIC_AUTH_TOKEN", "centralized", None),
    "Claude Code, own key": lambda bridge: claude(
        bridge, "claude-key", "ANTHROPIC_API_KEY", "byok", OWN_KEY),
    "Claude Code, own subscription": lambda bridge: claude(
        bridge, "claude-oauth", "CLAUDE_CODE_OAUTH_TOKEN", "byok", OWN_BEARER),
    "Codex, company's key": lambda bridge: codex(bridge, "codex-central", "token", "centralized"),
    "Codex, own key": lambda bridge: codex(bridge, "codex-key", "key", "byok"),
    "Codex, own subscription": lambda bridge: codex(bridge, "codex-chatgpt", "chatgpt", "byok"),
}
