"""`ivlite serve` as a process: what it prints, refuses, and how it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from serve_asking import TOLD, asked

from ivlite.gguf import SHIPPED

pytest.importorskip("starlette")
pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "ivlite", "serve", "demo", "--context", "1024", "--quiet"]


@contextmanager
def started(*arguments):
    """A server's process, as a terminal starts it, and its URL."""
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"demo at (http://.*:\d+)/v1\n", line)
        assert found, (line, process.poll() is None or process.stderr.read())
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def refused(*arguments):
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120)
    assert done.stdout == "" and done.stderr.startswith("ivlite: error: ") and done.stderr.count("\n") == 1, done
    return done.returncode, done.stderr


def opened(url, body=None, **headers):
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_serves_and_ends(number, code):
    with started("--port", "0") as (process, url):
        body = asked("Hello", max_tokens=2)
        answer = opened(f"{url}/v1/chat/completions", body, **{"content-type": "application/json"})
        assert answer["choices"][0]["message"]["content"]
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code and out == "" and "Traceback" not in err
        if code == 0:
            assert err == ""


def test_a_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, sentence = refused("--port", str(taken.getsockname()[1]))
    assert code == 8 and str(taken) and "--port 0" in sentence and "another program" in sentence


@pytest.mark.parametrize("arguments, word", [
    (["--media-root", "/nothing/here"], "no folder"), (["--port", "70000"], "70000"), (["--api-key", "short"], "key"),
    (["--max-body", "much"], "much"), (["--host", "no.such.name.invalid"], "no address"), (["--host", "a" * 300], "no address"),
    (["--quiet", "--verbose"], "contradict"),
])  # fmt: skip
def test_wrong_arguments(arguments, word):
    code, sentence = refused(*arguments)
    assert word in sentence and code == (8 if "--host" in arguments else 2)


def test_other_machines_need_a_key():
    """Without one, the server makes it and prints it once."""
    with started("--port", "0", "--host", "0.0.0.0") as (process, url):
        key = re.fullmatch(r"API key: (\S{20,})\n", process.stdout.readline())[1]
        url = url.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            opened(f"{url}/v1/models")
        assert opened(f"{url}/v1/models", authorization=f"Bearer {key}")["data"][0]["id"] == "demo"
        assert opened(f"{url}/health") == opened(f"{url}/health")


def test_the_guide(tmp_path):
    """Its commands and its program, word for word but for the port."""
    text = (ROOT / "docs" / "guides" / "server.md").read_text()
    shells, programs = (re.findall(rf"^```{kind}\n(.*?)^```", text, re.M | re.S) for kind in ("bash", "py"))
    assert shells and programs
    with started("--port", "0") as (_, url):
        port = url.rsplit(":", 1)[1]
        if shutil.which("curl"):
            for code in shells:
                done = subprocess.run(
                    ["bash", "-c", code.replace("8080", port)], cwd=ROOT, capture_output=True, text=True, timeout=120
                )
                assert json.loads(done.stdout)["choices"][0]["message"]["content"] == TOLD, done
        pytest.importorskip("openai")
        for code in programs:
            done = subprocess.run(
                [sys.executable, "-c", code.replace("8080", port)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert len(done.stdout.splitlines()) == 2, done


def test_two_servers_of_one_model():
    with started("--port", "0") as (_, one), started("--port", "0") as (_, two):
        assert opened(f"{one}/v1/models")["data"][0]["id"] == opened(f"{two}/v1/models")["data"][0]["id"]


def test_without_its_packages(tmp_path):
    """One sentence says what to install."""
    (tmp_path / "uvicorn.py").write_text("raise ImportError('gone', name='uvicorn')")
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 2 and "pip install 'ivlite[server]'" in done.stderr and "Traceback" not in done.stderr


def test_help_does_not_load_the_server():
    code = "import sys, ivlite.cli; ivlite.cli.main(['serve', '--help']); assert not {'starlette', 'uvicorn', 'numpy'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--media-root" in done.stdout, done.stderr
