"""What a Prefect server, or Prefect Cloud, tells of its limits: plain requests, since no Prefect need be installed."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from penstock.errors import ConfigError, Fault

PAGE_ROWS = 200
SECONDS = 30.0
LIMITS = "v2/concurrency_limits"
BESIDES = {
    "concurrency_limits": "tag limits",
    "deployments": "deployments' limits",
    "work_pools": "work pools' limits",
    "work_queues": "work queues' limits",
}


def everything(api_url: str) -> tuple[list[Any], list[Fault]]:
    """Rows of all kinds that may hold a limit, and each kind that this API does not give out.

    Authenticated by `PREFECT_API_AUTH_STRING`, else `PREFECT_API_KEY`. Raises ConfigError when it cannot be asked.
    """
    address = urlsplit(api_url)
    if address.username or address.password:  # not in errors either, which name the source
        raise ConfigError([Fault("user and password belong into PREFECT_API_AUTH_STRING, as user:password")])
    rows: list[Any] = _rows(api_url, LIMITS)
    unseen: list[Fault] = []
    for path, what in BESIDES.items():
        try:
            rows += _rows(api_url, path)
        except _NotGiven as error:
            unseen.append(Fault(f"not given out ({error.faults[0].message}); look for them yourself", path=what))
    return rows, unseen


class _NotGiven(ConfigError):
    """The API answers, but not this."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Credentials go nowhere but to the address that was given."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _rows(api_url: str, path: str) -> list[Any]:
    rows: list[Any] = []
    while True:
        page = _post(f"{api_url.rstrip('/')}/{path}/filter", {"limit": PAGE_ROWS, "offset": len(rows)})
        if not isinstance(page, list):
            raise ConfigError([Fault(f"{path}: a list of limits is expected; is this the URL of an API?")])
        rows += page
        if len(page) < PAGE_ROWS:
            return rows


def _post(url: str, body: Mapping[str, int]) -> Any:
    headers = {"Content-Type": "application/json", "Accept": "application/json", **_credentials()}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers, method="POST")  # noqa: S310  # the hook takes http and https alone
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise _answered(error.code) from None
    except (OSError, ValueError) as error:  # refused, timed out, broken off, no JSON
        raise ConfigError([Fault(f"cannot be asked: {getattr(error, 'reason', error)}")]) from None


def _answered(status: int) -> ConfigError:
    remedy = {
        401: "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY to what it asks for",
        403: "the credentials must be allowed to read it",
        404: "the URL of an API ends in /api, or in the workspace",
    }
    fault = Fault(f"it answers {status}" + (f": {remedy[status]}" if status in remedy else ""))
    return _NotGiven([fault]) if status in (403, 404) else ConfigError([fault])


def _credentials() -> dict[str, str]:
    if auth := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(auth.encode()).decode('ascii')}"}
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    return {}
