// Pictures and videos that come in: turned upright, made small enough to send, kept.

import { fetched } from "./api.js";
import { newId } from "./dom.js";
import { keepPicture, kept, state, update } from "./store.js";

const LONGEST = 2048; // pixels of a side: more tells no model more, and takes longer to send
const SENT = { type: "image/jpeg", quality: 0.92 };
const PLAIN = ["image/png", "image/jpeg"];

export async function addFiles(files) {
  const refused = [];
  for (const file of files) {
    try {
      await add(file, file.name);
    } catch {
      refused.push(file.name);
    }
  }
  if (refused.length) throw new Error(`${refused.join(", ")} cannot be read as a picture or a video by this browser.`);
}

export async function addUrl(url) {
  await add(await fetched(url), decodeURIComponent(new URL(url, location.href).pathname.split("/").pop()) || "picture");
}

export async function add(blob, name) {
  const picture = blob.type.startsWith("video/") ? await openVideo(blob) : await openImage(blob);
  Object.assign(picture, { id: newId(), name, answers: [], added: Date.now() });
  update({ pictures: [...state.pictures, picture], current: picture.id });
  keepPicture(picture);
  return picture;
}

async function openImage(blob) {
  // Upright, as EXIF says, which the browser does here.
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  const by = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * by));
  const height = Math.max(1, Math.round(bitmap.height * by));
  let small = blob;
  if (by < 1 || !PLAIN.includes(blob.type) || (await isTurned(blob))) {
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
    small = await canvas.convertToBlob(blob.type === "image/png" ? { type: "image/png" } : SENT);
  }
  bitmap.close();
  return { kind: "image", blob: small, width, height, url: URL.createObjectURL(small) };
}

// Whether a JPEG has an EXIF part, which may say that it is to be turned: it is then written anew, upright.
async function isTurned(blob) {
  if (blob.type !== "image/jpeg") return false;
  const head = new Uint8Array(await blob.slice(0, 65536).arrayBuffer());
  for (let i = 0; i + 4 < head.length; i++) {
    if (head[i] === 0x45 && head[i + 1] === 0x78 && head[i + 2] === 0x69 && head[i + 3] === 0x66) return true;
  }
  return false;
}

async function openVideo(blob) {
  const url = URL.createObjectURL(blob);
  const video = Object.assign(document.createElement("video"), {
    src: url,
    muted: true,
    playsInline: true,
    preload: "auto",
  });
  await new Promise((resolve, reject) => {
    video.onloadeddata = resolve;
    video.onerror = () => reject(new Error("no video"));
  });
  return { kind: "video", blob, width: video.videoWidth, height: video.videoHeight, url, video };
}

export function remove(picture) {
  for (const answer of picture.answers) answer.abort?.abort();
  URL.revokeObjectURL(picture.url);
  const left = state.pictures.filter((one) => one !== picture);
  update({ pictures: left, current: state.current === picture.id ? (left.at(-1)?.id ?? null) : state.current });
}

// The pictures of the last visit, or the example.
export async function restore() {
  const found = (await kept("pictures")).sort((a, b) => a.added - b.added);
  const pictures = [];
  for (const one of found) {
    try {
      const opened = one.kind === "video" ? await openVideo(one.blob) : { url: URL.createObjectURL(one.blob) };
      pictures.push({ ...one, ...opened });
    } catch {
      // what the browser let go of
    }
  }
  update({ pictures, current: pictures.at(-1)?.id ?? null });
  return pictures.length > 0;
}

export async function addExample() {
  const reply = await fetch("/app/example.png");
  return add(await reply.blob(), "example.png");
}

// What is seen of a picture or a video: of this the frame that is shown.
export const shownBlob = (picture) => (picture.kind === "video" ? frameOf(picture) : picture.blob);

// A picture or a video as it is sent: base64 in a data: URL.
export async function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function frameOf(picture) {
  const by = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
  const canvas = new OffscreenCanvas(Math.round(picture.width * by), Math.round(picture.height * by));
  canvas.getContext("2d").drawImage(picture.video, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob(SENT);
}

export async function seek(picture, time) {
  const { video } = picture;
  if (Math.abs(video.currentTime - time) < 0.001) return;
  await new Promise((resolve) => {
    video.onseeked = resolve;
    video.currentTime = time;
  });
}
