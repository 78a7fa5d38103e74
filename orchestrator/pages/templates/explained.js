"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer;
  const dropped = new Int16Array(bytes(data.dropped)); // [layer][head][token]: update, or -1 where it is still held
  const importance = data.importance && new Float32Array(bytes(data.importance)); // [update][layer][head][token]
  const { layers, heads, tokens, updates, firsts, kinds, updateTokens } = data;
  const find = id => document.getElementById(id);
  const [mode, update, layer, head] = ["mode", "update", "layer", "head"].map(find);
  const text = find("text"), spans = [...text.children], detail = find("detail");
  let here = -1;

  const chosen = () => {
    const pairs = [];
    for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++)
      if ((+layer.value < 0 || +layer.value === l) && (+head.value < 0 || +head.value === h)) pairs.push([l, h]);
    return pairs;
  };
  const droppedAt = (l, h, t) => dropped[(l * heads + h) * tokens + t];
  const isHeld = (l, h, t, u) => droppedAt(l, h, t) < 0 || droppedAt(l, h, t) > u;
  const importanceOf = (u, l, h, t) => importance[((u * layers + l) * heads + h) * tokens + t];
  const mean = values => values.length ? values.reduce((a, b) => a + b, 0) / values.length : NaN;

  /** Share of the updates that a token faced and outlived. */
  const lived = (l, h, t) => {
    const faced = updates - firsts[t], at = droppedAt(l, h, t);
    return faced > 0 ? (at < 0 ? faced : at - firsts[t]) / faced : 1;
  };

  const shades = (pairs, u) => {
    if (mode.value === "lived") return spans.map((_, t) => mean(pairs.map(([l, h]) => lived(l, h, t))));
    if (mode.value === "held")
      return spans.map((_, t) => firsts[t] > u ? 1 : mean(pairs.map(([l, h]) => +isHeld(l, h, t, u))));
    const raw = spans.map((_, t) => mean(pairs.map(([l, h]) => importanceOf(u, l, h, t)).filter(Number.isFinite)));
    const sorted = raw.filter(Number.isFinite).sort((a, b) => a - b);
    return raw.map(value => Number.isFinite(value) && sorted.length > 1
      ? sorted.findIndex(other => other >= value) / (sorted.length - 1) : 0);
  };

  const draw = () => {
    const pairs = chosen(), u = updates ? +update.value - 1 : -1;
    update.disabled = !updates || mode.value === "lived";
    find("update-said").textContent = !updates ? "none" : mode.value === "lived" ? "all"
      : `${u + 1} of ${updates}, after ${updateTokens[u]} tokens`;
    find("layer-said").textContent = +layer.value < 0 ? "all" : layer.value;
    find("head-said").textContent = +head.value < 0 ? "all" : head.value;
    find("legend-said").textContent = {
      lived: "share of the updates that it outlived, mean over the chosen heads",
      held: "share of the chosen heads that hold it after this update",
      importance: "rank of its importance among the tokens held before this update, mean over the chosen heads",
    }[mode.value];
    const share = shades(pairs, u), last = mode.value === "lived" ? updates - 1 : u;
    spans.forEach((span, t) => {
      span.style.setProperty("--share", Number.isFinite(share[t]) ? share[t].toFixed(3) : 0);
      span.classList.toggle("gone", firsts[t] <= last && !pairs.some(([l, h]) => isHeld(l, h, t, last)));
    });
    if (here >= 0) tell(here);
  };

  const cell = (row, content, tag = "td") => row.appendChild(Object.assign(document.createElement(tag), { textContent: content }));
  const tell = t => {
    detail.replaceChildren();
    const said = spans[t].textContent.trim() || (spans[t].textContent ? "white space" : "a special token");
    const where = firsts[t] >= updates ? "no update has judged it yet" : `judged from update ${firsts[t] + 1} on`;
    detail.append(`token ${t}: “${said}”, ${kinds[t]}; ${where}`);
    const wide = document.createElement("div"), table = document.createElement("table");
    wide.className = "wide";
    const top = table.insertRow();
    cell(top, "layer", "th");
    for (let h = 0; h < heads; h++) cell(top, `head ${h}`, "th");
    const u = updates ? +update.value - 1 : -1;
    for (let l = 0; l < layers; l++) {
      const row = table.insertRow();
      cell(row, l);
      for (let h = 0; h < heads; h++) {
        const at = droppedAt(l, h, t);
        const value = importance && u >= 0 ? importanceOf(u, l, h, t) : NaN;
        const note = Number.isNaN(value) ? "" : `, importance ${Number.isFinite(value) ? value.toPrecision(3) : "always kept"}`;
        cell(row, (at < 0 ? "held" : `dropped at update ${at + 1}`) + note);
      }
    }
    wide.append(table);
    detail.append(wide);
  };
  const point = t => {
    if (here >= 0) { spans[here].classList.remove("here"); spans[here].removeAttribute("tabindex"); }
    here = t;
    spans[t].classList.add("here");
    spans[t].tabIndex = 0;
    tell(t);
  };
  const walk = t => { point(Math.max(0, Math.min(spans.length - 1, t))); spans[here].focus(); };

  for (const control of [mode, update, layer, head]) control.addEventListener("input", draw);
  text.addEventListener("pointerover", event => { const t = spans.indexOf(event.target); if (t >= 0) point(t); });
  text.addEventListener("focusin", event => { const t = spans.indexOf(event.target); if (t >= 0 && t !== here) point(t); });
  text.addEventListener("keydown", event => {
    const from = Math.max(here, 0);
    const moves = { ArrowLeft: from - 1, ArrowUp: from - 10, ArrowRight: from + 1, ArrowDown: from + 10, Home: 0, End: spans.length - 1 };
    if (event.key in moves) { walk(moves[event.key]); event.preventDefault(); }
    if (event.key === "[" || event.key === "]") {
      if (mode.value === "lived") mode.value = "held";
      update.value = +update.value + (event.key === "]" ? 1 : -1);
      draw();
    }
  });
  draw();
})();
