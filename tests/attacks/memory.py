"""Floods of request bodies: resident memory stays bounded, and goes back afterwards.

    python3 tests/attacks/memory.py --keybridge target/release/keybridge [--seconds 60] [WORD]

For each flood whose name contains WORD it prints the resident memory before, at its peak, and after. Exits
with 1 if the peak exceeds the memory for bodies and what else a bridge needs, or if after the seconds more
than 1.3 times the memory from before is resident.
"""

import argparse
import base64
import collections
import http.client
import os
import pathlib
import resource
import selectors
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

FOLDER = pathlib.Path(__file__).resolve().parent
PATH = "/anthropic/v1/messages"
MIB = 1 << 20
# The default of `limits.body_memory`, and what else a bridge may need in a flood of 2,000 connections.
BODY_MEMORY, OTHER_MEMORY = 512, 160
MAY_KEEP = 1.3
# A request for the simulated provider whose prompt has almost 64 MiB of spaces, in Brotli.
BROTLI_BOMB = base64.b64decode(
    "z///f0CsEnjzM1I5hopGLMfXIntbMROkba5YdFKkDa/C0lqk5WuuGxwwBwWSRQE3GQzOMTCYjZPzh3antXoBF3kX7p2Iw3mWj+aD1c86"
    "D3f/T/j//w+/BEAcFgDo3v/z//8ffgmAOCwC0L3/5///P/ySfV0iJcphAUDb+3/Z")


class Watch:
    """Samples the resident memory of a process, in MiB."""

    def __init__(self, pid):
        self.pid, self.before, self.peak = pid, resident(pid), 0.0
        self._ended = threading.Event()
        self._sampling = threading.Thread(target=self._sample, daemon=True)
        self._sampling.start()

    def _sample(self):
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, resident(self.pid))

    def end(self):
        self._ended.set()
        self._sampling.join()
        return self.peak


def resident(pid):
    """The resident memory of a process, in MiB."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        (line,) = [line for line in file if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def unfinished_bodies(url, tokens, connections=2_000, size=1_000_000, seconds=12):
    """Opens connections, sends bodies that lack their last byte, and holds them for these seconds; returns
    how many were answered with which status."""
    host = urllib.parse.urlsplit(url)
    poll, statuses = selectors.DefaultSelector(), collections.Counter()
    body = memoryview(b" " * (size - 1))
    clients = []
    for number in range(connections):
        head = (f"POST {PATH} HTTP/1.1\r\nhost: {host.netloc}\r\ncontent-type: application/json\r\n"
                f"authorization: Bearer {tokens[number % len(tokens)]}\r\ncontent-length: {size}\r\n\r\n")
        client = socket.create_connection((host.hostname, host.port), timeout=30)
        try:
            client.sendall(head.encode())
        except OSError:
            statuses["closed"] += 1
            client.close()
            continue
        client.setblocking(False)
        clients.append(client)
        poll.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE, [0])
    end = time.monotonic() + seconds
    while poll.get_map() and (left := end - time.monotonic()) > 0:
        for key, events in poll.select(min(left, 0.5)):
            step(poll, key, events, body, statuses)
    for client in clients:
        client.close()
    statuses["unanswered"] += len(poll.get_map())
    poll.close()
    return dict(statuses)


def step(poll, key, events, body, statuses):
    """Sends more of a client's body, or counts its answer."""
    client, sent = key.fileobj, key.data
    try:
        if events & selectors.EVENT_READ:
            answer = client.recv(4096)
            statuses[answer[9:12].decode() if answer else "closed"] += 1
            poll.unregister(client)
            return
        sent[0] += client.send(body[sent[0]:sent[0] + 256 * 1024])
        if sent[0] == len(body):
            poll.modify(client, selectors.EVENT_READ, sent)
    except BlockingIOError:
        pass
    except OSError:
        statuses["closed"] += 1
        poll.unregister(client)


def bombs(url, tokens, requests=40):
    """Sends small bodies that decode to 64 MiB, all at once; returns how many were answered with which
    status."""
    host = urllib.parse.urlsplit(url)

    def send(number):
        connection = http.client.HTTPConnection(host.hostname, host.port, timeout=300)
        headers = {"content-encoding": "br", "content-type": "application/json",
                   "authorization": f"Bearer {tokens[number % len(tokens)]}"}
        connection.request("POST", PATH, BROTLI_BOMB, headers)
        answer = connection.getresponse()
        answer.read()
        return str(answer.status)

    with ThreadPoolExecutor(requests) as pool:
        return dict(collections.Counter(pool.map(send, range(requests))))


FLOODS = {"unfinished bodies": unfinished_bodies, "bombs": bombs}


def measure(bridge, tokens, flood, seconds):
    """Runs a flood; returns the memory before it, at its peak, and up to these seconds after it, and what
    was answered."""
    watch = Watch(bridge.running.process.pid)
    answered = flood(bridge.url, tokens)
    peak, after, end = watch.end(), [], time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(5, seconds))
        assert bridge.running.process.poll() is None, "".join(bridge.running.log[-20:])
        after.append(resident(watch.pid))
        if after[-1] <= watch.before * MAY_KEEP:
            break
    return watch.before, peak, after[-1], answered


def run(options):
    """Runs each flood against a bridge of its own; returns whether all are within their bounds."""
    os.environ["KEYBRIDGE"] = str(options.keybridge.resolve())
    sys.path.append(str(FOLDER.parent / "ledger"))
    # Their binary is chosen by the variable above.
    from trail import ENV, Bridge, Simulator, ask
    ENV.update(word.split("=", 1) for word in options.env)
    print(f"{'flood':<20} {'before':>8} {'peak':>8} {'after':>8} MiB  answers")
    is_good = True
    for name, flood in FLOODS.items():
        if options.word not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="keybridge-memory-") as folder:
            simulator = Simulator(folder)
            bridge = Bridge(folder, f"sqlite://{folder}/bridge.db", simulator).start()
            tokens = [bridge.user(f"user-{number}")[0] for number in range(options.users)]
            for number in range(200):
                assert ask(bridge.url, tokens[0], "messages", f"warm up {number}").whole
            before, peak, after, answered = measure(bridge, tokens, flood, options.seconds)
            print(f"{name:<20} {before:8.1f} {peak:8.1f} {after:8.1f}      {answered}", flush=True)
            is_good &= peak <= before + BODY_MEMORY + OTHER_MEMORY and after <= before * MAY_KEEP
            assert ask(bridge.url, tokens[0], "messages", "afterwards").whole
            bridge.kill()
            simulator.kill()
    return is_good


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--keybridge", type=pathlib.Path,
                         default=FOLDER.parents[1] / "target/debug/keybridge")
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--users", type=int, default=4)
    options.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    options.add_argument("word", nargs="?", default="")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 0 if run(options.parse_args()) else 1


if __name__ == "__main__":
    sys.exit(main())
