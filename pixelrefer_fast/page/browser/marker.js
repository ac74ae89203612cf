// The body of a function of `element, trigger, props, server, upload, watch`, which Gradio calls once. What it draws
// lives in a shadow root: Gradio puts the template's own elements back whenever a property changes.
const root = element.querySelector(".pr-marker").attachShadow({ mode: "open" });
root.innerHTML = `<style>${props.style}</style>${props.body}`;
const $ = (selector) => root.querySelector(selector);
const stage = $(".stage"), svg = $("svg"), img = $(".stage img"), draft = $("[data-draft]");
const SVG = "http://www.w3.org/2000/svg";
const TOOLS = { c: "click", x: "beside", b: "box", p: "brush", e: "eraser" };
let tool = "click", view = null, version = -1, waiting = 0;
let looking = null; // the frame that the slider has asked for
let drag = null, cross = null, corner = null; // a drag's points; the keyboard's cross and the first corner of its box

function send(what, more = {}) {
  waiting += 1;
  stage.classList.add("busy");
  trigger("act", { do: what, ...more });
}

function say(text, bad = false) {
  const line = $(".message");
  line.textContent = text;
  line.classList.toggle("bad", bad);
}

function make(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

function use(name) {
  tool = name;
  corner = null;
  for (const button of root.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-checked", button.dataset.tool === tool);
    button.tabIndex = button.dataset.tool === tool ? 0 : -1;
  }
  for (const label of root.querySelectorAll("[data-for]")) label.hidden = !label.dataset.for.split(" ").includes(tool);
  stage.classList.toggle("drags", !["click", "beside"].includes(tool));
}

// Pixels of the image for one of the screen, and the width of a stroke in the former.
const scale = () => (view ? view.width / svg.getBoundingClientRect().width : 1);
const width = () => Math.max(1, ($("[data-width]").value / 400) * Math.max(view.width, view.height));

function fit() {
  if (!view) return;
  const most = Math.min(Math.max(screen.height * 0.6, 300), 640);
  const across = Math.min(stage.clientWidth, (most * view.width) / view.height, view.width * 6);
  for (const part of [img, svg]) {
    part.style.width = `${across}px`;
    part.style.height = `${(across * view.height) / view.width}px`;
  }
  svg.style.left = `calc(50% - ${across / 2}px)`;
  draw();
}

function draw() {
  const marks = $("[data-marks]");
  marks.replaceChildren();
  const one = scale();
  for (const object of view.objects) {
    if (!object.here) continue;
    const chosen = view.chosen === null || view.chosen === object.number;
    const group = make("g", { class: `${object.rough ? "rough" : ""} ${chosen ? "" : "other"}` }, marks);
    make("path", { d: object.path, class: "halo" }, group);
    make("path", { d: object.path, class: "line", fill: object.colour, stroke: object.colour, "fill-rule": "evenodd" }, group);
    for (const [x, y, on] of object.clicks) {
      make("circle", { cx: x + 0.5, cy: y + 0.5, r: 4.5 * one, fill: on ? object.colour : "#fff", stroke: "#101012", "stroke-width": 1.5 * one }, group);
    }
    const [left, top] = object.top;
    const side = 20 * one, x = Math.max(0, left - side / 2), y = Math.max(0, top - side / 2);
    make("rect", { x, y, width: side, height: side, rx: 6 * one, fill: object.colour, stroke: "#101012" }, group);
    const text = make("text", { x: x + side / 2, y: y + side / 2, class: "badge" }, group);
    text.style.fontSize = `${13 * one}px`;
    text.textContent = object.number;
  }
  if (cross) {
    const arm = 12 * one;
    $("[data-cross]").setAttribute("d", `M${cross.x - arm} ${cross.y}h${2 * arm}M${cross.x} ${cross.y - arm}v${2 * arm}`);
  }
}

function listed() {
  const list = $(".objects");
  const focused = root.activeElement && root.activeElement.dataset.number;
  list.replaceChildren();
  if (!view || !view.objects.length) return;
  for (const object of [...view.objects, null]) {
    const number = object ? object.number : null;
    const chip = document.createElement("span"), pick = document.createElement("button");
    chip.className = "chip";
    pick.className = "pick";
    pick.type = "button";
    pick.dataset.number = number ?? "new";
    pick.setAttribute("role", "radio");
    pick.setAttribute("aria-checked", view.chosen === number);
    pick.textContent = object ? number + (object.here ? "" : " (elsewhere)") + (object.frames > 1 ? ` · ${object.frames} frames` : "") : "+ new";
    pick.title = object ? `Work on object ${number} (${number})` : "What is marked next is a new object (N)";
    pick.onclick = () => send("choose", { number });
    chip.append(pick);
    if (object) {
      const dot = document.createElement("span"), gone = document.createElement("button");
      dot.className = "dot";
      dot.style.background = object.colour;
      pick.prepend(dot);
      gone.className = "gone";
      gone.type = "button";
      gone.textContent = "×";
      gone.setAttribute("aria-label", `Remove object ${number}`);
      gone.onclick = () => send("remove", { number });
      chip.append(gone);
    } else {
      pick.style.borderRadius = "8px";
    }
    list.append(chip);
  }
  if (focused) list.querySelector(`[data-number="${focused}"]`)?.focus();
}

// A version below the last is an answer that was overtaken.
watch("value", () => {
  const told = props.value;
  waiting = Math.max(0, waiting - 1);
  stage.dataset.told = Number(stage.dataset.told || 0) + 1; // for whoever waits for it
  stage.classList.toggle("busy", waiting > 0);
  if (!told || told.version < version) return;
  version = told.version;
  if (told.bad) looking = null;
  draft.replaceChildren();
  say(told.message || "", Boolean(told.bad));
  if (!told.view) return;
  view = told.view;
  svg.setAttribute("viewBox", `0 0 ${view.width} ${view.height}`);
  if (img.getAttribute("src") !== told.picture) {
    img.src = told.picture;
    cross = null;
  }
  stage.classList.add("filled");
  fit();
  listed();
  filmed();
});

// A slider is dragged faster than frames come: the next one is asked for when the last has come.
function filmed() {
  const slider = $("[data-frame]");
  $(".video").hidden = view.frames < 2;
  slider.max = view.frames - 1;
  if (looking === null) slider.value = view.frame;
  $("output").textContent = view.frames > 1 ? `${view.frame} of 0 to ${view.frames - 1} · ${view.seconds.toFixed(2)} s` : "";
  if (looking === view.frame) looking = null;
  else if (looking !== null) send("look", { number: looking });
}
$("[data-frame]").addEventListener("input", (event) => {
  const idle = looking === null;
  looking = Number(event.target.value);
  if (idle) send("look", { number: looking });
});

function place(event) {
  const box = svg.getBoundingClientRect();
  const inside = (value, most) => Math.min(Math.max(value, 0), most);
  return {
    x: inside(((event.clientX - box.left) / box.width) * view.width, view.width - 0.01),
    y: inside(((event.clientY - box.top) / box.height) * view.height, view.height - 0.01),
  };
}

function clicked({ x, y }) {
  send("click", { x: Math.floor(x), y: Math.floor(y), label: tool === "beside" ? 0 : 1 });
}

function boxed(a, b) {
  const corners = [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)].map(Math.round);
  if (corners[2] > corners[0] && corners[3] > corners[1]) send("box", { corners, cut: $("[data-cut]").checked });
  else draft.replaceChildren();
}

function drafted(points) {
  draft.replaceChildren();
  if (tool === "box") {
    const [a, b] = [points[0], points.at(-1)];
    make("rect", { x: Math.min(a.x, b.x), y: Math.min(a.y, b.y), width: Math.abs(a.x - b.x), height: Math.abs(a.y - b.y) }, draft);
  } else {
    const line = [...points, points.at(-1)].map(({ x, y }) => `${x},${y}`).join(" ");
    make("polyline", { points: line, class: "stroke", style: `stroke-width:${width()}px` }, draft);
  }
}

function painted(points) {
  const rounded = points.map(({ x, y }) => [Math.round(x * 10) / 10, Math.round(y * 10) / 10]);
  send("paint", { points: rounded, width: width(), erase: tool === "eraser" });
}

svg.addEventListener("pointerdown", (event) => {
  if (!view || event.button) return;
  if (["click", "beside"].includes(tool)) return;
  svg.setPointerCapture(event.pointerId);
  drag = [place(event)];
  drafted(drag);
});
svg.addEventListener("pointermove", (event) => {
  if (!drag) return;
  if (drag.length < 4000) drag.push(place(event));
  drafted(drag);
});
svg.addEventListener("pointerup", () => {
  if (!drag) return;
  const points = drag;
  drag = null;
  tool === "box" ? boxed(points[0], points.at(-1)) : painted(points);
});
svg.addEventListener("pointercancel", () => {
  drag = null;
  draft.replaceChildren();
});
svg.addEventListener("click", (event) => {
  if (view && ["click", "beside"].includes(tool)) clicked(place(event));
});

stage.addEventListener("keydown", (event) => {
  if (!view || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = (event.shiftKey ? 0.08 : 0.015) * Math.max(view.width, view.height);
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  const key = event.key.toLowerCase();
  cross ??= { x: view.width / 2, y: view.height / 2 };
  if (moves[event.key]) {
    const [x, y] = moves[event.key];
    cross = { x: Math.min(Math.max(cross.x + x, 0), view.width - 1), y: Math.min(Math.max(cross.y + y, 0), view.height - 1) };
    if (corner) drafted([corner, cross]);
  } else if (event.key === "Enter" || event.key === " ") {
    if (["click", "beside"].includes(tool)) clicked(cross);
    else if (tool !== "box") painted([cross]);
    else if (corner) {
      boxed(corner, cross);
      corner = null;
    } else {
      corner = cross;
      say("The other corner: arrow keys, then Enter.");
    }
  } else if (event.key === "Escape") {
    corner = null;
    draft.replaceChildren();
  } else if (TOOLS[key]) use(TOOLS[key]);
  else if (key === "z") send("undo");
  else if (key === "n") send("choose", { number: null });
  else if (/^[0-9]$/.test(key) && Number(key) < view.objects.length) send("choose", { number: Number(key) });
  else if ((event.key === "Delete" || event.key === "Backspace") && view.chosen !== null) send("remove", { number: view.chosen });
  else return;
  event.preventDefault();
  draw();
});
stage.addEventListener("focus", () => {
  if (view) {
    cross ??= { x: view.width / 2, y: view.height / 2 };
    draw();
  }
});

async function opened(file, what) {
  say(`Reading ${file.name} …`);
  try {
    const { path } = await upload(file);
    send(what, { path, name: file.name });
  } catch (error) {
    say(`${file.name}: expected a file that this server takes, but ${error.message || error}`, true);
  }
}
for (const pick of root.querySelectorAll("[data-pick]")) {
  pick.addEventListener("change", () => {
    if (pick.files[0]) opened(pick.files[0], pick.dataset.pick);
    pick.value = "";
  });
}
for (const button of root.querySelectorAll("[data-do]")) {
  const what = button.dataset.do;
  const pick = $(`[data-pick="${what}"]`);
  button.addEventListener("click", () => (pick ? pick.click() : send(what)));
}
for (const button of root.querySelectorAll("[data-tool]")) button.addEventListener("click", () => use(button.dataset.tool));
$(".group").addEventListener("keydown", (event) => {
  const names = Object.values(TOOLS), by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  use(names[(names.indexOf(tool) + by + names.length) % names.length]);
  $(`[data-tool="${tool}"]`).focus();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  stage.addEventListener(kind, (event) => {
    event.preventDefault();
    stage.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) opened(event.dataTransfer.files[0], "file");
  });
}
props.examples.forEach(({ path, title }, number) => {
  const button = document.createElement("button"), picture = document.createElement("img");
  button.type = "button";
  picture.src = path.slice(1);
  picture.alt = "";
  const name = document.createElement("span");
  name.textContent = title;
  button.append(picture, name);
  button.onclick = () => send("example", { number });
  $(".examples").append(button);
});
new ResizeObserver(fit).observe(stage);
use("click");
