"""Runs keybridge under callgrind and reads its profiles."""

import contextlib
import pathlib
import re
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field

from measure import load, messages_of
from targets import Bench, Keybridge

ALLOCATORS = ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc")


@dataclass
class Profile:
    """The instructions of one thread or of all threads."""

    total: int
    # The number of calls to the allocator.
    allocations: int
    # The instructions of each function by source file, excluding its callees.
    functions: Counter = field(default_factory=Counter)


class _Names:
    """Resolves compressed names: a name is written in full once and referred to by number later."""

    def __init__(self):
        self.names = {}

    def of(self, text):
        number, _, name = text.partition(" ")
        if name:
            self.names[number] = name
        return self.names.get(number, number)


def profile(text):
    """Parses a dump."""
    total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
    if not total:
        raise RuntimeError("the profile has no total")
    found, files, names = Profile(int(total[1]), 0), _Names(), _Names()
    function = file = callee = ""
    is_of_callee = False
    for line in text.splitlines():
        key, sign, value = line.partition("=")
        if not sign:
            # A cost line; the one after `calls=` is the inclusive cost of the callee.
            if line[:1] in "+-*0123456789" and line and not is_of_callee:
                found.functions[function, file] += int(line.split()[1])
            is_of_callee = False
        elif key == "fn":
            function = names.of(value)
        elif key in ("fl", "fi", "fe"):
            file = files.of(value)
        elif key in ("cfi", "cfl"):
            files.of(value)
        elif key == "cfn":
            callee = names.of(value)
        elif key == "calls":
            is_of_callee = True
            if re.sub(r"['@].*", "", callee) in ALLOCATORS:
                found.allocations += int(value.split()[0])
    return found


class Observed:
    """A keybridge under callgrind that has already served its first requests, which are atypical."""

    def __init__(self, bench, mock, bridge, folder):
        self.bench, self.mock, self.bridge, self.folder = bench, mock, bridge, folder
        for kind in ("whole", "bunched"):
            self.load(kind=kind, count=20, warmup=20)

    def load(self, **options):
        load(self.bench, messages_of(self.bridge), self.mock, **options)

    def profiles(self, **options):
        """The profiles of a load; one per thread with `--separate-threads=yes`."""
        self._control("--zero")
        self.load(**options)
        time.sleep(0.5)
        self._control("--dump")
        dumps = [path for path in self.folder.glob("out.*") if path.stat().st_size]
        found = [profile(path.read_text()) for path in dumps]
        for path in dumps:
            path.unlink()
        return found

    def _control(self, what):
        subprocess.run(["callgrind_control", what, str(self.bridge.process.pid)], check=True,
                       capture_output=True, timeout=60)


@contextlib.contextmanager
def observed(options, *flags):
    """A keybridge in its own folder; its records are verified at the end."""
    with tempfile.TemporaryDirectory(dir=options.dir) as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        wrapper = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--quiet", *flags]
        bench = Bench(options.bench)
        mock = bench.mock()
        stack.callback(mock.kill)
        bridge = Keybridge.fresh(options.keybridge, folder / "keybridge", mock.address, wrapper)
        stack.callback(bridge.kill)
        yield Observed(bench, mock, bridge, folder)
        bridge.stop()
        bridge.verify()
