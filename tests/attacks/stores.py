"""Attacks on what holds the records: damaged files, foreign ones, wrong clocks, open permissions."""

import contextlib
import os
import pathlib
import sqlite3
import subprocess
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

from arena import Cannot, all_settled, ask, check_served, model_request, records, until
from trail import BINARY, ENV
from upstream import Upstream

# Makes the wall clock of a process run ahead by KEYBRIDGE_TEST_AHEAD seconds.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    const char *ahead = getenv("KEYBRIDGE_TEST_AHEAD");
    if (!failed && id == CLOCK_REALTIME && ahead) now->tv_sec += atol(ahead);
    return failed;
}
"""
REQUESTS = 24
DAY = 86_400


@contextlib.contextmanager
def held(store):
    """Keeps a SQLite store from being written; a bridge takes it for slow at first."""
    database = sqlite3.connect(store.removeprefix("sqlite://"), isolation_level=None, timeout=10)
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        database.execute("ROLLBACK")
        database.close()


def killed_with_journal(bridge, token, number=REQUESTS):
    """Sends requests that only the journal holds, and kills the bridge; returns how many were answered."""
    with ThreadPoolExecutor(number) as pool, held(bridge.store):
        asked = [pool.submit(ask, bridge.url, token, "messages", f"journal {n}", timeout=10)
                 for n in range(number)]
        results = [sent.result() for sent in asked]
        bridge.kill()
    answered = sum(result.whole for result in results)
    assert answered > number // 2, [(result.status, result.error) for result in results][:5]
    return answered


def journals(bridge):
    files = [file for file in bridge.spool.rglob("*") if file.suffix.endswith("journal")]
    assert files, f"there is a journal: {list(bridge.spool.rglob('*'))}"
    return files


def frames(data):
    """Where the frames of a journal begin: a length, a CRC-32 of as many bytes, and these bytes."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at:at + 4], "little")
        body = data[at + 8:at + 8 + length]
        if 8 < length == len(body) and zlib.crc32(body) == int.from_bytes(data[at + 4:at + 8], "little"):
            yield at
            at += 8 + length
        else:
            at += 1


def damaged_journal(arena):
    """Flipped bits in the journal lose one record each at most, and somebody is told."""
    bridge = arena.serve(durability="process", on_outage="spool")
    token, _ = bridge.user("ada")
    check_served(bridge, token)
    before = len(records(bridge, user="ada"))
    answered = killed_with_journal(bridge, token)
    file = max(journals(bridge), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    starts = list(frames(data))
    assert len(starts) >= answered, f"{len(starts)} frames for {answered} answers"
    # The second byte of the length of one frame, and a byte within another.
    data[starts[len(starts) // 2] + 1] ^= 0x40
    data[starts[len(starts) // 4] + 60] ^= 0x40
    file.write_bytes(data)
    bridge.start()
    check_served(bridge, token)
    time.sleep(1)
    stored = len(records(bridge, user="ada")) - before - 1
    code, counts = bridge.recount(arena.simulator)
    told = any("ERROR" in line and "journal" in line for line in bridge.running.log)
    figures = f"{answered} answers, {stored} records after the start, verify {code}"
    assert stored >= answered - 2, f"records are lost: {figures}"
    assert told and code == 1 and counts["spool_leftovers"] > 0, f"nobody is told: {figures} {counts}"
    return figures


def zeroed_tail(arena):
    """A journal that ends in zeros, as after a power cut, is replayed without leftovers."""
    bridge = arena.serve(durability="process", on_outage="spool")
    token, _ = bridge.user("ada")
    check_served(bridge, token)
    answered = killed_with_journal(bridge, token)
    for file in journals(bridge):
        with open(file, "ab") as tail:
            tail.write(bytes(4096))
    bridge.start()
    check_served(bridge, token)
    all_settled(bridge)
    stored = len(records(bridge, user="ada")) - 2
    counts = bridge.cli("ledger", "verify", check=False)[0]
    figures = f"{answered} answers, {stored} records, {counts['spool_leftovers']} leftovers"
    assert stored >= answered and counts["spool_leftovers"] == 0, figures
    return figures


def foreign_spool(arena):
    """A bridge with another store leaves the files in a shared folder alone, and they are replayed when
    their own bridge returns."""
    spool = str(arena.dir / "shared-spool")
    one = arena.serve(durability="process", on_outage="spool", spool_dir=spool)
    token, _ = one.user("ada")
    check_served(one, token)
    answered = killed_with_journal(one, token)
    two = arena.serve(on_outage="spool", spool_dir=spool)
    other, _ = two.user("bob")
    check_served(two, other)
    time.sleep(2)
    two.stop()
    rejected = [file.name for file in pathlib.Path(spool).rglob("*")
                if file.suffix in (".rejected", ".corrupt")]
    one.start()
    check_served(one, token)
    all_settled(one)
    stored = len(records(one, user="ada")) - 2
    figures = f"{answered} answers, {stored} records"
    assert stored >= answered and not rejected, f"records are lost: {figures}, rejected: {rejected}"
    assert two.cli("interceptions") and len(records(two)) == 1, "the other store has its own alone"
    return figures


def clock_ahead(arena):
    """A clock that is 90 days ahead at a start does not let retention delete the records."""
    library = arena.dir / "clock.so"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, "-x", "c", "-", "-ldl"],
                       input=CLOCK.encode(), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Cannot("there is no C compiler") from error
    bridge = arena.serve(retention="60d")
    token, _ = bridge.user("ada")
    for number in range(20):
        model_request(bridge.url, token, f"prompt {number}")
    all_settled(bridge)
    bridge.stop()
    ahead = ["env", f"LD_PRELOAD={library}", f"KEYBRIDGE_TEST_AHEAD={90 * DAY}"]
    bridge.start(words=[*ahead, BINARY, "serve"])
    check_served(bridge, token)
    with contextlib.suppress(AssertionError):
        until(lambda: len(records(bridge)) < 20, "the records are gone", 5)
    left = len(records(bridge, user="ada")) - 1
    told = any("retention" in line and ("WARN" in line or "ERROR" in line) for line in bridge.running.log)
    bridge.stop()
    assert left == 20, f"{20 - left} of 20 records were deleted"
    assert told, "the log says why nothing was deleted"
    return f"{left} of 20 records left"


def readable_files(arena):
    """What a bridge writes is for its owner alone, and a configuration that all may read is noticed."""
    bridge = arena.serve(start={"preexec_fn": lambda: os.umask(0o022)})
    token, _ = bridge.user("ada")
    check_served(bridge, token)
    store = pathlib.Path(bridge.store.removeprefix("sqlite://"))
    files = [*store.parent.glob(store.name + "*"), *bridge.spool.rglob("*")]
    open_to_all = [f"{file.name} {file.stat().st_mode & 0o777:o}" for file in files
                   if file.is_file() and file.stat().st_mode & 0o077]
    config = bridge.dir / "keybridge.toml"
    config.chmod(0o644)
    checked = subprocess.run([BINARY, "check"], cwd=bridge.dir, env=ENV, text=True, capture_output=True,
                             timeout=60)
    text = checked.stdout + checked.stderr
    config.chmod(0o600)
    quiet = subprocess.run([BINARY, "check"], cwd=bridge.dir, env=ENV, text=True, capture_output=True,
                           timeout=60)
    assert not open_to_all, f"others may read: {open_to_all}"
    assert "keybridge.toml" in text and "read" in text and text != quiet.stdout + quiet.stderr, \
        f"no word about the configuration: {text[:300]}"
    return f"{len(files)} files with mode 0600"


def linked_store(arena):
    """Two processes do not serve from one SQLite file, by whatever name it is opened."""
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    store = pathlib.Path(bridge.store.removeprefix("sqlite://"))
    links = {"symbolic link": arena.dir / "link.db", "hard link": arena.dir / "hard.db",
             "path with dots": arena.dir / "x" / ".." / store.name}
    (arena.dir / "x").mkdir()
    links["symbolic link"].symlink_to(store)
    links["hard link"].hardlink_to(store)
    served = []
    for name, link in links.items():
        try:
            other = arena.serve(f"sqlite://{link}")
        except RuntimeError:
            continue
        served.append(name)
        other.kill()
    check_served(bridge, token)
    assert not served, f"a second process serves by: {served}"
    return f"{len(links)} names refused"


def emptied_store(arena):
    """A store that was emptied or exchanged while the bridge was down is not taken for a new one."""
    told = {}
    for how in ("removed", "emptied"):
        bridge = arena.serve()
        token, _ = bridge.user("ada")
        check_served(bridge, token)
        bridge.stop()
        store = pathlib.Path(bridge.store.removeprefix("sqlite://"))
        for file in store.parent.glob(store.name + "*"):
            if how == "removed" or file.suffix != ".db":
                file.unlink()
            else:
                file.write_bytes(b"")
        try:
            bridge.start()
        except RuntimeError as error:
            told[how] = "does not start"
            assert "store" in str(error), error
            continue
        verified = subprocess.run([BINARY, "ledger", "verify"], cwd=bridge.dir, env=ENV, text=True,
                                  capture_output=True, timeout=60)
        told[how] = f"verify ends with {verified.returncode}"
        assert verified.returncode != 0, f"{how}: {verified.stdout[:300]}"
    return str(told)


def repeated_ids(arena):
    """A provider that repeats an id leads to a warning, not to a verification that fails for ever."""
    bridge = arena.serve(upstream=arena.open(Upstream()))
    token, _ = bridge.user("ada")
    for number in range(3):
        assert model_request(bridge.url, token, f"prompt {number}").status == 200
    until(lambda: all(item["outcome"] == "completed" for item in records(bridge)), "all is settled")
    verified = subprocess.run([BINARY, "ledger", "verify"], cwd=bridge.dir, env=ENV, text=True,
                              capture_output=True, timeout=60)
    text = verified.stdout + verified.stderr
    assert verified.returncode == 0, f"verify ends with {verified.returncode}: {text[:400]}"
    assert "duplicate" in text or "repeat" in text, f"nobody is told: {text[:400]}"
    return "verify ends with 0 and a warning"


def refusals_in_outage(arena):
    """Thousands of refusals while the store is down are a few lines of the log."""
    count = 20_000 if arena.full else 2_000
    bridge = arena.serve("postgres", on_outage="refuse")
    token, _ = bridge.user("ada")
    check_served(bridge, token)
    arena.server.stop()
    try:
        until(lambda: model_request(bridge.url, token, "down").status == 503, "requests are refused")
        lines, began = len(bridge.running.log), time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            statuses = set(pool.map(lambda _: model_request(bridge.url, token, "down").status, range(count)))
        seconds = time.monotonic() - began
        lines = len(bridge.running.log) - lines
    finally:
        arena.server.start()
    until(lambda: ask(bridge.url, token, "messages", "back").whole, "requests succeed", 60)
    figures = f"{count} refusals in {seconds:.0f} s, {lines} lines"
    assert statuses == {503}, statuses
    assert lines < 200 + 40 * seconds, figures
    return figures


def unlogged_floods(arena):
    """Thousands of requests without a valid token are a few lines of the log."""
    count = 20_000 if arena.full else 2_000
    bridge = arena.serve()
    token, _ = bridge.user("ada")
    lines, began = len(bridge.running.log), time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: model_request(bridge.url, f"kb_wrong{n}", "hi").status, range(count)))
    seconds, lines = time.monotonic() - began, len(bridge.running.log) - lines
    check_served(bridge, token)
    figures = f"{count} requests in {seconds:.0f} s, {lines} lines"
    assert lines < 200 + 40 * seconds, figures
    return figures


ATTACKS = {
    "damaged-journal": damaged_journal, "zeroed-tail": zeroed_tail, "foreign-spool": foreign_spool,
    "clock-ahead": clock_ahead, "readable-files": readable_files, "linked-store": linked_store,
    "emptied-store": emptied_store, "repeated-ids": repeated_ids,
    "refusals-in-outage": refusals_in_outage, "unauthenticated-log": unlogged_floods,
}
