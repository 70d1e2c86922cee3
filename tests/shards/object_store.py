"""A real S3 server on loopback (moto), behind a proxy that does to requests what networks do."""

import contextlib
import http.client
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUCKET = "shards"
SLOW = 1.2  # seconds of the fault "slow": more than READ_TIMEOUT
READ_TIMEOUT = 0.5  # seconds that clients of the tests wait
_REFUSALS = {
    "429": (429, "TooManyRequests"),
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "404": (404, "NoSuchKey"),
    "416": (416, "InvalidRange"),
    "denied": (403, "AccessDenied"),
}
FAULTS = (*_REFUSALS, "reset", "reset in the body", "short", "cut", "slow", "whole")
"""``short``: half of the body, and a Content-Length that agrees; ``cut``: the connection ends amid
the body; ``whole``: a request for a range gets everything, with status 200."""
CORRUPT = "corrupt"
"""One more fault: every 64th byte of the body is inverted."""
_OF_BODIES = ("reset in the body", "short", "cut", "whole", CORRUPT)


@dataclass
class Rule:
    """Which requests a fault strikes; one of bodies leaves HEAD alone, and does not count it."""

    fault: str
    path: str = ""
    """Regular expression that the path must contain."""
    times: int | None = 1
    """How many requests; None: all of them."""
    method: str = ""
    """Regular expression that the method must match."""
    skip: int = 0
    """Matching requests that come through first."""
    struck: int = 0


@dataclass
class Request:
    """One request that passed the proxy."""

    method: str
    path: str
    range: str | None
    fault: str | None


@dataclass
class Proxy:
    """The way to the store."""

    port: int
    rules: list[Rule] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_of(self, method: str, path: str, wanted: str | None) -> str | None:
        """Return what shall befall a request, and remember it."""
        with self.lock:
            striking = (rule for rule in self.rules if self._strikes(rule, method, path))
            fault = next((rule.fault for rule in striking), None)
            self.requests.append(Request(method, path, wanted, fault))
            return fault

    def _strikes(self, rule: Rule, method: str, path: str) -> bool:
        if not (re.search(rule.path, path) and re.match(rule.method, method)):
            return False
        if method == "HEAD" and rule.fault in _OF_BODIES:
            return False
        if rule.skip:
            rule.skip -= 1
            return False
        if rule.times is not None and rule.struck >= rule.times:
            return False
        rule.struck += 1
        return True

    def clear(self) -> None:
        """Forget rules and requests."""
        with self.lock:
            self.rules.clear()
            self.requests.clear()
            self.most_in_flight = 0

    def count(self, path: str = "", method: str = "GET") -> int:
        """Return how many requests there were."""
        return sum(one.method == method and path in one.path for one in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer takes 40 ms
    proxy: Proxy
    upstream: int

    def _answer(self) -> None:
        proxy = self.proxy
        with proxy.lock:
            proxy.in_flight += 1
            proxy.most_in_flight = max(proxy.most_in_flight, proxy.in_flight)
        try:
            self._forward(proxy.fault_of(self.command, self.path, self.headers.get("Range")))
        finally:
            with proxy.lock:
                proxy.in_flight -= 1

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - http.server's names

    def _forward(self, fault: str | None) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault in _REFUSALS:
            return self._refuse(*_REFUSALS[fault])
        if fault == "reset":
            return self._reset()
        if fault == "slow":
            time.sleep(SLOW)
        headers = dict(self.headers.items())
        headers.pop("Expect", None)  # http.server has answered it
        if fault == "whole":
            headers.pop("Range", None)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.upstream)) as store:
            store.connect()
            if sys.platform == "linux":
                store.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # likewise
            store.request(self.command, self.path, sent, headers)
            answer = store.getresponse()
            body = answer.read()
        stated = len(body) if self.command != "HEAD" else answer.getheader("Content-Length", "0")
        if fault == "short":
            body = body[: len(body) // 2]
            stated = len(body)
        if fault == CORRUPT:
            body = bytes(b ^ 0xFF if i % 64 == 0 else b for i, b in enumerate(body))
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(stated))
        self.end_headers()
        if fault in ("cut", "reset in the body"):
            body = body[: len(body) // 2]
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)
        if fault == "cut":
            self.close_connection = True
        if fault == "reset in the body":
            self.wfile.flush()
            self._reset()

    def _refuse(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def _reset(self) -> None:
        linger = struct.pack("ii", 1, 0)  # what is not sent is dropped, the peer gets an RST
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ValueError, OSError):  # clients give up, too
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(ConnectionError, ValueError, OSError):
            super().finish()

    def log_message(self, *args: Any) -> None:
        """Be quiet."""


@dataclass
class Store:
    """The server and the way to it."""

    proxy: Proxy
    upstream: int

    def upload(self, folder: Path, prefix: str) -> str:
        """Put the files of a folder; return their URL."""
        for file in sorted(folder.iterdir()):
            self.put(f"{prefix}/{file.name}", file.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def put(self, key: str, content: bytes) -> None:
        """Put an object, past the proxy."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.upstream)) as store:
            store.request("PUT", f"/{BUCKET}/{key}", content, {"Authorization": SIGNED})
            assert store.getresponse().status == 200

    def settings(self) -> dict[str, Any]:
        """What fsspec is to know of the store: no patience."""
        return {
            "endpoint_url": f"http://127.0.0.1:{self.proxy.port}",
            "key": "test",
            "secret": "test",
            "client_kwargs": {"region_name": "us-east-1"},
            "config_kwargs": {
                "read_timeout": READ_TIMEOUT,
                "connect_timeout": READ_TIMEOUT,
            },
        }


SIGNED = (
    "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=x"
)


@contextlib.contextmanager
def serve() -> Iterator[Store]:
    """Run server and proxy."""
    upstream = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(upstream)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(upstream, server)
        proxy = Proxy(0)
        handler = type("Handler", (_Handler,), {"proxy": proxy, "upstream": upstream})
        gate = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        gate.daemon_threads = True
        proxy.port = gate.server_address[1]
        threading.Thread(target=gate.serve_forever, daemon=True).start()
        store = Store(proxy, upstream)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", upstream)) as client:
            client.request("PUT", f"/{BUCKET}", headers={"Authorization": SIGNED})
            assert client.getresponse().status == 200
        yield store
        gate.shutdown()
        gate.server_close()
    finally:
        server.kill()
        server.wait()


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("the S3 server does not start")
