"""Gateways that are compared with keybridge only on request, because they are large or slow."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass

from arithmetic import Goal
from measure import Rounds, compared, over_direct, world
from targets import Process, Target, cache, free_port, pinned, until_listening

LITELLM = "litellm[proxy]==1.108.7"
MASTER_KEY = "sk-master-key-of-the-benchmark"
# How many seconds it may take to start on a busy machine.
START_TIMEOUT = 240
# The number of requests before the measurement.
WARM = 300
EVENT = Goal(3, "CPU per event, messages", "LiteLLM", 1 / 12, 1 / 14)
EVENT_CHAT = Goal(3, "CPU per event, chat completions", "LiteLLM", 1 / 70, 1 / 85)
REQUEST = Goal(8, "CPU per request of 1 KB, messages", "LiteLLM", 1 / 400, 1 / 550)
REQUEST_CHAT = Goal(8, "CPU per request of 1 KB, chat completions", "LiteLLM", 1 / 400, 1 / 550)
ADDED = Goal(None, "added latency, p50, messages", "LiteLLM's", None, None)
ADDED_CHAT = Goal(None, "added latency, p50, chat completions", "LiteLLM's", None, None)


class LiteLlm(Process):
    """LiteLLM's proxy with one worker, without a database, telemetry and callbacks."""

    def __init__(self, folder, mock):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "litellm.yaml").write_text(json.dumps(configuration(mock)))
        port = free_port()
        command = [litellm_program(), "--config", folder / "litellm.yaml", "--host", "127.0.0.1",
                 "--port", port, "--num_workers", "1"]
        super().__init__(pinned(command), r"(Proxy initialized)", cwd=folder, timeout=START_TIMEOUT, env={
            # Otherwise it downloads a price list.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False",
            "LITELLM_LOG": "ERROR", "DISABLE_ADMIN_UI": "True", "PYTHONUNBUFFERED": "1",
            # Otherwise it aborts a stream of identical chunks, such as the benchmark's.
            "REPEATED_STREAMING_CHUNK_LIMIT": "1000000000"})
        self.address = f"127.0.0.1:{port}"
        until_listening(self.address)

    def cpu(self):
        """The CPU time of the whole process in nanoseconds, in steps of 10 ms: the figures of individual
        threads are lost when a thread of its pools ends."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return {("process", "litellm"): ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")}


def configuration(mock):
    """The model of the load in both APIs; JSON is also YAML."""
    def model(name, kind, base):
        return {"model_name": name, "litellm_params": {
            "model": f"{kind}/{name}", "api_base": base, "api_key": "sk-centralized-key-of-the-benchmark"}}
    return {
        "model_list": [model("bench-1", "anthropic", f"http://{mock}"),
                       model("bench-2", "openai", f"http://{mock}/v1")],
        "litellm_settings": {"telemetry": False, "drop_params": True, "num_retries": 0, "callbacks": []},
        # A header tells the benchmark's provider how to respond.
        "general_settings": {"master_key": MASTER_KEY, "forward_client_headers_to_llm_api": True},
    }


def litellm_program():
    """Installs LiteLLM unless it is installed."""
    folder = cache() / "litellm"
    if not (folder / "installed").exists() or (folder / "installed").read_text() != LITELLM:
        print(f"installing {LITELLM} into {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "--quiet", LITELLM], check=True)
        (folder / "installed").write_text(LITELLM)
    return folder / "bin/litellm"


@dataclass(frozen=True)
class Api:
    """One of the two APIs that are measured; the counts amount to some two seconds of its CPU."""

    path: str
    bridge_path: str
    model: str
    events: int
    goals: tuple


APIS = {
    "messages": Api("/v1/messages", "/anthropic/v1/messages", "bench-1", 60_000, (EVENT, REQUEST, ADDED)),
    "chat": Api("/v1/chat/completions", "/openai/v1/chat/completions", "bench-2", 8_000,
                (EVENT_CHAT, REQUEST_CHAT, ADDED_CHAT)),
}
REQUESTS = 240


def targets_of(world, peer, api):
    ways = [("direct", world.mock, api.path, "none"),
            ("keybridge", world.bridge, api.bridge_path, world.bridge.token),
            ("LiteLLM", peer, api.path, MASTER_KEY)]
    return [Target(name, process, path, token, api.model) for name, process, path, token in ways]


def figures(options, say, head_room):
    """Compares keybridge with LiteLLM in both APIs."""
    scale = 4 if options.quick else 1
    with world(options) as environment, contextlib.ExitStack() as stack:
        peer = LiteLlm(environment.bridge.dir.parent / "litellm", environment.mock.address)
        stack.callback(peer.kill)
        for name, api in APIS.items():
            rounds = Rounds(environment, options.rounds, say, targets_of(environment, peer, api))
            # The first few hundred requests of a process cost ten times as much.
            rounds.load(rounds.targets[-1], kind="whole", count=1, warmup=WARM // scale)
            yield from api_figures(rounds, name, api, scale)
            head_room.update(rounds.head_room)
        environment.bridge.stop()
        environment.bridge.verify()


def api_figures(rounds, name, api, scale):
    event, request, added = api.goals
    count = api.events // scale
    cpu, _ = rounds.run(f"event, {name}", count, kind="pingpong", count=count, warmup=count // 10)
    yield beside(event, cpu)
    count = REQUESTS // scale
    cpu, seen = rounds.run(f"request of 1 KB, {name}", count, kind="whole", count=count, warmup=10)
    yield beside(request, cpu)
    yield compared(added, over_direct(seen, "keybridge", "p50_us"), over_direct(seen, "LiteLLM", "p50_us"),
                   "µs", reference="LiteLLM", direct=[result["p50_us"] for result in seen["direct"]])


def beside(goal, cpu):
    return compared(goal, cpu["keybridge"], cpu["LiteLLM"], "µs", reference="LiteLLM",
                    recording=cpu["recording"], direct=cpu["direct"])
