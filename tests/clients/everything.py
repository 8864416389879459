"""The reference MCP server of the protocol's project, and a bridge that injects its tools."""

import contextlib
import os
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from bridge import Bridge

SERVER = pathlib.Path(os.environ["KEYBRIDGE_TEST_NPM"]) / "node_modules/.bin/mcp-server-everything"
START_SECONDS = 30
# The names under which models see the server's tools.
ECHO = "bmcp_everything_echo"
SUM = "bmcp_everything_get-sum"


@contextlib.contextmanager
def server():
    """Runs a server; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/mcp"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            ["node", SERVER, "streamableHttp"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={"PATH": os.environ["PATH"], "PORT": str(port)})
        try:
            _wait(lambda: process.poll() is not None or _answers(url))
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"the MCP server did not start:\n{log.read()}")
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextlib.contextmanager
def bridge():
    """A bridge with the server's tools; `mcp_url` is the URL of the server."""
    with server() as url:
        config = f'[[mcp_servers]]\nname = "everything"\nurl = "{url}"\n'
        with Bridge(config) as started:
            started.mcp_url = url
            admin = started.user("admin-of-tools", role="admin")
            _wait(lambda: ECHO in started.rest(admin, "/api/v1/mcp")["items"][0]["tools"])
            yield started


def check_injected(bridge, record, expected):
    """Checks the injected calls of a record, each executed by the server."""
    calls = [call for call in record["tool_usages"] if call["injected"]]
    assert [(call["tool"], call["arguments"]) for call in calls] == expected, calls
    for call in calls:
        assert call["server_url"] == bridge.mcp_url, call
        assert call["duration_ms"] is not None and call["result_bytes"] > 0, call
        assert call["result_is_error"] is False and call["invocation_error"] is None, call


def _answers(url):
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _wait(is_there):
    deadline = time.monotonic() + START_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            raise RuntimeError("the MCP server or its tools are not there")
        time.sleep(0.1)
