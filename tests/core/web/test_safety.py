"""Who is let in, what is refused, and that what users wrote is never more than text."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from page_served import TOKEN, form_token
from penstock.engine import Engine
from penstock.web.access import COOKIE, LookOnly, Nobody, ProxyUser, Tokens

pytestmark = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)
Configure = Callable[..., None]
Serve = Callable[..., httpx.Client]
SET = {"key": "pool:a", "limit": "5", "do": "set", "version": "0"}
SET_JSON = {"key": "pool:a", "limit": 5}


def unchanged(engine: Engine) -> bool:
    return engine.configuration(fresh=True)[0] == 0


# -- who acts ----------------------------------------------------------------------------------------------------------


def test_without_a_token_nobody_acts(serve: Serve, engine: Engine) -> None:
    client = serve(LookOnly())
    assert client.get("/").status_code == 200
    for answer in (
        client.post("/change", data=SET),
        client.post("/free", data={"run": "x"}),
        client.put("/api/limit", json=SET_JSON),
        client.post("/api/free", json={"run": "x"}),
    ):
        assert answer.status_code == 403
        assert "read-only" in answer.text
    assert client.get("/sign-in").status_code == 404
    assert "<form method" not in client.get("/change").text
    assert unchanged(engine)


def test_who_has_not_signed_in_looks_only(client: httpx.Client, engine: Engine) -> None:
    assert client.get("/").status_code == 200
    assert client.post("/change", data=SET).status_code == 403
    assert client.put("/api/limit", json=SET_JSON).status_code == 403
    assert unchanged(engine)


def test_where_others_reach_the_page_nobody_looks_without_a_token(serve: Serve, authorized: dict[str, str]) -> None:
    client = serve(Tokens({"ann": TOKEN}, all_look=False))
    for path in ("/", "/limit?key=runs", "/search", "/change", "/free?id=x", "/live", "/api/limits", "/api/claims"):
        assert client.get(path).status_code == 401, path
    assert "Sign in" in client.get("/").text
    assert client.get("/api/limits", headers=authorized).status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], "é" * 20])
def test_a_wrong_token_is_none(client: httpx.Client, engine: Engine, token: str) -> None:
    assert client.post("/sign-in", data={"token": token}).status_code == 403
    assert COOKIE not in client.cookies
    headers = {"Authorization": f"Bearer {token or '.'}".encode()}
    assert client.put("/api/limit", json=SET_JSON, headers=headers).status_code == 401
    assert unchanged(engine)


def test_a_session_is_what_was_signed_and_ends(client: httpx.Client, tokens: Tokens, engine: Engine) -> None:
    good = tokens.session("ann")
    others = Tokens({"ann": "another token of hers"}, all_look=True).session("ann")
    late = _shifted(tokens, -13 * 3600)
    stated, _, signed = good.partition(".")
    for session in (
        others,
        late,
        tokens.session("eve"),
        stated,
        f"{stated}.",
        f".{signed}",
        f"{stated}x.{signed}",
        "é",
    ):
        answer = client.get("/change", headers={"Cookie": f"{COOKIE}={session}".encode()})
        assert "<form method" not in answer.text, session
    assert "<form method" in client.get("/change", headers={"Cookie": f"{COOKIE}={good}"}).text
    assert unchanged(engine)


def _shifted(tokens: Tokens, seconds: float) -> str:
    with pytest.MonkeyPatch.context() as patch:
        import time

        now = time.time()
        patch.setattr("penstock.web.access.time.time", lambda: now + seconds)
        return tokens.session("ann")


def test_the_cookie_is_of_no_use_elsewhere(client: httpx.Client) -> None:
    cookie = client.post("/sign-in", data={"token": TOKEN}).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/" in cookie
    assert TOKEN not in cookie
    secure = client.post("/sign-in", data={"token": TOKEN}, headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in secure.headers["set-cookie"]


def test_who_signs_out_acts_no_more(signed_in: httpx.Client) -> None:
    assert signed_in.post("/sign-out", data={"form_token": form_token(signed_in)}).status_code == 303
    assert COOKIE not in signed_in.cookies
    assert signed_in.post("/change", data=SET).status_code == 403


# -- requests that another site makes a browser send -------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "0" * 64])
def test_a_form_without_its_token_is_refused(signed_in: httpx.Client, engine: Engine, token: str | None) -> None:
    data = SET | ({} if token is None else {"form_token": token})
    assert signed_in.post("/change", data=data).status_code == 403
    assert signed_in.post("/free", data={**data, "run": "x"}).status_code == 403
    assert signed_in.post("/sign-out", data=data).status_code == 403
    assert unchanged(engine)


def test_the_token_of_another_session_is_refused(serve: Serve, tokens: Tokens, engine: Engine) -> None:
    one, other = serve(), serve()
    for client in (one, other):
        client.post("/sign-in", data={"token": TOKEN})
    assert form_token(one) != form_token(other)
    assert one.post("/change", data=SET | {"form_token": form_token(other)}).status_code == 403
    assert unchanged(engine)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_a_form_from_another_site_is_refused(signed_in: httpx.Client, engine: Engine, headers: dict[str, str]) -> None:
    data = SET | {"form_token": form_token(signed_in)}
    assert signed_in.post("/change", data=data, headers=headers).status_code == 403
    assert signed_in.post("/sign-in", data={"token": TOKEN}, headers=headers).status_code == 403
    assert unchanged(engine)


def test_a_form_from_the_page_itself_is_taken(signed_in: httpx.Client, engine: Engine) -> None:
    origin = str(signed_in.base_url).rstrip("/")
    data = SET | {"form_token": form_token(signed_in)}
    assert signed_in.post("/change", data=data, headers={"Origin": origin}).status_code == 303
    assert signed_in.post("/change", data=data, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 409
    assert not unchanged(engine)


def test_the_api_takes_no_cookie_alone(signed_in: httpx.Client, engine: Engine) -> None:
    assert signed_in.put("/api/limit", json=SET_JSON).status_code == 403
    assert signed_in.post("/api/free", json={"run": "x"}).status_code == 403
    assert unchanged(engine)
    headers = {"X-Penstock-Form-Token": form_token(signed_in)}
    assert signed_in.put("/api/limit", json=SET_JSON, headers=headers).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data; boundary=x", "application/json"])
def test_only_forms_are_forms(signed_in: httpx.Client, engine: Engine, content_type: str) -> None:
    body = f"form_token={form_token(signed_in)}&key=pool:a&limit=5&version=0"
    answer = signed_in.post("/change", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 415
    assert unchanged(engine)


# -- a proxy that asks who they are ------------------------------------------------------------------------------------


def test_a_proxys_user_acts_under_their_own_name(serve: Serve, engine: Engine) -> None:
    access = ProxyUser("X-Forwarded-User", proxies=["127.0.0.1"], actors=["bob"], others=Nobody())
    client = serve(access)
    assert client.get("/").status_code == 401
    for user, acts in (("bob", True), ("eve", False)):
        client.headers["X-Forwarded-User"] = user
        assert client.get("/").status_code == 200
        assert ("<form method" in client.get("/change").text) is acts
    assert client.post("/change", data=SET).status_code == 403
    client.headers["X-Forwarded-User"] = "bob"
    assert client.post("/change", data=SET).status_code == 403
    assert client.post("/change", data=SET | {"form_token": form_token(client)}).status_code == 303
    assert "by bob from" in (engine.store.changes(most=1)[0].detail or "")


def test_the_header_counts_from_the_proxy_alone(serve: Serve) -> None:
    access = ProxyUser("X-Forwarded-User", proxies=["192.0.2.1"], actors=[], others=Nobody())
    headers = {"X-Forwarded-User": "bob", "X-Forwarded-For": "192.0.2.1"}
    assert serve(access).get("/", headers=headers).status_code == 401


# -- headers, names, sizes ---------------------------------------------------------------------------------------------


def test_every_answer_has_the_headers(client: httpx.Client, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        client.get(path)
        for path in (
            "/",
            "/limit?key=none",
            "/static/style.css",
            "/static/none",
            "/api/limits",
            "/none",
            "/search?offset=x",
        )
    ]
    answers += [
        client.post("/change", data=SET),
        client.request("BREW", "/"),
        client.get("/", headers={"Host": "elsewhere.example"}),
        client.post("/sign-in", content=b"x" * 70_000),
    ]

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("penstock.web.looking.Looking.search", broken)
    answers.append(client.get("/search"))
    assert answers[-1].status_code == 500
    assert "a defect" not in answers[-1].text
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy, answer.url
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "cache-control" in answer.headers
    framed = serve(frame_ancestors="'self'").get("/").headers
    assert "frame-ancestors 'self'" in framed["content-security-policy"]
    assert "x-frame-options" not in framed


@pytest.mark.parametrize("host", ["elsewhere.example", "127.0.0.1.elsewhere.example", "", "[::1", "127.0.0.2"])
def test_another_name_for_this_machine_is_refused(client: httpx.Client, host: str) -> None:
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code in (400, 421)
    assert "Limits" not in answer.text


def test_what_is_too_much_is_refused(signed_in: httpx.Client) -> None:
    token = form_token(signed_in)
    body = f"form_token={token}&key={'x' * 70_000}&limit=1".encode()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert signed_in.post("/change", content=body, headers=form).status_code == 413

    def in_pieces() -> Any:
        yield from (body[start : start + 1000] for start in range(0, len(body), 1000))

    assert signed_in.post("/change", content=in_pieces(), headers=form).status_code == 413
    many = "&".join(f"f{number}=x" for number in range(100))
    assert signed_in.post("/change", content=many, headers=form).status_code == 400


# -- what users wrote --------------------------------------------------------------------------------------------------

MARKUP = "<script>alert('1')</script>\"onload=\"alert(2)'<img/src=x>&lt;{{7*7}}"
HOSTILE = [MARKUP, "</title><h1>" + "x" * 10_000, "\u202e\x1b[31m\u2028line", "'\"><a href=javascript:alert(1)>", "é✓𐐷"]


class Elements(HTMLParser):
    """What a browser makes of a page: elements with what they carry."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("text", HOSTILE, ids=["markup", "10 kB", "acting characters", "quotes", "beyond ASCII"])
def test_names_are_text_wherever_they_stand(
    signed_in: httpx.Client, engine: Engine, configure: Configure, text: str
) -> None:
    pool = re.sub(r"[\s\x00-\x1f\x7f-\x9f]", "_", text)[:255]
    configure(
        pools={"limits": {pool: {"limit": 1, "description": text}}},
        runs={"tag_concurrency_limits": [{"key": "team", "value": text, "limit": 1}]},
    )
    claim = {"run_id": text, "op_id": text, "name": text, "tags": {text: text}}
    link = f"javascript:alert('{text[:20]}')"
    engine.acquire(engine.claim(pool, **claim, url=link))  # type: ignore[arg-type]
    engine.request(engine.claim(pool, run_id="w" + text, tags={text: text}, url="https://x.example/?" + text)).step()
    plain = {tag for tag, _ in _elements(signed_in, configure)}
    key = f"pool:{pool}"
    pages = {
        path: signed_in.get(path, params=params)
        for path, params in (
            ("/", {"q": ""}),
            ("/limit", {"key": key}),
            ("/search", {"q": text}),
            ("/change", {"key": key}),
            ("/free", {"run": text}),
            ("/free", {"id": text}),
        )
    }
    pages["plan"] = signed_in.post("/change", data={"form_token": form_token(signed_in), "key": key, "limit": "2"})
    pages["fault"] = signed_in.get("/limit", params={"key": text})
    pages["not found"] = signed_in.get("/" + quote(text, safe=""))
    for where, answer in pages.items():
        assert answer.status_code in (200, 404, 409), where
        found = Elements(answer.text).found
        assert {tag for tag, _ in found} <= plain | {"strong", "details", "summary"}, where
        for tag, carried in found:
            assert not [name for name in carried if name.startswith("on") or name == "style"], where
            for name in ("href", "src", "action"):
                if (target := carried.get(name)) is not None:
                    assert target.startswith(("/", "https://x.example/", "#main")), (where, tag)
        fields = re.compile(r"<input [^>]*>")  # what is typed there stays as it is
        assert "\u202e" not in html.unescape(fields.sub("", answer.text)), where


def _elements(client: httpx.Client, configure: Configure) -> list[tuple[str, dict[str, str | None]]]:
    """What stands on pages of harmless names."""
    found = []
    for path in ("/", "/search", "/change", "/sign-in", "/free?id=none", "/none", "/limit?key=runs"):
        found += Elements(client.get(path).text).found
    tags = (
        "table caption thead tbody tr th td time small bdi ul li dl dt dd section div h2 pre q code option select nav"
    )
    tags += " svg polyline polygon line text figure figcaption span a"
    return [*found, *((tag, {}) for tag in tags.split())]


@pytest.mark.parametrize(
    ("url", "linked"),
    [
        ("https://airflow.example/dags/x?run=1", True),
        ("http://127.0.0.1:8080/x", True),
        ("javascript:alert(1)", False),
        ("JavaScript:alert(1)", False),
        ("data:text/html,x", False),
        ("//elsewhere.example", False),
        ("https://", False),
        ("http://[", False),
        (" https://x.example", False),
    ],
)
def test_only_web_pages_are_linked(
    client: httpx.Client, engine: Engine, configure: Configure, url: str, linked: bool
) -> None:
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a", url=url))
    page = client.get("/limit", params={"key": "pool:a"}).text
    assert (f'href="{html.escape(url)}"' in page) is linked
    if linked:
        assert 'rel="noopener noreferrer"' in page
    assert (client.get("/api/limit/holders?key=pool:a").json()["claims"][0]["url"] == url) is linked
