"""A real S3 server on loopback, and a proxy before it that cuts, slows, refuses and counts."""

import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count

from moto.server import ThreadedMotoServer

_NUMBERS = count()
SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: 41\r\n\r\n<Error><Code>SlowDown</Code></Error>     "
)
FORBIDDEN = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: 45\r\n\r\n<Error><Code>AccessDenied</Code></Error>     "
)


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """Yield host and port of an S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()


def environment(address: tuple[str, int]) -> dict[str, str]:
    """What a client needs to know."""
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{address[0]}:{address[1]}",
    }


def new_bucket(address: tuple[str, int]) -> str:
    """Create a bucket of a new name (connections are kept by name) and return its URL."""
    name = f"bucket-{next(_NUMBERS)}"
    request = urllib.request.Request(f"http://{address[0]}:{address[1]}/{name}", method="PUT")
    urllib.request.urlopen(request).close()
    return f"s3://{name}"


class Proxy:
    """Forwards each connection to a server, and lets it carry one request.

    Attributes:
        answer: given the first bytes of a request, the bytes to answer instead; None forwards it.
        cut: given the first bytes of a request, after how many bytes of the answer to hang up.
        pause: seconds before each piece of an answer.
        piece: bytes of a piece.
        most: connections open at once, at most.
        requests: first lines of all requests.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self.answer: Callable[[bytes], bytes | None] = lambda _: None
        self.cut: Callable[[bytes], int | None] = lambda _: None
        self.pause, self.piece = 0.0, 65536
        self.most = self._open = 0
        self.requests: list[bytes] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open += 1
            self.most = max(self.most, self._open)
        try:
            with client, suppress(OSError):
                self._forward(client)
        finally:
            with self._lock:
                self._open -= 1

    def _forward(self, client: socket.socket) -> None:
        request = client.recv(65536)
        if not request:
            return
        self.requests.append(request.partition(b"\r\n")[0])
        instead = self.answer(request)
        if instead is not None:
            client.sendall(instead)
            return
        left = self.cut(request)
        with socket.create_connection(self._server) as server:
            server.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            upload = threading.Thread(target=_copy, args=(client, server), daemon=True)
            upload.start()
            while data := server.recv(self.piece):
                time.sleep(self.pause)
                if left is not None and len(data) >= left:
                    client.sendall(data[:left])
                    client.shutdown(socket.SHUT_RDWR)
                    return
                left = None if left is None else left - len(data)
                client.sendall(data)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
