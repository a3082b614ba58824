// Every call that the page makes, as curl and as clients write it.

import { copyButton, el, openDialog } from "./dom.js";
import { callOf } from "./asking.js";

const PLACE = "IMAGE";

// Replace the picture in a body, which has megabytes, by a word.
function bare(value) {
  if (typeof value === "string") return value.startsWith("data:") ? PLACE : value;
  if (Array.isArray(value)) return value.map(bare);
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, bare(v)]));
  return value;
}

const python = (value) =>
  JSON.stringify(value)
    .replace(/\btrue\b/g, "True")
    .replace(/\bfalse\b/g, "False")
    .replace(/\bnull\b/g, "None")
    .replaceAll(`"${PLACE}"`, "image")
    .replaceAll(/([:,])(?=["\[{\w])/g, "$1 ");

// As a shell takes it for one word, whatever the name is.
const quoted = (name) => (/^[\w.-]+$/.test(name) ? name : `'${name.replaceAll("'", "'\\''")}'`);

function curl({ path, body }, name) {
  const text = JSON.stringify(bare(body))
    .replaceAll("'", "'\\''")
    .replace(`"${PLACE}"`, `"data:;base64,'"$(base64 < ${quoted(name)} | tr -d '\\n')"'"`);
  return `printf '%s' '${text}' |\n  curl -s ${location.origin}${path} -H 'Content-Type: application/json' -d @-`;
}

function openai({ body }, name) {
  const { messages, model } = bare(body);
  const read = `image = "data:;base64," + base64.b64encode(open(${JSON.stringify(name)}, "rb").read()).decode()`;
  const client = `client = OpenAI(base_url="${location.origin}/v1", api_key="none")`;
  const medium = body.video_url ? "video_url" : "image_url";
  const shown = { type: medium, [medium]: { url: PLACE } };
  const text = body.question ?? `Describe this ${medium.slice(0, 5)}.`;
  const asked = messages ?? [{ role: "user", content: [shown, { type: "text", text }] }];
  return `import base64\nfrom openai import OpenAI\n\n${client}\n${read}\nreply = client.chat.completions.create(\n    model=${JSON.stringify(model)},\n    messages=${python(asked)},\n)\nprint(reply.choices[0].message.content)`;
}

const MOONDREAM = {
  "/v1/query": (body) => `query(image, ${JSON.stringify(body.question)})["answer"]`,
  "/v1/caption": (body) => `caption(image, length=${JSON.stringify(body.length)})["caption"]`,
  "/v1/detect": (body) => `detect(image, ${JSON.stringify(body.object)})["objects"]`,
  "/v1/point": (body) => `point(image, ${JSON.stringify(body.object)})["points"]`,
};

function moondream({ path, body }, name, answer) {
  if (answer.isWhole) return null; // it takes pictures alone
  const question = body.messages
    ? { question: body.messages.at(-1).content?.at?.(-1)?.text ?? body.messages.at(-1).content }
    : body;
  const call = MOONDREAM[body.messages ? "/v1/query" : path];
  if (!call) return null;
  return `import moondream as md\nfrom PIL import Image\n\nmodel = md.vl(endpoint="${location.origin}/v1")\nimage = Image.open(${JSON.stringify(name)})\nprint(model.${call(question)})`;
}

function javascript({ path, body }) {
  const text = JSON.stringify(bare(body), null, 2).replaceAll(`"${PLACE}"`, "image");
  return `// image: a data: URL, such as a FileReader's readAsDataURL makes\nconst reply = await fetch("${location.origin}${path}", {\n  method: "POST",\n  headers: { "Content-Type": "application/json" },\n  body: JSON.stringify(${text}),\n});\nconsole.log(JSON.stringify(await reply.json(), null, 2));`;
}

export async function openCode(picture, answer) {
  const call = await callOf(picture, answer);
  delete call.body.stream_options;
  const name = picture.kind === "video" && !answer.isWhole ? "frame.jpg" : picture.name;
  const forms = {
    curl: curl(call, name),
    "openai (Python)": null,
    "moondream (Python)": moondream(call, name, answer),
    JavaScript: javascript(call),
  };
  if (["/v1/chat/completions", "/v1/query", "/v1/caption"].includes(call.path))
    forms["openai (Python)"] = openai(call, name);
  const shown = Object.entries(forms)
    .filter(([, text]) => text)
    .map(([title, text]) =>
      el(
        "section",
        {},
        el("header", {}, el("h3", {}, title), copyButton(text)),
        el("pre", { tabindex: "0" }, el("code", {}, text)),
      ),
    );
  openDialog("As code", ...shown);
}
