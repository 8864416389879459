"""The cost of events and requests with TLS to the client, reported without goals."""

import pathlib
import subprocess
import tempfile

from arithmetic import Goal
from measure import Rounds, added, compared_cpu, world

EVENT = Goal(None, "CPU per event, 1 stream, TLS", "nginx with TLS", None, None)
REQUEST = Goal(None, "CPU per request of 1 KB, TLS", "nginx with TLS", None, None)
ADDED = Goal(None, "added latency, p50, TLS (direct and relay without)", "nginx's with TLS", None, None)


def certificate(folder):
    """Creates a key and a self-signed certificate for `localhost`; returns both files."""
    files = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                    "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE",
                    "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


def figures(options, say, head_room):
    scale = 4 if options.quick else 1
    with tempfile.TemporaryDirectory(prefix="bench-") as name, \
            world(options, tls=certificate(pathlib.Path(name))) as environment:
        rounds = Rounds(environment, options.rounds, say)
        count = 40_000 // scale
        events, _ = rounds.run("event, 1 stream, TLS", count, kind="pingpong", count=count, warmup=1_000)
        yield compared_cpu(EVENT, events)
        count = 2_000 // scale
        requests, seen = rounds.run("request of 1 KB, TLS", count, kind="whole", count=count)
        yield compared_cpu(REQUEST, requests)
        yield added(ADDED, seen, "p50_us")
        head_room.update(rounds.head_room)
        environment.bridge.stop()
        environment.bridge.verify()
