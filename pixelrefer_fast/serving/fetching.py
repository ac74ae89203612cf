"""Images and videos of other hosts, where whoever runs the server names these hosts."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from pixelrefer_fast.checks.values import shown

PORTS = {"https": 443, "http": 80}
_CHUNK = 1 << 16


class Fetcher:
    """Fetches from some hosts: no redirect is followed, no address of a private network is connected to.

    Args:
        hosts: `HOST`, on the port of its scheme, or `HOST:PORT`; none: nothing is fetched.
        most_bytes: of an answer.
        seconds: that all of it may take.
    """

    def __init__(self, hosts: Sequence[str], most_bytes: int, seconds: float) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._most = most_bytes
        self._seconds = seconds

    def fetch(self, url: str, param: str) -> bytes:
        """What is there.

        Raises:
            ValueError: naming `param`, what was expected and what came; no address of a machine is in it.
        """
        parts, host, port = self._target(url, param)
        try:
            address = _public_address(host, port)
        except OSError:
            raise ValueError(f"{param}: expected a host that has an address, got {shown(host)}") from None
        if address is None:
            raise ValueError(f"{param}: expected a host with public addresses, got {shown(host)}")
        try:
            return self._answer(parts, host, port, address, param)
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"{param}: expected an answer of {shown(host)}, got {type(error).__name__}") from None

    def _target(self, url: str, param: str) -> tuple[SplitResult, str, int]:
        if not self._hosts:
            raise ValueError(f"{param}: expected a data: URL (this server fetches none), got {shown(url)}")
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS[parts.scheme]
        except (ValueError, KeyError):
            raise ValueError(f"{param}: expected an http: or https: URL, got {shown(url)}") from None
        host = parts.hostname or ""
        usual = port == PORTS[parts.scheme] and host in self._hosts
        if parts.username is not None or not (usual or f"{host}:{port}" in self._hosts):
            raise ValueError(f"{param}: expected a URL of a host that this server fetches from, got {shown(url)}")
        return parts, host, port

    def _answer(self, parts: SplitResult, host: str, port: int, address: str, param: str) -> bytes:
        begin = time.monotonic()
        with contextlib.closing(socket.create_connection((address, port), self._seconds)) as plain:
            used = [plain]
            # a peer that sends a byte now and then is never idle: time is over when it is over
            ending = threading.Timer(max(0.0, begin + self._seconds - time.monotonic()), _shut, [used])
            ending.start()
            try:
                if parts.scheme == "https":
                    context = ssl.create_default_context()
                    secure = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
                    used[0] = secure
                    secure.do_handshake()
                connection = http.client.HTTPConnection(host, port)
                connection.sock = used[0]
                path = parts.path or "/"
                connection.putrequest(
                    "GET", path + (f"?{parts.query}" if parts.query else ""), skip_accept_encoding=True
                )
                connection.endheaders()
                with connection.getresponse() as answer:
                    if answer.status != 200:
                        raise ValueError(f"{param}: expected status 200 and no redirect, got {answer.status}")
                    content = bytearray()
                    while chunk := answer.read(_CHUNK):
                        content += chunk
                        if len(content) > self._most:
                            raise ValueError(f"{param}: expected at most {self._most} bytes, got more")
                    if answer.length:  # what was announced has not come
                        raise http.client.IncompleteRead(b"")
                    if time.monotonic() - begin >= self._seconds:
                        raise TimeoutError
                    return bytes(content)
            finally:
                ending.cancel()
                used[0].close()


def _public_address(host: str, port: int) -> str | None:
    """An address to connect to: it is looked up once, so that it is the one that was checked. None: one is private."""
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    return found[0] if found and all(map(is_public, found)) else None


def is_public(address: str) -> bool:
    """Whether an address belongs to no private, local or reserved network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        # what stands for an address of version 4 is judged as that
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return found.is_global and not found.is_multicast


def _shut(used: list[socket.socket]) -> None:
    with contextlib.suppress(OSError):  # it has ended
        socket.socket.shutdown(used[0], socket.SHUT_RDWR)  # of a TLS connection too: its own forgets what is read
