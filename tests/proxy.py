"""A TCP proxy between a holder and its database, that can cut the connections or swallow what goes over them."""

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
        self._swallowing, self._cutting, self._closed = False, False, threading.Event()
        self._thread = threading.Thread(target=self._forward, daemon=True)

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join(5)

    def swallow(self) -> None:
        """From now on nothing arrives on either side, and nobody is told: connections stay open, new ones hang."""
        self._swallowing = True

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
            while not self._closed.wait(0.05 if self._swallowing else 0):
                for key, _ in selector.select(0.05) if not self._swallowing else ():
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
        for one in (here, there):
            selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, one: socket.socket, selector: selectors.BaseSelector) -> None:
        if one not in self._pairs:  # its other end closed in the same round
            return
        other = self._pairs[one]
        with contextlib.suppress(OSError):
            if data := one.recv(65536):
                other.sendall(data)
                return
        for end in (one, other):
            with contextlib.suppress(KeyError, ValueError):
                selector.unregister(end)
            end.close()
            self._pairs.pop(end, None)
