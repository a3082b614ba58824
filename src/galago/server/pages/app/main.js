// The page: its views, keys, and whether the server is there.

import * as api from "./api.js";
import * as asking from "./asking.js";
import { button, byId, el, openDialog } from "./dom.js";
import * as library from "./library.js";
import * as machine from "./machine.js";
import * as models from "./models.js";
import * as panel from "./panel.js";
import { addExample, restore } from "./pictures.js";
import * as stage from "./stage.js";
import { current, state, subscribe, update } from "./store.js";
import * as strip from "./strip.js";

const VIEWS = ["look", "library", "models", "machine"];
const LOOK = 5000; // between looks whether the server is there
const AGAIN = 3; // seconds until the next try while it is gone

// --- notices -------------------------------------------------------------------------------------------------------

function say(...content) {
  byId("notice").replaceChildren(
    ...content,
    content.length ? button("×", () => say(), { class: "quiet", "aria-label": "Dismiss" }) : "",
  );
}

function askForKey(message) {
  if (byId("key")) return;
  const input = el("input", {
    id: "key",
    type: "password",
    autocomplete: "off",
    "aria-label": "API key",
    "data-testid": "key",
  });
  const form = el(
    "form",
    { class: "line" },
    el("span", {}, message),
    input,
    el("button", { type: "submit", class: "accent" }, "Use"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    api.setKey(input.value.trim());
    say();
    begin();
  });
  byId("notice").replaceChildren(form);
  input.focus();
}

function fail(error) {
  if (error.status === 401)
    askForKey(api.hasKey() ? "This key is not one of the server's. Another:" : "This server wants a key:");
  else if (error.status === 0) lookAgain();
}

// --- the server ----------------------------------------------------------------------------------------------------

let countdown = null;

function lookAgain() {
  if (countdown) return;
  let left = AGAIN;
  update({ health: null });
  const tick = async () => {
    if (left-- > 0) {
      byId("notice").replaceChildren(
        el("span", { class: "error", "data-testid": "gone" }, `The server is gone; trying again in ${left + 1} s.`),
      );
      countdown = setTimeout(tick, 1000);
      return;
    }
    try {
      await lookOnce();
      countdown = null;
      say();
      await models.refresh();
    } catch (error) {
      countdown = null;
      if (error.status === 0) lookAgain();
      else fail(error);
    }
  };
  countdown = setTimeout(tick, 0);
}

async function lookOnce() {
  try {
    update({ health: await api.health() });
  } catch (error) {
    if (error.status !== 503) throw error;
    update({ health: { loading: true } });
  }
}

async function keepLooking() {
  if (!countdown && document.visibilityState === "visible") {
    await lookOnce().catch(fail);
    if (location.hash === "#models") await models.refresh().catch(fail);
  }
  setTimeout(keepLooking, LOOK);
}

// --- views ---------------------------------------------------------------------------------------------------------

function showView() {
  const name = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "look";
  for (const view of VIEWS) byId(`view-${view}`).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "models") models.refresh().then(models.show, fail);
  if (name === "machine") machine.open();
  if (name === "library") library.open();
  update();
}

function theme() {
  const chosen = localStorage.getItem("galago-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
  byId("theme").addEventListener("click", () => {
    const isDark = getComputedStyle(document.documentElement).colorScheme.includes("dark");
    const next = isDark ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem("galago-theme", next);
    stage.redraw();
  });
}

// --- keys ----------------------------------------------------------------------------------------------------------

const KEYS = [
  ["/", "to the question"],
  ["1 to 5", "Ask, Caption, Detect, Point, Gaze"],
  ["← →", "through the pictures, when one of them has the focus"],
  ["+ − 0", "larger, smaller, the whole picture, when it has the focus"],
  ["Delete", "removes the picture that has the focus"],
  ["Esc", "stops what runs"],
  ["?", "these keys"],
];

function onKey(event) {
  const isTyping = event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey;
  if (event.key === "Escape" && !byId("dialog").open) {
    if (stage.isPicking()) stage.stopPicking();
    else asking.stopAll();
    return;
  }
  if (isTyping || byId("dialog").open) return;
  const tab = asking.TABS[Number(event.key) - 1];
  if (event.key === "/" && byId("question")) {
    event.preventDefault();
    byId("question").focus();
  } else if (event.key === "?") {
    openDialog(
      "Keys",
      el(
        "dl",
        {},
        KEYS.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)]),
      ),
    );
  } else if (tab && !byId("view-look").hidden && document.activeElement !== byId("canvas")) {
    panel.choose(tab.id);
  }
}

// --- begin ---------------------------------------------------------------------------------------------------------

async function begin() {
  try {
    await lookOnce();
    while (state.health.loading) {
      say("The model is being loaded.");
      await new Promise((resolve) => setTimeout(resolve, 1000));
      await lookOnce();
    }
    say();
    await models.refresh();
  } catch (error) {
    fail(error);
    return;
  }
  if (!begin.isDone) {
    begin.isDone = true;
    if (!(await restore())) await welcome();
  }
}

// A first visit: the example, with a question that is answered and one thing that is found.
async function welcome() {
  const picture = await addExample();
  await asking.ask(picture, { kind: "detect", prompt: "circle" });
  await asking.ask(picture, { kind: "ask", prompt: "What color is the circle?", isFollowUp: false });
}

stage.start();
panel.start();
strip.start(say);
models.start();
theme();
addEventListener("hashchange", showView);
addEventListener("keydown", onKey);
document.addEventListener("galago-error", (event) => fail(event.detail));
subscribe(() => document.body.classList.toggle("empty", !current()));
library.start();
showView();
begin();
setTimeout(keepLooking, LOOK);
