// The answers about the picture that is shown: a row for each, filled anew as it comes.

import * as asking from "./asking.js";
import { openCode } from "./code.js";
import { button, byId, copyButton, el, seconds } from "./dom.js";
import { seek } from "./pictures.js";
import * as stage from "./stage.js";
import { current, keepPicture, state, update } from "./store.js";

const rows = new Map(); // elements of answers, by their id
const KINDS = {
  ask: ["ask", "think", "watch"],
  caption: ["caption"],
  detect: ["detect"],
  point: ["point"],
  gaze: ["gaze"],
};

export function show() {
  const picture = current();
  const shown = picture?.answers.filter((answer) => KINDS[state.tab].includes(answer.kind)) ?? [];
  const list = byId("answers");
  const isAtEnd = list.scrollTop + list.clientHeight > list.scrollHeight - 40;
  const made = shown.map((answer) => rowOf(picture, answer));
  const before = [...list.children];
  if (before.length !== made.length || before.some((row, i) => row !== made[i])) list.replaceChildren(...made);
  for (const id of rows.keys()) if (!state.pictures.some((p) => p.answers.some((a) => a.id === id))) rows.delete(id);
  if (isAtEnd) list.scrollTop = list.scrollHeight;
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
