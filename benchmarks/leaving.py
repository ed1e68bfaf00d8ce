"""How long a place of the server stays taken after its client has left: in the queue, vision, prefill and decoding.

    python benchmarks/leaving.py model.gguf
    python benchmarks/leaving.py demo --rounds 3

A client asks over a socket, waits until its answer is in a stage, and closes the socket. Printed are the seconds until the
server has nothing left of it, and those of the process's processors in between.
"""

import argparse
import json
import socket
import statistics
import threading
import time
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import ivlite
from ivlite.engine.batch import Engine
from ivlite.serve import listen
from ivlite.serve.app import application
from ivlite.serve.service import Service
from ivlite.stop import Stop

PATIENCE = 300  # seconds until an answer is in a stage
LONG = {"max_tokens": 2000, "temperature": 8, "stream": True}  # about noise, which has no end


class Watched(Service):
    """A server that knows its newest answer in progress."""

    work = None

    def opened(self, asked, work, client):
        self.work = work
        return super().opened(asked, work, client)

    @property
    def stage(self):
        return self.work.stage[0] if isinstance(self.work.stage, tuple) else self.work.stage


@contextmanager
def served(model):
    """(server, its URL), with one place."""
    stop, listening = Stop(), listen.bound("127.0.0.1", 0)
    with Engine(model, most=1) as engine, closing(Watched(engine, "model")) as service:
        run = (application(service, loopback=True), service, listening, stop)
        thread = threading.Thread(target=listen.run, args=run)
        thread.start()
        try:
            yield service, listen.address(listening)
        finally:
            stop.set("done")
            thread.join()


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("the answer never came to that stage: take a larger model")
        time.sleep(0.001)


def asked(url, content, **more):
    """A connection that has sent a question."""
    where = urlsplit(url)
    data = json.dumps({"messages": [{"role": "user", "content": content}], **LONG, **more}).encode()
    wire = socket.create_connection((where.hostname, where.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    wire.sendall(f"{head}\r\n\r\n".encode() + data)
    return wire


def frames(n):
    """A video of frames that no earlier question had, as a part."""
    import base64
    import io

    from PIL import Image

    pictures = []
    for k in range(8):
        out = io.BytesIO()
        Image.new("RGB", (640, 480), (n % 256, k * 30, n // 256)).save(out, "PNG")
        pictures.append({"t": k / 2, "image": f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"})
    return {"type": "video", "video": pictures, "min_pixels": 640 * 480, "max_pixels": 640 * 480}


def left(service, url, stage, content):
    """(seconds, seconds of processors) from the close of a connection in a stage to a free place."""
    service.work = None
    wire = asked(url, content)
    until(lambda: service.work is not None and service.stage == stage)
    return closed(wire, lambda: not service.open and not service.engine.running)


def closed(wire, free):
    began, processors = time.monotonic(), time.process_time()
    wire.close()
    until(free)
    return time.monotonic() - began, time.process_time() - processors


def queued(service, url, n):
    with asked(url, f"Tell me a story, number {n}.") as first:
        first.recv(1000)
        wire = asked(url, "Hello", user="b")
        until(lambda: service.engine.waiting)
        out = closed(wire, lambda: not service.engine.waiting and service.open == 1)
    until(lambda: not service.open)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with ivlite.load(args.model, context=4096, store=False) as model, served(model) as (service, url):
        stages = {
            "queue": lambda n: queued(service, url, n),
            "vision": lambda n: left(service, url, "vision", [frames(n), {"type": "text", "text": "What is seen?"}]),
            "prefill": lambda n: left(service, url, "prefill", f"word {n} " * 500),
            "decoding": lambda n: left(service, url, "generate", f"Tell me a story, number {n}."),
        }
        for name, work in stages.items():
            found = [work(100 * n + time.monotonic_ns() % 97) for n in range(args.rounds)]
            taken, used = zip(*found, strict=True)
            print(
                f"{name:8} free after {statistics.median(taken):.3f} s, at most {max(taken):.3f} s "
                f"({statistics.median(used):.3f} s of processors)", flush=True
            )  # fmt: skip


if __name__ == "__main__":
    main()
