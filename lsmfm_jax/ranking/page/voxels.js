// The voxels of a case, from the script that holds them: from disk a browser reads no other file. All scripts of this
// page are plain ones in this order: voxels, pictures, progress, ranking. Each hands over one name.
"use strict";

window.make = (tag, about = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), about);
  node.append(...children);
  return node;
};

window.Voxels = (() => {
  const loaded = new Map(); // by case: a promise of its voxels
  const arrivals = new Map(); // by case: what its script calls

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

  function forget(wanted) {
    for (const name of loaded.keys()) if (!wanted(name)) loaded.delete(name);
  }

  return { load, forget };
})();
