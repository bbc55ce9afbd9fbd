"use strict";
(() => {
  const root = document.getElementById("explorer");
  const { photographs, subjects } = JSON.parse(document.getElementById("explorer-data").textContent);
  const parts = ["form", ".views", ".said", ".ramp", ".top", ".scroll"];
  const [form, views, said, ramp, top, table] = parts.map((part) => root.querySelector(part));
  const TURNS = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // cosine and sine, counter-clockwise
  const NAMES = ["not turned", "turned by 90°", "turned by 180°", "turned by 270°"];
  const VIEWS = ["Photograph, posed", "Its token map", "Upright map, posed", "Error per patch"];
  const state = { subject: 0, image: 0, layer: 0, turn: 0, flip: 0, scale: 0 };

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const canvases = VIEWS.map((name) => {
    const canvas = make("canvas");
    canvas.setAttribute("role", "img");
    views.append(make("figure", {}, make("figcaption", { textContent: name }), canvas));
    return canvas;
  });

  const opened = new Map(); // pictures are decoded when they are first looked at
  const open = (source) => {
    if (!opened.has(source)) {
      const picture = make("img", { src: source });
      opened.set(source, picture.decode().then(() => picture));
    }
    return opened.get(source);
  };

  const subject = () => subjects[state.subject];
  const image = () => subject().images[state.image];
  const layer = () => image().layers[state.layer];
  const element = () => state.turn + 4 * state.flip;
  const digits = (value) => (value === null ? "not measurable" : value.toFixed(2).replace("-", "−"));
  // of one layer at one pose; older records have no place
  const figure = (shown, name, scale, which) => (shown[name] ? digits(shown[name][scale][which]) : "not measured");

  // a square piece of a picture, flipped and turned about its centre, on `side` of the canvas's `cells`
  function paint(canvas, picture, box, cells, side, turn, flip, smooth) {
    const unit = 2 * Math.ceil(256 / cells); // pixels a patch; even, so that a centred map starts on a whole one
    canvas.width = canvas.height = cells * unit;
    const context = canvas.getContext("2d");
    const [cosine, sine] = TURNS[turn], sign = flip ? -1 : 1, middle = (cells * unit) / 2, width = side * unit;
    context.imageSmoothingEnabled = smooth;
    context.setTransform(sign * cosine, -sign * sine, sine, cosine, middle, middle);
    context.drawImage(picture, ...box, -width / 2, -width / 2, width, width);
  }

  async function show() {
    const shown = layer(), { side: cells, grids } = shown, side = grids[state.scale], which = element();
    const wanted = [photographs[image().photograph], shown.sprite];
    const [photograph, sprite] = await Promise.all(wanted.map(open)).catch(() => []);
    if (!sprite) {
      said.textContent = "A picture of this layer is damaged: run equimid evaluate again.";
      return;
    }
    if (shown !== layer() || which !== element() || side !== grids[state.scale]) return; // the reader was faster
    const tile = (column) => [column * cells, state.scale * cells, side, side];
    const whole = [0, 0, photograph.naturalWidth, photograph.naturalHeight];
    paint(canvases[0], photograph, whole, cells, side, state.turn, state.flip, whole[2] > 96);
    paint(canvases[1], sprite, tile(1 + which), cells, side, 0, 0, false);
    paint(canvases[2], sprite, tile(0), cells, side, state.turn, state.flip, false);
    paint(canvases[3], sprite, tile(9 + which), cells, side, 0, 0, false);
    const strip = ramp.firstChild || ramp.appendChild(make("canvas"));
    strip.width = shown.levels;
    strip.height = 1;
    strip.getContext("2d").drawImage(sprite, 0, cells * grids.length, shown.levels, 1, 0, 0, shown.levels, 1);
    top.textContent = `${shown.top} or more (unrelated maps: 1.4)`;
    describe(shown, side, which);
  }

  function describe(shown, side, which) {
    const named = subjects.length > 1 ? `${subject().label}, ` : "";
    const of = image().class === null ? "" : ` (${image().class})`;
    const where = `${named}layer ${shown.layer}${shown.regularised ? " (SER)" : ""}, image ${image().image}${of}`;
    const size = side === shown.upright ? "on" : `scaled from ${shown.upright} × ${shown.upright} to`;
    const pose = `${state.flip ? "flipped, " : ""}${NAMES[state.turn]}, ${size} ${side} × ${side} patches`;
    const [place, cosine, error] = ["place", "cosine", "error"].map((name) => figure(shown, name, state.scale, which));
    const numbers = `Place ${place}, relative error ${error}, centred cosine ${cosine}`;
    said.textContent = `${where}: ${pose}. ${numbers}.`;
    VIEWS.forEach((name, i) => {
      canvases[i].setAttribute("aria-label", `${name}: ${where}, ${pose}${i ? `. ${numbers}` : ""}`);
    });
    compare(which);
  }

  // every subject that saw this photograph, at this pose
  function compare(which) {
    const rows = subjects
      .map(({ label, images }) => ({ label, seen: images.find((m) => m.photograph === image().photograph) }))
      .filter(({ seen }) => seen);
    const layers = [...new Set(rows.flatMap(({ seen }) => seen.layers.map((l) => l.layer)))].sort((a, b) => a - b);
    const heading = (scope, textContent) => make("th", { scope, textContent });
    const head = make("tr", {}, heading("col", "Layer"), ...layers.map((number) => heading("col", number)));
    const body = rows.map(({ label, seen }) => {
      const cells = layers.map((number) => {
        const there = seen.layers.find((l) => l.layer === number);
        const posed = there && there.error[state.scale]; // another network may have fewer grids
        const cell = make("td", { textContent: posed ? figure(there, "place", state.scale, which) : "–" });
        if (there === layer()) cell.setAttribute("aria-current", "true");
        return cell;
      });
      return make("tr", {}, heading("row", label), ...cells);
    });
    const caption = make("caption", { textContent: "Place of this image at this pose, by layer" });
    table.replaceChildren(make("table", { className: "numbers" }, caption, make("thead", {}, head), make("tbody", {}, ...body)));
  }

  function choose(key, value) {
    const number = layer().layer;
    state[key] = value;
    if (key === "subject" || key === "image") {
      // another network has other images, layers and grids: what is nearest stays
      state.image = Math.min(state.image, subject().images.length - 1);
      const away = image().layers.map((l) => Math.abs(l.layer - number));
      state.layer = away.indexOf(Math.min(...away));
      state.scale = Math.min(state.scale, layer().grids.length - 1);
      build();
    }
    for (const input of form.querySelectorAll("input")) input.checked = state[input.dataset.key] === Number(input.value);
    show();
  }

  function group(key, legend, options) {
    const labels = options.map((text, value) => {
      const input = make("input", { type: "radio", name: `explorer-${key}`, value, checked: state[key] === value });
      input.dataset.key = key;
      input.addEventListener("change", () => choose(key, value));
      return make("label", {}, input, make("span", { textContent: text }));
    });
    return make("fieldset", {}, make("legend", { textContent: legend }), make("div", { className: "options" }, ...labels));
  }

  function build() {
    const focused = form.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const { grids, upright } = layer(), images = subject().images;
    form.replaceChildren(
      ...(subjects.length > 1 ? [group("subject", "Network", subjects.map((s) => s.label))] : []),
      group("image", "Image", images.map((m) => (m.class === null ? `${m.image}` : `${m.image}: ${m.class}`))),
      group("layer", "Layer", image().layers.map((l) => `${l.layer}${l.regularised ? " (SER)" : ""}`)),
      group("turn", "Turn", ["0°", "90°", "180°", "270°"]),
      group("flip", "Flip", ["no", "yes"]),
      group("scale", "Scale", grids.map((grid) => `× ${Number((grid / upright).toFixed(2))}`)),
    );
    if (focused) form.querySelector(`[data-key="${focused}"]:checked`).focus();
  }

  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const cycle = (key, count) => choose(key, (state[key] + 1) % count);
    const last = image().layers.length - 1;
    const step = (by) => choose("layer", Math.max(0, Math.min(last, state.layer + by)));
    const actions = {
      r: () => cycle("turn", 4),
      f: () => cycle("flip", 2),
      s: () => cycle("scale", layer().grids.length),
      i: () => cycle("image", subject().images.length),
      ArrowUp: () => step(1),
      ArrowDown: () => step(-1),
    };
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  state.scale = Math.max(0, layer().grids.indexOf(layer().upright));
  state.layer = Math.max(0, image().layers.findIndex((l) => l.regularised));
  state.turn = 1;
  build();
  show();
  root.hidden = false;
})();
