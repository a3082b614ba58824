// The side of the picture: what to ask for, the answers, and the form.

import * as asking from "./asking.js";
import { openCode } from "./code.js";
import { button, byId, copyButton, el, seconds } from "./dom.js";
import { seek } from "./pictures.js";
import * as stage from "./stage.js";
import { current, entry, keepPicture, state, subscribe, update } from "./store.js";

const LENGTHS = ["short", "normal", "long"];
const ASKED = { ask: "What do you see?", detect: "What to find: cat, red car", point: "What to point at: wheels" };
let formOf = null;
const rows = new Map(); // elements of answers, by their id

export function start() {
  subscribe(() => {
    showTabs();
    showForm();
    showAnswers();
  });
}

// --- tabs ----------------------------------------------------------------------------------------------------------

let tabsOf = null;

function showTabs() {
  const skills = entry()?.skills;
  const key = `${state.tab} ${state.model} ${skills}`;
  if (tabsOf === key) return;
  tabsOf = key;
  const made = asking.TABS.map(({ id, name, skill }, number) => {
    const lacks = skills && !skills.includes(skill);
    return button(name, () => choose(id), {
      role: "tab",
      id: `tab-${id}`,
      "aria-selected": String(state.tab === id),
      tabindex: state.tab === id ? "0" : "-1",
      title: lacks ? `${state.model} does not do this; others in Models do` : `${number + 1}`,
      class: lacks ? "lacks" : "",
      onkeydown: onTabKey,
    });
  });
  const focused = document.activeElement?.id;
  byId("tabs").replaceChildren(...made);
  if (focused?.startsWith("tab-")) byId(focused)?.focus();
}

export function choose(tab) {
  stage.stopPicking();
  update({ tab });
}

function onTabKey(event) {
  const ids = asking.TABS.map((tab) => tab.id);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  choose(ids[(ids.indexOf(state.tab) + step + ids.length) % ids.length]);
  queueMicrotask(() => byId(`tab-${state.tab}`).focus());
}

// --- the form ------------------------------------------------------------------------------------------------------

function showForm() {
  const picture = current();
  const key = `${state.tab} ${picture?.kind} ${compared().length} ${entry()?.skills}`;
  if (formOf === key) return;
  formOf = key;
  const form = byId("form");
  form.onsubmit = (event) => {
    event.preventDefault();
    submit();
  };
  if (state.tab === "caption") {
    form.replaceChildren(
      ...LENGTHS.map((length) =>
        button(length[0].toUpperCase() + length.slice(1), () => submit(length), { "data-testid": `caption-${length}` }),
      ),
      compareBox() || "",
    );
    return;
  }
  if (state.tab === "gaze") {
    form.replaceChildren(button("Click an eye, or a head", pickEye, { class: "accent", "data-testid": "pick" }));
    return;
  }
  const input = el("input", {
    id: "question",
    type: "text",
    placeholder: ASKED[state.tab],
    "aria-label": ASKED[state.tab],
    "data-testid": "question",
    oninput: (event) => (state.drafts[state.tab] = event.target.value),
  });
  input.value = state.drafts[state.tab] ?? "";
  const more = [];
  if (state.tab === "ask") {
    // Models that the catalogue does not know tell no skills, and may have any.
    if (entry()?.skills?.includes("reasoning") ?? true)
      more.push(el("label", { class: "check" }, el("input", { type: "checkbox", id: "think" }), " Think first"));
    more.push(compareBox() || "");
    if (picture?.kind === "video")
      more.push(button("Ask all along", () => submit(null, "watch"), { "data-testid": "watch" }));
  }
  form.replaceChildren(
    el(
      "div",
      { class: "line" },
      input,
      el("button", { type: "submit", class: "accent", "data-testid": "send" }, "Ask"),
    ),
    ...more,
  );
}

const compared = () => state.models.filter((model) => model.loaded && !model.ways);

// Who is asked: the model that is chosen, or each that is in memory, to be compared.
function asked() {
  if (!byId("compare")?.checked) return [{}];
  return compared().map((model) => ({ model: model.id, isCompared: true }));
}

const compareBox = () =>
  compared().length > 1 &&
  el(
    "label",
    { class: "check" },
    el("input", { type: "checkbox", id: "compare", "data-testid": "compare" }),
    ` Ask all ${compared().length} models in memory`,
  );

function submit(length = null, kind = null) {
  const picture = current();
  if (!picture) {
    byId("files").focus();
    return;
  }
  if (state.tab === "caption") {
    for (const model of asked())
      asking.ask(picture, {
        kind: "caption",
        prompt: `${length[0].toUpperCase()}${length.slice(1)} caption`,
        length,
        ...model,
      });
    return;
  }
  const text = (byId("question").value.trim() || (state.tab === "ask" ? ASKED.ask : "")).trim();
  if (!text) return;
  state.drafts[state.tab] = byId("question").value = "";
  if (state.tab === "ask") {
    const think = byId("think")?.checked;
    for (const model of asked())
      asking.ask(picture, {
        kind: kind ?? (think ? "think" : "ask"),
        prompt: text,
        isFollowUp: !think && !model.isCompared,
        ...model,
      });
    return;
  }
  const known = picture.answers
    .filter((answer) => answer.kind === state.tab && answer.state !== "failed")
    .map((answer) => answer.prompt);
  for (const word of new Set(
    text
      .split(",")
      .map((one) => one.trim())
      .filter(Boolean),
  )) {
    if (!known.includes(word)) asking.ask(picture, { kind: state.tab, prompt: word });
  }
}

async function pickEye() {
  const picture = current();
  if (!picture) return;
  const eye = await stage.pickPoint();
  if (eye) await asking.ask(picture, { kind: "gaze", prompt: "gaze", eye });
}

// --- answers -------------------------------------------------------------------------------------------------------

const KINDS = {
  ask: ["ask", "think", "watch"],
  caption: ["caption"],
  detect: ["detect"],
  point: ["point"],
  gaze: ["gaze"],
};

function showAnswers() {
  const picture = current();
  const shown = picture?.answers.filter((answer) => KINDS[state.tab].includes(answer.kind)) ?? [];
  const list = byId("answers");
  const isAtEnd = list.scrollTop + list.clientHeight > list.scrollHeight - 40;
  const made = shown.map((answer) => rowOf(picture, answer));
  const before = [...list.children];
  if (before.length !== made.length || before.some((row, i) => row !== made[i])) list.replaceChildren(...made);
  for (const id of rows.keys()) if (!state.pictures.some((p) => p.answers.some((a) => a.id === id))) rows.delete(id);
  if (isAtEnd) list.scrollTop = list.scrollHeight;
  showHint(picture);
}

function showHint(picture) {
  const hint = byId("hint");
  const isSmall = state.model && /^(scenes|motion)/.test(state.model);
  hint.hidden = !(isSmall || !picture);
  if (hint.hidden) return;
  const better = state.models.find((model) => model.recommended);
  const text = picture ? "This small model knows drawn scenes. " : "Drop a picture here, paste one, or add one below. ";
  const link = better && el("a", { href: "#models" }, `For photographs, load ${better.id} (${better.size}).`);
  if (hint.dataset.told !== text + better?.id) {
    hint.dataset.told = text + better?.id;
    hint.replaceChildren(text, link ?? "");
  }
}

// The element of an answer; made once, filled anew whenever something of it has changed.
function rowOf(picture, answer) {
  let row = rows.get(answer.id);
  if (!row) {
    row = el("li", { class: "answer", "data-testid": "answer", "data-kind": answer.kind });
    rows.set(answer.id, row);
  }
  const hovered = state.hover?.answer === answer.id ? state.hover.index : null;
  const now = JSON.stringify([
    answer.state,
    answer.text,
    answer.reasoning,
    answer.error,
    answer.found,
    answer.times,
    answer.hidden,
    hovered,
    answer.ms,
  ]);
  if (row.dataset.now === now) return row;
  row.dataset.now = now;
  if (row.dataset.state === "running" && answer.state !== "running") say(answer);
  row.dataset.state = answer.state;
  const focused = row.contains(document.activeElement) ? document.activeElement.dataset.name : null;
  row.replaceChildren(head(picture, answer), ...body(picture, answer, hovered), foot(picture, answer));
  if (focused) row.querySelector(`[data-name="${focused}"]`)?.focus();
  return row;
}

// Tell those who do not see it, once and not piece by piece.
function say(answer) {
  const found = answer.found && `${answer.found.length} found`;
  byId("said").textContent = `${answer.prompt}: ${answer.error ?? found ?? (answer.text || answer.state)}`;
}

// What was asked; of what is drawn a chip with its colour and count, which hides and shows it.
function head(picture, answer) {
  if (!answer.found) return el("h2", {}, answer.isCompared && el("strong", {}, answer.model), answer.prompt);
  const swatch = el("span", { class: "swatch" });
  swatch.style.background = answer.hidden ? "none" : stage.colourOf(answer.prompt);
  const count =
    answer.kind !== "gaze" && el("span", { class: "count", "data-testid": "count" }, String(answer.found.length));
  const hide = () => {
    answer.hidden = !answer.hidden;
    keepPicture(picture);
    update();
  };
  const told = {
    class: "chip",
    "aria-pressed": String(!answer.hidden),
    title: answer.hidden ? "Show it in the picture" : "Hide it in the picture",
  };
  return el(
    "h2",
    {},
    button([swatch, answer.prompt, count], hide, { ...told, "data-testid": "chip", "data-name": "chip" }),
  );
}

function body(picture, answer, hovered) {
  const parts = [];
  if (answer.reasoning)
    parts.push(el("details", { class: "reasoning" }, el("summary", {}, "Reasoning"), el("p", {}, answer.reasoning)));
  if (answer.text || answer.state === "running") {
    parts.push(
      el("p", { class: answer.state === "running" ? "text runs" : "text", "data-testid": "text" }, answer.text),
    );
  }
  if (answer.times?.length) parts.push(timeline(picture, spansOf(answer.times)));
  if (answer.found?.length) {
    parts.push(
      el(
        "ol",
        { class: answer.hidden ? "found hidden" : "found" },
        answer.found.map((one, index) => foundRow(answer, one, index, hovered)),
      ),
    );
  }
  if (answer.found && answer.state === "done" && !answer.found.length)
    parts.push(el("p", { class: "none" }, "None found."));
  if (answer.error) parts.push(el("p", { class: "error", role: "alert" }, answer.error));
  if (answer.state === "stopped") parts.push(el("p", { class: "none" }, "Stopped."));
  return parts;
}

// Frames one after the other with the same answer, as spans of time.
function spansOf(times) {
  const spans = [];
  for (const { time, text } of times) {
    const last = spans.at(-1);
    if (last?.text === text) Object.assign(last, { to: time, frames: last.frames + 1 });
    else spans.push({ from: time, to: time, text, frames: 1 });
  }
  return spans;
}

// A bar with a part for each span, and the spans in words; both lead to their times.
function timeline(picture, spans) {
  const texts = [...new Set(spans.map((span) => span.text))];
  const go = (span) => seek(picture, span.from).then(stage.redraw);
  const when = ({ from, to }) => (from === to ? `${from.toFixed(1)} s` : `${from.toFixed(1)}–${to.toFixed(1)} s`);
  const bar = spans.map((span) => {
    const part = el("span", { title: `${when(span)}: ${span.text}`, onclick: () => go(span) });
    part.style.flexGrow = span.frames;
    part.style.background = stage.COLOURS[texts.indexOf(span.text) % stage.COLOURS.length];
    return part;
  });
  const rows = spans.map((span) =>
    el(
      "li",
      {},
      button(when(span), () => go(span), { class: "quiet" }),
      ` ${span.text}`,
    ),
  );
  return el(
    "div",
    {},
    el("div", { class: "timeline", "aria-hidden": "true", "data-testid": "timeline" }, bar),
    el("ol", { class: "spans" }, rows),
  );
}

function foundRow(answer, one, index, hovered) {
  const number = (value) => value.toFixed(3);
  const place = one.box
    ? `${number(one.box.x_min)}, ${number(one.box.y_min)} to ${number(one.box.x_max)}, ${number(one.box.y_max)}`
    : one.point
      ? `${number(one.point.x)}, ${number(one.point.y)}`
      : one.line.to
        ? `looks at ${number(one.line.to.x)}, ${number(one.line.to.y)}`
        : "looks out of the picture";
  const enter = () => update({ hover: { answer: answer.id, index } });
  const leave = () => update({ hover: null });
  return el(
    "li",
    {
      id: `row-${answer.id}-${index}`,
      tabindex: "0",
      "data-name": `row-${index}`,
      class: hovered === index ? "hovered" : "",
      onmouseenter: enter,
      onmouseleave: leave,
      onfocus: enter,
      onblur: leave,
    },
    place,
  );
}

function foot(picture, answer) {
  if (answer.state === "running")
    return el(
      "footer",
      {},
      button("Stop", () => asking.stop(answer), { "data-testid": "stop", "data-name": "stop" }),
    );
  const speed =
    answer.text && (answer.speed ?? (answer.tokens && answer.ms ? (1000 * answer.tokens) / answer.ms : null));
  const isOthers = !answer.isCompared && answer.model !== state.model;
  const told = [
    isOthers && answer.model,
    answer.isWhole && "whole video",
    answer.ms && seconds(answer.ms),
    speed && `${speed.toFixed(0)} tokens/s`,
  ];
  const text = answer.text || JSON.stringify(answer.found ?? answer.times ?? "");
  const go = () => seek(picture, answer.at).then(stage.redraw);
  return el(
    "footer",
    {},
    el("span", { class: "told" }, told.filter(Boolean).join(" · ")),
    answer.at != null &&
      button(`at ${answer.at.toFixed(1)} s`, go, { class: "quiet", title: "Show this frame", "data-name": "go" }),
    copyButton(text, { class: "quiet", "data-name": "copy" }),
    button("</>", () => openCode(picture, answer), {
      class: "quiet",
      "aria-label": "As code",
      title: "As code",
      "data-testid": "code",
      "data-name": "code",
    }),
    button("Again", () => asking.retry(picture, answer), {
      class: "quiet",
      "data-testid": "again",
      "data-name": "again",
    }),
    button("×", () => asking.forget(picture, answer), {
      class: "quiet",
      "aria-label": "Remove this answer",
      title: "Remove",
      "data-name": "remove",
    }),
  );
}
