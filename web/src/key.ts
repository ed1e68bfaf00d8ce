// The key of a server that wants one: asked for once, kept as long as the tab.
import { el } from "./dom.ts";

const PLACE = "ivlite-key";

export function key(): string {
  return sessionStorage.getItem(PLACE) ?? "";
}

let asking: Promise<void> | null = null;

/** Waits until a key is given; several requests wait for one dialog. wrong: the one that is held was refused. */
export function askKey(wrong: boolean): Promise<void> {
  asking ??= shown(wrong).finally(() => (asking = null));
  return asking;
}

function shown(wrong: boolean): Promise<void> {
  return new Promise((done) => {
    const field = el("input", { type: "password", id: "key", autocomplete: "current-password", required: true, "aria-describedby": "key-why" });
    const form = el("form", {},
      el("h2", {}, "This server wants a key"),
      el("p", { id: "key-why", class: "soft" }, wrong ? "That key was not right. " : "", "It is the one that “ivlite serve” was given or printed."),
      el("label", { for: "key" }, "API key"), field,
      el("button", { type: "submit", class: "primary" }, "Continue"),
    );
    const dialog = el("dialog", { class: "card", "aria-label": "API key", on: { cancel: (event) => event.preventDefault() } }, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(PLACE, field.value.trim());
      dialog.remove();
      done();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
