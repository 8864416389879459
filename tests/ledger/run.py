"""Shows that the records are complete: every response that the simulator sent is in one record.

    scripts/test trail [WORD]             runs the scenarios whose name contains the word
    python3 tests/ledger/run.py --soak    the long form
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import poison
from change import reload, restart_port, restart_socket
from postgres import Servers, end_in_order, unprivileged
from storm import crowd, flood, storm
from trail import BINARY, DIALECTS, ENV, Load, ask, post
from world import SETTLE_TIMEOUT, Cannot, SmallDisk, World, at_rest, summary, until

CANNOT = 77
# How soon requests succeed again after the store is back.
BACK_SECONDS = 10


def disconnects(world, kind):
    """Clients disconnect at random points."""
    bridge = world.bridge(world.store(kind))
    token, _ = bridge.user("ada")
    load = Load([bridge.url], token, 16, world.seed, leave=0.5)
    time.sleep(120 if world.soak else 5)
    results = load.stop()
    bridge.stop()
    whole, _ = world.check_whole(bridge.store, results)
    left = sum(result.left for result in results)
    assert left > 20 and len(whole) > 20, (left, len(whole))
    errors = [result for result in results if result.error]
    assert not errors, errors[:3]
    return summary(bridge.verify(world.simulator), left=left, whole=len(whole))


def killed(bridge, load, rounds, seed, heal=None):
    """Runs a load while the bridge is killed and restarted a number of times; `heal` is called at its
    end."""
    chance = random.Random(seed)
    for _ in range(rounds):
        time.sleep(chance.uniform(0.5, 2.5))
        bridge.kill()
        bridge.start()
    time.sleep(1)
    # A busy machine serves little between kills.
    until(lambda: sum(result.whole for result in list(load.results)) > 20, "enough was served")
    results = load.stop()
    returned = heal() if heal else 0
    at_rest(bridge)
    bridge.stop()
    return results, returned


def kill(world, kind, **ledger):
    """The bridge is killed at random points under load, with records among it that the store refuses."""
    rounds = 50 if world.soak else 3
    bridge = world.bridge(world.store(kind), **ledger)
    token, _ = bridge.user("ada")
    poison.install(world, bridge.store)
    # With a journal, a request is sent before the store can refuse its opening.
    agents = [poison.SETTLE] + [poison.OPEN] * (ledger.get("durability") == "process")
    load = Load(lambda: [bridge.url], token, 16, world.seed, delay_ms=10, agents=agents)
    results, returned = killed(bridge, load, rounds, world.seed,
                               lambda: poison.heal(world, bridge))
    assert returned > 0, "the store refused nothing"
    whole, lost = world.check_whole(bridge.store, results)
    cut = sum(bool(result.error) for result in results)
    assert len(whole) > 20 and cut > 0, (len(whole), cut)
    return summary(bridge.verify(world.simulator), rounds=rounds, whole=len(whole), cut=cut,
                   set_aside=returned, end_lost_before_kill=f"{lost * 1000:.0f} ms at most")


# The model calls a slow injected tool twice, then reports the result.
TURNS = [
    [{"text": "first"}, {"call": "bmcp_sim_slow", "arguments": {"ms": 15}}],
    [{"text": "second"}, {"call": "bmcp_sim_echo", "arguments": {"message": "hi"}}],
    [{"text": "third {result}"}],
]


def kill_in_loop(world, kind):
    """The bridge is killed, and clients disconnect, while it calls injected tools."""
    rounds = 30 if world.soak else 3
    bridge = world.bridge(world.store(kind), tools=True)
    token, _ = bridge.user("ada")
    load = Load(lambda: [bridge.url], token, 16, world.seed, leave=0.2, delay_ms=10, turns=TURNS)
    results, _ = killed(bridge, load, rounds, world.seed)
    whole, lost = world.check_whole(bridge.store, results)
    ended = sum(bool(result.error) or result.left for result in results)
    assert len(whole) > 20 and ended > 0, (len(whole), ended)
    # Every turn whose end a client saw is recorded. Nothing can be known about a turn that was cut off
    # before its id arrived, and its request is not the client's.
    code, counts = bridge.recount(world.simulator)
    against = counts["against"]
    assert not against["doubled"], against
    assert len(against["missing"]) <= ended, (ended, against["missing"][:3])
    assert code == (1 if against["missing"] else 0), counts
    turns = sum(item["inner_turns"] for item in bridge.cli("interceptions", "--limit", "500"))
    assert turns > 0
    return summary(counts, rounds=rounds, whole=len(whole), ended=ended,
                   end_lost_before_kill=f"{lost * 1000:.0f} ms at most")


def postgres_restart(world, _kind):
    """PostgreSQL is stopped under load, and every request still succeeds, also beside records that the store
    refuses or takes too long over."""
    rate, seconds = (50, 30) if world.soak else (20, 5)
    store = world.store("postgres")
    bridges = [world.bridge(store, on_outage="spool") for _ in range(2)]
    token, _ = bridges[0].user("ada")
    poison.install(world, store)
    clients = rate
    load = Load([bridge.url for bridge in bridges], token, clients, world.seed,
                pause=clients / rate, agents=[poison.SETTLE])
    lines, slow = [], []
    for mode in ("fast", "immediate"):
        time.sleep(3)
        # The store goes while one bridge looks for a slow one; the other has one in its spool.
        if mode == "fast":
            slow.append(ask(bridges[0].url, token, "chat", "slow before", agent=poison.SLOW))
        world.server.stop(mode)
        if mode == "immediate":
            slow.append(ask(bridges[1].url, token, "chat", "slow after", agent=poison.SLOW))
        time.sleep(seconds)
        spooled = sum(bridge.metrics()["spooled_records"] for bridge in bridges)
        assert spooled > 0 and all(bridge.is_ready() for bridge in bridges)
        world.server.start()
        back = until(lambda: all(b.metrics()["outage"] == 0 for b in bridges), "the store is back")
        lines.append(f"{mode}: {spooled:.0f} spooled, in the store after {back:.1f} s")
    # The opening and the settlement of each.
    until(lambda: sum(b.metrics()["set_aside_total"] for b in bridges) >= 2 * len(slow)
          and all(b.metrics()["spooled_records"] == 0 for b in bridges), "the slow ones are found",
          2 * SETTLE_TIMEOUT)
    results = load.stop() + slow
    failed = [result for result in results if not result.whole]
    assert not failed, (len(failed), failed[:3])
    for bridge in bridges:
        bridge.stop()
    returned = poison.heal(world, *bridges)
    assert returned >= 2 * len(slow), returned
    whole, _ = world.check_whole(store, results)
    assert len(whole) == len(results)
    slowest = max(result.seconds for result in results)
    verified = bridges[0].verify(world.simulator)
    assert verified["interceptions"] == len(results), (verified, len(results))
    return summary(verified, requests=len(results), slowest=f"{slowest:.2f} s",
                   set_aside=returned, outages="; ".join(lines))


def postgres_restart_refuse(world, _kind):
    """PostgreSQL is stopped: new requests are refused, open ones continue."""
    bridge = world.bridge(world.store("postgres"))
    token, _ = bridge.user("ada")
    undisturbed = {dialect: ask(bridge.url, token, dialect, "before", tokens=24)
                   for dialect in DIALECTS}
    with ThreadPoolExecutor(9) as pool:
        streams = open_streams(pool, bridge, token, 9, delay_ms=250, tokens=lambda _: 24)
        world.server.stop()
        for dialect in DIALECTS:
            check_refusal(bridge, token, dialect)
        assert not bridge.is_ready()
        load = Load([bridge.url], token, 8, world.seed)
        results = [stream.result() for _, stream in streams]
        check_refusal(bridge, token, "messages")
        assert not bridge.is_ready()
        world.server.start()
        back = until(lambda: ask(bridge.url, token, "messages", "after").whole,
                     "requests succeed", BACK_SECONDS)
        until(bridge.is_ready, "the bridge is ready", BACK_SECONDS)
    for (dialect, _), result in zip(streams, results):
        expected = without_ids(undisturbed[dialect].body)
        assert result.whole and without_ids(result.body) == expected, result
    others = load.stop()
    bridge.stop()
    unexpected = [result for result in others if not result.whole and result.status != 503]
    assert not unexpected, unexpected[:3]
    world.check_whole(bridge.store, results + others)
    refused = sum(result.status == 503 for result in others)
    return summary(bridge.verify(world.simulator), streams=len(results), refused=refused,
                   back=f"{back:.1f} s")


def open_streams(pool, bridge, token, count, delay_ms, tokens):
    """Opens streams of all dialects; returns them with their dialects once all are recorded."""
    def records():
        return len(bridge.cli("interceptions", "--user", "ada", "--limit", "500"))
    before = records()
    dialects = [list(DIALECTS)[n % len(DIALECTS)] for n in range(count)]
    streams = [
        pool.submit(ask, bridge.url, token, dialect, f"open {n}", delay_ms=delay_ms,
                    tokens=tokens(n))
        for n, dialect in enumerate(dialects)]
    until(lambda: records() == before + count, "all streams are open")
    return list(zip(dialects, streams))


def without_ids(body):
    return re.sub("[0-9a-f]{16}", "ID", body)


def check_refusal(bridge, token, dialect):
    began = time.monotonic()
    refused = ask(bridge.url, token, dialect, "meanwhile")
    assert refused.status == 503, refused
    assert "retry-after" in {name.lower() for name in refused.headers}, refused.headers
    error = json.loads(refused.body)
    assert error["error"]["message"], error
    assert dialect != "messages" or error["type"] == "error", error
    assert time.monotonic() - began < 10


def kill_in_outage(world, _kind, **ledger):
    """Bridges are killed while the store is down, and other processes take over their spools, in which there
    are records that the store refuses."""
    store = world.store("postgres")
    bridges = [world.bridge(store, on_outage=policy, **ledger) for policy in ("spool", "refuse")]
    token, _ = bridges[0].user("ada")
    assert all(ask(bridge.url, token, "messages", "before").whole for bridge in bridges)
    poison.install(world, store)
    with ThreadPoolExecutor(24) as pool:
        # They end one after the other: some before the outage, some during it, some never.
        streams = [open_streams(pool, bridge, token, 12, delay_ms=100, tokens=lambda n: 9 + 8 * n)
                   for bridge in bridges]
        world.server.stop()
        loads = [Load([bridge.url], token, 8, world.seed, delay_ms=20, agents=[poison.SETTLE])
                 for bridge in bridges]
        time.sleep(4)
        for bridge in bridges:
            bridge.kill()
        served, refused = (load.stop() for load in loads)
        results = [[stream.result() for _, stream in of_bridge] for of_bridge in streams]
    world.server.start()
    for bridge in bridges:
        bridge.start()
    until(lambda: any(file["kind"] == "aside" for file in bridges[0].cli("ledger", "spool", "list"))
          and bridges[0].metrics()["spooled_records"] == 0, "the spool is replayed")
    returned = poison.heal(world, *bridges)
    assert returned > 0, "the store refused nothing"
    for bridge in bridges:
        at_rest(bridge)
        assert "replaying the spool of a dead process" in "".join(bridge.running.log), bridge.running.log
        bridge.stop()
    whole, lost = world.check_whole(store, sum(results, served + refused))
    assert sum(result.whole for result in served) > 20 > sum(result.whole for result in refused)
    ended = [sum(result.whole for result in of_bridge) for of_bridge in results]
    assert all(3 <= number < 12 for number in ended), ended
    return summary(bridges[0].verify(world.simulator), whole=len(whole),
                   streams_ended=sum(ended), set_aside=returned, end_lost_before_kill=f"{lost * 1000:.0f} ms at most")


def corrupt_spool(world, _kind):
    """One byte of an abandoned spool is corrupt, and its last line is incomplete. If that byte is in an
    opening, the settlement of the same record is set aside."""
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
    damaged = random.Random(world.seed).randrange(len(lines))
    file.write_bytes(b"".join(
        with_a_wrong_byte(line) if number == damaged else line
        for number, line in enumerate(lines)) + lines[0][:30])
    world.server.start()
    bridge.start()
    at_rest(bridge, leftovers=True)
    (aside,) = bridge.spool.glob("*.corrupt")
    assert not list(bridge.spool.glob("*.spool"))
    assert any("ERROR" in line and aside.name in line for line in bridge.running.log)
    code, counts = bridge.recount(world.simulator)
    assert code == 1 and counts["spool_leftovers"] > 0, "an operator must be told"
    aside.unlink()
    bridge.stop()
    widowed = list(bridge.spool.glob("*.aside"))
    assert len([line for file in widowed for line in file.read_bytes().splitlines()]) <= 1, widowed
    for file in widowed:
        file.unlink()
    _, counts = bridge.recount(world.simulator)
    found = world.recorded(bridge.store)
    exact = sum(found.get(result.response_id) == [("completed", "exact")] for result in results)
    assert exact >= len(results) - 1 and len(counts["against"]["missing"]) <= 1, (exact, counts)
    for figure in ("spool_leftovers", "without_end", "usages_without_interception"):
        assert counts[figure] == 0, counts
    return summary(counts, lines=len(lines), wrong=damaged + 1, set_aside=len(widowed), exact=f"{exact} of {len(results)}")


def with_a_wrong_byte(line):
    middle = len(line) // 2
    return line[:middle] + bytes([line[middle] ^ 1]) + line[middle + 1:]


def two_replicas(world, _kind):
    """Threads, revocations and a crash, with two bridges on one database."""
    store = world.store("postgres")
    one, two = world.bridge(store), world.bridge(store)
    token, token_id = one.user("ada")
    linked(one, two, token)
    load = Load([one.url, two.url], token, 4, world.seed)
    time.sleep(1)
    results = load.stop()
    assert len(results) > 20 and all(result.whole for result in results), results[:3]

    one.cli("token", "revoke", token_id)
    def refused():
        return all(ask(b.url, token, "messages", "revoked").status == 401 for b in (one, two))
    revoked = until(refused, "the revoked token is refused", 5)

    token, _ = one.user("bob")
    with ThreadPoolExecutor() as pool:
        streams = [pool.submit(ask, bridge.url, token, "messages", bridge.url, delay_ms=1000,
                               tokens=25) for bridge in (one, two)]
        until(lambda: len(open_records(one, "bob")) == 2, "both requests are open")
        time.sleep(0.5)
        two.kill()
        died = until(lambda: len(open_records(one, "bob")) == 1,
                     "the record of the dead bridge is interrupted")
        outcomes = sorted(item["outcome"] for item in one.cli("interceptions", "--user", "bob"))
        assert outcomes == ["in_progress", "interrupted"], outcomes
        streams = [stream.result() for stream in streams]
    assert [stream.whole for stream in streams] == [True, False], streams
    two.start()
    for bridge in (one, two):
        bridge.stop()
    world.check_whole(store, results + streams)
    verified = one.verify(world.simulator)
    assert verified["interrupted"] == 1, verified
    return summary(verified, revoked=f"{revoked:.2f} s", died=f"{died:.0f} s")


def linked(one, two, token):
    """The result of a tool call relayed by one replica is sent through the other."""
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
        before = bridge.metrics()["commits_total"]
        began = time.monotonic()
        load = Load([bridge.url], token, 64, world.seed, delay_ms=0)
        until(lambda: len(load.results) >= 1000, "1,000 requests")
        results = load.stop()
        took = time.monotonic() - began
        commits = bridge.metrics()["commits_total"] - before
        bridge.stop()
        failed = [result for result in results if not result.whole]
        assert not failed, (len(failed), failed[:3])
        world.check_whole(bridge.store, results)
        verified = bridge.verify(world.simulator)
    finally:
        world.server.setting("commit_delay", 0)
        world.server.setting("commit_siblings", 5)
    assert took / commits > 0.09, "commits were not slow"
    return summary(verified, commits=f"{commits:.0f}", rate=f"{len(results) / took:.0f}/s")


def disk_full(world, on_outage):
    """The disk of the store is full, and where there is a spool, its disk too."""
    with SmallDisk(world.dir / "store-disk", 2) as disk, \
            SmallDisk(world.dir / "spool-disk", 2) as spool_disk:
        bridge = world.bridge(f"sqlite://{disk.dir}/keybridge.db", on_outage=on_outage,
                              spool_dir=str(spool_disk.dir / "spool"))
        token, _ = bridge.user("ada")
        def asked(words, count):
            return [ask(bridge.url, token, "chat", f"{words} {n}") for n in range(count)]
        results = asked("before", 5)
        assert all(result.whole for result in results), results
        disk.fill()
        if on_outage == "spool":
            results += asked("full", 10)
            assert all(result.whole for result in results), results
            assert bridge.is_ready()
            spool_disk.fill()
        # The last page of a file may have room for a few more.
        results += asked("nothing left", 20)
        assert {result.status for result in results[-10:]} == {503}, results[-10:]
        assert not bridge.is_ready()
        assert len(bridge.cli("interceptions", "--user", "ada")) >= 5, "what was before is read"
        if on_outage == "spool":
            spool_disk.free()
        disk.free()
        back = until(lambda: ask(bridge.url, token, "chat", "after").whole, "requests succeed",
                     BACK_SECONDS)
        until(bridge.is_ready, "the bridge is ready", BACK_SECONDS)
        at_rest(bridge)
        bridge.stop()
        whole, _ = world.check_whole(bridge.store, results)
        refused = sum(result.status == 503 for result in results)
        return summary(bridge.verify(world.simulator), whole=len(whole), refused=refused,
                       back=f"{back:.1f} s")


def read_only(world, how):
    """A store that cannot be written is reported and left unchanged."""
    bridge = world.bridge(world.store("sqlite"))
    bridge.user("ada")
    bridge.stop()
    source = bridge.store.removeprefix("sqlite://")
    folder = world.dir / "read-only"
    if how == "mount":
        with SmallDisk(folder, 8) as disk:
            shutil.copy(source, folder)
            disk.make_read_only()
            return serve_from(folder / pathlib.Path(source).name)
    folder.mkdir()
    path = pathlib.Path(shutil.copy(source, folder))
    path.chmod(0o444)
    folder.chmod(0o555)
    # Permissions do not apply to root.
    return serve_from(path, unprivileged().pw_uid if os.geteuid() == 0 else None)


def serve_from(path, user=None):
    """Checks the error of `serve` for a store that it cannot write."""
    before = path.read_bytes()
    done = subprocess.run(
        [BINARY, "serve", "--store", f"sqlite://{path}", "--listen", "127.0.0.1:0"],
        cwd=path.parent.parent, env=ENV, text=True, capture_output=True, timeout=30, user=user)
    assert done.returncode in (1, 2), done
    assert f"store.url: cannot write `{path}`" in done.stderr, done.stderr
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]
    return done.stderr.strip().splitlines()[-1].strip()


# Requests are sent before their records are on disk.
kill_with_journal = functools.partial(kill, durability="process")
kill_in_outage_with_journal = functools.partial(kill_in_outage, durability="process")

SCENARIOS = {
    "disconnects-sqlite": (disconnects, "sqlite"),
    "disconnects-postgres": (disconnects, "postgres"),
    "kill-sqlite": (kill, "sqlite"),
    "kill-postgres": (kill, "postgres"),
    "kill-journal-sqlite": (kill_with_journal, "sqlite"),
    "kill-in-loop-sqlite": (kill_in_loop, "sqlite"),
    "kill-in-loop-postgres": (kill_in_loop, "postgres"),
    "postgres-restart": (postgres_restart, "spool"),
    "postgres-restart-refuse": (postgres_restart_refuse, "refuse"),
    "kill-in-outage": (kill_in_outage, "spool and refuse"),
    "kill-in-outage-journal": (kill_in_outage_with_journal, "spool and refuse"),
    "corrupt-spool": (corrupt_spool, "spool"),
    "two-replicas": (two_replicas, "postgres"),
    "pressure": (pressure, "postgres"),
    "disk-full-refuse": (disk_full, "refuse"),
    "disk-full-spool": (disk_full, "spool"),
    "read-only-mount": (read_only, "mount"),
    "read-only-permission": (read_only, "permission"),
    "reload": (reload, "sqlite"),
    "restart-socket": (restart_socket, "sqlite"),
    "restart-port": (restart_port, "postgres"),
    "storm": (storm, "sqlite"),
    "crowd": (crowd, "sqlite"),
    "flood": (flood, "sqlite"),
}
# These mount file systems, which needs root or a user namespace.
MOUNTING = ("disk-full-refuse", "disk-full-spool", "read-only-mount")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("word", nargs="?", default="")
    arguments.add_argument("--soak", action="store_true")
    arguments.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = arguments.parse_args()
    end_in_order()
    print(f"seed {options.seed}", flush=True)
    counts = {"ok": 0, "FAILED": 0, "cannot": 0}
    with contextlib.ExitStack() as stack:
        servers = Servers(stack)
        for name in SCENARIOS:
            if options.word not in name:
                continue
            began = time.monotonic()
            outcome, result = run(name, options, servers)
            counts[outcome] += 1
            print(f"{outcome:7} {name} ({time.monotonic() - began:.0f} s)  {result}", flush=True)
    print(f"{counts['ok']} passed, {counts['FAILED']} failed"
          + (f", {counts['cannot']} not possible here" if counts["cannot"] else ""))
    if counts["FAILED"] or not sum(counts.values()):
        return 1
    return CANNOT if counts["cannot"] else 0


def run(name, options, servers):
    """Runs a scenario and catches any failure, so that the next ones run too."""
    if name in MOUNTING and os.geteuid() != 0:
        return run_in_namespace(name, options)
    scenario, variant = SCENARIOS[name]
    with World(options, servers) as world:
        try:
            return "ok", scenario(world, variant)
        except Cannot as error:
            return "cannot", str(error)
        except Exception:
            logs = [line for bridge in world.bridges if bridge.running
                    for line in bridge.running.log[-25:]]
            return "FAILED", traceback.format_exc() + "the bridges' logs:\n" + "".join(logs)
        finally:
            servers.ensure_running()


def run_in_namespace(name, options):
    """Runs a scenario in a user namespace, where mounting is allowed."""
    namespace = ["unshare", "-rm", "--"]
    try:
        subprocess.run([*namespace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "cannot", "mounting needs root or unprivileged user namespaces"
    words = [sys.executable, __file__, name, "--seed", str(options.seed)]
    done = subprocess.run([*namespace, *words], text=True, capture_output=True)
    outcome = {0: "ok", CANNOT: "cannot"}.get(done.returncode, "FAILED")
    return outcome, "in a user namespace:\n" + done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
