// Asking a model about a picture: an answer goes from running to done, stopped or failed, and stays with its picture.

import * as api from "./api.js";
import { newId } from "./dom.js";
import { dataUrl, seek, shownBlob } from "./pictures.js";
import { entry, keepPicture, state, update } from "./store.js";

const TURNS = 6; // earlier questions that go along with a new one
const FEWEST = 12; // frames of a video that is watched: one of each second, but not fewer and not more than these
const MOST = 60;
const AT_A_TIME = 4; // of them, which the engine then computes together

export const TABS = [
  { id: "ask", name: "Ask", skill: "query" },
  { id: "caption", name: "Caption", skill: "caption" },
  { id: "detect", name: "Detect", skill: "detect" },
  { id: "point", name: "Point", skill: "point" },
  { id: "gaze", name: "Gaze", skill: "gaze" },
];

const words = (content) => ({ type: "text", text: content });

// Whether a model looks at whole videos. Others are asked about the frame that is shown.
export function takesVideos(model) {
  return Boolean(model?.skills?.includes("video") || model?.ways?.some((way) => way.takes.includes("video")));
}

// What is asked, as it is sent: the path and the body. `answer` has kind, prompt and what belongs to the kind.
export async function callOf(picture, answer) {
  const model = answer.model;
  const medium = answer.isWhole ? "video_url" : "image_url";
  const url = await dataUrl(answer.isWhole ? picture.blob : await shownBlob(picture));
  switch (answer.kind) {
    case "ask": {
      const before = answer.isFollowUp
        ? picture.answers.filter((one) => one.kind === "ask" && one.state === "done")
        : [];
      const turns = before.slice(-TURNS).flatMap((one) => [
        { role: "user", content: one.prompt },
        { role: "assistant", content: one.text },
      ]);
      const messages = [...turns, { role: "user", content: answer.prompt }];
      messages[0] = { role: "user", content: [{ type: medium, [medium]: { url } }, words(messages[0].content)] };
      return { path: "/v1/chat/completions", body: { model, messages, stream_options: { include_usage: true } } };
    }
    case "think":
      return { path: "/v1/query", body: { model, [medium]: url, question: answer.prompt, reasoning: true } };
    case "watch":
      return { path: "/v1/query", body: { model, image_url: url, question: answer.prompt } };
    case "caption":
      return { path: "/v1/caption", body: { model, [medium]: url, length: answer.length } };
    case "detect":
      return { path: "/v1/detect", body: { model, image_url: url, object: answer.prompt } };
    case "point":
      return { path: "/v1/point", body: { model, image_url: url, object: answer.prompt } };
    case "gaze":
      return { path: "/v1/detect_gaze", body: { model, image_url: url, eye: [answer.eye.x, answer.eye.y] } };
  }
  throw new Error(answer.kind);
}

const WHOLE = ["ask", "think", "caption"]; // what can be asked of a whole video

// Ask, and show the answer as it comes. `asked` has kind and prompt, and length, eye or isFollowUp.
export async function ask(picture, asked) {
  const answer = { model: state.model, ...asked, id: newId(), state: "running", text: "", at: null };
  if (picture.kind === "video") {
    answer.isWhole = WHOLE.includes(answer.kind) && takesVideos(entry(answer.model));
    if (!answer.isWhole && answer.kind !== "watch") answer.at = picture.video.currentTime;
  }
  picture.answers.push(answer);
  update();
  await run(picture, answer);
  return answer;
}

export async function retry(picture, answer) {
  Object.assign(answer, {
    state: "running",
    text: "",
    error: null,
    reasoning: null,
    found: undefined,
    times: undefined,
  });
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
  const count = Math.min(Math.max(Math.ceil(video.duration), FEWEST), MOST);
  const calls = [];
  for (let i = 0; i < count; i++) {
    answer.abort.signal.throwIfAborted();
    const time = (video.duration * (i + 0.5)) / count;
    await seek(picture, time);
    calls.push({ time, call: await callOf(picture, answer) });
  }
  const askInTurn = async () => {
    for (let next = calls.shift(); next; next = calls.shift()) {
      const reply = await api.ask(next.call, answer.abort.signal);
      answer.times = [...answer.times, { time: next.time, text: reply.answer }].sort((a, b) => a.time - b.time);
      update();
    }
  };
  try {
    await Promise.all(Array.from({ length: AT_A_TIME }, askInTurn));
  } finally {
    calls.length = 0; // of one that failed no more are asked
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
