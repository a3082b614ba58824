// A folder of pictures, captioned as jobs: they go on when this page is closed, and are here when it is opened again.

import * as api from "./api.js";
import { button, byId, confirm, el, newId, save } from "./dom.js";
import { dataUrl } from "./pictures.js";
import { drop, dropAll, keep, kept, state } from "./store.js";

const AT_A_TIME = 3; // pictures that are made small and sent at the same time
const LONGEST = 1024;
const ENDED = ["done", "failed", "cancelled"];
const WHAT = { short: "Short captions", normal: "Captions", long: "Long captions", question: "Answers to:" };
let rows = []; // { id, name, status, text, error, jobId, thumb }
let filter = "";
let listening = null;
let last = null; // the id of the event heard last
let problem = "";
let what = "normal"; // is asked of each picture, of WHAT
let question = "";

export async function start() {
  document.addEventListener("galago-forgot", () => {
    listening?.abort();
    rows = [];
    show();
  });
  document.addEventListener("drop", async (event) => {
    if (location.hash === "#library") addFiles(await droppedFiles(event.dataTransfer));
  });
  rows = await kept("library");
  show();
  listen();
}

export function open() {
  listen();
  show();
}

async function listen() {
  if (listening || !rows.some((row) => row.jobId && !ENDED.includes(row.status))) return;
  listening = new AbortController();
  try {
    await Promise.all(
      rows
        .filter((row) => row.jobId && !ENDED.includes(row.status))
        .map((row) => api.job(row.jobId).then(take, () => {})),
    );
    for await (const { job, id } of api.jobEvents(last, listening.signal)) {
      last = id;
      take(job);
      if (rows.every((row) => ENDED.includes(row.status))) break;
    }
  } catch (error) {
    if (error.status === 0) setTimeout(listen, 2000);
  }
  listening = null;
}

function take(job) {
  const row = rows.find((one) => one.jobId === job.id);
  if (!row) return;
  Object.assign(row, {
    status: job.status,
    text: job.result?.caption ?? job.result?.answer ?? row.text,
    error: job.error?.message ?? null,
  });
  keep("library", row);
  show();
}

async function small(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  const scaled = async (most, quality) => {
    const by = Math.min(1, most / Math.max(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(
      Math.max(1, Math.round(bitmap.width * by)),
      Math.max(1, Math.round(bitmap.height * by)),
    );
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return canvas.convertToBlob({ type: "image/jpeg", quality });
  };
  const made = { sent: await scaled(LONGEST, 0.92), thumb: await scaled(96, 0.8) };
  bitmap.close();
  return made;
}

async function addFiles(files) {
  problem = what === "question" && !question ? "Say first what is to be asked of each picture." : "";
  if (problem) return show();
  const added = files
    .filter((file) => file.type.startsWith("image/"))
    .map((file) => ({ id: newId(), name: file.webkitRelativePath || file.name, status: "sending", file }));
  rows.push(...added);
  show();
  const waiting = [...added];
  await Promise.all(
    Array.from({ length: AT_A_TIME }, async () => {
      for (let row = waiting.shift(); row; row = waiting.shift()) await send(row);
    }),
  );
}

const asked = () => (what === "question" ? { path: "/v1/query", question } : { path: "/v1/caption", length: what });

// What was dropped, with all that lies in its folders.
async function droppedFiles({ items }) {
  const files = [];
  const walk = async (entry, path) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      files.push(Object.defineProperty(file, "webkitRelativePath", { value: path + file.name }));
      return;
    }
    const reader = entry.createReader();
    // A folder is read a hundred entries at a time, until there are none.
    for (let some = [null]; some.length;) {
      some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      for (const one of some) await walk(one, `${path}${entry.name}/`);
    }
  };
  // All at once: the list is empty as soon as this event is over.
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  for (const entry of entries) await walk(entry, "");
  return files;
}

async function send(row) {
  const { file } = row;
  try {
    const { sent, thumb } = await small(file).catch(() => {
      throw new Error("This browser cannot read it as a picture.");
    });
    row.thumb = thumb;
    const url = await dataUrl(sent);
    const job = await api.addJob({ ...asked(), model: state.model, image_url: url, idempotency_key: row.id });
    Object.assign(row, { jobId: job.id, status: job.status });
  } catch (error) {
    row.status = "failed";
    row.error = error.message;
    if (error.status === 501) problem = error.message;
  }
  delete row.file;
  await keep("library", row);
  show();
  listen();
}

async function act(row, call) {
  try {
    take(await call(row.jobId));
  } catch (error) {
    row.error = error.message;
    show();
  }
  listen();
}

function askToClear() {
  confirm(
    "Clear the library",
    "All rows and their captions are removed from this browser, and jobs that wait are cancelled.",
    clear,
  );
}

function clear() {
  listening?.abort();
  for (const row of rows) if (row.jobId && !ENDED.includes(row.status)) api.cancelJob(row.jobId).catch(() => {});
  rows = [];
  dropAll("library");
  show();
}

// --- downloads -----------------------------------------------------------------------------------------------------

const cell = (text) => {
  // A text that a spreadsheet would take for a formula stays a text.
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};

const told = () =>
  rows.map(({ name, status, text, error }) => ({ name, status, caption: text ?? "", error: error ?? "" }));
const csv = () =>
  [["name", "status", "caption", "error"], ...told().map(Object.values)]
    .map((row) => row.map(cell).join(","))
    .join("\r\n");
const jsonl = () =>
  told()
    .map((row) => JSON.stringify(row))
    .join("\n");

// --- the view ------------------------------------------------------------------------------------------------------

let isAsked = false;

function show() {
  if (isAsked) return;
  isAsked = true;
  requestAnimationFrame(() => {
    isAsked = false;
    if (location.hash === "#library") draw();
  });
}

function draw() {
  const view = byId("view-library");
  if (!view.firstChild) view.append(...frame());
  const ended = rows.filter((row) => ENDED.includes(row.status)).length;
  byId("library-progress").max = rows.length || 1;
  byId("library-progress").value = ended;
  byId("library-told").textContent = rows.length
    ? `${ended} of ${rows.length} done, ${rows.filter((row) => row.status === "failed").length} failed`
    : "Nothing yet.";
  byId("library-problem").textContent = problem;
  const found = rows.filter((row) => !filter || `${row.name} ${row.text ?? ""}`.toLowerCase().includes(filter));
  byId("library-rows").replaceChildren(...found.slice(0, 500).map(rowOf));
  byId("library-more").textContent = found.length > 500 ? `${found.length - 500} more: filter, or download all.` : "";
}

function frame() {
  const files = (id, text, attributes) =>
    el(
      "label",
      { class: "button", for: id },
      text,
      el("input", {
        id,
        type: "file",
        multiple: true,
        onchange: (event) => addFiles([...event.target.files]),
        ...attributes,
      }),
    );
  return [
    el("h1", {}, "Library"),
    el(
      "p",
      { class: "lead" },
      "Pictures of a folder, described in the background; drop one here, or choose it. They go on when this page is closed.",
    ),
    el(
      "div",
      { class: "line wrap" },
      whatSelect(),
      questionInput(),
      files("library-folder", "Choose a folder", { webkitdirectory: "" }),
      files("library-files", "Choose files", { accept: "image/*", "data-testid": "library-files" }),
    ),
    el(
      "div",
      { class: "line wrap" },
      el("progress", { id: "library-progress", value: 0, max: 1, "aria-label": "Pictures done" }),
      el("span", { id: "library-told", role: "status", "data-testid": "library-told" }),
      el("input", {
        type: "search",
        placeholder: "Filter by text",
        "aria-label": "Filter by text",
        oninput: (event) => {
          filter = event.target.value.toLowerCase();
          show();
        },
      }),
      button("CSV", () => save("captions.csv", csv(), "text/csv"), { "data-testid": "csv" }),
      button("JSONL", () => save("captions.jsonl", jsonl(), "application/jsonl"), { "data-testid": "jsonl" }),
      button("Clear", askToClear, { class: "quiet" }),
    ),
    el("p", { id: "library-problem", class: "error", role: "alert" }),
    el("ul", { id: "library-rows", class: "rows", "data-testid": "library-rows" }),
    el("p", { id: "library-more", class: "lead" }),
  ];
}

function whatSelect() {
  const options = Object.entries(WHAT).map(([value, text]) => el("option", { value, selected: value === what }, text));
  const choose = (event) => {
    what = event.target.value;
    byId("library-question").hidden = what !== "question";
  };
  return el("select", { "aria-label": "What to ask for", "data-testid": "library-what", onchange: choose }, options);
}

function questionInput() {
  const asks = "Question about each picture";
  return el("input", {
    id: "library-question",
    type: "text",
    hidden: what !== "question",
    placeholder: asks,
    "aria-label": asks,
    oninput: (event) => (question = event.target.value.trim()),
  });
}

const thumbs = new Map();

function rowOf(row) {
  if (row.thumb && !thumbs.has(row.id)) thumbs.set(row.id, URL.createObjectURL(row.thumb));
  const isOpen = row.jobId && !ENDED.includes(row.status);
  return el(
    "li",
    { "data-state": row.status },
    thumbs.has(row.id) ? el("img", { src: thumbs.get(row.id), alt: "" }) : el("span", { class: "blank" }),
    el(
      "div",
      { class: "grow" },
      el("h2", {}, row.name),
      el("p", { class: row.error ? "error" : "" }, row.error ?? row.text ?? row.status),
    ),
    isOpen && button("Cancel", () => act(row, api.cancelJob), { class: "quiet" }),
    ["failed", "cancelled"].includes(row.status) && row.jobId && button("Again", () => act(row, api.retryJob)),
    ENDED.includes(row.status) &&
      button(
        "×",
        () => {
          rows = rows.filter((one) => one !== row);
          drop("library", row.id);
          show();
        },
        { class: "quiet", "aria-label": `Remove ${row.name}` },
      ),
  );
}
