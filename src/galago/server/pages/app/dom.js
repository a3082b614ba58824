// Making elements. Text goes in as text, never as markup.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const byId = (id) => document.getElementById(id);

export function button(text, onclick, attributes = {}) {
  return el("button", { type: "button", onclick, ...attributes }, text);
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "";
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`;
}

export function seconds(ms) {
  return ms < 10000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`;
}

export function save(name, data, type) {
  const url = URL.createObjectURL(data instanceof Blob ? data : new Blob([data], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// A dialog with a title and what stands in it; closed by Escape and by its own button.
export function openDialog(title, ...content) {
  const dialog = byId("dialog");
  const close = button("Close", () => dialog.close(), { class: "quiet" });
  dialog.replaceChildren(el("header", {}, el("h2", { id: "dialog-title" }, title), close), ...content);
  if (!dialog.open) dialog.showModal();
  return dialog;
}

// Ask before something that cannot be undone.
export function confirm(title, text, action) {
  const sure = async () => {
    await action();
    dialog.close();
  };
  const dialog = openDialog(title, el("p", {}, text), button(title, sure, { class: "accent", "data-testid": "sure" }));
}

// An id that no other has. Not randomUUID, which pages of other machines without https do not have.
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A button that copies a text; there too, where pages have no clipboard.
export function copyButton(text, attributes = {}) {
  const made = button(
    "Copy",
    async () => {
      if (navigator.clipboard) await navigator.clipboard.writeText(text);
      else {
        const area = el("textarea", { class: "unseen" }, text);
        made.after(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      made.textContent = "Copied";
    },
    attributes,
  );
  return made;
}
