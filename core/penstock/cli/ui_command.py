"""`penstock ui`: the concurrency page."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock.cli import EXIT_NO

if TYPE_CHECKING:
    from penstock.web.access import Access, Tokens

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
TOKEN_VARIABLE = "PENSTOCK_UI_TOKEN"  # noqa: S105  # the name of a variable
NEEDED = ("fastapi", "jinja2", "uvicorn")


@click.command("ui")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any that is free.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, exists=True),
    help=f"Tokens of those who may act, NAME:TOKEN in each line; else {TOKEN_VARIABLE}.",
)
@click.option(
    "--trust-proxy-header",
    metavar="HEADER",
    help="The name of the user in this header, set by a proxy that asks who they are, such as X-Forwarded-User.",
)
@click.option(
    "--proxy",
    "proxies",
    multiple=True,
    metavar="ADDRESS",
    help="The address of that proxy, again for more; else the loopback ones.",
)
@click.option("--actor", "actors", multiple=True, metavar="USER", help="Of the proxy's users only these act.")
@click.option("--allow-host", "names", multiple=True, metavar="NAME", help="A name that the page goes by, too.")
@click.option("--root-path", default="", metavar="/PREFIX", help="The prefix that a proxy takes away.")
@click.pass_obj
def command(
    store_url: str | None,
    host: str,
    port: int,
    token_file: str | None,
    trust_proxy_header: str | None,
    proxies: tuple[str, ...],
    actors: tuple[str, ...],
    names: tuple[str, ...],
    root_path: str,
) -> int:
    """Serve the concurrency page: limits, holders, queues; with a token also the means to change them.

    It listens on this machine alone, and is read-only without a token. Elsewhere it asks a token or a proxy's user of
    everybody.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        click.echo(f"penstock: {', '.join(missing)} missing; pip install 'penstock[web]'", err=True)
        return EXIT_NO
    import uvicorn

    from penstock.connection import connect
    from penstock.web.app import web_app
    from penstock.web.serving import configuration

    tokens = _tokens(token_file)
    if not _is_loopback(host) and not tokens and trust_proxy_header is None:
        raise click.UsageError(
            f"--host {host} shows the page to others: give a token ({TOKEN_VARIABLE} or --token-file), or the header "
            "of a proxy that asks who they are (--trust-proxy-header)"
        )
    access, asked = _access(tokens, trust_proxy_header, proxies, actors, open_to_all=_is_loopback(host))
    known = {*LOOPBACK_NAMES, *(name.lower() for name in names)}
    if not _is_loopback(host):
        known.add(host if ":" not in host else f"[{host}]")
    with connect(store_url, lazy=True) as engine:
        prefix = f"/{root_path.strip('/')}" if root_path.strip("/") else ""
        app = web_app(engine, access, tokens=asked, hosts=known)
        config = configuration(app, host=host, port=port, root_path=prefix)
        with contextlib.closing(config.bind_socket()) as listening:
            listening.listen()  # who is told the address may come at once
            where = f"[{host}]" if ":" in host else host
            address = f"http://{where}:{listening.getsockname()[1]}{prefix}/"
            click.echo(
                f"{address}  ({'a token acts' if asked else 'read-only' if not trust_proxy_header else 'proxy'})"
            )
            uvicorn.Server(config).run(sockets=[listening])
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tokens(file: str | None) -> Mapping[str, str]:
    """Name → token, of the file or the environment. Raises click.UsageError."""
    from penstock.web.access import SHORTEST_TOKEN

    text = Path(file).read_text(encoding="utf-8") if file is not None else os.environ.get(TOKEN_VARIABLE, "")
    tokens: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, colon, token = line.rpartition(":")
        name = name if colon else "token"
        if len(token) < SHORTEST_TOKEN or name in tokens:
            raise click.UsageError(
                f"{file or TOKEN_VARIABLE}: NAME:TOKEN in each line, each name once, a token of at least "
                f"{SHORTEST_TOKEN} characters; `openssl rand -hex 16` makes one"
            )
        tokens[name] = token
    return tokens


def _access(
    tokens: Mapping[str, str],
    header: str | None,
    proxies: tuple[str, ...],
    actors: tuple[str, ...],
    *,
    open_to_all: bool,
) -> tuple[Access, Tokens | None]:
    """Who looks and who acts, and whose tokens are taken."""
    from penstock.web.access import LookOnly, Nobody, ProxyUser, Tokens

    if header is None and (proxies or actors):
        raise click.UsageError("--proxy and --actor say more of --trust-proxy-header, which is not given")
    asked = Tokens(tokens, all_look=open_to_all and header is None) if tokens else None
    if header is None:
        return asked or LookOnly(), asked
    others: Access = asked or Nobody()
    return ProxyUser(header, proxies=proxies or ("127.0.0.1", "::1"), actors=actors, others=others), asked
