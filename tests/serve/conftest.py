"""What tests of the server share: a server of the demo model in a thread of this process, reached over its socket."""

import threading
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
from serve_asking import CLIP, asked


@pytest.fixture(scope="session")
def demo():
    import ivlite
    from ivlite.gguf import SHIPPED

    if not SHIPPED["demo"].is_file():
        pytest.skip("the demo model is not in the package")
    with ivlite.load("demo", context=2048) as model:
        yield model


@pytest.fixture(scope="session")
def media_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    (folder / "clip.mp4").write_bytes(CLIP.read_bytes())
    return folder


@contextmanager
def servers(demo, media_root):
    """Yields serve(limits..., key=, model=, ...), which starts a server: its url, service and lines of the log."""
    from ivlite.engine.batch import Engine
    from ivlite.serve import listen
    from ivlite.serve.app import application
    from ivlite.serve.service import Limits, Service
    from ivlite.stop import Stop

    ends, opened = [], ExitStack()

    def serve(*, key=None, loopback=True, engine=None, most=8, hosts=(), decoders=None, **limits):
        lines, stop, listening = [], Stop(), listen.bound("127.0.0.1", 0)
        root = media_root.resolve()
        engine = engine or opened.enter_context(Engine(demo, most=most))
        service = Service(engine, "demo", root=root, limits=Limits(**limits), log=lines.append, decoders=decoders)
        app = application(service, loopback=loopback, key=key, hosts=hosts)
        thread = threading.Thread(target=listen.run, args=(app, service, listening, stop))
        thread.start()
        ends.append((stop, thread, service))
        return SimpleNamespace(url=listen.address(listening), service=service, lines=lines, stop=stop, thread=thread)

    try:
        yield serve
    finally:
        for stop, _, _ in ends:
            stop.set("the test has ended")
        for _, thread, service in ends:
            thread.join(30)
            assert not thread.is_alive()
            service.close()
        opened.close()


@pytest.fixture
def serving(demo, media_root):
    """Starts servers for one test."""
    with servers(demo, media_root) as serve:
        yield serve


@pytest.fixture(scope="module")
def served(demo, media_root):
    """A server that the tests of a file share: after them, none of its threads is left."""
    with servers(demo, media_root) as serve:
        yield serve()


@pytest.fixture
def http(served):
    """A client of httpx for the server."""
    import httpx

    with httpx.Client(base_url=served.url, timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture
def ask(http):
    """ask(part, ..., text, **fields) sends a chat request; returns its response."""

    def send(*parts, **more):
        return http.post("/v1/chat/completions", json=asked(*parts, **more))

    return send
