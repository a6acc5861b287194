// How an expert ranks: which picture is chosen, which case is open, and what each key does.
"use strict";

(() => {
  const at = (id) => document.getElementById(id);
  let expert = "";
  let rankings = {}; // by case: its letters, the best first; shorter than `letters` where it is not finished
  let number = 0; // of the case on the page

  const caseName = () => KIT.cases[number];
  const orderOf = (name) => rankings[name] || [];
  const finished = (name) => orderOf(name).length === KIT.letters.length;

  function rankWord(place) {
    if (place === 0) return "best";
    if (place === KIT.letters.length - 1) return "worst";
    return KIT.letters.length === 3 ? "middle" : `${place + 1}${["", "", "nd", "rd"][place + 1] || "th"} best`;
  }

  // After every change, and when a case is opened.
  function changed() {
    if (!Progress.keep(expert, rankings, number)) {
      fault("This browser does not keep your progress: save your results before you close the page.");
    }
    show();
  }

  function choose(k) {
    const letter = KIT.letters[k];
    const order = orderOf(caseName());
    if (!Pictures.shown()) return;
    if (finished(caseName())) return prompt("This case is ranked. Press Backspace to take a rank back, or Enter for the next case.", true);
    if (order.includes(letter)) {
      return prompt(`${letter} has its rank already, and two pictures cannot share one. Choose another, or press Backspace to take it back.`, true);
    }
    const after = [...order, letter];
    const left = KIT.letters.filter((one) => !after.includes(one));
    rankings[caseName()] = left.length === 1 ? [...after, left[0]] : after;
    changed();
  }

  function undo() {
    const order = orderOf(caseName());
    if (!order.length) return;
    // The last rank was given by the one before it, so both go.
    const kept = order.slice(0, finished(caseName()) ? -2 : -1);
    if (kept.length) rankings[caseName()] = kept;
    else delete rankings[caseName()];
    changed();
  }

  function prompt(text, refused = false) {
    at("prompt").textContent = text;
    at("prompt").classList.toggle("refused", refused);
  }

  function show() {
    const order = orderOf(caseName());
    const done = Progress.finished(rankings);
    const all = done === KIT.cases.length;
    at("title").textContent = `Case ${number + 1} of ${KIT.cases.length}`;
    at("expert").textContent = expert;
    at("count").textContent = `${done} of ${KIT.cases.length} ranked`;
    at("save").classList.toggle("wanted", all);
    at("next").classList.toggle("wanted", finished(caseName()) && !all);
    at("previous").disabled = number === 0;
    at("next").disabled = number === KIT.cases.length - 1;
    at("undo").disabled = order.length === 0;
    Pictures.panels.forEach((panel, k) => {
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

  async function open(which) {
    number = which;
    const name = caseName();
    Pictures.show(null);
    changed();
    Voxels.forget((other) => Math.abs(KIT.cases.indexOf(other) - number) <= 1);
    try {
      const arrived = await Voxels.load(name);
      if (caseName() !== name) return; // another case was opened meanwhile
      Pictures.show(arrived);
      document.body.dataset.shown = name;
      if (number + 1 < KIT.cases.length) Voxels.load(KIT.cases[number + 1]).catch(() => {});
    } catch (error) {
      Voxels.forget((other) => other !== name);
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

  function save() {
    const left = KIT.cases.length - Progress.finished(rankings);
    const file = Progress.save(expert, rankings);
    prompt(left ? `Saved as ${file}; ${left} cases are not ranked yet.` : `Saved as ${file}. Thank you.`);
  }

  function fault(text) {
    at("fault").textContent = text;
    at("fault").hidden = false;
  }

  function begin(name) {
    expert = name.trim().replace(/\s+/g, " ");
    if (!expert) return;
    const found = Progress.of(expert);
    rankings = found.rankings;
    Progress.watch(expert, () => {
      fault(`${expert} ranks this kit in another tab as well: close one of them, and load the other again, or ranks are lost.`);
    });
    at("start").hidden = true;
    at("work").hidden = false;
    open(found.at);
  }

  function build() {
    Pictures.build(KIT.letters, choose);
    KIT.cases.forEach((_, k) => at("strip").append(make("button", { type: "button", tabIndex: -1, onclick: () => open(k) })));
    const described = [
      [KIT.letters.map((_, k) => k + 1).join(" "), "the best, then the next; the last follows"],
      ["Backspace", "undo"], ["Enter", "next unranked"], ["P N", "previous, next"], ["↑ ↓", "or wheel: slices"],
      ["O", "outlines"], ["R", "reset contrast"], ["+ − 0", "zoom; drag"],
    ];
    for (const [key, text] of described) at("keys").append(make("kbd", { textContent: key }), ` ${text}  `);
    at("start-cases").textContent = KIT.cases.length;
    at("name").value = Progress.last();
    for (const name of Progress.experts()) {
      const label = `Continue as ${name} (${Progress.finished(Progress.of(name).rankings)} of ${KIT.cases.length})`;
      at("known").append(make("button", { type: "button", textContent: label, onclick: () => begin(name) }));
    }
    at("start").addEventListener("submit", (event) => {
      event.preventDefault();
      begin(at("name").value);
    });
    const actions = { undo, save, previous: () => move(-1), next: () => move(1) };
    for (const [id, action] of Object.entries(actions)) at(id).addEventListener("click", action);
    // What was clicked must not take the next keys: Enter would press it again, an arrow move a slider.
    document.addEventListener("pointerup", () => {
      if (!at("work").hidden && document.activeElement) document.activeElement.blur();
    });
    document.addEventListener("keydown", pressed);
    at("start").hidden = false;
    at("name").focus();
  }

  const keys = {
    ...Pictures.keys, Backspace: undo, Enter: nextUnfinished,
    n: () => move(1), p: () => move(-1), PageDown: () => move(1), PageUp: () => move(-1),
  };

  function pressed(event) {
    if (at("work").hidden || event.ctrlKey || event.altKey || event.metaKey) return;
    const on = document.activeElement || document.body;
    const slider = on.type === "range" && on.id !== "slice";
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
  }
})();
