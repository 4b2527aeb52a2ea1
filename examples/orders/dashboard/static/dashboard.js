"use strict";
// Keeps the page live: one stream of server-sent events, each naming a fragment and carrying its new HTML.
// No numbers are computed here: the server formats them, and this script only puts them in place.
(() => {
  const STALE_MS = 5000;
  const RETRY_MS = 2000;
  const link = document.getElementById("link");
  const words = document.getElementById("link-words");
  const lost = document.getElementById("lost");
  const asOf = document.getElementById("as-of");
  const held = new Map(); // fragments that arrived while a pointer was down: a swap would lose the click
  let pointerDown = false;
  let staleTimer = 0;
  let source;
  let stopped = false; // the server said goodbye: it was stopped, and did not break

  function show(state, label, banner) {
    link.dataset.link = state;
    words.textContent = label;
    document.body.dataset.link = state;
    lost.hidden = !banner;
    if (lost.textContent !== banner) lost.textContent = banner;
  }

  function disconnected() {
    clearTimeout(staleTimer);
    const still = `these figures are of ${asOf.textContent} and no longer move.`;
    if (stopped) show("lost", "Stopped", `The demo was stopped: ${still}`);
    else show("lost", "Disconnected", `Disconnected: ${still} Trying again…`);
  }

  function swap(fragment, html) {
    const selection = document.getSelection();
    if (pointerDown || (!selection.isCollapsed && fragment.contains(selection.anchorNode))) {
      held.set(fragment, html);
      return;
    }
    const focused = fragment.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    fragment.innerHTML = html;
    if (focused) fragment.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    if (fragment.contains(pointed.chart?.parent)) readOut();
  }

  function flush() {
    const waiting = [...held];
    held.clear();
    for (const [fragment, html] of waiting) swap(fragment, html);
  }

  function connect() {
    source = new EventSource(document.body.dataset.stream);
    for (const fragment of document.querySelectorAll("[data-live]")) {
      source.addEventListener(fragment.id, (event) => {
        held.delete(fragment);
        swap(fragment, event.data);
      });
    }
    source.addEventListener("bye", () => { stopped = true; });
    source.addEventListener("beat", (event) => {
      stopped = false;
      asOf.textContent = event.data;
      show("live", "Live", "");
      clearTimeout(staleTimer);
      staleTimer = setTimeout(disconnected, STALE_MS);
    });
    source.addEventListener("error", () => {
      disconnected();
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
    });
  }

  // The value under the pointer, read out in the chart's heading line.
  const pointed = { chart: null };

  function readOut() {
    const { parent, share } = pointed.chart;
    const svg = parent.querySelector("svg.chart");
    const titles = svg.dataset.titles.split("|");
    const slots = Number(svg.dataset.slots);
    const index = Math.min(Math.floor(share * slots), titles.length - 1);
    const cursor = svg.querySelector(".cursor");
    const x = `${((index + 0.5) * 100) / slots}%`;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const line = parent.querySelector(".readout");
    line.dataset.resting ??= line.textContent;
    line.textContent = titles[index];
  }

  function rest() {
    if (!pointed.chart) return;
    const { parent } = pointed.chart;
    pointed.chart = null;
    parent.querySelector(".cursor")?.setAttribute("visibility", "hidden");
    const line = parent.querySelector(".readout");
    if (line?.dataset.resting) line.textContent = line.dataset.resting;
    delete line?.dataset.resting;
  }

  document.addEventListener("pointermove", (event) => {
    const svg = event.target.closest("svg.chart[data-titles]");
    if (!svg || !svg.dataset.titles) return rest();
    const parent = svg.closest("[data-live]");
    if (pointed.chart && pointed.chart.parent !== parent) rest();
    const box = svg.getBoundingClientRect();
    pointed.chart = { parent, share: (event.clientX - box.left) / box.width };
    readOut();
  });
  document.addEventListener("pointerdown", () => { pointerDown = true; });
  for (const end of ["pointerup", "pointercancel"]) {
    document.addEventListener(end, () => {
      pointerDown = false;
      setTimeout(flush, 0);
    });
  }
  document.addEventListener("selectionchange", () => {
    if (!pointerDown && held.size && document.getSelection().isCollapsed) flush();
  });

  show("wait", "Connecting", "");
  connect();
})();
