"""A server of the page, for tests."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace


@contextmanager
def served(engine, key=None, **limits):
    """A server in a thread: its url, its service, and stop(), which ends it."""
    from ivlite.serve import listen
    from ivlite.serve.app import application
    from ivlite.serve.service import Limits, Service
    from ivlite.stop import Stop

    stop, listening = Stop(), listen.bound("127.0.0.1", 0)
    service = Service(engine, "demo", limits=Limits(**limits))
    app = application(service, loopback=True, key=key)
    thread = threading.Thread(target=listen.run, args=(app, service, listening, stop))
    thread.start()

    def end():
        stop.set("the test has ended")
        thread.join(60)
        assert not thread.is_alive()

    try:
        yield SimpleNamespace(url=listen.address(listening), service=service, stop=end)
    finally:
        end()
        service.close()
