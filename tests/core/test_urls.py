"""The store's URL: what cannot be read is told without what stands in it; patience with servers that say nothing."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from penstock.errors import StoreUnavailable
from penstock.store import postgresql
from penstock.store.dialects import dialect_for
from penstock.store.sql import SqlStore


@pytest.mark.parametrize("url", ["not-a-url", "postgresql+psycopg://u:a@b:s3cret@h/db"])
def test_a_url_that_cannot_be_read_is_not_shown(url: str) -> None:
    """A password with an `@` and a `:` as they are became a part of the port, and stood in the error."""
    with pytest.raises(StoreUnavailable, match="cannot be read; write it as SQLAlchemy does") as caught:
        dialect_for(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_server_that_never_answers_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgresql.PATIENCE, "connect_timeout", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        taken: list[socket.socket] = []
        threading.Thread(target=lambda: taken.append(silent.accept()[0]), daemon=True).start()
        store = SqlStore(f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none", create=False)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.check_schema()
        assert time.monotonic() - began < 60
        for connection in taken:
            connection.close()
