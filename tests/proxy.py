"""A TCP proxy between a holder and its database, that cuts connections, or swallows what goes over them or back."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType


class TcpProxy:
    """Listens on a free port of this machine, `port`, and forwards to `host`:`to_port`."""

    def __init__(self, host: str, to_port: int) -> None:
        self._to = (host, to_port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._swallows_asks = self._swallows_replies = self._cutting = False
        self._closed = threading.Event()
        self._to_drop = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._forward, daemon=True)

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join(5)

    def swallow(self, *, asks: bool = True, replies: bool = True) -> None:
        """From now on nothing arrives at the server (`asks`), or back (`replies`), and nobody is told of it."""
        self._swallows_asks, self._swallows_replies = asks, replies

    def drop_reply(self) -> None:
        """The next reply does not arrive: its connection is closed instead, so that nobody knows what was done."""
        self._to_drop.release()

    def cut(self) -> None:
        """From now on every connection, old and new, is closed."""
        self._cutting = True
        for one in list(self._pairs):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """After `cut`: new connections are let through again."""
        self._cutting = False

    def _forward(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listening, selectors.EVENT_READ)
            while not self._closed.is_set():
                for key, _ in selector.select(0.05):
                    if key.fileobj is self._listening:
                        with contextlib.suppress(OSError):
                            self._accept(selector)
                    else:
                        self._pass_on(key.fileobj, selector)
        for one in self._pairs:
            one.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        here, _ = self._listening.accept()
        if self._cutting:
            here.close()
            return
        there = socket.create_connection(self._to)
        self._pairs |= {here: there, there: here}
        self._clients.add(here)
        for one in (here, there):
            selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, one: socket.socket, selector: selectors.BaseSelector) -> None:
        if one not in self._pairs:  # its other end closed in the same round
            return
        other, asks = self._pairs[one], one in self._clients
        with contextlib.suppress(OSError):
            data = one.recv(65536)
            if data and (self._swallows_asks if asks else self._swallows_replies):
                return
            if data and (asks or not self._to_drop.acquire(blocking=False)):
                other.sendall(data)
                return
        for end in (one, other):
            with contextlib.suppress(KeyError, ValueError):
                selector.unregister(end)
            end.close()
            self._pairs.pop(end, None)
            self._clients.discard(end)
