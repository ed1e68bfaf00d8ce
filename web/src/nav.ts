// The list of sessions.
import { byId, el, fill, icon } from "./dom.ts";
import { drop, sessions, type Session } from "./store.ts";

const NARROW = matchMedia("(max-width: 999px)");

export class Nav {
  constructor(private readonly current: () => string, private readonly gone: (session: Session) => void) {
    fill(byId("menu"), icon("menu"));
    fill(byId("fresh"), icon("plus"), "New session");
    byId("menu").addEventListener("click", () => this.open(!document.body.classList.contains("menu-open")));
    document.addEventListener("keydown", (event) => event.key === "Escape" && document.body.classList.contains("menu-open") && (this.open(false), byId("menu").focus()));
    document.addEventListener("click", (event) => {
      if (document.body.classList.contains("menu-open") && !(event.target as Element).closest("#nav, #menu")) this.open(false);
    });
    NARROW.addEventListener("change", () => this.open(false));
  }

  open(shown: boolean): void {
    document.body.classList.toggle("menu-open", shown);
    byId("menu").setAttribute("aria-expanded", String(shown));
    if (shown) byId("nav").querySelector<HTMLElement>("a, button")?.focus();
  }

  async draw(): Promise<void> {
    const all = await sessions();
    fill(byId("sessions"), all.map((session) => this.item(session)));
    if (!all.length) fill(byId("sessions"), el("li", { class: "soft small" }, "None yet"));
  }

  private item(session: Session): HTMLElement {
    const when = new Date(session.changed).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    const here = session.id === this.current();
    const title = session.title || "Untitled";
    const remove = el("button", { type: "button", class: "plain square remove" });
    let sure = false;
    const show = (asked: boolean) => {
      sure = asked;
      remove.classList.toggle("sure", asked);
      remove.setAttribute("aria-label", asked ? `Delete? ${title} goes from this browser` : `Delete ${title}`);
      fill(remove, asked ? "Delete?" : icon("close"));
    };
    show(false);
    remove.addEventListener("blur", () => show(false));
    remove.addEventListener("click", async () => {
      if (!sure) return show(true);
      await drop(session.id);
      this.gone(session);
    });
    return el("li", {},
      el("a", { href: `#s=${session.id}`, "aria-current": here && "page", on: { click: () => this.open(false) } },
        el("span", { class: "name", dir: "auto" }, title), el("span", { class: "small soft" }, when)), remove);
  }
}
