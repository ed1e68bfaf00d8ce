// Elements, made of names, attributes and texts. A text is never read as HTML: models and file names say what they like.

type Child = Node | string | number | null | undefined | false | Child[];
type Listeners = { [K in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[K]) => unknown };
export interface Props {
  on?: Listeners;
  [attribute: string]: string | number | boolean | null | undefined | Listeners;
}

export function el<K extends keyof HTMLElementTagNameMap>(name: K, props: Props = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (key === "on") {
      for (const [kind, listener] of Object.entries(value as Listeners)) made.addEventListener(kind, listener as EventListener);
    } else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, String(value));
  }
  add(made, children);
  return made;
}

function add(parent: Node, children: Child): void {
  if (Array.isArray(children)) for (const child of children) add(parent, child);
  else if (children instanceof Node) parent.appendChild(children);
  else if (children !== null && children !== undefined && children !== false) parent.appendChild(document.createTextNode(String(children)));
}

/** Replaces what an element holds. */
export function fill(parent: Element, ...children: Child[]): void {
  parent.replaceChildren();
  add(parent, children);
}

export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  upload: "M12 16V4m0 0 5 5m-5-5L7 9M4 16v3a1 1 0 0 0 1 1h14a1 1 0 0 0 1-1v-3",
  send: "M12 20V5m0 0 6 6m-6-6-6 6",
  stop: "M7 7h10v10H7z",
  close: "M6 6l12 12M18 6 6 18",
  check: "m5 13 4 4L19 7",
  doubt: "M12 17.5v.01M9 9a3 3 0 1 1 4.5 2.6c-.9.5-1.5 1.2-1.5 2.4",
  save: "M12 4v12m0 0 5-5m-5 5-5-5M4 20h16",
  again: "M4 12a8 8 0 1 0 2.5-5.8M4 4v4h4",
} as const;

export function icon(name: keyof typeof ICONS): SVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) svg.setAttribute(key, value);
  path.setAttribute("d", ICONS[name]);
  svg.appendChild(path);
  return svg;
}

/** Says something to who listens, without showing it. */
export function say(text: string): void {
  byId("said").textContent = text;
}

let quiet = 0;
/** Shows an error in one sentence, for a while; "" takes it away. */
export function alarm(text: string): void {
  const place = byId("alarm");
  clearTimeout(quiet);
  fill(place, text && [text, el("button", { type: "button", class: "plain square", "aria-label": "Close", on: { click: () => alarm("") } }, icon("close"))]);
  if (text) quiet = window.setTimeout(() => alarm(""), 20_000);
}
