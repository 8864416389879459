"""Fills a store with generated interceptions, and with what the product derives from them."""

import subprocess
import tempfile
import time

from targets import ENV

# Commands of the product that fill in what is derived from records, as far as the binary has them.
DERIVED = (("ledger", "rollups", "--rebuild"), ("ledger", "search", "--rebuild"))
MAX_SECONDS = 4 * 3600


def product(binary, url, *command):
    """Runs a command on a store; returns its exit code and what it printed."""
    # Without a configuration, and with a directory of its own for the spool.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        done = subprocess.run([binary, "--store", url, *command], cwd=folder, env=ENV, text=True,
                              capture_output=True, timeout=MAX_SECONDS)
    return done.returncode, (done.stdout + done.stderr).strip()


def has(binary, command):
    """Whether the binary has a command."""
    words = [word for word in command if not word.startswith("-")]
    done = subprocess.run([binary, *words, "--help"], env=ENV, capture_output=True, timeout=60)
    return done.returncode == 0


def fill(options, url, interceptions, days=30, users=200):
    """Seeds a store and derives the rest; the exit code is that of the last command that was run."""
    done = subprocess.run([options.bench, "seed", "--store", url, "--interceptions", str(interceptions),
                           "--days", str(days), "--users", str(users)], env=ENV, timeout=MAX_SECONDS)
    if done.returncode != 0:
        return done.returncode
    for command in (*DERIVED, ("ledger", "verify")):
        if not has(options.keybridge, command):
            print(f"keybridge {' '.join(command)}: not there", flush=True)
            continue
        began = time.monotonic()
        code, printed = product(options.keybridge, url, *command)
        print(f"keybridge {' '.join(command)}: {time.monotonic() - began:.1f} s\n{printed}", flush=True)
        if code != 0:
            return code
    return 0


def run(options):
    return fill(options, options.seed, options.interceptions, options.days, options.users)
