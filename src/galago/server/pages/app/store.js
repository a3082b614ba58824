// What the page knows, and what of it survives a reload: pictures and answers, in the browser's own database.

export const state = {
  pictures: [], // { id, name, kind: image|video, blob, width, height, url, answers: [] }
  current: null, // id of a picture
  tab: "ask",
  drafts: {}, // what stands in the form of each tab
  model: null, // what answers: the default, or another that was chosen
  models: [],
  health: null, // what /health said last; null while the server is gone
  hover: null, // { answer, index } of what the pointer is at
};

const listeners = new Set();
let isTold = false;

export function subscribe(listener) {
  listeners.add(listener);
}

// Change the state; views follow once, however many changes one turn makes.
export function update(change = {}) {
  Object.assign(state, change);
  if (isTold) return;
  isTold = true;
  queueMicrotask(() => {
    isTold = false;
    for (const listener of listeners) listener(state);
  });
}

export const current = () => state.pictures.find((picture) => picture.id === state.current);
export const entry = (id = state.model) => state.models.find((model) => model.id === id);

// --- what survives -------------------------------------------------------------------------------------------------

let opening = null;

function database() {
  opening ??= new Promise((resolve, reject) => {
    const asked = indexedDB.open("galago", 1);
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore("pictures", { keyPath: "id" });
      asked.result.createObjectStore("library", { keyPath: "id" });
    };
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
  return opening;
}

// Private windows may have no database: then nothing survives, and all else works.
async function inStore(name, mode, action) {
  try {
    const store = (await database()).transaction(name, mode).objectStore(name);
    const asked = action(store);
    return await new Promise((resolve, reject) => {
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(asked.error);
    });
  } catch {
    return null;
  }
}

export const kept = async (name) => (await inStore(name, "readonly", (store) => store.getAll())) ?? [];
export const keep = (name, one) => inStore(name, "readwrite", (store) => store.put(one));
export const drop = (name, id) => inStore(name, "readwrite", (store) => store.delete(id));
export const dropAll = (name) => inStore(name, "readwrite", (store) => store.clear());

// Keep a picture with its answers, but those that are still coming.
export function keepPicture(picture) {
  if (!state.pictures.includes(picture)) return; // it is gone meanwhile
  const { id, name, kind, blob, width, height, answers, added } = picture;
  const ended = answers.filter((answer) => answer.state !== "running").map(({ abort, ...answer }) => answer);
  keep("pictures", { id, name, kind, blob, width, height, added, answers: ended });
}

export async function forgetAll() {
  for (const picture of state.pictures) {
    for (const answer of picture.answers) answer.abort?.abort();
  }
  sessionStorage.clear();
  const gone = state.pictures;
  state.pictures = [];
  await Promise.all([dropAll("pictures"), dropAll("library")]);
  for (const picture of gone) URL.revokeObjectURL(picture.url);
  update({ pictures: [], current: null, drafts: {} });
}
