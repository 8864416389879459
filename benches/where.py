"""The breakdown of the cost of a single event and of a request of 1 KB: instructions by group, system calls,
and the share of CPU used in the kernel. The binary needs symbols."""

import pathlib
import re
from collections import Counter

import callgrind
import strace
from arithmetic import shares, slope
from measure import load, world
from tier_a import options_of, sizes_of

# The group of a function is that of the first crate (or C function) in its name; a function of the standard
# library that is generic over a type of a crate belongs to that crate.
GROUPS = (
    ("allocation", r"^(malloc|free|calloc|realloc|posix_memalign|aligned_alloc|cfree)\b|^_int_|^malloc_"
                   r"|^_mid_memalign|^unlink_chunk|^alloc_perturb|^sysmalloc|^s?brk|^__glibc_morecore|^tcache_"
                   r"|^(__rustc::)?__r(ust|dl|g)_\w*alloc|alloc::raw_vec|alloc::alloc::"),
    ("memcpy and similar", r"^_*mem(cpy|move|set|cmp|pcpy|chr)(?!\w*::)|^_*b?cmp\b|^_*str(len|cmp)"),
    ("SHA-256 and other digests", r"sha256|sha512|^aws_lc_|aws_lc_rs::|\bEVP_"),
    ("clock", r"\bstd::(sys::[\w:]*)?time::|\b_*clock_gettime|vdso"),
    ("tokio: scheduler, timers, sockets", r"\btokio(_util|_io_timeout)?::|\bmio::|atomic_waker|\bpow\b|_pow_"
                                          r"|parking_lot|slab::"),
    ("hyper: server", r"\bhyper(_util)?::[\w:]*(\bserver\b|role::Server|dispatch::Server)"),
    ("hyper: client", r"\bhyper(_util)?::[\w:]*(\bclient\b|role::Client|dispatch::Client)|\bhyper_rustls::"),
    ("HTTP, both sides", r"\bhyper(_util)?::|\bhttp(arse|_body|_body_util)?::|\bbytes::|\bwant::"),
    ("axum and tower", r"\b(axum|axum_core|tower|tower_\w+|matchit|futures_\w+)::"),
    ("keybridge: relay and observation", r"keybridge_net::"
                                         r"|keybridge_bridge::(relay|body|settlement|observe|stream|watch)"),
    ("keybridge: request line", r"\bkeybridge(_bridge|_console|_providers|_mcp|_policy|_telemetry|_identity)?::"),
    ("wire: JSON, SSE, search", r"\bkeybridge_wire::|\bserde(_json)?::|\bmemchr::|simdutf8::|slice::memchr"),
    ("ledger, in serving threads", r"\bkeybridge_ledger::|\brusqlite::|\bsqlite3|\b(uuid|jiff|base64)::"),
    ("metrics, logs", r"\bprometheus_client::|\btracing(_\w+)?::|arc_swap::"),
    ("C library: calls, locks", r"^_*(pthread|recv|send|accept|write|read|epoll|futex|syscall|errno|getrandom)"
                                r"|^(close|shutdown|setsockopt|mprotect)\b|^_dl_|^_*tls_get|@@GLIBC"),
)
STANDARD = r"\b(core|alloc|std|hashbrown|rand\w*|foldhash)::|^__rustc|^<(str|u\d+|f\d+)\b|^__(float|udiv|umod)"
LEDGER, OTHER = "ledger's own threads", "other"
KINDS = {"event": "event", "request": "request of 1 KB"}
# The events and requests of the run that separates user and kernel time: some seconds, as the clock ticks every 10 ms.
LONG = {"event": 200_000, "request": 20_000}


def group_of(function):
    """The earliest match decides; of several at the same position, the first in the table."""
    name = re.sub(r"'\d+$", "", function)
    found = [(match.start(), number) for number, (_, pattern) in enumerate(GROUPS)
             if (match := re.search(pattern, name))]
    if found:
        return GROUPS[min(found)[1]][0]
    return "standard library" if re.search(STANDARD, name) else OTHER


def is_of_ledger(profile):
    """Whether a thread mostly writes to the store."""
    writing = sum(count for (name, file), count in profile.functions.items()
                  if "rusqlite" in name or "sqlite3" in name + file)
    return writing * 10 > profile.total


def grouped(profiles):
    """The instructions of all threads by group."""
    groups = Counter()
    for profile in profiles:
        of_ledger = is_of_ledger(profile)
        for (name, _), count in profile.functions.items():
            groups[LEDGER if of_ledger else group_of(name)] += count
    return groups


def slopes(small, large):
    """The cost of one more unit for each name, from two measurements `(size, counts)`."""
    names = small[1].keys() | large[1].keys()
    return {name: slope((small[0], small[1].get(name, 0)), (large[0], large[1].get(name, 0)))
            for name in names}


def instructions(options):
    """The instructions per unit of each kind by group, and those of functions without a group."""
    found, unknown = {}, Counter()
    with callgrind.observed(options, "--separate-threads=yes") as seen:
        for kind in KINDS:
            points = []
            for size in sizes_of(kind):
                profiles = seen.profiles(**options_of(kind, size))
                points.append((size, grouped(profiles)))
                for profile in profiles:
                    unknown.update({name: count for (name, _), count in profile.functions.items()
                                    if group_of(name) == OTHER and not is_of_ledger(profile)})
            found[kind] = slopes(*points)
    return found, unknown


def system_calls(options):
    """The calls per unit and the microseconds per call of the serving thread, for each kind."""
    found = {}
    for kind in KINDS:
        points = []
        for size in sizes_of(kind):
            calls = strace.serving(options, **options_of(kind, size))
            points.append((size, Counter(name for name, _ in calls)))
        times = {name: [seconds * 1e6 for of, seconds in calls if of == name and seconds is not None]
                 for name in points[1][1]}
        found[kind] = {name: (count, sum(times[name]) / max(len(times[name]), 1))
                       for name, count in slopes(*points).items() if count > 0.005}
    return found


def user_and_kernel(options):
    """The microseconds of CPU per unit in user mode and in the kernel, without instrumentation."""
    found = {}
    with world(options) as environment:
        target = environment.target("keybridge")
        for kind in KINDS:
            count = LONG[kind] // (4 if options.quick else 1)
            before = ticks(environment.bridge)
            load(environment.bench, target, environment.mock, **options_of(kind, count))
            after = ticks(environment.bridge)
            found[kind] = [(late - early) * 10_000 / count for early, late in zip(before, after)]
        environment.bridge.stop()
        environment.bridge.verify()
    return found


def ticks(process):
    """The user and kernel time of the serving threads in hundredths of a second."""
    user = kernel = 0
    for task in pathlib.Path(f"/proc/{process.process.pid}/task").glob("*/stat"):
        name, _, rest = task.read_text().rpartition(")")
        if "(ledger-" not in name:
            fields = rest.split()
            user, kernel = user + int(fields[11]), kernel + int(fields[12])
    return user, kernel


def instruction_table(found):
    heads = " | ".join(f"instructions per {KINDS[kind]} | %" for kind in found)
    lines = [f"| group | {heads} |", "|---|" + "--:|" * 2 * len(found)]
    part = {kind: shares(of) for kind, of in found.items()}
    names = {name for of in found.values() for name in of}
    for name in sorted(names, key=lambda name: -max(part[kind].get(name, 0) for kind in found)):
        lines.append(f"| {name} | " + " | ".join(
            f"{of.get(name, 0):,.0f} | {part[kind].get(name, 0):.1%}" for kind, of in found.items()) + " |")
    return "\n".join([*lines, "| all | " + " | ".join(
        f"{sum(of.values()):,.0f} | {sum(part[kind].values()):.1%}" for kind, of in found.items()) + " |"])


def run(options):
    found, unknown = instructions(options)
    print(instruction_table(found) + "\n")
    if unknown:
        print("other: " + ", ".join(f"{name} {count}" for name, count in unknown.most_common(8)) + "\n")
    calls, split = system_calls(options), user_and_kernel(options)
    for kind, what in KINDS.items():
        user, kernel = split[kind]
        print(f"{what}: CPU {user + kernel:.1f} µs, {user:.1f} in user mode and {kernel:.1f} in the kernel;  "
              "system calls (and the time of each, including waiting and strace's overhead): " + ", ".join(
                  f"{name} {count:.2f} ({time:.0f} µs)" for name, (count, time) in sorted(
                      calls[kind].items(), key=lambda item: -item[1][0])))
    return 0
