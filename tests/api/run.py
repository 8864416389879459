"""Tests the REST API of a real process against its own description.

    scripts/test api                         as CI runs it
    python tests/api/run.py --role auditor   one role

The description must be valid OpenAPI 3.1. Then schemathesis sends requests that fit it and requests that do
not, as a member, an auditor and an administrator: no response may be a server error, have a status or a body
that the description does not have, accept what it forbids, or answer without a token. The seed is fixed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

from openapi_spec_validator import OpenAPIV31SpecValidator

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parent / "clients"))

from bridge import Bridge  # noqa: E402

SEED = 20260131
ROLES = ("member", "auditor", "admin")
# Of each operation, in each phase and for each role.
EXAMPLES = 12
# Who runs the tests is never changed; these are.
VICTIMS = ("victim-1", "victim-2")
CONFIG = """
[[providers]]
type = "anthropic"
keys = [{ value = "sk-simulated-company-key-0123456789" }]
[[providers]]
type = "openai"
keys = [{ value = "sk-simulated-company-key-0123456789" }]
"""


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--role", choices=ROLES, action="append", help="only with this role")
    arguments.add_argument("--examples", type=int, default=EXAMPLES)
    options = arguments.parse_args()
    with Bridge(CONFIG) as bridge:
        tokens = {role: bridge.user(f"runner-{role}", role) for role in ROLES}
        victims = {name: bridge.user(name) for name in VICTIMS}
        for token in [tokens["member"], *victims.values()]:
            send_model_requests(bridge, token)
        document = fetch(f"{bridge.url}/api/v1/openapi.json")
        OpenAPIV31SpecValidator(document).validate()
        operations = [f"{method} {path}" for path, item in document["paths"].items() for method in item]
        print(f"the description is valid OpenAPI {document['openapi']}: {len(operations)} operations")
        failed = [role for role in options.role or ROLES
                  if not run(bridge, role, tokens[role], options.examples)]
        bridge.check_log(*tokens.values(), *victims.values())
        panics = [line for line in bridge.log if "panicked" in line]
    if panics:
        print("the process panicked:", *panics)
    sys.exit(1 if failed or panics else 0)


def send_model_requests(bridge, token):
    """Leaves records: of a session with two requests, of a refused request, and of another dialect."""
    for model in ("sim-text", "sim-tool"):
        body = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        headers = {"user-agent": "claude-cli/2.0.0", "x-claude-code-session-id": "shared-session"}
        post(f"{bridge.url}/anthropic/v1/messages", token, body, headers)
    post(f"{bridge.url}/openai/v1/responses", token, {"model": "sim-text", "input": "hi"})
    post(f"{bridge.url}/openai/v1/responses", token, {"model": "sim-error-500", "input": "hi"})


def post(url, token, body, headers=()):
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json", **dict(headers)}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as refused:
        refused.close()


def fetch(url, token=None):
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return json.load(answer)


def real_ids(bridge, role, token):
    """What exists and the role may name, so that more than refusals is tested."""
    user = VICTIMS[0] if role == "admin" else f"runner-{role}"
    names = [*VICTIMS, f"runner-{role}"] if role == "admin" else [user]
    path = f"{bridge.url}/api/v1"
    own = fetch(f"{path}/me", token)["token"]["id"]
    tokens = [spare["id"] for name in names for spare in bridge.cli("token", "create", "--user", name)]
    interceptions = fetch(f"{path}/interceptions?limit=5", token)["items"]
    sessions = fetch(f"{path}/sessions?limit=5", token)["items"]
    return {
        "runner": f"runner-{role}", "token": own, "users": names, "tokens": tokens,
        "interceptions": [item["id"] for item in interceptions],
        "sessions": [session["id"] for session in sessions],
    }


def run(bridge, role, token, examples):
    """Runs schemathesis as a role; whether all checks passed."""
    began = time.monotonic()
    environment = {
        **os.environ,
        "PYTHONPATH": str(FOLDER), "SCHEMATHESIS_HOOKS": "hooks",
        "KEYBRIDGE_API_IDS": json.dumps(real_ids(bridge, role, token)),
    }
    command = [
        pathlib.Path(sys.executable).parent / "schemathesis", "--config-file", FOLDER / "schemathesis.toml",
        "run", f"{bridge.url}/api/v1/openapi.json", "--header", f"Authorization: Bearer {token}",
        "--seed", str(SEED), "--max-examples", str(examples),
    ]
    done = subprocess.run(command, env=environment, cwd=bridge.dir.name, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True)
    seconds = round(time.monotonic() - began)
    summary = [line.strip() for line in done.stdout.splitlines() if "Test cases" in line or "passed" in line]
    print(f"{'ok     ' if done.returncode == 0 else 'FAILED '} {role} ({seconds} s)", *summary[-1:])
    if done.returncode != 0:
        print(done.stdout[-12_000:], done.stderr[-4_000:])
    return done.returncode == 0


if __name__ == "__main__":
    main()
