// The row of pictures, and the ways in which one comes: files, drops, pastes, the camera, an address.

import { button, byId, confirm, el, openDialog } from "./dom.js";
import { add, addFiles, addUrl, remove } from "./pictures.js";
import * as stage from "./stage.js";
import { current, drop, forgetAll, state, subscribe, update } from "./store.js";

let say = () => {};
const frames = new Map(); // small pictures of videos, which no element shows by itself

export function start(notice) {
  say = notice;
  subscribe(show);
  byId("files").addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = "";
  });
  byId("camera").addEventListener("click", openCamera);
  byId("address").addEventListener("click", openAddress);
  byId("forget").addEventListener("click", forget);
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) take(files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("stage").classList.add("over");
  });
  document.addEventListener("dragleave", () => byId("stage").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("stage").classList.remove("over");
    if (location.hash === "#library") return;
    take([...event.dataTransfer.files]);
  });
  transport();
}

async function take(files) {
  location.hash = "#look";
  await addFiles(files).catch((error) => say(error.message));
}

let shown = "";

function show() {
  const list = byId("strip");
  const runs = (picture) => picture.answers.some((answer) => answer.state === "running");
  const now = JSON.stringify([state.current, state.pictures.map((picture) => [picture.id, runs(picture)])]);
  if (now === shown) return;
  shown = now;
  const made = state.pictures.map((picture, number) => {
    const isRunning = runs(picture);
    const isCurrent = picture.id === state.current;
    const thumb = picture.kind === "image" ? el("img", { src: picture.url, alt: "" }) : frameOf(picture);
    return el(
      "li",
      {
        role: "option",
        id: `picture-${picture.id}`,
        "aria-selected": String(isCurrent),
        "aria-label": `${picture.name}, ${number + 1} of ${state.pictures.length}${isRunning ? ", being looked at" : ""}`,
        tabindex: isCurrent ? "0" : "-1",
        class: isRunning ? "runs" : "",
        onclick: () => choose(picture),
        onkeydown: onKey,
      },
      thumb,
    );
  });
  const hasFocus = list.contains(document.activeElement);
  list.replaceChildren(...made);
  if (hasFocus) byId(`picture-${state.current}`)?.focus();
  byId("transport").hidden = current()?.kind !== "video";
}

function frameOf(picture) {
  if (!frames.has(picture.id)) {
    const canvas = Object.assign(document.createElement("canvas"), { width: 72, height: 72 });
    const side = Math.min(picture.width, picture.height);
    canvas
      .getContext("2d")
      .drawImage(picture.video, (picture.width - side) / 2, (picture.height - side) / 2, side, side, 0, 0, 72, 72);
    frames.set(picture.id, canvas);
  }
  return frames.get(picture.id);
}

function choose(picture) {
  stage.stopPicking();
  update({ current: picture.id });
}

function onKey(event) {
  const at = state.pictures.indexOf(current());
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step && state.pictures[at + step]) {
    event.preventDefault();
    update({ current: state.pictures[at + step].id });
    queueMicrotask(() => byId(`picture-${state.current}`).focus());
  } else if (event.key === "Delete") {
    const picture = current();
    drop("pictures", picture.id);
    remove(picture);
  }
}

function openAddress() {
  const input = el("input", {
    type: "url",
    required: true,
    "aria-label": "Address of a picture or a video",
    placeholder: "https://…",
  });
  const error = el("p", { class: "error", role: "alert" });
  const form = el("form", { class: "line" }, input, el("button", { type: "submit", class: "accent" }, "Add"));
  const dialog = openDialog("A picture by its address", form, error);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await addUrl(input.value);
      dialog.close();
    } catch (problem) {
      error.textContent = problem.message;
    }
  });
}

async function openCamera() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
  } catch {
    say("There is no camera, or this page may not use it. Browsers allow it on https:// and on this machine alone.");
    return;
  }
  const video = el("video", { autoplay: true, playsInline: true, muted: true });
  video.srcObject = stream;
  const dialog = openDialog(
    "Camera",
    video,
    button(
      "Take the picture",
      async () => {
        const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
        canvas.getContext("2d").drawImage(video, 0, 0);
        await add(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 }), "camera.jpg");
        dialog.close();
      },
      { class: "accent" },
    ),
  );
  dialog.addEventListener("close", () => stream.getTracks().forEach((track) => track.stop()), { once: true });
}

function forget() {
  confirm(
    "Forget all",
    "Pictures, answers and the key are removed from this browser. Jobs stay on the server.",
    async () => {
      await forgetAll();
      document.dispatchEvent(new Event("galago-forgot"));
      say("All is forgotten.");
    },
  );
}

// --- videos --------------------------------------------------------------------------------------------------------

function transport() {
  const video = () => current()?.video;
  byId("play").addEventListener("click", () => (video().paused ? video().play() : video().pause()));
  byId("seek").addEventListener("input", (event) => (video().currentTime = event.target.value * video().duration));
  const tick = () => {
    const playing = video();
    if (playing) {
      byId("play").textContent = playing.paused ? "Play" : "Pause";
      byId("clock").textContent = `${playing.currentTime.toFixed(1)} s`;
      if (document.activeElement !== byId("seek")) byId("seek").value = playing.currentTime / (playing.duration || 1);
      if (!playing.paused || playing.seeking || tick.last !== playing.currentTime) stage.redraw();
      tick.last = playing.currentTime;
    }
    setTimeout(() => requestAnimationFrame(tick), playing && !playing.paused ? 0 : 200);
  };
  tick();
}
