"""Shows that the trail is complete: every answer that the simulator handed out is in one record.

    scripts/test trail [WORD]             runs the scenarios whose name contains the word
    python3 tests/ledger/run.py --soak    the long form
"""

import argparse
import contextlib
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

from postgres import Postgres
from trail import BINARY, Bridge, Load, Simulator, ask, post, recorded

CANNOT = 77
# What a scenario may take to come to rest: a process counts as dead after 15 s.
PATIENCE = 60


class Cannot(Exception):
    """This machine cannot do what a scenario needs."""


class World:
    """A folder, a simulator, and stores for bridges."""

    def __init__(self, options, server):
        self.soak, self.seed, self.server = options.soak, options.seed, server
        self.stack = contextlib.ExitStack()
        self.stores = 0

    def __enter__(self):
        self.dir = pathlib.Path(
            self.stack.enter_context(tempfile.TemporaryDirectory(prefix="keybridge-trail-")))
        self.simulator = Simulator(self.dir)
        self.stack.callback(self.simulator.stop)
        self.bridges = []
        return self

    def __exit__(self, *_):
        for bridge in self.bridges:
            if bridge.running and bridge.running.process.poll() is None:
                bridge.kill()
        self.stack.close()

    def store(self, kind):
        self.stores += 1
        name = f"trail_{os.getpid()}_{time.monotonic_ns()}"
        if kind == "postgres":
            return self.server.create(name)
        return f"sqlite://{self.dir}/{name}.db"

    def bridge(self, store, **settings):
        bridge = Bridge(self.dir, store, self.simulator, name=f"bridge-{len(self.bridges)}",
                        **settings)
        self.bridges.append(bridge)
        return bridge.start()


def until(condition, what, patience=PATIENCE):
    """Waits for a condition; gives the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < patience, f"not within {patience} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


def at_rest(bridge):
    """Waits until no process is at a record and the spool is empty, then recounts."""
    def quiet():
        counts = bridge.cli("ledger", "verify", check=False)[0]
        waits = counts["in_progress"] + counts["without_end"] + counts["spool_leftovers"]
        return waits == 0
    until(quiet, "all records have an end")


def check_answers(store, results, server):
    """Every answer that a client got whole is recorded as completed, once, with exact usage."""
    found = recorded(store, server)
    whole = [result for result in results if result.whole]
    for result in whole:
        rows = found.get(result.response_id)
        assert rows is not None, f"{result.response_id} is not recorded"
        assert [tuple(row) for row in rows] == [("completed", "exact")], (result, rows)
    return len(whole)


def summary(verified, **more):
    against = verified["against"]
    counts = {
        "interceptions": verified["interceptions"], "interrupted": verified["interrupted"],
        "handed out": against["response_ids"], "found": against["found"],
        "by request": against["found_by_request"], "missing": len(against["missing"]),
        "doubled": len(against["doubled"]), **more,
    }
    return ", ".join(f"{name} {value}" for name, value in counts.items())


def disconnects(world, kind):
    """Clients leave at random points."""
    bridge = world.bridge(world.store(kind))
    token, _ = bridge.user("ada")
    load = Load([bridge.url], token, 16, world.seed, leave=0.5)
    time.sleep(120 if world.soak else 5)
    results = load.stop()
    bridge.stop()
    bridge.start()
    at_rest(bridge)
    bridge.stop()
    whole = check_answers(bridge.store, results, world.server)
    left = sum(result.left for result in results)
    assert left > 20 and whole > 20, (left, whole)
    errors = [result for result in results if result.error]
    assert not errors, errors[:3]
    return summary(bridge.verify(world.simulator), left=left, whole=whole)


def kill(world, kind):
    """The bridge is killed at random points under load."""
    rounds = 50 if world.soak else 3
    chance = random.Random(world.seed)
    bridge = world.bridge(world.store(kind))
    token, _ = bridge.user("ada")
    load = Load(lambda: [bridge.url], token, 16, world.seed, delay_ms=10)
    killed = []
    for _ in range(rounds):
        time.sleep(chance.uniform(0.5, 2.5))
        bridge.kill()
        killed.append(time.monotonic())
        bridge.start()
    time.sleep(1)
    results = load.stop()
    at_rest(bridge)
    bridge.stop()
    # The end of an answer that came just before a kill may not have been written: it is recorded
    # as interrupted, and found by the recount.
    safe = [result for result in results
            if not any(0 <= kill - result.ended_at < 0.5 for kill in killed)]
    whole = check_answers(bridge.store, safe, world.server)
    cut = sum(bool(result.error) for result in results)
    assert whole > 20 and cut > 0, (whole, cut)
    return summary(bridge.verify(world.simulator), rounds=rounds, whole=whole, cut=cut)


def outage_spool(world, _kind):
    """PostgreSQL is stopped under load, and every request goes on."""
    rate, seconds = (50, 30) if world.soak else (20, 5)
    store = world.store("postgres")
    bridges = [world.bridge(store, on_outage="spool") for _ in range(2)]
    token, _ = bridges[0].user("ada")
    clients = 20
    load = Load([bridge.url for bridge in bridges], token, clients, world.seed,
                pause=clients / rate)
    lines = []
    for mode in ("fast", "immediate"):
        time.sleep(3)
        world.server.stop(mode)
        time.sleep(seconds)
        spooled = sum(bridge.metrics()["spooled_records"] for bridge in bridges)
        assert spooled > 0 and all(bridge.is_ready() for bridge in bridges)
        world.server.start()
        back = until(lambda: all(b.metrics()["outage"] == 0 for b in bridges), "the store is back")
        lines.append(f"{mode}: {spooled:.0f} spooled, in the store after {back:.1f} s")
    results = load.stop()
    failed = [result for result in results if not result.whole]
    assert not failed, (len(failed), failed[:3])
    for bridge in bridges:
        bridge.stop()
    whole = check_answers(store, results, world.server)
    assert whole == len(results)
    slowest = max(result.seconds for result in results)
    return summary(bridges[0].verify(world.simulator), requests=len(results),
                   slowest=f"{slowest:.2f} s") + "; " + "; ".join(lines)


def outage_refuse(world, _kind):
    """PostgreSQL is stopped: new requests are refused, what is open runs on."""
    bridge = world.bridge(world.store("postgres"))
    token, _ = bridge.user("ada")
    assert ask(bridge.url, token, "messages", "before").whole
    load = Load([bridge.url], token, 8, world.seed, delay_ms=500, tokens=8)
    time.sleep(1)
    world.server.stop()
    time.sleep(1)
    shapes = {"messages": '"type":"error"', "chat": '"error":', "responses": '"error":'}
    for dialect, shape in shapes.items():
        began = time.monotonic()
        refused = ask(bridge.url, token, dialect, "meanwhile")
        assert refused.status == 503, refused
        assert "Retry-After" in {name.title() for name in refused.headers}, refused.headers
        assert shape in refused.body.replace(" ", ""), refused.body
        assert time.monotonic() - began < 10
    assert not bridge.is_ready()
    time.sleep(5)
    open_ended = [result for result in list(load.results) if result.whole]
    world.server.start()
    back = until(lambda: ask(bridge.url, token, "messages", "after").whole, "requests succeed", 10)
    until(bridge.is_ready, "the bridge is ready")
    results = load.stop()
    bridge.stop()
    assert len(open_ended) >= 8, "streams that were open ran to their ends"
    unexpected = [r for r in results if not r.whole and r.status != 503]
    assert not unexpected, unexpected[:3]
    check_answers(bridge.store, results, world.server)
    refused = sum(result.status == 503 for result in results)
    return summary(bridge.verify(world.simulator), refused=refused, back=f"{back:.1f} s")


def kill_in_outage(world, _kind):
    """The bridge is killed while the store is down, and its spool is taken over."""
    bridge = world.bridge(world.store("postgres"), on_outage="spool")
    token, _ = bridge.user("ada")
    assert ask(bridge.url, token, "messages", "before").whole
    world.server.stop()
    load = Load(lambda: [bridge.url], token, 8, world.seed, delay_ms=20)
    time.sleep(4)
    bridge.kill()
    killed_at = time.monotonic()
    results = load.stop()
    world.server.start()
    bridge.start()
    at_rest(bridge)
    bridge.stop()
    # The last settlements of answers that ended just before the kill may not have been written.
    safe = [result for result in results if result.ended_at < killed_at - 0.5]
    whole = check_answers(bridge.store, safe, world.server)
    assert whole > 20, len(results)
    log = "".join(bridge.running.log)
    assert "are taken from its spool" in log, log
    return summary(bridge.verify(world.simulator), whole=whole)


def two_replicas(world, _kind):
    """Threads, revocations and death, with two bridges on one database."""
    store = world.store("postgres")
    one, two = world.bridge(store), world.bridge(store)
    token, token_id = one.user("ada")
    linked(one, two, token)

    one.cli("token", "revoke", token_id)
    def refused():
        return all(ask(b.url, token, "messages", "revoked").status == 401 for b in (one, two))
    revoked = until(refused, "the revoked token is refused", 5)

    token, _ = one.user("bob")
    with ThreadPoolExecutor() as pool:
        streams = [pool.submit(ask, bridge.url, token, "messages", bridge.url, delay_ms=1000,
                               tokens=30) for bridge in (one, two)]
        until(lambda: len(open_records(one, "bob")) == 2, "both requests are open")
        time.sleep(0.5)
        two.kill()
        died = until(lambda: len(open_records(one, "bob")) == 1, "the dead one's is interrupted")
        outcomes = sorted(item["outcome"] for item in one.cli("interceptions", "--user", "bob"))
        assert outcomes == ["in_progress", "interrupted"], outcomes
        results = [stream.result() for stream in streams]
    assert [result.whole for result in results] == [True, False], results
    check_answers(store, results, world.server)
    one.stop()
    return summary(one.verify(world.simulator), revoked=f"{revoked:.2f} s", died=f"{died:.0f} s")


def linked(one, two, token):
    """A tool call that one replica relayed is answered through the other."""
    def turn(bridge, messages):
        body = {"model": "sim-tool", "max_tokens": 100, "messages": messages}
        return post(bridge.url, token, "/anthropic/v1/messages", body)

    first = [{"role": "user", "content": "weather?"}]
    parent, answer = turn(one, first)
    call = next(block["id"] for block in answer["content"] if block["type"] == "tool_use")
    child, _ = turn(two, first + [
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call, "content": "sunny"}]}])
    record = one.cli("interceptions", "show", child)[0]
    assert (record["parent_id"], record["thread_id"]) == (parent, parent), record


def open_records(bridge, user):
    items = bridge.cli("interceptions", "--user", user)
    return [item for item in items if item["outcome"] == "in_progress"]


def pressure(world, _kind):
    """Every commit of the store takes 100 ms."""
    world.server.setting("commit_delay", 100_000)
    world.server.setting("commit_siblings", 0)
    try:
        bridge = world.bridge(world.store("postgres"))
        token, _ = bridge.user("ada")
        began = time.monotonic()
        load = Load([bridge.url], token, 64, world.seed, delay_ms=0)
        until(lambda: len(load.results) >= 1000, "1,000 requests")
        results = load.stop()
        took = time.monotonic() - began
        commits = bridge.metrics()["commits_total"]
        bridge.stop()
        failed = [result for result in results if not result.whole]
        assert not failed, (len(failed), failed[:3])
        check_answers(bridge.store, results, world.server)
        verified = bridge.verify(world.simulator)
    finally:
        world.server.setting("commit_delay", 0)
    return summary(verified, commits=f"{commits:.0f}", rate=f"{len(results) / took:.0f}/s")


def as_root(*words):
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    subprocess.run([*sudo, *words], check=True, capture_output=True)


class SmallDisk:
    """A file system of few MiB, and a file that fills it."""

    def __init__(self, folder, mib):
        self.dir, self.mib = pathlib.Path(folder), mib

    def __enter__(self):
        self.dir.mkdir()
        try:
            as_root("mount", "-t", "tmpfs", "-o", f"size={self.mib}m", "tmpfs", self.dir)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Cannot("a small file system cannot be mounted") from error
        return self

    def __exit__(self, *_):
        as_root("umount", "-l", self.dir)

    def make_read_only(self):
        as_root("mount", "-o", "remount,ro", self.dir)

    def fill(self):
        """Down to the last byte."""
        with open(self.dir / "ballast", "wb", buffering=0) as file:
            for size in (65536, 512, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size):
                        pass

    def free(self):
        (self.dir / "ballast").unlink()


def disk_full(world, _kind):
    """The disk of the store is full, then that of the spool, too."""
    lines = []
    with SmallDisk(world.dir / "store-disk", 8) as disk, \
            SmallDisk(world.dir / "spool-disk", 4) as spool_disk:
        for on_outage in ("refuse", "spool"):
            store = f"sqlite://{disk.dir}/{on_outage}.db"
            bridge = world.bridge(store, on_outage=on_outage,
                                  spool_dir=str(spool_disk.dir / on_outage))
            token, _ = bridge.user("ada")
            results = [ask(bridge.url, token, "chat", f"before {n}") for n in range(5)]
            assert all(result.whole for result in results), results
            disk.fill()
            goes_on = on_outage == "spool"
            meanwhile = [ask(bridge.url, token, "chat", f"full {n}") for n in range(5)]
            expected = 200 if goes_on else 503
            assert {result.status for result in meanwhile} == {expected}, meanwhile
            assert bridge.is_ready() == goes_on
            if goes_on:
                spool_disk.fill()
                # The file's last page may have room for one or two.
                both = [ask(bridge.url, token, "chat", f"both full {n}") for n in range(10)]
                assert {result.status for result in both[5:]} == {503}, both
                meanwhile += both
                assert not bridge.is_ready()
                spool_disk.free()
            readable = bridge.cli("interceptions", "--user", "ada")
            assert len(readable) >= 5, "earlier records can be read"
            disk.free()
            until(lambda: ask(bridge.url, token, "chat", "after").whole, "requests succeed", 10)
            until(bridge.is_ready, "the bridge is ready")
            bridge.stop()
            whole = check_answers(store, results + meanwhile, world.server)
            lines.append(f"{on_outage}: {whole} whole")
            (counts,) = bridge.cli("ledger", "verify")
            assert counts["spool_leftovers"] == 0
    return "; ".join(lines)


def read_only(world, _kind):
    """A store that cannot be written is named, and left as it is."""
    bridge = world.bridge(world.store("sqlite"))
    bridge.user("ada")
    bridge.stop()
    source = bridge.store.removeprefix("sqlite://")
    with SmallDisk(world.dir / "read-only-disk", 8) as disk:
        path = disk.dir / "keybridge.db"
        shutil.copy(source, path)
        before = path.read_bytes()
        disk.make_read_only()
        done = subprocess.run(
            [BINARY, "serve", "--store", f"sqlite://{path}", "--listen", "127.0.0.1:0"],
            cwd=world.dir, text=True, capture_output=True, timeout=30)
        assert done.returncode in (1, 2), done
        assert str(path) in done.stderr and "written" in done.stderr, done.stderr
        assert path.read_bytes() == before and len(list(disk.dir.iterdir())) == 1
    return done.stderr.strip().splitlines()[-1].strip()


def corrupt_spool(world, _kind):
    """One byte of a spool that was left behind is wrong, and its last line is torn."""
    bridge = world.bridge(world.store("postgres"), on_outage="spool")
    token, _ = bridge.user("ada")
    assert ask(bridge.url, token, "messages", "before").whole
    world.server.stop()
    results = [ask(bridge.url, token, "messages", f"meanwhile {n}") for n in range(20)]
    assert all(result.whole for result in results), results
    time.sleep(0.5)
    bridge.kill()
    (file,) = bridge.spool.glob("*.spool")
    lines = file.read_bytes().splitlines(keepends=True)
    lines[7] = lines[7][:40] + bytes([lines[7][40] ^ 1]) + lines[7][41:]
    file.write_bytes(b"".join(lines) + lines[0][:30])
    world.server.start()
    bridge.start()
    until(lambda: not list(bridge.spool.glob("*.spool")), "the spool is replayed")
    (aside,) = bridge.spool.glob("*.corrupt")
    log = "".join(bridge.running.log)
    assert "ERROR" in log and aside.name in log, log
    found = recorded(bridge.store, world.server)
    missing = sum(result.response_id not in found for result in results)
    assert missing <= 1, missing
    counts = bridge.cli("ledger", "verify", check=False)[0]
    assert counts["spool_leftovers"] > 0, "somebody has to look at it"
    bridge.stop()
    return f"{len(lines)} lines, 1 corrupt, {len(results) - missing} of {len(results)} answers found"


SCENARIOS = [
    (disconnects, "sqlite"), (disconnects, "postgres"), (kill, "sqlite"), (kill, "postgres"),
    (outage_spool, "postgres"), (outage_refuse, "postgres"), (kill_in_outage, "postgres"),
    (corrupt_spool, "postgres"), (two_replicas, "postgres"), (pressure, "postgres"),
    (disk_full, "sqlite"), (read_only, "sqlite"),
]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("word", nargs="?", default="")
    arguments.add_argument("--soak", action="store_true")
    arguments.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = arguments.parse_args()
    print(f"seed {options.seed}", flush=True)
    counts = {"ok": 0, "FAILED": 0, "cannot": 0}
    with Postgres() as server:
        for scenario, kind in SCENARIOS:
            name = f"{scenario.__name__}-{kind}"
            if options.word not in name:
                continue
            began = time.monotonic()
            outcome, told = run(scenario, kind, options, server)
            counts[outcome] += 1
            print(f"{outcome:7} {name} ({time.monotonic() - began:.0f} s)  {told}", flush=True)
    print(f"{counts['ok']} passed, {counts['FAILED']} failed, {counts['cannot']} not possible here")
    if counts["FAILED"] or not counts["ok"]:
        return 1
    return CANNOT if counts["cannot"] else 0


def run(scenario, kind, options, server):
    """Every scenario is run, whatever became of the one before."""
    with World(options, server) as world:
        try:
            return "ok", scenario(world, kind)
        except Cannot as error:
            return "cannot", str(error)
        except Exception:
            logs = [line for bridge in world.bridges if bridge.running
                    for line in bridge.running.log[-25:]]
            return "FAILED", traceback.format_exc() + "the bridges' logs:\n" + "".join(logs)
        finally:
            server.ensure_running()


if __name__ == "__main__":
    sys.exit(main())
