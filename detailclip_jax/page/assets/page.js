// The page of `python -m detailclip_jax.demo`: sends images and captions to the server on this machine and draws its answers.
"use strict";

const $ = (id) => document.getElementById(id);
const WAIT = 250; // ms without a key until the captions are compared
// Viridis at nine equal steps, as in the figures of a run.
const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [109, 205, 89], [253, 231, 37]];
const OVER = 0.68; // opacity of a heat map over the image
const GREY = 0.88; // of removed patches, as in the figures
const FEW = 6; // found images that a narrow screen shows first, as in the style sheet

const state = { about: null, image: null, scene: null, point: { x: 0.5, y: 0.5 }, turns: {}, errors: 0, busy: 0 };

/** Sends a request; returns its JSON, or throws an Error with the server's line. */
async function ask(path, body, type = "application/json") {
  const options = body === undefined ? {} : { method: "POST", body, headers: { "Content-Type": type } };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; is it still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** Begins work of a kind; returns a function that tells whether no other of this kind has begun since. */
function turn(kind) {
  const own = (state.turns[kind] ?? 0) + 1;
  state.turns[kind] = own;
  return () => own === state.turns[kind];
}

/** As `ask`, where only the last request to a path counts: null if another was sent since, also in place of an error. */
async function askLast(path, body) {
  const newest = turn(path);
  const answer = await ask(path, JSON.stringify(body)).catch((error) => {
    if (newest()) throw error;
  });
  return newest() ? answer : null;
}

/** Returns a function that runs work alone: calls while it runs are answered by one more run, after it.
 *
 * Work gets a function that tells whether nobody has called since it began; if somebody has, its error is dropped.
 */
function alone(work) {
  let running = null;
  let again = false;
  const run = async () => {
    try {
      do {
        again = false;
        await work(() => !again).catch((error) => {
          if (!again) throw error;
        });
      } while (again);
    } finally {
      running = null;
    }
  };
  return () => {
    if (running) again = true;
    else running = run();
    return running;
  };
}

/** Runs work, shows its error as one line, and marks the results as busy meanwhile; success hides only older errors. */
async function doing(work) {
  const { errors } = state;
  busy(1);
  try {
    await work();
    if (errors === state.errors) $("error").hidden = true;
  } catch (error) {
    state.errors++;
    $("error").textContent = error.message;
    $("error").hidden = false;
  } finally {
    busy(-1);
  }
}

function busy(change) {
  state.busy += change;
  $("models").setAttribute("aria-busy", String(state.busy > 0));
}

/** Creates an element; strings are added as text, never as HTML. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(text) {
  $("status").textContent = text;
}

function colour(value) {
  const place = Math.min(Math.max(value, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[low].map((channel, i) => channel + (VIRIDIS[low + 1][i] - channel) * (place - low));
}

/** Draws values from `low` to `high` as colours; one pixel per value, which the style sheet enlarges.
 *
 * An image below them becomes grey, as in the figures: its own colours would mix with those of the values.
 */
function heat(canvas, values, width, low, high, alpha = OVER) {
  canvas.closest(".frame")?.classList.add("grey");
  canvas.width = width;
  canvas.height = values.length / width;
  const pixels = new ImageData(canvas.width, canvas.height);
  values.forEach((value, i) => {
    pixels.data.set([...colour((value - low) / (high - low || 1)), 255 * alpha], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function panel(source, label, caption, grid = true) {
  const canvas = make("canvas", { className: grid ? "grid" : "" });
  const frame = make("div", { className: "frame" }, make("img", { src: source, alt: "" }), canvas);
  frame.setAttribute("role", "img");
  frame.setAttribute("aria-label", label);
  return { canvas, frame, figure: make("figure", {}, frame, make("figcaption", {}, caption)) };
}

/** One card per model: patches, attention, kept patches, and room for the captions. */
function drawImage(answer) {
  $("models").replaceChildren(...answer.models.map((model, number) => card(answer, model, number)));
  $("models").classList.toggle("solo", answer.models.length === 1);
  $("ratio").disabled = false;
  drawKept();
}

function card(answer, model, number) {
  const about = state.about.models[number];
  const source = `/api/image/${answer.image}-${number}.png`;
  const similar = panel(source, "", "Click a patch: similar patches");
  const attention = panel(source, "CLS attention per patch", "CLS attention");
  const kept = panel(source, "Kept patches", "Kept patches");
  heat(attention.canvas, model.attention, model.side, Math.min(...model.attention), Math.max(...model.attention));
  pickable(similar.frame, model.side);
  model.parts = { similar, kept, texts: make("div") };
  const meta = `${about.method}, step ${about.step}, ${about.weights} weights, ${about.image_size} px`;
  const title = make("h2", { id: `model-${number}` }, about.path);
  const figures = [similar, attention, ...(about.removes ? [kept] : [])].map((shown) => shown.figure);
  const panels = make("div", { className: "panels" }, ...figures);
  const section = make("section", { className: "model" }, title, make("p", { className: "meta" }, meta), panels, model.parts.texts);
  section.setAttribute("aria-labelledby", title.id);
  return section;
}

/** Removes the patches that come first in the order of removal. */
function drawKept() {
  const percent = Number($("ratio").value);
  $("percent").textContent = `${percent} %`;
  for (const model of state.image?.models ?? []) {
    const removed = Math.floor((model.order.length * percent) / 100);
    const { canvas, frame, figure } = model.parts.kept;
    canvas.width = canvas.height = model.side;
    const pixels = new ImageData(model.side, model.side);
    model.order.forEach((place, i) => {
      if (place < removed) pixels.data.set([255 * GREY, 255 * GREY, 255 * GREY, 255], 4 * i);
    });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    const text = `${model.order.length - removed} of ${model.order.length} patches kept`;
    frame.setAttribute("aria-label", text);
    figure.querySelector("figcaption").textContent = text;
  }
}

/** Lets a click, or arrow keys and Enter, choose a patch. */
function pickable(frame, side) {
  frame.tabIndex = 0;
  frame.setAttribute("role", "application");
  frame.setAttribute("aria-roledescription", "patch picker");
  frame.setAttribute("aria-label", "Choose a patch with a click or the arrow keys");
  frame.addEventListener("click", (event) => {
    const box = frame.getBoundingClientRect();
    choose((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  frame.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Enter: [0, 0], " ": [0, 0] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const inside = (value, by) => (Math.min(Math.max(Math.floor(value * side) + by, 0), side - 1) + 0.5) / side;
    choose(inside(state.point.x, move[0]), inside(state.point.y, move[1]));
  });
}

/** Compares the chosen patch with the others; an answer for a patch or an image that was left since is dropped. */
async function neighbours() {
  const answer = await askLast("/api/neighbours", { image: state.image.image, ...state.point });
  answer?.models.forEach((model, number) => drawSimilar(state.image.models[number], model));
}

function choose(x, y) {
  state.point = { x: Math.min(Math.max(x, 0), 0.9999), y: Math.min(Math.max(y, 0), 0.9999) };
  return doing(neighbours);
}

function drawSimilar(shown, answer) {
  const { canvas, frame, figure } = shown.parts.similar;
  heat(canvas, answer.cosines, shown.side, Math.min(...answer.cosines), 1);
  frame.querySelector(".mark")?.remove();
  const part = 100 / shown.side;
  const mark = make("div", { className: "mark" });
  Object.assign(mark.style, { left: `${answer.column * part}%`, top: `${answer.row * part}%`, width: `${part}%`, height: `${part}%` });
  frame.append(mark);
  const place = `row ${answer.row + 1}, column ${answer.column + 1}`;
  figure.querySelector("figcaption").textContent = `Patches similar to ${place}; click another`;
  frame.setAttribute("aria-label", `Patches similar to ${place}; choose another with a click or the arrow keys`);
  say(`patches similar to ${place}`);
}

function texts() {
  return $("texts").value.split("\n").map((line) => line.trim()).filter(Boolean);
}

/** Compares the image with the captions, one request at a time; an answer to what has changed since is dropped. */
const compare = alone(async (newest) => {
  const wanted = texts();
  const { max_texts: most } = state.about;
  $("texts-limit").hidden = wanted.length <= most;
  $("texts-limit").textContent = `Only the first ${most} captions are compared, not the last ${wanted.length - most}.`;
  if (!state.image) return;
  if (!wanted.length) {
    state.image.models.forEach((model) => model.parts.texts.replaceChildren());
    return;
  }
  wanted.length = Math.min(wanted.length, most);
  const { image } = state.image;
  const answer = await ask("/api/texts", JSON.stringify({ image, texts: wanted, readout: $("readout").value }));
  if (!newest() || image !== state.image.image) return;
  answer.models.forEach((model, number) => drawTexts(state.image.models[number], model, answer.texts));
  say(`compared with ${answer.texts.length} captions`);
});

function drawTexts(shown, answer, names) {
  if (answer.reason) {
    shown.parts.texts.replaceChildren(make("h3", {}, "Captions"), make("p", { className: "small" }, answer.reason));
    return;
  }
  const best = answer.cosines.indexOf(Math.max(...answer.cosines));
  const bars = names.map((name, i) => {
    const value = `${answer.cosines[i].toFixed(3)} · ${(100 * answer.shares[i]).toFixed(0)} %`;
    const line = make("div", { className: i === best ? "best" : "" }, make("span", { className: "text" }, name), make("span", { className: "value" }, value));
    const fill = make("i");
    fill.style.width = `${100 * answer.shares[i]}%`;
    return make("li", {}, line, make("div", { className: "bar" }, fill));
  });
  const list = make("ul", { className: "bars" }, ...bars);
  const maps = make("div", { className: "maps" }, ...heatMaps(answer, names));
  shown.parts.texts.replaceChildren(make("h3", {}, "Cosine and share of each caption"), list, make("h3", {}, `Where each caption fits, read-out ${answer.readout}`), maps, legend(names.length));
}

/** What the colours of the heat maps mean. */
function legend(count) {
  const canvas = make("canvas");
  heat(canvas, Array.from({ length: 64 }, (_, i) => i), 64, 0, 63, 1);
  const [less, more] = count > 1 ? ["less", "more than the other captions"] : ["less", "more than the mean of the image"];
  return make("p", { className: "legend small" }, less, canvas, more);
}

/** Maps relative to the mean over captions at the same place, in one colour range, as in the figures. */
function heatMaps(answer, names) {
  const { maps, width } = answer;
  const mean = maps.length > 1
    ? maps[0].map((_, i) => maps.reduce((sum, map) => sum + map[i], 0) / maps.length)
    : maps[0].map(() => maps[0].reduce((sum, value) => sum + value, 0) / maps[0].length);
  const shown = maps.map((map) => map.map((value, i) => value - mean[i]));
  const limit = Math.max(...shown.map((map) => Math.max(...map.map(Math.abs))));
  return shown.map((map, i) => {
    const { canvas, figure } = panel(`/api/image/${state.image.image}.png`, `Heat map of ${names[i]}`, names[i], false);
    heat(canvas, map, width, -limit, limit);
    return figure;
  });
}

/** Uploads an image file and draws what the models see, unless another image was chosen since `newest` was made. */
async function upload(blob, scene = null, newest = null) {
  if (blob.size > state.about.max_upload) {
    throw new Error(`too large: more than ${state.about.max_upload.toLocaleString("en")} bytes`);
  }
  newest ??= turn("image");
  const answer = await ask("/api/image", blob, "application/octet-stream");
  if (!newest()) return;
  state.image = answer;
  state.scene = scene;
  $("preview").src = `/api/image/${answer.image}.png`;
  $("preview").alt = scene === null ? "The chosen image" : state.about.scenes[scene].caption;
  $("preview").hidden = false;
  $("hint").textContent = "Drop another image or choose a file";
  $("alike").disabled = false;
  for (const button of $("scenes").children) button.setAttribute("aria-pressed", String(Number(button.value) === scene));
  drawImage(answer);
  await neighbours();
  await compare();
}

async function pick(number) {
  const newest = turn("image");
  $("texts").value = state.about.scenes[number].texts.join("\n");
  const response = await fetch(`/api/scenes/${number}.png`);
  await upload(await response.blob(), number, newest);
}

/** Uploads the file of a drop; of several, none. */
async function dropped(files) {
  if (files.length > 1) throw new Error(`${files.length} files were dropped; drop one image`);
  if (files.length) await upload(files[0]);
}

function search(body) {
  return doing(async () => {
    const answer = await askLast("/api/search", body);
    if (!answer) return;
    const { found } = answer;
    const items = found.map(({ number, name, cosine }) => {
      const image = make("img", { src: `/api/found/${number}.png`, alt: name, loading: "lazy" });
      return make("li", {}, make("figure", {}, image, make("figcaption", {}, `${cosine.toFixed(3)} ${name}`)));
    });
    $("found").replaceChildren(...items);
    $("found").classList.add("few");
    $("more").textContent = `Show ${found.length - FEW} more`;
    $("more").hidden = found.length <= FEW;
    $("found-title").textContent = body.text ? `Found for “${body.text}”` : "Found for this image";
    $("found-section").hidden = false;
    say(`found ${found.length} images`);
  });
}

function listen() {
  let timer;
  $("texts").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => doing(compare), WAIT);
  });
  $("readout").addEventListener("change", () => doing(compare));
  $("ratio").addEventListener("input", drawKept);
  $("file").addEventListener("change", () => {
    const file = $("file").files[0];
    $("file").value = "";  // so that the same file can be chosen again
    if (file) doing(() => upload(file));
  });
  for (const name of ["dragover", "drop", "dragleave"]) {
    document.addEventListener(name, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return; // text goes where it is dropped
      event.preventDefault();
      $("drop").classList.toggle("over", name === "dragover");
      const { files } = event.dataTransfer;
      if (name === "drop") doing(() => dropped(files));
    });
  }
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("query").value.trim()) search({ text: $("query").value });
  });
  $("more").addEventListener("click", () => {
    $("found").classList.remove("few");
    $("more").hidden = true;
  });
  $("alike").addEventListener("click", () => search({ image: state.image.image }));
}

function begin() {
  return doing(async () => {
    state.about = await ask("/api/about");
    const { models, scenes, credit, search: count } = state.about;
    $("about").textContent = `${models.map((model) => model.path).join(", ")} on this machine; nothing leaves it.`;
    const removing = models.find((model) => model.removes);
    $("removal").hidden = !removing;
    $("ratio").value = Math.round(100 * (removing ?? models[0]).ratio);
    $("credit").textContent = credit;
    const none = make("option", { value: "" }, "default of each model");
    $("readout").append(none, ...state.about.readouts.map((name) => make("option", { value: name }, name)));
    $("readout").value = state.about.readout;
    $("search").hidden = !count;
    $("count").textContent = count.toLocaleString("en");
    $("scenes").append(...scenes.map((scene, number) => {
      const image = make("img", { src: `/api/scenes/${number}.png`, alt: "" });
      const button = make("button", { type: "button", value: number, title: scene.caption, onclick: () => doing(() => pick(number)) }, image);
      button.setAttribute("aria-label", `Scene: ${scene.caption}`);
      button.setAttribute("aria-pressed", "false");
      return button;
    }));
    listen();
    if (scenes.length) await pick(0);
  });
}

begin();
