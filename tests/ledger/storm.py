"""Failing providers and many clients: requests are served, and nothing leaks."""

import collections
import os
import random
import resource
import signal
import sqlite3
import statistics
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import poison
from trail import CENTRALIZED_KEY, DIALECTS, Load, ask
from world import summary, until

RATE = 300
# The failures of one request in ten. A retry or another key recovers from these …
CURED = ["503/20", "500/20", "529/20,503/20", "408/20", "409/20", "429/20", "502/20,504/20"]
# … but not from these: three failures in a row, a rejection, a truncated stream.
NOT_CURED = [("503/5,503/5,503/5", "sim-text"), (None, "sim-error-400"), (None, "sim-error-404"),
             (None, "sim-broken"), (None, "sim-error-mid-stream")]


def storm(world, kind):
    """10 % errors of every kind at 300/s, a stall, a key that dies in the middle, and 1 % records whose ends
    the store refuses."""
    count = 10_000 if world.soak else 1_500
    bridge = world.bridge(world.store(kind), spare_key=True)
    token, _ = bridge.user("ada")
    poison.install(world, bridge.store)
    chance = random.Random(world.seed)
    plans = [plan(number, chance) for number in range(count)]
    began = time.monotonic()

    def send(number):
        dialect, stream, first, model, _ = plans[number]
        time.sleep(max(0.0, began + number / RATE - time.monotonic()))
        return ask(bridge.url, token, dialect, f"prompt {number}", stream, tokens=2, model=model,
                   first=first, agent=poison.SETTLE if number % 100 == 50 else None)

    with ThreadPoolExecutor(96) as pool:
        asking = [pool.submit(send, number) for number in range(count)]
        until(lambda: asking[count // 3].done(), "a third")
        world.simulator.process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        world.simulator.process.send_signal(signal.SIGCONT)
        until(lambda: asking[count // 2].done(), "a half")
        dead = f"{world.simulator.url}/_sim/keys/{CENTRALIZED_KEY}/401"
        urllib.request.urlopen(urllib.request.Request(dead, method="POST"), timeout=30).close()
        results = [sent.result() for sent in asking]
    seconds = time.monotonic() - began

    for (dialect, stream, first, model, is_cured), result in zip(plans, results, strict=True):
        if is_cured:
            assert result.whole, (dialect, stream, first, model, result)
        else:
            # A truncated Chat Completions stream also ends with [DONE].
            assert "error" in result.body and not result.left, (first, model, result)
            result.whole = False
    served = sum(result.whole for result in results)
    bridge.stop()
    returned = poison.heal(world, bridge)
    assert returned == count // 100, returned
    verified = bridge.verify(world.simulator)
    attempts, sources = check_records(bridge.store, results)
    assert sources["pool:spare"] > 0 and sources["pool:main"] > 0, sources
    return summary(
        verified, requests=count, rate=f"{count / seconds:.0f}/s",
        served=f"{served / count:.2%}", of_what_can_be=f"{served / sum(p[4] for p in plans):.2%}",
        attempts=attempts, added=f"{attempts / count - 1:.2%}", set_aside=returned, **{
            source.removeprefix("pool:"): number for source, number in sources.items()})


def plan(number, chance):
    """Plans a request: dialect, stream, failures of the first attempts, model, and whether it must succeed."""
    dialect, stream = chance.choice(list(DIALECTS)), chance.random() < 0.7
    if chance.random() >= 0.1:
        return dialect, stream, None, "sim-text", True
    if chance.random() < 0.6:
        return dialect, stream, f"{number}:{chance.choice(CURED)}", "sim-text", True
    first, model = chance.choice(NOT_CURED)
    # Only a stream can fail in the middle.
    return dialect, True, first and f"{number}:{first}", model, False


def check_records(store, results):
    """Checks that each request has one record, named in its response; returns the total number of
    attempts, and how often each key was used."""
    ids = [result.headers.get("x-keybridge-interception-id") for result in results]
    with sqlite3.connect(store.removeprefix("sqlite://")) as database:
        rows = database.execute(
            "SELECT id, outcome, attempts, credential_source FROM interceptions").fetchall()
    assert len(set(ids)) == len(results) == len(rows), (len(set(ids)), len(results), len(rows))
    outcomes = {row[0]: row[1] for row in rows}
    for result, row in zip(results, ids, strict=True):
        assert outcomes[row] == ("completed" if result.whole else "failed"), (result, outcomes[row])
    return sum(row[2] for row in rows), collections.Counter(row[3] for row in rows)


def crowd(world, kind):
    """200 concurrent streams whose clients disconnect at random: memory stays flat."""
    seconds, may_grow = (600, 0.05) if world.soak else (20, 0.25)
    bridge = world.bridge(world.store(kind))
    token, _ = bridge.user("ada")
    sizes, is_over = [], threading.Event()
    pid = bridge.running.process.pid
    at_rest = sockets(pid)
    load = Load([bridge.url], token, 200, world.seed, leave=0.3, delay_ms=200, tokens=20)
    # The first streams fill pools and caches.
    time.sleep(8)

    def watch():
        while not is_over.wait(0.5):
            sizes.append((resident(pid), connections(bridge.url)))

    watching = threading.Thread(target=watch)
    watching.start()
    time.sleep(seconds)
    is_over.set()
    watching.join()
    results = load.stop()
    until(lambda: connections(bridge.url) == 0, "the clients' sockets are closed", 10)
    third = len(sizes) // 3
    first, last = (statistics.mean(size for size, _ in part)
                   for part in (sizes[:third], sizes[-third:]))
    open_at_once = statistics.median(count for _, count in sizes)
    assert open_at_once > 150, open_at_once
    assert last <= first * (1 + may_grow), f"{first:.0f} KiB, then {last:.0f} KiB"
    errors = [result for result in results if result.error]
    assert not errors, errors[:3]
    if world.soak:
        # Idle connections to providers are closed after 50 s.
        until(lambda: sockets(pid) <= at_rest, "the providers' sockets are closed", 90)
    bridge.stop()
    left = sum(result.left for result in results)
    assert left > 20, left
    whole, _ = world.check_whole(bridge.store, results)
    return summary(bridge.verify(world.simulator), whole=len(whole), left=left,
                   at_once=int(open_at_once), first_third=f"{first / 1024:.1f} MiB",
                   last_third=f"{last / 1024:.1f} MiB", growth=f"{last / first - 1:+.1%}")


def flood(world, kind):
    """64 clients with 60 MiB each and a process limited to 1 GiB: it refuses some and survives."""
    clients, size, allowed = 64, 60 << 20, 1 << 30
    bridge = world.bridge(world.store(kind))
    token, _ = bridge.user("ada")
    bridge.stop()
    bridge.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed)))
    pid = bridge.running.process.pid
    padding = "x" * (size - 1000)
    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask, bridge.url, token, list(DIALECTS)[number % 3], f"prompt {number}",
                              False, timeout=120, padding=padding) for number in range(clients)]
        results = [sent.result() for sent in asking]
    largest = memory(pid, "VmHWM")
    served = [result for result in results if result.whole]
    refused = [result for result in results if result.status == 503]
    others = [result for result in results if result not in served and result not in refused]
    assert not others, [(result.status, result.error, result.body[:200]) for result in others[:3]]
    assert served, "none was served"
    assert all(int(result.headers["retry-after"]) > 0 for result in refused)
    assert largest * 1024 < allowed, largest
    after = ask(bridge.url, token, "messages", "afterwards")
    assert after.whole, after
    bridge.stop()
    return summary(bridge.verify(world.simulator), served=len(served), refused=len(refused),
                   largest=f"{largest / 1024:.0f} MiB")


def resident(pid):
    """The memory of a process, in KiB."""
    return memory(pid, "VmRSS")


def memory(pid, what):
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        (line,) = [line for line in file if line.startswith(f"{what}:")]
    return int(line.split()[1])


def connections(url):
    """The number of open connections to an address on this machine."""
    port = f":{int(url.rsplit(':', 1)[1]):04X}"
    with open("/proc/net/tcp", encoding="utf-8") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    # 01 is an established connection, 08 one closed by the peer.
    return sum(row[1].endswith(port) and row[3] in ("01", "08") for row in rows)


def sockets(pid):
    """The number of sockets of a process, including its listener."""
    folder = f"/proc/{pid}/fd"
    targets = []
    for name in os.listdir(folder):
        try:
            targets.append(os.readlink(f"{folder}/{name}"))
        except FileNotFoundError:
            continue
    return sum(target.startswith("socket:") for target in targets)
