// The pictures of a case, side by side: slices, contrast, outlines, and what part of them is enlarged.
"use strict";

window.Pictures = (() => {
  const STEP_PIXELS = 100; // one notch of a mouse wheel
  const ZOOM_STEP = 1.4;
  const LARGEST_ZOOM = 16;
  const CLICK_PIXELS = 4; // a pointer that moves less between press and release has clicked
  const OUTLINE = "#ffb454";
  const FILL = "rgba(255, 180, 84, 0.16)";

  const at = (id) => document.getElementById(id);
  const panels = [];
  let voxels = null; // null until they are there
  let slice = 0;
  let view = { zoom: 1, y: 0, x: 0 }; // of all pictures: enlargement, and the voxel in the middle
  let wheel = 0;
  let dragged = { y: 0, x: 0, moved: false }; // where the pointer was last, and whether it went down and moved

  function show(arrived) {
    voxels = arrived;
    // Nobody should rank pictures without outlines by mistake.
    at("overlay").checked = true;
    if (voxels === null) {
      panels.forEach(({ canvas }) => canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height));
      return;
    }
    slice = Math.floor(voxels.shape[0] / 2);
    view = { zoom: 1, y: voxels.shape[1] / 2, x: voxels.shape[2] / 2 };
    at("slice").max = voxels.shape[0] - 1;
    arrange();
    draw();
  }

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

  function turned(event) {
    if (event.ctrlKey) return; // the browser's zoom
    event.preventDefault();
    if (event.shiftKey) { // browsers turn such a wheel into one along X
      const picture = event.target.closest(".picture");
      const room = picture && picture.getBoundingClientRect();
      const place = room && { y: event.clientY - room.top - room.height / 2, x: event.clientX - room.left - room.width / 2 };
      zoom((event.deltaY || event.deltaX) < 0 ? ZOOM_STEP : 1 / ZOOM_STEP, place);
      return;
    }
    wheel += event.deltaMode === 1 ? event.deltaY * STEP_PIXELS / 3 : event.deltaY;
    const steps = Math.trunc(wheel / STEP_PIXELS);
    wheel -= steps * STEP_PIXELS;
    if (steps) scroll(steps);
  }

  function moved(event) {
    if (!(event.buttons & 1) || voxels === null || !event.target.closest(".picture")) return;
    const [y, x] = [event.clientY - dragged.y, event.clientX - dragged.x];
    if (!dragged.moved && Math.hypot(y, x) < CLICK_PIXELS) return;
    const { down, across } = measures();
    view.y -= y / down;
    view.x -= x / across;
    dragged = { y: event.clientY, x: event.clientX, moved: true };
    draw();
  }

  // `choose` is called with the number of a picture that was clicked, or whose button was.
  function build(letters, choose) {
    letters.forEach((letter, k) => {
      const canvas = make("canvas");
      const rank = make("span", { className: "rank" });
      const button = make("button", { type: "button", className: "choose", onclick: () => choose(k) });
      const picture = make("div", { className: "picture", onclick: () => { if (!dragged.moved) choose(k); } }, canvas);
      const key = make("kbd", { className: "faint", textContent: k + 1, title: `key ${k + 1}` });
      const head = make("div", { className: "head" }, make("span", { className: "letter", textContent: letter }), key, rank, button);
      const root = make("section", { className: "panel" }, head, picture);
      root.ariaLabel = `picture ${letter}`;
      at("panels").append(root);
      panels.push({ root, head, canvas, rank, choose: button, picture });
    });
    at("slice").addEventListener("input", () => scroll(Number(at("slice").value) - slice));
    for (const id of ["black", "white", "overlay"]) at(id).addEventListener("input", draw);
    at("contrast").addEventListener("click", resetContrast);
    at("panels").addEventListener("wheel", turned, { passive: false });
    at("panels").addEventListener("pointerdown", (event) => {
      dragged = { y: event.clientY, x: event.clientX, moved: false };
    });
    at("panels").addEventListener("pointermove", moved);
    new ResizeObserver(() => { arrange(); draw(); }).observe(at("panels"));
  }

  const keys = {
    ArrowUp: () => scroll(-1), ArrowDown: () => scroll(1), ArrowLeft: () => scroll(-1), ArrowRight: () => scroll(1),
    Home: () => scroll(-1e9), End: () => scroll(1e9), o: toggleOverlay, r: resetContrast,
    "+": () => zoom(ZOOM_STEP), "=": () => zoom(ZOOM_STEP), "-": () => zoom(1 / ZOOM_STEP), 0: () => zoom(1 / LARGEST_ZOOM),
  };
  return { panels, build, show, shown: () => voxels !== null, keys };
})();
