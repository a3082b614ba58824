// Asking a model about a picture: an answer goes from running to done, stopped or failed, and stays with its picture.

import * as api from "./api.js";
import { newId } from "./dom.js";
import { dataUrl, seek } from "./pictures.js";
import { entry, keepPicture, state, update } from "./store.js";

const TURNS = 6; // earlier questions that go along with a new one
const FRAMES = 12; // of a video that is watched

export const TABS = [
  { id: "ask", name: "Ask", skill: "query" },
  { id: "caption", name: "Caption", skill: "caption" },
  { id: "detect", name: "Detect", skill: "detect" },
  { id: "point", name: "Point", skill: "point" },
  { id: "gaze", name: "Gaze", skill: "gaze" },
];

const image = (url) => ({ type: "image_url", image_url: { url } });
const words = (content) => ({ type: "text", text: content });

// What is asked, as it is sent: the path and the body. `answer` has kind, prompt and what belongs to the kind.
async function callOf(picture, answer) {
  const url = await dataUrl(picture);
  const model = answer.model;
  switch (answer.kind) {
    case "ask": {
      const before = answer.isFollowUp ? picture.answers.filter((one) => one.kind === "ask" && one.state === "done") : [];
      const turns = before.slice(-TURNS).flatMap((one) => [
        { role: "user", content: one.prompt },
        { role: "assistant", content: one.text },
      ]);
      const messages = [...turns, { role: "user", content: answer.prompt }];
      messages[0] = { role: "user", content: [image(url), words(messages[0].content)] };
      return { path: "/v1/chat/completions", body: { model, messages, stream_options: { include_usage: true } } };
    }
    case "think":
      return { path: "/v1/query", body: { model, image_url: url, question: answer.prompt, reasoning: true } };
    case "caption":
      return { path: "/v1/caption", body: { model, image_url: url, length: answer.length } };
    case "detect":
      return { path: "/v1/detect", body: { model, image_url: url, object: answer.prompt } };
    case "point":
      return { path: "/v1/point", body: { model, image_url: url, object: answer.prompt } };
    case "gaze":
      return { path: "/v1/detect_gaze", body: { model, image_url: url, eye: [answer.eye.x, answer.eye.y] } };
  }
  throw new Error(answer.kind);
}

// Ask, and show the answer as it comes. `asked` has kind and prompt, and length, eye or isFollowUp.
export async function ask(picture, asked) {
  const answer = {
    model: state.model,
    ...asked,
    id: newId(),
    state: "running",
    text: "",
    at: picture.kind === "video" ? picture.video.currentTime : null,
  };
  picture.answers.push(answer);
  update();
  await run(picture, answer);
  return answer;
}

export async function retry(picture, answer) {
  Object.assign(answer, { state: "running", text: "", error: null, reasoning: null, found: undefined, times: undefined });
  if (!entry(answer.model)) answer.model = state.model;
  if (answer.at !== null) await seek(picture, answer.at);
  update();
  await run(picture, answer);
}

async function run(picture, answer) {
  answer.abort = new AbortController();
  const begun = performance.now();
  try {
    if (answer.kind === "watch") await watch(picture, answer);
    else await askOnce(picture, answer);
    answer.state = "done";
  } catch (error) {
    answer.state = error.name === "AbortError" ? "stopped" : "failed";
    if (answer.state === "failed") {
      answer.error = error.message;
      document.dispatchEvent(new CustomEvent("galago-error", { detail: error }));
    }
  }
  answer.ms = performance.now() - begun;
  delete answer.abort;
  keepPicture(picture);
  update();
}

async function askOnce(picture, answer) {
  const call = await callOf(picture, answer);
  const { signal } = answer.abort;
  if (answer.kind === "gaze") {
    const { gaze } = await api.ask(call, signal);
    answer.found = [{ line: { from: answer.eye, to: gaze } }];
    return;
  }
  if (answer.kind === "detect" || answer.kind === "point") answer.found = [];
  for await (const piece of api.askStreamed(call, signal)) {
    if (piece.text) answer.text += piece.text;
    if (piece.reasoning) answer.reasoning = (answer.reasoning ?? "") + piece.reasoning;
    if (piece.found) answer.found = [...answer.found, piece.found];
    if (piece.end) Object.assign(answer, { tokens: piece.end.tokens, speed: piece.end.speed });
    update();
  }
}

// The same question about frames all along a video, each with its time.
async function watch(picture, answer) {
  const { video } = picture;
  answer.times = [];
  for (let i = 0; i < FRAMES; i++) {
    answer.abort.signal.throwIfAborted();
    const time = (video.duration * (i + 0.5)) / FRAMES;
    await seek(picture, time);
    const call = { path: "/v1/query", body: { model: answer.model, image_url: await dataUrl(picture), question: answer.prompt } };
    const reply = await api.ask(call, answer.abort.signal);
    answer.times.push({ time, text: reply.answer });
    update();
  }
}

export function stop(answer) {
  answer.abort?.abort();
}

export function stopAll() {
  for (const picture of state.pictures) for (const answer of picture.answers) stop(answer);
}

export function forget(picture, answer) {
  stop(answer);
  picture.answers = picture.answers.filter((one) => one !== answer);
  keepPicture(picture);
  update();
}

// The call as it is shown to people: with a name in the place of the picture.
export async function shownCall(picture, answer) {
  const asked = answer.kind === "watch" ? { ...answer, kind: "think" } : answer;
  const call = await callOf(picture, asked);
  if (answer.kind === "watch") delete call.body.reasoning;
  return call;
}
