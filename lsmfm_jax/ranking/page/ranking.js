// The page on which an expert ranks. It runs from disk: no module, no fetch, nothing that needs a server.
"use strict";

(() => {
  const STEP_PIXELS = 100; // one notch of a mouse wheel
  const ZOOM_STEP = 1.4;
  const LARGEST_ZOOM = 16;
  const CLICK_PIXELS = 4; // a pointer that moves less between press and release has clicked
  const OUTLINE = "#ffb454";
  const FILL = "rgba(255, 180, 84, 0.16)";
  const PREFIX = `lsmfm-ranking:${(window.KIT || {}).id}:`;

  const at = (id) => document.getElementById(id);
  const make = (tag, about = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), about);
    node.append(...children);
    return node;
  };

  let expert = "";
  let rankings = {}; // by case: its letters, the best first; shorter than `letters` where it is not finished
  let number = 0; // of the case on the page
  let slice = 0;
  let voxels = null; // of the case on the page, null until they are there
  let view = { zoom: 1, y: 0, x: 0 }; // of all pictures: enlargement, and the voxel in the middle
  let wheel = 0;
  let dragged = null; // where the pointer went down or was last, and whether it has moved
  const panels = [];
  const loaded = new Map(); // by case: a promise of its voxels
  const arrivals = new Map(); // by case: what its script calls

  // ---------------------------------------------------------------- what is kept

  function stored(key) {
    try {
      return localStorage.getItem(PREFIX + key);
    } catch {
      return null;
    }
  }

  function keep() {
    try {
      localStorage.setItem(PREFIX + "expert:" + expert, JSON.stringify({ rankings, at: number }));
      localStorage.setItem(PREFIX + "last", expert);
    } catch {
      fault("This browser does not keep your progress: save your results before you close the page.");
    }
  }

  function knownExperts() {
    const start = PREFIX + "expert:";
    try {
      return Object.keys(localStorage).filter((key) => key.startsWith(start)).map((key) => key.slice(start.length)).sort();
    } catch {
      return [];
    }
  }

  function progressOf(name) {
    try {
      const found = JSON.parse(stored("expert:" + name)) || {};
      const clean = {};
      for (const one of KIT.cases) {
        const order = (found.rankings || {})[one];
        const sound = Array.isArray(order) && new Set(order).size === order.length;
        if (sound && order.every((letter) => KIT.letters.includes(letter))) clean[one] = order;
      }
      return { rankings: clean, at: Number.isInteger(found.at) && found.at < KIT.cases.length ? Math.max(found.at, 0) : 0 };
    } catch {
      return { rankings: {}, at: 0 };
    }
  }

  // ---------------------------------------------------------------- voxels

  // Called by data/case_XXX.js.
  window.caseLoaded = (name, body) => {
    if (arrivals.has(name)) arrivals.get(name)(body);
  };

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function load(name) {
    if (!loaded.has(name)) {
      const script = make("script", { src: `data/${name}.js` });
      const arrived = new Promise((resolve, reject) => {
        arrivals.set(name, resolve);
        script.onerror = () => reject(new Error(`data/${name}.js is missing or damaged`));
      });
      document.head.append(script);
      loaded.set(name, arrived.then(async (body) => {
        const [image, masks] = await Promise.all([unpacked(body.image), unpacked(body.masks)]);
        return { shape: body.shape, pixel: body.pixel, image, masks };
      }).finally(() => {
        script.remove();
        arrivals.delete(name);
      }));
    }
    return loaded.get(name);
  }

  // ---------------------------------------------------------------- pictures

  function brightness() {
    // Bytes are square roots of scaled counts: squared here, so that the contrast is that of the counts.
    const black = Number(at("black").value) / 100;
    const white = Math.max(Number(at("white").value) / 100, black + 0.005);
    return Uint8ClampedArray.from({ length: 256 }, (_, byte) => 255 * ((byte / 255) ** 2 - black) / (white - black));
  }

  function greySlice() {
    const [, height, width] = voxels.shape;
    const table = brightness();
    const pixels = new ImageData(width, height);
    const from = slice * height * width;
    for (let k = 0; k < height * width; k += 1) {
      const grey = table[voxels.image[from + k]];
      pixels.data[4 * k] = pixels.data[4 * k + 1] = pixels.data[4 * k + 2] = grey;
      pixels.data[4 * k + 3] = 255;
    }
    const canvas = make("canvas", { width, height });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  // Lines along the edges of voxels: they hide no voxel of a small object, as coloured voxels would.
  function maskPaths(bit) {
    const [, height, width] = voxels.shape;
    const from = slice * height * width;
    const inside = (y, x) => y >= 0 && x >= 0 && y < height && x < width && (voxels.masks[from + y * width + x] & bit) !== 0;
    const fill = new Path2D();
    const outline = new Path2D();
    for (let y = 0; y <= height; y += 1) {
      for (let x = 0; x <= width; x += 1) {
        const here = inside(y, x);
        if (here) {
          let end = x; // one rectangle for a run: between those of single voxels seams would show
          if (!inside(y, x - 1)) {
            while (inside(y, end)) end += 1;
            fill.rect(x, y, end - x, 1);
          }
        }
        if (here !== inside(y - 1, x)) { outline.moveTo(x, y); outline.lineTo(x + 1, y); }
        if (here !== inside(y, x - 1)) { outline.moveTo(x, y); outline.lineTo(x, y + 1); }
      }
    }
    return { fill, outline };
  }

  // With more than three pictures, as many in a row as makes them largest.
  function arrange() {
    if (voxels === null || panels.length < 4) return;
    const [, height, width] = voxels.shape;
    const room = at("panels").getBoundingClientRect();
    const head = panels[0].head.offsetHeight;
    const scale = (columns) => Math.min(
      room.width / columns / (width * voxels.pixel[1]),
      (room.height / Math.ceil(panels.length / columns) - head) / (height * voxels.pixel[0]));
    const best = panels.map((_, k) => k + 1).reduce((one, other) => (scale(other) > scale(one) ? other : one));
    Object.assign(at("panels").style, {
      gridAutoFlow: "row", gridTemplateColumns: `repeat(${best}, minmax(0, 1fr))`, gridAutoRows: "minmax(0, 1fr)",
    });
  }

  function wholeView() {
    view = { zoom: 1, y: voxels.shape[1] / 2, x: voxels.shape[2] / 2 };
  }

  // How many pixels of the screen a voxel takes along Y and X, and how large the picture is.
  function measures() {
    const [, height, width] = voxels.shape;
    const room = panels[0].picture.getBoundingClientRect();
    const fit = Math.min(room.width / (width * voxels.pixel[1]), room.height / (height * voxels.pixel[0]));
    const [down, across] = voxels.pixel.map((size) => size * Math.max(fit, 0.01) * view.zoom);
    return { down, across, high: Math.min(height * down, room.height), wide: Math.min(width * across, room.width) };
  }

  function keepInside() {
    const { down, across, high, wide } = measures();
    const within = (value, half, length) => Math.min(Math.max(value, half), length - half);
    view.y = within(view.y, high / down / 2, voxels.shape[1]);
    view.x = within(view.x, wide / across / 2, voxels.shape[2]);
  }

  function zoom(factor, place = null) {
    if (voxels === null) return;
    const before = measures();
    view.zoom = Math.min(Math.max(view.zoom * factor, 1), LARGEST_ZOOM);
    const after = measures();
    if (place !== null) { // what is under the pointer stays there
      view.y += place.y * (1 / before.down - 1 / after.down);
      view.x += place.x * (1 / before.across - 1 / after.across);
    }
    draw();
  }

  function draw() {
    if (voxels === null) return;
    keepInside();
    const [depth] = voxels.shape;
    const grey = greySlice();
    const sharp = window.devicePixelRatio || 1;
    const { down, across, high, wide } = measures();
    panels.forEach(({ canvas }, k) => {
      canvas.style.width = `${wide}px`;
      canvas.style.height = `${high}px`;
      canvas.width = Math.max(Math.round(wide * sharp), 1);
      canvas.height = Math.max(Math.round(high * sharp), 1);
      const context = canvas.getContext("2d");
      const [sy, sx] = [down * sharp, across * sharp];
      // From here on in voxels.
      context.setTransform(sx, 0, 0, sy, canvas.width / 2 - view.x * sx, canvas.height / 2 - view.y * sy);
      context.imageSmoothingEnabled = sx < 1;
      context.drawImage(grey, 0, 0);
      if (!at("overlay").checked) return;
      const { fill, outline } = maskPaths(1 << k);
      context.fillStyle = FILL;
      context.fill(fill);
      context.strokeStyle = OUTLINE;
      context.lineCap = "square";
      context.lineWidth = Math.min(1.5 / across, 0.4); // thinner where voxels are small on the screen
      context.stroke(outline);
    });
    at("place").textContent = `${slice + 1} of ${depth}`;
    at("slice").value = slice;
  }

  // ---------------------------------------------------------------- ranks

  const caseName = () => KIT.cases[number];
  const orderOf = (name) => rankings[name] || [];
  const finished = (name) => orderOf(name).length === KIT.letters.length;
  const finishedCount = () => KIT.cases.filter(finished).length;

  function rankWord(place) {
    if (place === 0) return "best";
    if (place === KIT.letters.length - 1) return "worst";
    return KIT.letters.length === 3 ? "middle" : `${place + 1}${["", "", "nd", "rd"][place + 1] || "th"} best`;
  }

  function choose(k) {
    const letter = KIT.letters[k];
    const order = orderOf(caseName());
    if (voxels === null) return;
    if (finished(caseName())) return prompt("This case is ranked. Press Backspace to take a rank back, or Enter for the next case.", true);
    if (order.includes(letter)) {
      return prompt(`${letter} has its rank already, and two pictures cannot share one. Choose another, or press Backspace to take it back.`, true);
    }
    const after = [...order, letter];
    const left = KIT.letters.filter((one) => !after.includes(one));
    rankings[caseName()] = left.length === 1 ? [...after, left[0]] : after;
    keep();
    show();
  }

  function undo() {
    const order = orderOf(caseName());
    if (!order.length) return;
    // The last rank was given by the one before it, so both go.
    const kept = order.slice(0, finished(caseName()) ? -2 : -1);
    if (kept.length) rankings[caseName()] = kept;
    else delete rankings[caseName()];
    keep();
    show();
  }

  function prompt(text, refused = false) {
    at("prompt").textContent = text;
    at("prompt").classList.toggle("refused", refused);
  }

  function show() {
    const order = orderOf(caseName());
    const all = finishedCount() === KIT.cases.length;
    at("title").textContent = `Case ${number + 1} of ${KIT.cases.length}`;
    at("expert").textContent = expert;
    at("count").textContent = `${finishedCount()} of ${KIT.cases.length} ranked`;
    at("save").classList.toggle("wanted", all);
    at("next").classList.toggle("wanted", finished(caseName()) && !all);
    at("previous").disabled = number === 0;
    at("next").disabled = number === KIT.cases.length - 1;
    at("undo").disabled = order.length === 0;
    panels.forEach((panel, k) => {
      const place = order.indexOf(KIT.letters[k]);
      panel.rank.textContent = place < 0 ? "" : rankWord(place);
      panel.choose.hidden = place >= 0;
      panel.choose.textContent = `Choose as ${rankWord(order.length)}`;
      panel.root.classList.toggle("ranked", place >= 0);
    });
    [...at("strip").children].forEach((mark, k) => {
      const name = KIT.cases[k];
      const state = finished(name) ? "done" : orderOf(name).length ? "begun" : "";
      mark.className = `${state}${k === number ? " here" : ""}`;
      mark.title = mark.ariaLabel = `case ${k + 1}${finished(name) ? ", ranked" : ""}`;
    });
    const keys = KIT.letters.map((letter, k) => `${k + 1} for ${letter}`).join(", ");
    if (all) prompt("All cases are ranked. Press “Save results” and send the file back.");
    else if (finished(caseName())) prompt(`Ranked: ${order.join(" before ")}. Press Enter for the next case that is not ranked.`);
    else if (!order.length) prompt(`Which is best? Press ${keys}, or click the picture.`);
    else prompt(`Best so far: ${order.join(" before ")}. Which is best of the others?`);
  }

  // ---------------------------------------------------------------- moving about

  async function open(which) {
    number = which;
    voxels = null;
    at("overlay").checked = true; // nobody should rank pictures without outlines by mistake
    const name = caseName();
    panels.forEach((panel) => panel.canvas.getContext("2d").clearRect(0, 0, panel.canvas.width, panel.canvas.height));
    show();
    keep();
    for (const other of loaded.keys()) {
      if (Math.abs(KIT.cases.indexOf(other) - number) > 1) loaded.delete(other);
    }
    try {
      const arrived = await load(name);
      if (caseName() !== name) return; // another case was opened meanwhile
      voxels = arrived;
      slice = Math.floor(voxels.shape[0] / 2);
      at("slice").max = voxels.shape[0] - 1;
      arrange();
      wholeView();
      document.body.dataset.shown = name;
      draw();
      if (number + 1 < KIT.cases.length) load(KIT.cases[number + 1]).catch(() => {});
    } catch (error) {
      loaded.delete(name);
      fault(`Case ${number + 1} cannot be shown: ${error.message}. Unpack the kit again, and tell who sent it to you.`);
    }
  }

  function move(by) {
    const to = number + by;
    if (to >= 0 && to < KIT.cases.length) open(to);
  }

  function nextUnfinished() {
    if (!finished(caseName())) return prompt("This case is not ranked yet. Rank it, or go on with “Next” (key N).", true);
    const after = [...KIT.cases.keys()].map((k) => (number + 1 + k) % KIT.cases.length);
    const to = after.find((k) => !finished(KIT.cases[k]));
    if (to !== undefined) open(to);
  }

  function scroll(by) {
    if (voxels === null) return;
    slice = Math.min(Math.max(slice + by, 0), voxels.shape[0] - 1);
    draw();
  }

  function resetContrast() {
    at("black").value = 0;
    at("white").value = 100;
    draw();
  }

  function toggleOverlay() {
    at("overlay").checked = !at("overlay").checked;
    draw();
  }

  // ---------------------------------------------------------------- results

  function crc32(text) {
    let crc = 0xffffffff;
    for (const byte of new TextEncoder().encode(text)) {
      crc ^= byte;
      for (let k = 0; k < 8; k += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ((crc ^ 0xffffffff) >>> 0).toString(16).padStart(8, "0");
  }

  function results() {
    const ranked = KIT.cases.filter((name) => orderOf(name).length);
    const lines = [KIT.id, expert, ...ranked.map((name) => `${name} ${orderOf(name).join("")}`)];
    return {
      what: "ranking results",
      version: 1,
      kit: KIT.id,
      expert,
      finished: finishedCount(),
      cases: KIT.cases.length,
      saved: new Date().toISOString(),
      rankings: Object.fromEntries(ranked.map((name) => [name, orderOf(name)])),
      check: crc32(lines.join("\n")), // tells a file that was edited by hand
    };
  }

  function save() {
    const left = KIT.cases.length - finishedCount();
    const blob = new Blob([JSON.stringify(results(), null, 1) + "\n"], { type: "application/json" });
    const plain = expert.replace(/[^\p{L}\p{N}]+/gu, "_").replace(/^_|_$/g, "") || "expert";
    const link = make("a", { href: URL.createObjectURL(blob), download: `ranking_${plain}_${KIT.id}.json` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    prompt(left ? `Saved as ${link.download}; ${left} cases are not ranked yet.` : `Saved as ${link.download}. Thank you.`);
  }

  function fault(text) {
    at("fault").textContent = text;
    at("fault").hidden = false;
  }

  // ---------------------------------------------------------------- start

  function begin(name) {
    expert = name.trim().replace(/\s+/g, " ");
    if (!expert) return;
    const found = progressOf(expert);
    rankings = found.rankings;
    at("start").hidden = true;
    at("work").hidden = false;
    open(found.at);
  }

  function build() {
    KIT.letters.forEach((letter, k) => {
      const canvas = make("canvas");
      const rank = make("span", { className: "rank" });
      const button = make("button", { type: "button", className: "choose", onclick: () => choose(k) });
      const picture = make("div", { className: "picture", onclick: () => { if (!dragged || !dragged.moved) choose(k); } }, canvas);
      const key = make("kbd", { className: "faint", textContent: k + 1, title: `key ${k + 1}` });
      const head = make("div", { className: "head" }, make("span", { className: "letter", textContent: letter }), key, rank, button);
      const root = make("section", { className: "panel" }, head, picture);
      root.ariaLabel = `picture ${letter}`;
      at("panels").append(root);
      panels.push({ root, head, canvas, rank, choose: button, picture });
    });
    KIT.cases.forEach((_, k) => at("strip").append(make("button", { type: "button", tabIndex: -1, onclick: () => open(k) })));
    const keys = [
      [KIT.letters.map((_, k) => k + 1).join(" "), "the best, then the next; the last follows"],
      ["Backspace", "undo"], ["Enter", "next unranked"], ["P N", "previous, next"], ["↑ ↓", "or wheel: slices"],
      ["O", "outlines"], ["R", "reset contrast"], ["+ − 0", "or Shift and wheel: zoom, then drag"],
    ];
    for (const [key, text] of keys) at("keys").append(make("kbd", { textContent: key }), ` ${text}  `);
    at("start-cases").textContent = KIT.cases.length;
    at("name").value = stored("last") || "";
    for (const name of knownExperts()) {
      const done = Object.values(progressOf(name).rankings).filter((order) => order.length === KIT.letters.length).length;
      const label = `Continue as ${name} (${done} of ${KIT.cases.length})`;
      at("known").append(make("button", { type: "button", textContent: label, onclick: () => begin(name) }));
    }
    at("start").hidden = false;
    at("name").focus();
  }

  function listen() {
    at("start").addEventListener("submit", (event) => {
      event.preventDefault();
      begin(at("name").value);
    });
    at("slice").addEventListener("input", () => scroll(Number(at("slice").value) - slice));
    for (const id of ["black", "white", "overlay"]) at(id).addEventListener("input", draw);
    const actions = { contrast: resetContrast, undo, save, previous: () => move(-1), next: () => move(1) };
    for (const [id, action] of Object.entries(actions)) at(id).addEventListener("click", action);
    at("panels").addEventListener("wheel", (event) => {
      if (event.ctrlKey) return; // the browser's zoom
      event.preventDefault();
      if (event.shiftKey) { // browsers turn such a wheel into one along X
        const picture = event.target.closest(".picture");
        const room = picture && picture.getBoundingClientRect();
        const middle = room && { y: event.clientY - room.top - room.height / 2, x: event.clientX - room.left - room.width / 2 };
        return zoom((event.deltaY || event.deltaX) < 0 ? ZOOM_STEP : 1 / ZOOM_STEP, middle);
      }
      wheel += event.deltaMode === 1 ? event.deltaY * STEP_PIXELS / 3 : event.deltaY;
      const steps = Math.trunc(wheel / STEP_PIXELS);
      wheel -= steps * STEP_PIXELS;
      if (steps) scroll(steps);
    }, { passive: false });
    // What was clicked must not take the next keys: Enter would press it again, an arrow move a slider.
    document.addEventListener("pointerup", () => {
      if (!at("work").hidden && document.activeElement) document.activeElement.blur();
    });
    at("panels").addEventListener("pointerdown", (event) => {
      dragged = { y: event.clientY, x: event.clientX, moved: false };
    });
    at("panels").addEventListener("pointermove", (event) => {
      if (!(event.buttons & 1) || dragged === null || voxels === null || !event.target.closest(".picture")) return;
      const [y, x] = [event.clientY - dragged.y, event.clientX - dragged.x];
      if (!dragged.moved && Math.hypot(y, x) < CLICK_PIXELS) return;
      const { down, across } = measures();
      view.y -= y / down;
      view.x -= x / across;
      dragged = { y: event.clientY, x: event.clientX, moved: true };
      draw();
    });
    new ResizeObserver(() => { arrange(); draw(); }).observe(at("panels"));
    document.addEventListener("keydown", pressed);
  }

  function pressed(event) {
    if (at("work").hidden || event.ctrlKey || event.altKey || event.metaKey) return;
    const on = document.activeElement || document.body;
    const slider = on.type === "range" && on.id !== "slice";
    const keys = {
      ArrowUp: () => scroll(-1), ArrowDown: () => scroll(1), ArrowLeft: () => scroll(-1), ArrowRight: () => scroll(1),
      Home: () => scroll(-1e9), End: () => scroll(1e9), Backspace: undo, Enter: nextUnfinished,
      n: () => move(1), p: () => move(-1), PageDown: () => move(1), PageUp: () => move(-1), o: toggleOverlay, r: resetContrast,
      "+": () => zoom(ZOOM_STEP), "=": () => zoom(ZOOM_STEP), "-": () => zoom(1 / ZOOM_STEP), 0: () => zoom(1 / LARGEST_ZOOM),
    };
    if (slider && /^(Arrow|Page|Home|End)/.test(event.key)) return;
    if (on.tagName === "BUTTON" && event.key === "Enter") return;
    const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    const k = Number(event.key) - 1;
    if (action) action();
    else if (/^[1-9]$/.test(event.key) && k < KIT.letters.length && !event.repeat) choose(k);
    else return;
    event.preventDefault();
  }

  if (!window.KIT) fault("kit.js is missing: unpack the kit again, and open index.html in the folder itself.");
  else if (!("DecompressionStream" in window)) {
    fault("This browser is too old: take Chrome or Edge 80, Firefox 113, Safari 16.4, or a newer one.");
  } else {
    build();
    listen();
  }
})();
