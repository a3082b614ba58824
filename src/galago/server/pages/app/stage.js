// The picture, as large as the window allows, and what was found drawn over it.

import { byId, save } from "./dom.js";
import { fit, toPicture, toScreen, zoom } from "./geometry.js";
import { current, state, subscribe, update } from "./store.js";

// Safe for colour-blind eyes (after Okabe and Ito), each with 3:1 against the dark halo.
export const COLOURS = ["#56b4e9", "#e69f00", "#2bb58b", "#f0e442", "#e58cc0", "#ff7f50", "#a6a6ff", "#ffffff"];
const STEP = 1.25; // of the zoom
const HALO = "#16140fcc";
const A_FRAME = 0.04; // seconds
const NEAR = 14; // pixels of the screen at which a point counts as under the pointer

let view = null;
let whole = null;
let shownId = null;
let image = null;
let isDirty = false;
const pointers = new Map();

export function colourOf(label) {
  const labels = labelsOf(current());
  return COLOURS[Math.max(labels.indexOf(label), 0) % COLOURS.length];
}

function labelsOf(picture) {
  const found = picture?.answers.filter((answer) => answer.found).map((answer) => answer.prompt) ?? [];
  return [...new Set(found)];
}

// What is drawn: { answer, index, label, box | point | line }. In a video, over the frame that it was found in.
export function marks(picture) {
  const isShown = ({ at }) => picture.kind !== "video" || Math.abs(picture.video.currentTime - at) < A_FRAME;
  return (picture?.answers ?? [])
    .filter((answer) => answer.found && !answer.hidden && isShown(answer))
    .flatMap((answer) => answer.found.map((one, index) => ({ answer, index, label: answer.prompt, ...one })));
}

// --- drawing -------------------------------------------------------------------------------------------------------

export function start() {
  const canvas = byId("canvas");
  new ResizeObserver(() => {
    whole = view = null;
    redraw();
  }).observe(byId("stage"));
  subscribe(show);
  canvas.addEventListener("wheel", onWheel, { passive: false });
  canvas.addEventListener("pointerdown", onDown);
  canvas.addEventListener("pointermove", onMove);
  canvas.addEventListener("pointerup", onUp);
  canvas.addEventListener("pointercancel", onUp);
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("dblclick", () => zoomBy(0));
  canvas.addEventListener("keydown", onKey);
  byId("smaller").addEventListener("click", () => zoomBy(STEP ** -1));
  byId("larger").addEventListener("click", () => zoomBy(STEP));
  byId("whole").addEventListener("click", () => zoomBy(0));
  byId("png").addEventListener("click", savePng);
  byId("json").addEventListener("click", saveJson);
}

function show() {
  const picture = current();
  if ((picture?.id ?? null) !== shownId) {
    shownId = picture?.id ?? null;
    view = whole = null;
    image = null;
    if (picture?.kind === "image") {
      const opening = new Image();
      opening.onload = () => {
        if (shownId === picture.id) image = opening;
        redraw();
      };
      opening.src = picture.url;
    } else if (picture) {
      image = picture.video;
    }
  }
  redraw();
}

export function redraw() {
  if (isDirty) return;
  isDirty = true;
  requestAnimationFrame(() => {
    isDirty = false;
    draw();
  });
}

function draw() {
  const canvas = byId("canvas");
  const box = { width: canvas.clientWidth, height: canvas.clientHeight };
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(box.width * ratio);
  canvas.height = Math.round(box.height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const picture = current();
  byId("tools").hidden = !picture;
  byId("downloads").hidden = !marks(picture).length;
  if (!picture || !image || !box.width) return;
  whole ??= fit(picture, box);
  view ??= { ...whole };
  context.imageSmoothingEnabled = view.scale < 3;
  context.drawImage(image, view.x, view.y, picture.width * view.scale, picture.height * view.scale);
  paint(context, picture, view, state.hover);
  canvas.dataset.view = JSON.stringify(view);
}

// Draw all marks; those that the pointer is not at are dimmed.
function paint(context, picture, at, hovered) {
  const taken = [];
  for (const mark of marks(picture)) {
    const isOther = hovered && !(hovered.answer === mark.answer.id && hovered.index === mark.index);
    context.globalAlpha = isOther ? 0.25 : 1;
    const colour = colourOf(mark.label);
    if (mark.box) paintBox(context, picture, at, mark, colour, taken);
    else if (mark.point) paintPoint(context, toScreen(at, picture, mark.point), colour, mark.index + 1);
    else if (mark.line) paintLine(context, picture, at, mark.line, colour);
  }
  context.globalAlpha = 1;
}

// Each line twice: a halo that shows on any ground, and the colour.
function stroke(context, colour, width, path) {
  for (const [style, extra] of [
    [HALO, 2],
    [colour, 0],
  ]) {
    context.strokeStyle = style;
    context.lineWidth = width + extra;
    context.beginPath();
    path();
    context.stroke();
  }
}

function paintBox(context, picture, at, mark, colour, taken) {
  const a = toScreen(at, picture, { x: mark.box.x_min, y: mark.box.y_min });
  const b = toScreen(at, picture, { x: mark.box.x_max, y: mark.box.y_max });
  stroke(context, colour, 2, () => context.rect(a.x, a.y, b.x - a.x, b.y - a.y));
  context.font = "600 13px system-ui, sans-serif";
  const width = context.measureText(mark.label).width + 12;
  const height = 20;
  // Inside the top left corner where there is room, above the box where there is not.
  let y = b.x - a.x > width + 4 && b.y - a.y > height + 12 ? a.y + 1 : a.y - height - 1;
  while (taken.some((t) => Math.abs(t.x - a.x) < width && Math.abs(t.y - y) < height)) y += height;
  taken.push({ x: a.x, y });
  context.fillStyle = HALO;
  context.fillRect(a.x, y, width + 2, height);
  context.fillStyle = colour;
  context.fillText(mark.label, a.x + 7, y + 14.5);
}

function paintPoint(context, { x, y }, colour, number) {
  stroke(context, colour, 2, () => context.arc(x, y, 9, 0, 2 * Math.PI));
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, 3, 0, 2 * Math.PI);
  context.fill();
  if (number === undefined) return;
  context.font = "600 13px system-ui, sans-serif";
  context.lineWidth = 3;
  context.strokeStyle = HALO;
  context.strokeText(String(number), x + 12, y - 8);
  context.fillText(String(number), x + 12, y - 8);
}

function paintLine(context, picture, at, { from, to }, colour) {
  const a = toScreen(at, picture, from);
  stroke(context, colour, 2, () => context.arc(a.x, a.y, 5, 0, 2 * Math.PI));
  if (!to) return;
  const b = toScreen(at, picture, to);
  stroke(context, colour, 2, () => {
    context.moveTo(a.x, a.y);
    context.lineTo(b.x, b.y);
  });
  paintPoint(context, b, colour);
}

// The picture with its marks, as it is and not as it is zoomed.
async function savePng() {
  const picture = current();
  const by = Math.max(1, 800 / Math.max(picture.width, picture.height));
  const canvas = new OffscreenCanvas(Math.round(picture.width * by), Math.round(picture.height * by));
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  paint(context, picture, { scale: by, x: 0, y: 0 }, null);
  save(`${stem(picture)}-galago.png`, await canvas.convertToBlob({ type: "image/png" }));
}

// All that is drawn over it, in numbers from 0 to 1.
function saveJson() {
  const picture = current();
  const found = marks(picture).map(({ answer, label, box, point, line }) => {
    return { [answer.kind]: label, model: answer.model, time: answer.at ?? undefined, ...box, ...point, ...line };
  });
  const { name, width, height } = picture;
  save(
    `${stem(picture)}-galago.json`,
    JSON.stringify({ picture: name, width, height, found }, null, 2),
    "application/json",
  );
}

const stem = (picture) => picture.name.replace(/\.\w+$/, "");

// --- the pointer ---------------------------------------------------------------------------------------------------

let onPick = null;

// Ask for a point of the picture: what is clicked next, or null where that was given up.
export function pickPoint() {
  byId("canvas").classList.add("picking");
  return new Promise((resolve) => {
    onPick = (point) => {
      onPick = null;
      byId("canvas").classList.remove("picking");
      resolve(point);
    };
  });
}

export const isPicking = () => onPick !== null;
export const stopPicking = () => onPick?.(null);

const at = (event) => ({ x: event.offsetX, y: event.offsetY });

function onWheel(event) {
  if (!view) return;
  event.preventDefault();
  view = zoom(view, whole, Math.exp(-event.deltaY / 300), at(event));
  redraw();
}

function onDown(event) {
  const picture = current();
  if (!picture || !view) return;
  if (onPick) {
    const point = toPicture(view, picture, at(event));
    if (point.x >= 0 && point.x <= 1 && point.y >= 0 && point.y <= 1) onPick(point);
    return;
  }
  event.target.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, at(event));
}

function onMove(event) {
  const before = pointers.get(event.pointerId);
  if (!before) return hover(markAt(at(event)));
  const now = at(event);
  if (pointers.size === 2) {
    // A pinch: the other finger stays where it is meanwhile.
    const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
    const factor = Math.hypot(now.x - other.x, now.y - other.y) / Math.hypot(before.x - other.x, before.y - other.y);
    view = zoom(view, whole, factor, other);
  } else if (view.scale > whole.scale) {
    view = { ...view, x: view.x + now.x - before.x, y: view.y + now.y - before.y };
  }
  pointers.set(event.pointerId, now);
  redraw();
}

function onUp(event) {
  pointers.delete(event.pointerId);
}

function onKey(event) {
  const factor = { "+": STEP, "=": STEP, "-": STEP ** -1, 0: 0 }[event.key];
  if (factor !== undefined) zoomBy(factor);
}

// Zoom about the middle; by 0, the whole picture.
function zoomBy(factor) {
  if (!view) return;
  const canvas = byId("canvas");
  view = zoom(view, whole, factor, { x: canvas.clientWidth / 2, y: canvas.clientHeight / 2 });
  redraw();
}

function markAt({ x, y }) {
  const picture = current();
  if (!picture || !view) return null;
  const near = (point) => {
    const s = toScreen(view, picture, point);
    return Math.hypot(s.x - x, s.y - y) < NEAR;
  };
  const p = toPicture(view, picture, { x, y });
  const inside = ({ x_min, x_max, y_min, y_max }) => p.x >= x_min && p.x <= x_max && p.y >= y_min && p.y <= y_max;
  const area = ({ box }) => (box ? (box.x_max - box.x_min) * (box.y_max - box.y_min) : 0);
  const under = marks(picture).filter(
    ({ box, point, line }) =>
      (box && inside(box)) || (point && near(point)) || (line && (near(line.from) || (line.to && near(line.to)))),
  );
  // The smallest: one inside another can be reached.
  return under.sort((a, b) => area(a) - area(b))[0] ?? null;
}

function hover(mark) {
  const now = mark && { answer: mark.answer.id, index: mark.index };
  if (now?.answer === state.hover?.answer && now?.index === state.hover?.index) return;
  update({ hover: now });
  if (now) byId(`row-${now.answer}-${now.index}`)?.scrollIntoView({ block: "nearest" });
}
