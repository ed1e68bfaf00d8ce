"""The two servers that `streams.py` asks: `ivlite serve`, and `llama-server` at its best setting, looked for in the same run."""

import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from typing import NamedTuple

import tuning

SLOTS = 8
# What a user can set, and what its defaults come to with prompts of that size. batch: tokens that a prompt puts into a step of all slots.
# Of the default, 2,048, a whole film would be one step. unified: one cache for all slots, or one for each.
AXES = {
    "batch": (512, 64),
    "flash": ("on", "off"),
    "cache": ("f16", "q8_0"),
    "repack": (True, False),
    "unified": (False, True),
}


class Side(NamedTuple):
    """A server. more: fields for all requests; slots: a request can name its place, the lower ones go first in a step."""

    url: str
    more: dict
    slots: bool = False

    def at(self, slot):
        return {"id_slot": slot} if self.slots else {}


@contextmanager
def ivlite_server(model, threads, context):
    options = ["--port", "0", "--quiet", "--no-store", "--context", str(context), "--threads", str(threads)]
    command = [sys.executable, "-m", "ivlite", "serve", model, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        found = re.search(r"(http://\S+)/v1", process.stdout.readline())
        if not found:
            raise SystemExit("ivlite serve does not begin")
        # at temperature 0 it would guess tokens of texts that repeat themselves
        yield Side(found[1], {"temperature": 0.01, "top_k": 1})
    finally:
        process.kill()
        process.communicate()


def options(settings):
    """llama-server's options for settings of AXES."""
    made = ["-b", settings["batch"], "-ub", min(settings["batch"], 512), "-fa", settings["flash"]]
    made += ["-ctk", settings["cache"], "-ctv", settings["cache"], "--repack" if settings["repack"] else "--no-repack"]
    return [*map(str, made), "--kv-unified" if settings["unified"] else "--no-kv-unified"]


@contextmanager
def llama_server(program, model, threads, context, settings):
    """A Side, or None where it does not begin. Slots for as many streams as are asked for, batched continuously (its default);
    weights are read, not mapped, so that what it packs again is in memory once; no copies of prompts that left a slot."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = ["-c", context * SLOTS, "-np", SLOTS, "-t", threads, "-tb", threads, "--load-mode", "none", "--cache-ram", 0]
    command = [program, "-m", model, "--host", "127.0.0.1", "--port", port, "--log-disable", *size, *options(settings)]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        yield Side(url, {"samplers": ["top_k"], "top_k": 1}, True) if answers(process, url) else None
    finally:
        process.kill()
        process.wait()


def answers(process, url):
    """Whether a server is there at last."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def tuned(program, model, threads, context, rates):
    """{name: value} of AXES: where the geometric mean of `rates(side)` is highest."""

    def measure(**settings):
        with llama_server(program, model, threads, context, settings) as side:
            if side is None:
                return None
            found = rates(side)
        print("    " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True)
        return statistics.geometric_mean(found.values())

    return tuning.best(AXES, measure, "llama-server, geometric mean of rates")[0]


def version(program):
    """What it says of itself."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True)
    return (said.stdout + said.stderr).strip().splitlines()[0]
