"""Chromium before a server of the demo model. Skipped where Playwright or the browser is missing."""

import base64
import gzip
import json
import shutil
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE), *(str(HERE.parent / name) for name in ("agent", "serve"))]

from page_servers import served  # noqa: E402

WAIT = 120_000  # milliseconds: the machine may be busy
DROP = """async ({name, data, size, type}) => {
  const bytes = size ? new Uint8Array(size).fill(7) : Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type, lastModified: 1}));
  return transfer;
}"""

KEPT = """() => new Promise((done) => {
  const request = indexedDB.open("ivlite");
  request.onsuccess = () => {
    const all = request.result.transaction("turns").objectStore("turns").getAll();
    all.onsuccess = () => (request.result.close(), done(all.result));
  };
})"""


@pytest.fixture(scope="module")
def browser():
    """Ends with the file: Playwright's event loop runs in this thread, and tests of other folders have their own."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium is installed")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield made
        made.close()


@pytest.fixture(scope="session")
def demo():
    pytest.importorskip("starlette")
    import ivlite
    from ivlite.gguf import SHIPPED

    if not SHIPPED["demo"].is_file():
        pytest.skip("the demo model is not in the package")
    with ivlite.load("demo", context=4096) as model:
        yield model


@pytest.fixture(scope="module")
def engine(demo):
    from ivlite.engine.batch import Engine

    with Engine(demo) as made:
        yield made


@pytest.fixture(scope="module")
def server(engine):
    """The server that the tests of a file share. Files of a megabyte are too large for it."""
    with served(engine, file=1 << 20) as made:
        made.service.decoders.warm()
        yield made


class Gate:
    """Holds back what answers say after so many pieces, until it is opened. It knows nothing of time."""

    def __init__(self):
        self.after, self.opened, self.reached = None, threading.Event(), threading.Event()

    def close(self, after):
        self.after = after
        self.opened.clear()
        self.reached.clear()

    def pieces(self, work, given):
        for n, piece in enumerate(given):
            if self.after is not None and n >= self.after:
                self.reached.set()
                while not self.opened.wait(0.02):
                    work.stop.check()
            yield piece


@pytest.fixture
def gate(monkeypatch):
    """Makes answers wait in the middle."""
    from ivlite.serve import service

    found, real = Gate(), service.portions
    monkeypatch.setattr(service, "portions", lambda work, stream: found.pieces(work, real(work, stream)))
    yield found
    found.opened.set()


class Tab:
    """A page of the browser. complaints: what its console and its scripts complain of; `allowed` is expected to."""

    def __init__(self, page, url):
        self.page, self.url, self.complaints, self.allowed = page, url, [], ()
        page.set_default_timeout(WAIT)
        page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, path="/"):
        self.page.goto(self.url + path)
        self.page.locator("#model:not(:empty)").wait_for()
        return self

    def drop(self, name="clip.mp4", data=b"", size=0, kind="video/mp4"):
        """Drops a file onto the page, as a hand does."""
        what = {"name": name, "data": base64.b64encode(data).decode(), "size": size, "type": kind}
        transfer = self.page.evaluate_handle(DROP, what)
        for event in ("dragenter", "dragover", "drop"):
            self.page.dispatch_event("main", event, {"dataTransfer": transfer})
        return self

    def planned(self):
        self.page.locator("#plan strong").wait_for()
        return self

    def ask(self, question, agent=False):
        self.page.get_by_role("radio", name="Agent" if agent else "Answer").check()
        self.page.locator("#question").fill(question)
        self.page.get_by_role("button", name="Ask", exact=True).click()
        return self.page.get_by_role("article", name=question)

    def answered(self, turn):
        """The text of an answer once it is complete."""
        self.page.locator(".turn[data-state=done]").and_(turn).wait_for()
        return turn.locator(".answer").inner_text()

    def agent_says(self, path):
        """Questions to the agent are answered with the events of a file."""
        body = "".join(
            f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in json.loads(path.read_text())
        )
        self.page.route("**/v1/agent", lambda route: route.fulfill(body=body, content_type="text/event-stream"))

    def kept(self):
        """The turns that the browser keeps."""
        return self.page.evaluate(KEPT)

    def faults(self):
        """What axe finds that is serious or critical."""
        source = gzip.decompress((HERE / "axe.min.js.gz").read_bytes()).decode()
        self.page.evaluate(source + "; null")
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            (fault["id"], fault["impact"], [node["target"] for node in fault["nodes"]])
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]


@pytest.fixture
def tabs(browser, server):
    """tabs() opens a tab; those of one test share what the browser keeps. At the end none may have complained."""
    with ExitStack() as closing:
        contexts, made = {}, []

        def tab(url=None, apart=False, **settings):
            if apart or "context" not in contexts:
                found = browser.new_context(viewport={"width": 1280, "height": 800}, **settings)
                closing.callback(found.close)
                contexts["context"] = found
            made.append(Tab(contexts["context"].new_page(), url or server.url))
            return made[-1]

        yield tab
        for found in made:
            known = [text for text in found.complaints if not any(word in text for word in found.allowed)]
            assert not known, known


@pytest.fixture
def tab(tabs):
    return tabs()
