// In a frame of a host's own pages: what leads elsewhere is opened around the frame, never inside it. A sandboxed frame may
// open nothing by itself, so the link is followed in the page around it, which is of the same origin or no frame at all.
"use strict";
(() => {
  if (window.parent === window) return;
  const own = `${location.origin}${document.body.dataset.root}/`;
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    if (!link || link.href.startsWith(own) || !/^https?:/.test(link.href)) return;
    event.preventDefault();
    const around = window.parent.document;
    const outer = around.createElement("a");
    outer.href = link.href;
    outer.rel = "noopener noreferrer";
    outer.target = new URL(link.href).origin === location.origin ? "_self" : "_blank";
    around.body.append(outer);
    outer.click();
    outer.remove();
  });
})();
