// What the machine does: small plots of what /metrics says, one point every two seconds.

import * as api from "./api.js";
import { byId, el, size } from "./dom.js";

const EVERY = 2000;
const KEPT = 120;
const series = new Map(); // points by the name of a plot
let before = null;
let timer = null;

// The samples of Prometheus' text: [name, labels, value].
export function parseMetrics(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found || line.startsWith("#")) continue;
    const labels = Object.fromEntries(
      [...(found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]),
    );
    samples.push([found[1], labels, Number(found[3])]);
  }
  return samples;
}

function summed(samples, name, label) {
  const found = {};
  for (const [of, labels, value] of samples)
    if (of === name) found[label ? labels[label] : "all"] = (found[label ? labels[label] : "all"] ?? 0) + value;
  return found;
}

const total = (found) => Object.values(found).reduce((a, b) => a + b, 0);

function read(samples, health) {
  const now = { time: performance.now(), tokens: total(summed(samples, "galago_completion_tokens_total")) };
  const speed =
    before && now.tokens >= before.tokens ? (1000 * (now.tokens - before.tokens)) / (now.time - before.time) : 0;
  before = now;
  const memory = summed(samples, "galago_memory_bytes", "kind");
  const images = summed(samples, "galago_images_total", "tier");
  const asked = total(images);
  const plots = [
    ["Tokens a second", speed, speed.toFixed(0)],
    ["Requests under way", total(summed(samples, "galago_requests_running")), null],
    ["Requests waiting", total(summed(samples, "galago_requests_waiting")), null],
    [
      "Images found again",
      asked ? (100 * (asked - (images.miss ?? 0))) / asked : 0,
      asked ? `${Math.round((100 * (asked - (images.miss ?? 0))) / asked)} %` : "none asked for",
    ],
    ["Memory of the process", health.memory?.used_bytes ?? 0, size(health.memory?.used_bytes)],
    ...Object.entries(memory).map(([kind, bytes]) => [`Memory: ${kind.replaceAll("_", " ")}`, bytes, size(bytes)]),
  ];
  for (const [state, count] of Object.entries(summed(samples, "galago_jobs", "state")))
    plots.push([`Jobs ${state}`, count, null]);
  return plots;
}

function draw(canvas, points) {
  const ratio = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const most = Math.max(...points, 1e-9);
  context.strokeStyle = getComputedStyle(canvas).color;
  context.lineWidth = 1.5;
  context.beginPath();
  points.forEach((value, i) => {
    const x = canvas.clientWidth - (points.length - 1 - i) * (canvas.clientWidth / (KEPT - 1));
    context.lineTo(x, canvas.clientHeight - 3 - (canvas.clientHeight - 6) * (value / most));
  });
  context.stroke();
}

async function look() {
  try {
    const [text, health] = await Promise.all([api.metrics(), api.health()]);
    show(read(parseMetrics(text), health), health);
  } catch {
    // the bar says that the server is gone
  }
  timer = location.hash === "#machine" ? setTimeout(look, EVERY) : null;
}

function show(plots, health) {
  const view = byId("view-machine");
  if (!view.firstChild) {
    view.append(
      el("h1", {}, "Machine"),
      el("p", { class: "lead", id: "machine-lead" }),
      el("ul", { class: "plots", id: "plots" }),
    );
  }
  byId("machine-lead").textContent =
    `${health.model}, ${health.precision}, on ${health.device}, computed by ${health.kernels}; Galago ${health.version}.`;
  for (const [name, value, text] of plots) {
    const points = series.get(name) ?? [];
    points.push(value);
    if (points.length > KEPT) points.shift();
    series.set(name, points);
    const id = `plot-${name.replaceAll(/\W+/g, "-")}`;
    if (!byId(id))
      byId("plots").append(
        el(
          "li",
          { id, "data-testid": "plot" },
          el("h2", {}, name),
          el("output", {}),
          el("canvas", { "aria-hidden": "true" }),
        ),
      );
    byId(id).querySelector("output").textContent = text ?? String(value);
    draw(byId(id).querySelector("canvas"), points);
  }
}

export function open() {
  if (timer === null) look();
}
