// What an expert has ranked: kept by the browser for each name, and saved as a file.
"use strict";

window.Progress = (() => {
  const PREFIX = `lsmfm-ranking:${(window.KIT || {}).id}:`;
  const START = PREFIX + "expert:";

  function stored(key) {
    try {
      return localStorage.getItem(key);
    } catch {
      return null;
    }
  }

  // Whether the browser has kept it.
  function keep(expert, rankings, at) {
    try {
      localStorage.setItem(START + expert, JSON.stringify({ rankings, at }));
      localStorage.setItem(PREFIX + "last", expert);
      return true;
    } catch {
      return false;
    }
  }

  function experts() {
    try {
      return Object.keys(localStorage).filter((key) => key.startsWith(START)).map((key) => key.slice(START.length)).sort();
    } catch {
      return [];
    }
  }

  // By case its letters, the best first, and the case that was open; what is no ranking of this kit is left out.
  function of(expert) {
    let found = null;
    try {
      found = JSON.parse(stored(START + expert));
    } catch {
      // as if nothing had been kept
    }
    const rankings = {};
    for (const name of KIT.cases) {
      const order = ((found || {}).rankings || {})[name];
      const sound = Array.isArray(order) && order.length && new Set(order).size === order.length;
      if (sound && order.every((letter) => KIT.letters.includes(letter))) rankings[name] = order;
    }
    const at = (found || {}).at;
    return { rankings, at: Number.isInteger(at) && at >= 0 && at < KIT.cases.length ? at : 0 };
  }

  const finished = (rankings) => Object.values(rankings).filter((order) => order.length === KIT.letters.length).length;

  function crc32(text) {
    let crc = 0xffffffff;
    for (const byte of new TextEncoder().encode(text)) {
      crc ^= byte;
      for (let k = 0; k < 8; k += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ((crc ^ 0xffffffff) >>> 0).toString(16).padStart(8, "0");
  }

  function results(expert, rankings) {
    const ranked = KIT.cases.filter((name) => rankings[name]);
    const lines = [KIT.id, expert, ...ranked.map((name) => `${name} ${rankings[name].join("")}`)];
    return {
      what: "ranking results",
      version: 1,
      kit: KIT.id,
      expert,
      finished: finished(rankings),
      cases: KIT.cases.length,
      saved: new Date().toISOString(),
      rankings: Object.fromEntries(ranked.map((name) => [name, rankings[name]])),
      check: crc32(lines.join("\n")), // tells a file that was edited by hand
    };
  }

  // Has the browser save the file; gives its name.
  function save(expert, rankings) {
    const blob = new Blob([JSON.stringify(results(expert, rankings), null, 1) + "\n"], { type: "application/json" });
    const plain = expert.replace(/[^\p{L}\p{N}]+/gu, "_").replace(/^_|_$/g, "") || "expert";
    const link = make("a", { href: URL.createObjectURL(blob), download: `ranking_${plain}_${KIT.id}.json` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    return link.download;
  }

  // Two pages of one expert would overwrite each other's ranks.
  function watch(expert, changed) {
    window.addEventListener("storage", (event) => {
      if (event.key === START + expert) changed();
    });
  }

  return { keep, experts, last: () => stored(PREFIX + "last") || "", of, finished, save, watch };
})();
