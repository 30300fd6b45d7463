// Keeps the parts of the page marked data-live up to date. The page works without it: then it is loaded by hand.
"use strict";
(() => {
  const AT_MOST_EVERY_MS = 2000, LOST_AFTER_MS = 5000;
  const root = document.body.dataset.root;
  const news = document.getElementById("news");
  let mark = null, due = null, loading = false, again = false, lastLoad = 0, lost = null;

  const say = (text, away) => {
    if (news.textContent !== text) news.textContent = text;
    news.classList.toggle("away", Boolean(away));
  };

  // What has the focus, or was opened by hand, stays so.
  const replace = (old, fresh) => {
    const open = new Set([...old.querySelectorAll("details")].map((d, i) => (d.open ? i : -1)));
    const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    old.replaceChildren(...fresh.childNodes);
    [...old.querySelectorAll("details")].forEach((d, i) => { d.open = open.has(i); });
    if (focused !== null) {
      const link = [...old.querySelectorAll("a")].find((a) => a.getAttribute("href") === focused);
      if (link) link.focus({ preventScroll: true });
    }
  };

  const load = async () => {
    due = null;
    if (loading) { again = true; return; }
    loading = true;
    lastLoad = Date.now();
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
      const parts = [...document.querySelectorAll("[data-live]")];
      if (answer.ok && parts.length === 0) location.reload();
      for (const part of parts) {
        const fresh = parsed.getElementById(part.id);
        if (answer.ok && fresh) replace(part, fresh);
      }
      if (answer.ok) say("", false);
    } catch (error) {
      say("The page cannot be reached; trying again.", true);
    } finally {
      loading = false;
      if (again) { again = false; soon(); }
    }
  };

  const soon = () => {
    if (due === null && !document.hidden) {
      due = setTimeout(load, Math.max(0, lastLoad + AT_MOST_EVERY_MS - Date.now()));
    }
  };

  const stream = new EventSource(`${root}/live`);
  stream.addEventListener("mark", (event) => {
    const first = mark === null;
    const changed = mark !== event.data;
    mark = event.data;
    if (changed && !first || document.querySelector("[data-live]") === null || news.classList.contains("away")) soon();
  });
  stream.addEventListener("away", () => {
    mark = "away";
    say("The store is away. What is shown is how it was.", true);
  });
  // A stream ends by itself now and then, and is there again in a second.
  stream.addEventListener("error", () => {
    if (stream.readyState === EventSource.CLOSED) say("This is not kept up to date any more: load the page again.", true);
    else if (lost === null) lost = setTimeout(() => say("No connection to the page; trying again.", true), LOST_AFTER_MS);
  });
  stream.addEventListener("open", () => { clearTimeout(lost); lost = null; if (news.textContent.startsWith("No connection")) say("", false); });
  setInterval(soon, 30000); // how long somebody waits grows without any news
  document.addEventListener("visibilitychange", () => { if (!document.hidden) soon(); });
})();
