// Talks to the server, and is the only module that knows its addresses.

const KEY = "galago-key";

export class ApiError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

async function request(method, path, body, signal) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  let reply;
  try {
    reply = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer.", 0, "gone");
  }
  if (!reply.ok) throw await failure(reply);
  return reply;
}

// The server's own words, in whichever form the route has them.
async function failure(reply) {
  let told = {};
  try {
    told = await reply.json();
  } catch {
    // no JSON: the status has to do
  }
  const error = typeof told.error === "object" && told.error !== null ? told.error : told;
  const message = error.message || told.error || told.detail || `The server answered ${reply.status}.`;
  return new ApiError(String(message), reply.status, error.code);
}

const json = async (method, path, body, signal) => (await request(method, path, body, signal)).json();

// The events of a stream as they come: [data, type of the event, its id].
async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const whole = rest.split("\n\n");
      rest = whole.pop();
      for (const one of whole) {
        const fields = { data: [], event: "message", id: null };
        for (const line of one.split("\n")) {
          const [, name, text] = /^(\w+): ?(.*)$/.exec(line) ?? [];
          if (name === "data") fields.data.push(text);
          else if (name) fields[name] = text;
        }
        if (fields.data.length) yield [fields.data.join("\n"), fields.event, fields.id];
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection to the server broke.", 0, "gone");
  } finally {
    reader.cancel().catch(() => {});
  }
}

export const health = (signal) => json("GET", "/health", undefined, signal);
export const models = () => json("GET", "/v1/models");
export const unload = (model) => json("POST", "/v1/models/unload", { model });

export async function* load(model, signal) {
  const reply = await request("POST", "/v1/models/load", { model, stream: true }, signal);
  for await (const [data] of events(reply)) {
    const told = JSON.parse(data);
    if (told.status === "failed") throw new ApiError(told.error?.message ?? told.error, 500, "load_failed");
    yield told;
  }
}

export async function metrics(signal) {
  return (await request("GET", "/metrics", undefined, signal)).text();
}

// Something that a model is asked for: its path and body, which are also what is shown as code.
export const ask = (call, signal) => json("POST", call.path, call.body, signal);

// The same as a stream of what each event adds: { text }, { reasoning }, { found: a mark } or { end: the last event }.
export async function* askStreamed(call, signal) {
  const reply = await request("POST", call.path, { ...call.body, stream: true }, signal);
  for await (const [data] of events(reply)) {
    if (data === "[DONE]" || data === "[ERROR]") continue;
    const told = JSON.parse(data);
    if (told.error) throw new ApiError(told.error.message ?? told.error, 500, told.error.code ?? told.code);
    if (told.choices) {
      const [choice] = told.choices;
      if (choice?.delta?.reasoning_content) yield { reasoning: choice.delta.reasoning_content };
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (told.usage) yield { end: { tokens: told.usage.completion_tokens } };
    } else if (told.object || told.point) {
      yield { found: told.object ? { box: told.object } : { point: told.point } };
    } else if (told.completed) {
      yield { end: { tokens: told.stats?.tokens, speed: told.stats?.tokens_per_sec } };
    } else if (told.reasoning) {
      yield { reasoning: told.reasoning.text };
    } else if (told.chunk) {
      yield { text: told.chunk };
    }
  }
}

// A picture or a video from elsewhere, which the server fetches: this page may load nothing from other sites.
export async function fetched(url) {
  return (await request("POST", "/app/fetch", { url })).blob();
}

export const addJob = (body) => json("POST", "/v1/jobs", body);
export const job = (id) => json("GET", `/v1/jobs/${id}`);
export const cancelJob = (id) => json("DELETE", `/v1/jobs/${id}`);
export const retryJob = (id) => json("POST", `/v1/jobs/${id}/retry`, {});

// Jobs as their states change, from now on or from the id of an event.
export async function* jobEvents(after, signal) {
  const reply = await request(
    "GET",
    `/v1/jobs/events${after ? `?after=${encodeURIComponent(after)}` : ""}`,
    undefined,
    signal,
  );
  for await (const [data, , id] of events(reply)) yield { job: JSON.parse(data), id };
}
