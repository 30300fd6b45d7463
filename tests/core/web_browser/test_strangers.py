"""Names that want to be more than text, and pages of others that want to act in the name of whoever is signed in."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from page_visitor import NARROW, WIDE, Visitor
from penstock import changes
from penstock.config import Concurrency
from penstock.engine import Engine

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MARKUP = "<img/src=x/onerror=alert(1)>"
NAMES = {
    "markup": MARKUP,
    "a script's end": "'\"></script><script>alert(1)</script>",
    "quotes": "\"'`&amp;&lt;",
    "a template": "{{7*7}}{%raw%}",
    "right to left": "\u202eמחסן\u2066שלום",  # noqa: RUF001  # Hebrew letters
    "one long word": "x" * 10_000,
    "combining": "a\u0301" * 200,
}
"""Of runs, ops and tags. A pool's name has no blanks and at most 255 characters."""


@pytest.fixture
def strangers(engine: Engine) -> None:
    """One holds a pool called like markup, everybody else waits for it."""
    block = {"pools": {"limits": {MARKUP: {"limit": 1, "description": MARKUP}}}}
    changes.apply(engine, Concurrency.model_validate(block), expected_version=0, by=MARKUP)
    for text in NAMES.values():
        url = "javascript:alert(1)" if text == MARKUP else None
        claim = engine.claim(MARKUP, run_id=text, op_id=text, tags={text: text}, url=url)
        engine.request(claim).step()


@pytest.mark.usefixtures("strangers")
def test_names_stay_text_and_the_layout_holds(browser: Browser, address: str) -> None:
    with Visitor(browser, address) as ann:
        ann.sign_in()
        key = quote(f"pool:{MARKUP}", safe="")
        for path in ("/", f"/limit?key={key}", "/search", f"/search?q={quote(MARKUP)}", f"/change?key={key}"):
            for size in (WIDE, NARROW):
                ann.page.set_viewport_size(size)  # type: ignore[arg-type]
                ann.page.goto(path)
                assert ann.shows_all_in_its_width(), (path, size)
                assert ann.page.locator("main img, main script, a[href^='javascript:' i]").count() == 0
                tall = ann.page.evaluate("document.body.scrollHeight")
                assert tall < 15_000, (path, size, tall)  # a name of 10 000 characters does not bury the others
        ann.page.goto(f"/limit?key={key}")
        assert ann.page.get_by_role("heading", level=1).inner_text() == f"pool:{MARKUP}"
        for name in ("markup", "a script's end", "quotes", "a template"):
            ann.sees(NAMES[name])
        row = ann.page.get_by_role("region", name="Holders").get_by_role("row").filter(has_text=MARKUP)
        row.get_by_role("link", name="Free").click()
        ann.sees("What will happen")
        assert MARKUP in ann.page.locator("#effect").inner_text()
        assert ann.shows_all_in_its_width()
        ann.press("Free it")
        ann.sees("Freed.")


ATTACK = """<!doctype html><title>Win a prize</title>
<form id=free method=post action="{page}/free" target=one><input name=id value="{claim}"></form>
<form id=text method=post action="{page}/free" target=two enctype="text/plain">
<input name="id" value="{claim}"></form>
<form id=set method=post action="{page}/change" target=three><input name=key value="runs"><input name=limit value=9>
<input name=do value=set><input name=version value={version}></form>
<iframe name=one></iframe><iframe name=two></iframe><iframe name=three></iframe>
<iframe name=frame src="{page}/"></iframe>
<script>
const body = new URLSearchParams({{id: "{claim}"}}), json = JSON.stringify({{id: "{claim}"}});
const tried = {{}};
const attempt = async (name, doing) => {{
  try {{ const answer = await doing(); tried[name] = answer.type + " " + await answer.text(); }}
  catch (error) {{ tried[name] = "refused"; }}
}};
onload = async () => {{
  for (const id of ["free", "text", "set"]) document.getElementById(id).submit();
  const all = {{credentials: "include", method: "POST"}};
  await attempt("form", () => fetch("{page}/free", {{...all, mode: "no-cors", body}}));
  await attempt("simple json", () => fetch("{page}/api/free", {{...all, mode: "no-cors", body: json}}));
  await attempt("json", () => fetch("{page}/api/free",
    {{...all, body: json, headers: {{"Content-Type": "application/json"}}}}));
  await attempt("put", () => fetch("{page}/api/limit",
    {{...all, method: "PUT", body: '{{"key":"runs","limit":9}}', headers: {{"Content-Type": "application/json"}}}}));
  await attempt("read the form", () => fetch("{page}/change", {{credentials: "include"}}));
  window.tried = tried;
}};
</script>"""


@contextmanager
def elsewhere(page: str) -> Iterator[int]:
    """The port of a server with one page, on every address of this machine that a browser takes for it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


# The same address at another port is the same site to a cookie; another name is not.
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_strangers_page_acts_in_nobodys_name(browser: Browser, address: str, engine: Engine, name: str) -> None:
    lease = engine.acquire(engine.claim("warehouse", op_id="precious"))
    before = engine.configuration(fresh=True)
    with elsewhere(ATTACK.format(page=address, claim=lease.claim.claim_id, version=before[0])) as port:
        ann = Visitor(browser, address)
        ann.sign_in()
        assert ann.faults == []
        prize = ann.page.context.new_page()  # in the same browser, with the same cookies
        prize.goto(f"http://{name}:{port}/")
        prize.wait_for_function("window.tried !== undefined")
        tried = prize.evaluate("tried")
        prize.wait_for_load_state("networkidle")
        assert len(tried) == 5
        # Opaque answers tell nothing; all others are refused by the browser, since the page gives no leave.
        assert set(tried.values()) <= {"refused", "opaque "}, json.dumps(tried)
        # Nor does it show in a stranger's frame.
        shown = [frame for frame in prize.frames if frame.name == "frame"]
        assert all("Penstock" not in frame.content() for frame in shown)
        assert ("POST", "/free") in ann.asked  # it was tried
        ann.page.reload()
        ann.sees("ann")  # still signed in
        ann.page.context.close()
    assert [held["claim_id"] for held in engine.status()["leases"]] == [lease.claim.claim_id]
    assert engine.configuration(fresh=True) == before
    lease.release()
