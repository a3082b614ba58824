// The chooser: what each model is for, what it takes, and what becomes of it.

import * as api from "./api.js";
import { button, byId, el, size } from "./dom.js";
import { parseMetrics } from "./machine.js";
import { state, subscribe, update } from "./store.js";

const LIGHT = 1e9; // bytes that a small machine has to spare
const ABOUT = {
  int8: "INT8: each weight is a whole number of 8 bits. A quarter of the memory of float32, and answers hardly differ.",
  int4: "INT4: each weight is a whole number of 4 bits. Least memory, and answers differ a little more.",
};
const loading = new Map(); // { abort, done, total, error } by the id of a model
const wanted = new Map(); // precisions that were chosen for models that are not in memory, by their id

let loads = 0; // that have ended: what was asked for before one of them does not know of it

export async function refresh() {
  const before = loads;
  const [told, speeds] = await Promise.all([api.models(), firstWords()]);
  if (loads !== before) return;
  const seen = new Set();
  const models = told.data.filter((one) => !one.root && !seen.has(one.id) && seen.add(one.id));
  for (const one of models)
    if (one.ways) one.description = one.ways.map((way) => `${way.takes.join(", ")}: ${way.model}`).join("; ");
  const fitting = models.filter((one) => !one.bundled && !one.ways && one.fits);
  const largest = fitting.reduce((most, one) => (one.parameters > (most?.parameters ?? 0) ? one : most), null);
  for (const one of models) {
    one.recommended = one === fitting[0];
    one.isLargest = one === largest && !one.recommended;
    one.firstWord = speeds[one.id];
    one.size = [`${size(taken(one))} memory`, one.download_bytes && `${size(one.download_bytes)} download`]
      .filter(Boolean)
      .join(", ");
  }
  const known = models.some((one) => one.id === state.model && one.loaded);
  const first = models.find((one) => one.loaded);
  update({ models, model: known ? state.model : (first?.id ?? state.model) });
}

// Seconds to the first word, on this machine so far, by model.
async function firstWords() {
  const sums = {};
  for (const [name, labels, value] of parseMetrics(await api.metrics())) {
    const part = /^galago_time_to_first_token_seconds_(sum|count)$/.exec(name)?.[1];
    if (!part) continue;
    sums[labels.model] ??= { sum: 0, count: 0 };
    sums[labels.model][part] += value;
  }
  return Object.fromEntries(
    Object.entries(sums).map(([model, { sum, count }]) => [model, count ? sum / count : undefined]),
  );
}

export function start() {
  subscribe(() => {
    showChosen();
    if (location.hash === "#models") show();
  });
}

// What a model takes in the precision in which it runs here, measured, or what is set aside for it.
function taken(model) {
  return model.memory_by_precision?.[model.precision] ?? model.memory_bytes;
}

function showChosen() {
  const model = state.models.find((one) => one.id === state.model);
  const more = model ? ` · ${model.precision} · ${size(taken(model))}` : "";
  byId("model").replaceChildren(state.model ?? "no model", el("span", { class: "more" }, more));
}

let shown = "";

export function show() {
  const free = state.health?.memory?.free_bytes;
  const now = JSON.stringify([
    state.models,
    state.model,
    free && Math.round(free / 1e8),
    [...loading].map(([id, { done, total, error }]) => [id, done, total, error]),
    [...wanted],
  ]);
  if (now === shown) return;
  shown = now;
  const head = ["Model", "For", "Download", "Memory", "State", "Do"];
  const rows = state.models.map((model) => row(model, free));
  byId("view-models").replaceChildren(
    el("h1", {}, "Models"),
    el(
      "p",
      { class: "lead" },
      free ? `${size(free)} of memory are free for models on this machine. ` : "",
      "The chosen one answers; others stay as they are.",
    ),
    el(
      "div",
      { class: "wide" },
      el(
        "table",
        { "data-testid": "models" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            head.map((name) => el("th", { scope: "col" }, name)),
          ),
        ),
        el("tbody", {}, rows),
      ),
    ),
    el(
      "p",
      { class: "lead" },
      Object.values(ABOUT).map((text) => el("span", { class: "block" }, text)),
    ),
  );
}

function row(model, free) {
  const isChosen = model.id === state.model;
  return el(
    "tr",
    { "data-testid": `model-${model.id}`, class: isChosen ? "chosen" : "" },
    el("th", { scope: "row" }, model.id, badges(model)),
    el("td", {}, model.description),
    el("td", { class: "number" }, model.installed ? "here" : size(model.download_bytes)),
    el("td", {}, memory(model, free)),
    el(
      "td",
      {},
      stateOf(model, isChosen),
      model.firstWord && el("span", { class: "block number" }, `first word ${model.firstWord.toFixed(1)} s`),
    ),
    el("td", { class: "actions" }, actions(model, isChosen)),
  );
}

function badges(model) {
  const told = [
    model.recommended && "Recommended here",
    model.isLargest && "Largest that fits",
    !model.bundled && taken(model) < LIGHT && "Lightweight (CPU-friendly)",
    model.bundled && "Drawn scenes only",
  ];
  return told.filter(Boolean).map((text) => el("span", { class: "badge" }, text));
}

// What it takes in each precision beside what is free; of one that is not in memory one is chosen.
function memory(model, free) {
  const chosen = model.loaded ? model.precision : precisionOf(model);
  const all = Object.entries(model.memory_by_precision ?? {});
  const rows = (model.loaded ? all.filter(([name]) => name === chosen) : all).map(([name, bytes]) => {
    const most = Math.max(free ?? bytes, bytes);
    const bar = el("meter", { min: 0, max: most, value: bytes, "aria-label": `${name} takes ${size(bytes)}` });
    const choose = () => {
      wanted.set(model.id, name);
      update();
    };
    const radio = {
      type: "radio",
      name: `precision-${model.id}`,
      checked: name === chosen,
      onchange: choose,
      id: `precision-${model.id}-${name}`,
    };
    const word = model.loaded ? el("strong", {}, name) : el("label", {}, el("input", radio), name);
    word.title = ABOUT[name] ?? "";
    return el(
      "li",
      {},
      word,
      bar,
      el("span", { class: "number" }, size(bytes)),
      free !== undefined && bytes > free && !model.loaded ? " more than is free" : "",
    );
  });
  return el("ul", { class: "memory" }, rows);
}

const precisionOf = (model) => wanted.get(model.id) ?? model.precision;

// Why it cannot be loaded, and what could: null where it can.
function unfit(model) {
  const needs = model.memory_by_precision?.[precisionOf(model)] ?? model.memory_bytes ?? 0;
  const most = state.health?.memory?.budget_bytes ?? Infinity;
  if (needs <= most) return null;
  const fitting = Object.entries(model.memory_by_precision ?? {})
    .filter(([, bytes]) => bytes <= most)
    .map(([name]) => name);
  return `does not fit in ${size(most)}; ${fitting.length ? `${fitting.join(" or ")} would` : "no precision would"}`;
}

function stateOf(model, isChosen) {
  const under = loading.get(model.id);
  if (under?.error) return el("span", { class: "error", role: "alert" }, under.error);
  if (under?.total)
    return el(
      "label",
      {},
      "downloading ",
      el("progress", { value: under.done, max: under.total }),
      ` ${Math.floor((100 * under.done) / under.total)} %`,
    );
  if (under || model.loading) return "loading";
  if (isChosen) return "answers";
  if (model.loaded) return "ready";
  return unfit(model) ?? "";
}

function actions(model, isChosen) {
  const under = loading.get(model.id);
  if ((under && !under.error) || model.loading)
    return [button("Cancel", () => giveUp(model), { title: "Ends the load on the server" })];
  const made = [];
  if (model.loaded && !isChosen) made.push(button("Choose", () => update({ model: model.id }), { class: "accent" }));
  if (!model.loaded)
    made.push(button("Load", () => load(model), { class: isChosen ? "" : "accent", disabled: Boolean(unfit(model)) }));
  if (model.loaded && !isChosen) made.push(button("Unload", () => unload(model), { class: "quiet" }));
  return made;
}

async function load(model) {
  const under = { abort: new AbortController(), done: 0, total: 0, error: null };
  const precision = precisionOf(model);
  const name = precision === model.precision ? model.id : `${model.id.replace(`-${model.precision}`, "")}-${precision}`;
  loading.set(model.id, under);
  under.name = name;
  update();
  try {
    for await (const told of api.load(name, under.abort.signal)) {
      if (told.bytes_total) Object.assign(under, { done: told.bytes_done, total: told.bytes_total });
      update();
    }
    loading.delete(model.id);
    wanted.delete(model.id);
    loads += 1;
    state.model = name;
  } catch (error) {
    if (error.name === "AbortError") loading.delete(model.id);
    else under.error = error.message;
  }
  await refresh().catch(() => {});
  update();
}

// End a load: also one that another page or program asked for.
async function giveUp(model) {
  const under = loading.get(model.id);
  await unload({ id: under?.name ?? model.id });
  under?.abort.abort();
}

async function unload(model) {
  try {
    await api.unload(model.id);
  } catch (error) {
    loading.set(model.id, { error: error.message, abort: new AbortController() });
  }
  await refresh().catch(() => {});
}
