"""The concurrency page as it is served: uvicorn in a thread of the test, on a port of its own."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from penstock.web.serving import configuration

TOKEN = "ann's own token, long enough"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@contextmanager
def served(app: Any, root_path: str = "") -> Iterator[str]:
    """The address of the application, without a slash at its end, while the block runs.

    `root_path`: the prefix that a proxy before it would take away.
    """
    config = configuration(app, host="127.0.0.1", port=0, root_path=root_path)
    server = uvicorn.Server(config)
    with config.bind_socket() as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def form_token(client: httpx.Client) -> str:
    """What the forms carry, read off one."""
    found = re.search(r'name="form_token" value="(\w+)"', client.get("/change").text)
    assert found is not None
    return found[1]
