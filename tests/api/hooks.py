"""What schemathesis cannot know from the description: texts of the API's own formats, ids that exist, and
what must not be done to the account that runs the tests."""

import datetime
import json
import os
import uuid

import schemathesis
from hypothesis import strategies

IDS = json.loads(os.environ["KEYBRIDGE_API_IDS"])

TIMES = [
    "2026-01-31T09:30:00Z", "2026-01-31T09:30:00.25+01:00", "2026-01-31", "2026-01-31T09:30", "90m", "24h",
    "1.5h", "7d", "2w", "now", "today", "Yesterday", "1769851800",
]
GROUPS = ["user", "model,provider", "day", "hour,client,credential_kind"]
ZONES = ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/Los_Angeles", "Asia/Kathmandu"]
WORDS = ["hello", "two words", "pre*", "größe 検索"]
DURATIONS = ["90d", "1h30m", "2w", "250ms"]
FUTURE = strategies.datetimes(
    datetime.datetime(2100, 1, 1), datetime.datetime(9000, 1, 1),
    timezones=strategies.just(datetime.timezone.utc))

schemathesis.openapi.format("time-text", strategies.sampled_from(TIMES))
schemathesis.openapi.format("duration-text", strategies.sampled_from(DURATIONS))
schemathesis.openapi.format("words", strategies.sampled_from(WORDS))
schemathesis.openapi.format("group-by", strategies.sampled_from(GROUPS))
schemathesis.openapi.format("time-zone", strategies.sampled_from(ZONES))
schemathesis.openapi.format("cursor", strategies.uuids().map(str))
schemathesis.openapi.format("user-name", strategies.from_regex(r"\A[a-zé0-9._@-]{1,64}\Z"))
schemathesis.openapi.format("date-time", FUTURE.map(datetime.datetime.isoformat))


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Lets path parameters also be what exists."""
    known = {"/interceptions/{id}": "interceptions", "/sessions/{id}": "sessions",
             "/tokens/{id}": "tokens", "/users/{name}": "users"}
    for path, item in raw_schema["paths"].items():
        ids = next((IDS[name] for start, name in known.items() if path.startswith(f"/api/v1{start}")), [])
        for operation in item.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path" and ids:
                    parameter["schema"] = {"anyOf": [{"enum": ids}, parameter["schema"]]}


@schemathesis.hook
def before_call(context, case, kwargs):
    keep_runner(case)
    if case.meta and case.meta.generation.mode.is_positive:
        make_valid(case)


def keep_runner(case):
    """Keeps the account that runs the tests, and its token."""
    path, parameters = case.operation.path, case.path_parameters
    if case.method.upper() == "PATCH" and parameters.get("name") == IDS["runner"]:
        parameters["name"] = IDS["users"][0]
    if path.endswith("/tokens/{id}") and parameters.get("id") == IDS["token"]:
        parameters["id"] = IDS["tokens"][0]


def make_valid(case):
    """Replaces what only looks valid: values of other responses, and texts for which the format was ignored."""
    query = case.query if isinstance(case.query, dict) else {}
    for name in ("since", "until"):
        if name in query and query[name] not in TIMES:
            query[name] = TIMES[0]
    for name, values in (("group_by", GROUPS), ("time_zone", ZONES), ("q", WORDS)):
        if name in query and query[name] not in values:
            query[name] = values[0]
    if case.operation.path.endswith("/usage") and "until" in query:
        # A period begins before it ends.
        query.pop("since", None)
    if "cursor" in query and not is_uuid(query["cursor"]):
        query["cursor"] = str(uuid.UUID(int=1 << 120))
    body = case.body if isinstance(case.body, dict) else {}
    if isinstance(body.get("expires_at"), str):
        # One expiry at most.
        body.pop("expires_in", None)
        if is_over(body["expires_at"]):
            body["expires_at"] = "2100-01-01T00:00:00Z"
    if isinstance(body.get("expires_in"), str) and body["expires_in"] not in DURATIONS:
        body["expires_in"] = DURATIONS[0]


def is_uuid(text):
    try:
        return bool(uuid.UUID(text))
    except (TypeError, ValueError, AttributeError):
        return False


def is_over(text):
    try:
        return datetime.datetime.fromisoformat(text) < datetime.datetime.now(datetime.timezone.utc)
    except (TypeError, ValueError):
        return True
