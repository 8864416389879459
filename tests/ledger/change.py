"""Changes of a bridge under load that clients must not notice: its configuration, its certificate, and the
process itself."""

import json
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request

from trail import BINARY, Load
from world import at_rest, summary, until

# systemd's protocol: the socket is descriptor 3, and LISTEN_PID names the process.
ACTIVATED = 'exec 3<&"$1"; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" serve'


def check_all(world, bridge, results):
    """Checks that no client noticed anything and that everything is recorded."""
    failed = [result for result in results if not result.whole]
    assert not failed, (len(failed), len(results), failed[:3])
    at_rest(bridge)
    world.check_whole(bridge.store, results)
    verified = bridge.verify(world.simulator)
    assert verified["interceptions"] == len(results), (verified, len(results))
    return summary(verified, requests=len(results),
                   slowest=f"{max(result.seconds for result in results):.2f} s")


def times_logged(bridge, text):
    return sum(text in line for line in bridge.running.log)


def reload(world, kind):
    """Valid and invalid configurations are reloaded repeatedly, and the certificate is replaced."""
    rounds = 200 if world.soak else 20
    bridge = world.bridge(world.store(kind))
    token, _ = bridge.user("ada")
    admin, _ = bridge.user("root", role="admin")
    load = Load([bridge.url], token, 16, world.seed, delay_ms=10)
    for number in range(rounds):
        bridge.configure(tools=number % 3 == 0, spare_key=number % 2 == 0, more=[
            "[limits]", f"requests_per_second = {1_000 + number}",
            "[telemetry.log]", 'level = "%s"' % ("info", "info,keybridge_bridge=warn")[number % 2]])
        read = times_logged(bridge, "configuration reloaded")
        bridge.running.process.send_signal(signal.SIGHUP)
        until(lambda: times_logged(bridge, "configuration reloaded") > read, "it was reloaded")
        bridge.configure(more=["[limits]", "requests_per_second = -1", "burst = 3", "[nothing]"])
        kept = times_logged(bridge, "configuration not reloaded")
        bridge.running.process.send_signal(signal.SIGHUP)
        until(lambda: times_logged(bridge, "configuration not reloaded") > kept, "it was refused")
    # The file is still invalid: all problems are reported, and the previous configuration stays active.
    status, refused = reload_by_api(bridge, admin)
    paths = [problem["path"] for problem in refused["error"]["problems"]]
    assert (status, len(paths)) == (422, 3), (status, refused)
    assert reload_by_api(bridge, token)[0] == 403
    bridge.configure(tools=True, more=["[telemetry]", 'metrics_listen = "127.0.0.1:0"'])
    status, result = reload_by_api(bridge, admin)
    assert (status, result["restart_needed"]) == (200, ["telemetry.metrics_listen"]), (status, result)
    servers = api(bridge, admin, "mcp")["items"]
    assert [server["status"] for server in servers] == ["ready"], servers
    results = load.stop()
    assert len(results) > 100, len(results)
    bridge.stop()
    return check_all(world, bridge, results) + f", reloads {rounds}, refused {rounds}; " + replaced(
        world, kind)


def api(bridge, token, path, method="GET"):
    request = urllib.request.Request(f"{bridge.url}/api/v1/{path}", method=method,
                                     headers={"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def reload_by_api(bridge, token):
    try:
        return 200, api(bridge, token, "config/reload", "POST")
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def replaced(world, kind):
    """A certificate is replaced; one that does not match its key is rejected."""
    folder = world.dir / "certificates"
    folder.mkdir()
    made = [make_certificate(folder / name) for name in ("one", "two")]
    (key, certificate) = (folder / "key.pem", folder / "certificate.pem")

    def show(number, key_of=None):
        certificate.write_text(made[number][0])
        key.write_text(made[number if key_of is None else key_of][1])
    show(0)
    lines = ["[server.tls]", f"certificate = {json.dumps(str(certificate))}",
             f"key = {json.dumps(str(key))}"]
    bridge = world.bridge(world.store(kind))
    bridge.stop()
    bridge.configure(more=lines)
    bridge.start()
    assert bridge.url.startswith("https://"), bridge.url
    host, port = bridge.url.removeprefix("https://").split(":")
    address = (host, int(port))

    def shown():
        # Returns the certificate whoever signed it.
        return ssl.get_server_certificate(address).strip()
    assert shown() == made[0][0].strip()
    with secure(address, folder / "one.crt") as open_before:
        for number, key_of, expected in ((1, None, 1), (0, 1, 1), (0, None, 0)):
            show(number, key_of)
            before = times_logged(bridge, "reload: configuration")
            bridge.running.process.send_signal(signal.SIGHUP)
            until(lambda: times_logged(bridge, "reload: configuration") > before, "it was read")
            assert shown() == made[expected][0].strip(), (number, key_of)
        open_before.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: open_before.recv(65536), b""))
    assert answer.endswith(b'{"status":"ok"}'), answer
    # A different TLS client.
    curl = ["curl", "-sS", "--cacert", folder / "one.crt", "--connect-to",
            f"localhost:443:{host}:{port}", "https://localhost/healthz"]
    assert subprocess.run(curl, capture_output=True, text=True).stdout == '{"status":"ok"}'
    bridge.stop()
    return "certificates replaced 2, refused 1"


def make_certificate(path):
    certificate, key = path.with_suffix(".crt"), path.with_suffix(".key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate.read_text(), key.read_text()


def secure(address, authority):
    context = ssl.create_default_context(cafile=str(authority))
    # The server closes without a TLS close_notify, as most servers do.
    context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    plain = socket.create_connection(address, timeout=30)
    return context.wrap_socket(plain, server_hostname="localhost")


def restart_socket(world, kind):
    """The process is replaced by one with the same socket, as by systemd."""
    rounds = 20 if world.soak else 3
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        number = listening.fileno()
        start = {"words": ["bash", "-c", ACTIVATED, BINARY, str(number)], "pass_fds": [number]}
        bridge = world.bridge(world.store(kind), start=start)
        assert bridge.url == "http://127.0.0.1:%d" % listening.getsockname()[1]
        token, _ = bridge.user("ada")
        load = Load([bridge.url], token, 16, world.seed, delay_ms=10)
        for _ in range(rounds):
            time.sleep(1)
            bridge.stop()
            bridge.start(**start)
        time.sleep(1)
        results = load.stop()
        bridge.stop()
    return check_all(world, bridge, results) + f", restarts {rounds}"


def restart_port(world, kind):
    """The next process starts beside the previous one, which is then stopped."""
    rounds = 20 if world.soak else 3
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "127.0.0.1:%d" % free.getsockname()[1]
    server = {"listen": address, "reuse_port": True}
    bridge = world.bridge(world.store(kind), server=server)
    token, _ = bridge.user("ada")
    load = Load([bridge.url], token, 16, world.seed, delay_ms=10)
    for _ in range(rounds):
        time.sleep(1)
        before = bridge.running
        bridge.start()
        # Both processes serve for a while.
        time.sleep(0.5)
        assert before.stop() == 0, before.log[-20:]
    time.sleep(1)
    results = load.stop()
    bridge.stop()
    return check_all(world, bridge, results) + f", restarts {rounds}"
