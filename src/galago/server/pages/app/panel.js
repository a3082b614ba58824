// The side of the picture: what to ask for, the answers, and the form.

import * as answers from "./answers.js";
import * as asking from "./asking.js";
import { button, byId, el } from "./dom.js";
import * as stage from "./stage.js";
import { current, entry, state, subscribe, update } from "./store.js";

const LENGTHS = ["short", "normal", "long"];
const ASKED = { ask: "What do you see?", detect: "What to find: cat, red car", point: "What to point at: wheels" };
let formOf = null;

export function start() {
  subscribe(() => {
    showTabs();
    showForm();
    answers.show();
    showHint(current());
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

// --- the hint ------------------------------------------------------------------------------------------------------

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
