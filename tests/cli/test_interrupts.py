"""Ctrl-C, SIGTERM and SIGHUP at every stage of every command: an exit code, the result so far, and no traceback."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ivlite import cli, interrupt
from ivlite.cli import run
from ivlite.cli.progress import Progress
from ivlite.interrupt import TOGETHER, Interrupts

RUN = ["run", "model.gguf", "--video", "clip.mp4", "Go on.", "--temperature", "0", "--max-new-tokens", "50"]
TEXTS = ["--data", "data.jsonl", "--verbose"]
COMMANDS = [
    *((RUN, stage) for stage in ("load", "decode", "vision", "prefill", "generate")),
    *((["calibrate", "model.gguf", "-o", "stats.gguf", "--restart", *TEXTS], stage) for stage in ("load", "prefill")),
    *((["eval", "model.gguf", "--against", "model.gguf", *TEXTS], stage) for stage in ("load", "prefill", "generate")),
    *((["quantize", "checkpoint", "-o", "out.gguf", "--golden"], stage) for stage in ("golden", "convert")),
    *((["verify", "golden.gguf"], stage) for stage in ("read", "golden")),
    (["bench", "model.gguf", "--prompt", "16", "--new", "2"], "load"),
]


@pytest.fixture(scope="module")
def place(toy):
    """The toy's folder, with prompts in data.jsonl and a golden.gguf."""
    (toy / "data.jsonl").write_text("".join(json.dumps({"prompt": f"What is {n}?"}) + "\n" for n in range(3)))
    assert cli.main(["quantize", str(toy / "checkpoint"), "-o", str(toy / "golden.gguf"), "--golden", "--quiet"]) == 0
    return toy


@pytest.fixture
def default_handlers():
    """Handlers as a terminal's process has them, whatever runs the tests."""
    before = {n: signal.getsignal(n) for n in interrupt.SIGNALS}
    for number, (default, _, _) in interrupt.SIGNALS.items():
        signal.signal(number, default)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def interrupted_in(monkeypatch, default_handlers):
    """interrupted_in(stage): a signal comes as soon as progress of this stage is shown."""

    def arrange(stage, number=signal.SIGINT):
        sent = []

        def show(self, name, done, total):
            if name == stage and not sent:
                sent.append(name)
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Progress, "__call__", show)
        monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
        return sent

    return arrange


class Terminal:
    def __init__(self, stream):
        self.stream = stream

    def isatty(self):
        return True

    def __getattr__(self, name):
        return getattr(self.stream, name)


@pytest.mark.parametrize(
    ("number", "code", "reason"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("stage", ["decode", "vision", "prefill", "generate"])
def test_the_object_of_an_interrupted_answer(place, monkeypatch, capsys, interrupted_in, stage, number, code, reason):
    monkeypatch.chdir(place)
    sent = interrupted_in(stage, number)
    assert cli.main([*RUN, "--json"]) == code and sent
    data, err = capsys.readouterr()
    data = json.loads(data)
    assert data["finish_reason"] == reason and len(data["token_ids"]) == (stage == "generate")
    assert "new |" in err.splitlines()[-1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("command", "stage"), COMMANDS, ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_every_command_ends_in_order(place, monkeypatch, capsys, interrupted_in, command, stage):
    from ivlite.cli.prompts import PromptProgress

    monkeypatch.setattr(PromptProgress, "__call__", lambda self, *args: Progress.__call__(self, *args))
    monkeypatch.chdir(place)
    sent = interrupted_in(stage)
    assert cli.main(command) == 130 and sent
    err = capsys.readouterr().err
    assert "error" not in err and "Traceback" not in err
    assert not (place / "out.gguf").exists()


def test_bench_prints_the_stages_that_it_has(place, monkeypatch, capsys, default_handlers):
    from ivlite.cli import bench

    monkeypatch.chdir(place)
    monkeypatch.setattr(bench.Limits, "steps", lambda *_: os.kill(os.getpid(), signal.SIGINT) or bench_goes_on())
    assert cli.main(["bench", "model.gguf", "--prompt", "16", "--new", "2", "--json"]) == 130
    facts = json.loads(capsys.readouterr().out)
    assert [p["count"] for p in facts["prefill"]] == [16] and facts["decode"] == [] and facts["vision"] is None


def bench_goes_on():
    from ivlite.stop import checkpoint

    checkpoint()
    raise AssertionError("the Stop was not set")


def test_waiting_for_standard_input(place, monkeypatch, capsys, default_handlers, tmp_path):
    """The system goes on waiting after a signal: somebody has to look."""
    read, write = os.pipe()
    waits = []

    def wait(*args):
        assert not waits
        waits.append(os.kill(os.getpid(), signal.SIGINT))
        return [], [], []

    monkeypatch.chdir(place)
    monkeypatch.setattr(run.select, "select", wait)
    with open(read) as source, open(write, "w"):
        monkeypatch.setattr("sys.stdin", source)
        assert cli.main(["run", "model.gguf", "-"]) == 130
    assert capsys.readouterr().err == "ivlite: interrupted\n"


# ------------------------------------------------------------------------------------------------ whose signals


def test_what_a_program_handles_or_ignores_stays(place, monkeypatch, capsys, default_handlers):
    monkeypatch.chdir(place)
    came = []
    for handler in (signal.SIG_IGN, lambda *_: came.append(True)):
        signal.signal(signal.SIGINT, handler)
        monkeypatch.setattr(run.answer, "show", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
        assert cli.main([*RUN, "--quiet"]) == 0
        assert signal.getsignal(signal.SIGINT) is handler
    assert came == [True]


def test_in_another_thread_signals_are_not_ours(place, monkeypatch, default_handlers):
    monkeypatch.chdir(place)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.main([*RUN, "--quiet"])))
    thread.start()
    thread.join()
    assert codes == [0] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stop_around_the_command_counts(place, monkeypatch, capsys, default_handlers):
    from ivlite.stop import Stop, using

    monkeypatch.chdir(place)
    stop = Stop()
    stop.set("budget")
    with using(stop):
        assert cli.main([*RUN, "--quiet"]) == 130
    signals = Interrupts()
    signals.restore()
    assert not signals.stop


# ------------------------------------------------------------------------------------------------ turns


@pytest.fixture
def signals(default_handlers):
    signals = Interrupts()
    yield signals
    signals.restore()


def send(number, stop):
    os.kill(os.getpid(), number)
    until = time.monotonic() + 60
    while not stop and time.monotonic() < until:
        time.sleep(0.001)


def test_ctrl_c_stops_a_turn_and_not_the_program(signals):
    from ivlite.errors import Stopped
    from ivlite.stop import checkpoint

    for _ in range(3):
        with pytest.raises(Stopped), interrupt.turn() as stop:
            send(signal.SIGINT, stop)
            checkpoint()
    assert stop.reason == "interrupted" and not signals.stop and signals.exit_code is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_the_program_and_its_turn(signals, number):
    with interrupt.turn() as stop:
        send(number, stop)
    assert stop.reason == signals.stop.reason == interrupt.SIGNALS[number][1]
    assert signals.exit_code == 128 + number


def test_one_ctrl_c_is_of_one_turn(signals):
    """The handler and the thread that listens both see it, at different times."""
    with interrupt.turns():
        for _ in range(200):
            with interrupt.turn() as stop:
                assert not stop
                send(signal.SIGINT, stop)
            with interrupt.turn() as later:
                pass
            assert stop and not later
            os.kill(os.getpid(), signal.SIGINT)  # between turns
    assert not signals.stop


def test_a_turn_that_does_not_stop_is_ended(signals, monkeypatch):
    monkeypatch.setattr(interrupt, "PATIENCE", 0.2)
    count = interrupt.Count()
    with interrupt.turn() as stop:
        assert not signals.aim.hit(signal.SIGINT, count) and stop
        assert not signals.aim.hit(signal.SIGINT, count)
        time.sleep(0.25)
        assert signals.aim.hit(signal.SIGINT, count)


def test_a_turn_listens_again_after_an_event_loop(signals):
    assert signal.set_wakeup_fd(-1) == signals.ends  # as asyncio leaves it
    with interrupt.turn():
        assert signal.set_wakeup_fd(signals.ends) == signals.ends


def test_without_our_handlers_a_turn_is_part_of_the_work():
    from ivlite.stop import Stop, using

    whole = Stop()
    with using(whole), interrupt.turn() as stop:
        whole.set("budget")
        assert stop.reason == "budget"


# ------------------------------------------------------------------------------------------------ processes

BEGIN = "import os, signal, sys; sys.argv = ['ivlite', *sys.argv[1:]]\n"
GO = "from ivlite.__main__ import main\nsys.exit(main())\n"
IMPORTED = """
class Interrupt:
    def find_spec(name, *_):
        if name == WANTED:
            sys.meta_path.remove(Interrupt)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt)
"""


ELSEWHERE = """
import hashlib, os, signal, threading, time
from ivlite.interrupt import Interrupts
stop = Interrupts().stop

def watch():
    os.kill(os.getpid(), signal.SIGINT)
    while not stop: time.sleep(0.001)
    print(stop.reason, flush=True)
    os._exit(0)

threading.Timer(0.1, watch).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # ten minutes
"""


def process(program, *args, cwd, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, "-c", program, *args], cwd=cwd, **options)


@pytest.mark.parametrize("module", [
    "ivlite.stop", "ivlite.cli", "argparse", "ivlite.cli.bench", "ivlite._C", "numpy", "numpy.random", "tokenizers", "av",
    "ivlite.media.video", "ivlite.engine.stream",
])  # fmt: skip
def test_while_something_is_imported(place, module):
    began = process(f"{BEGIN}WANTED = {module!r}\n{IMPORTED}{GO}", *RUN, "--quiet", cwd=place)
    _, err = began.communicate(timeout=120)
    assert began.returncode == 130 and "Traceback" not in err and "Exception" not in err, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_python_ends(place, number):
    late = f"import atexit\natexit.register(os.kill, os.getpid(), {int(number)})\n"
    began = process(BEGIN + late + GO, *RUN, "--quiet", cwd=place)
    out, err = began.communicate(timeout=120)
    assert (began.returncode, err) == (0, "") and out.strip()


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_the_second_one_ends_the_process_at_once(tmp_path, number):
    program = (
        "import time\nfrom ivlite.interrupt import Interrupts\nstop = Interrupts().stop\nprint('ready', flush=True)\n"
        "while not stop: time.sleep(0.01)\nprint(stop.reason, flush=True)\ntime.sleep(600)\n"
    )
    began = process(program, cwd=tmp_path)
    assert began.stdout.readline() == "ready\n"
    began.send_signal(number)
    assert began.stdout.readline() == f"{interrupt.SIGNALS[number][1]}\n"
    time.sleep(2 * TOGETHER)
    began.send_signal(number)
    _, err = began.communicate(timeout=60)
    assert began.returncode == -number and err == ""


def test_two_at_once_are_one(place):
    """As `timeout -s INT` sends them."""
    twice = f"{BEGIN}WANTED = 'numpy'\n{IMPORTED}{GO}".replace(
        "SIGINT)", "SIGINT), os.kill(os.getpid(), signal.SIGINT)"
    )
    began = process(twice, *RUN, "--quiet", cwd=place)
    assert began.wait(120) == 130


def test_a_second_one_while_the_main_thread_is_elsewhere(tmp_path):
    program = ELSEWHERE.replace(
        "    os._exit(0)\n", f"    time.sleep({2 * TOGETHER})\n    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    began = process(program, cwd=tmp_path)
    out, err = began.communicate(timeout=120)
    assert (began.returncode, out, err) == (130, "interrupted\n", "")


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_an_answer_of_a_process(place, number):
    began = subprocess.Popen(
        [sys.executable, "-m", "ivlite", *RUN[:-1], "8000"], cwd=place, bufsize=0, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    first = began.stdout.read(1)
    began.send_signal(number)
    out, err = began.communicate(timeout=60)
    assert began.returncode == 128 + number, err
    assert (first + out).endswith(b"\n") and b"Traceback" not in err and b"new |" in err.splitlines()[-1]


def test_the_main_thread_may_be_elsewhere(tmp_path):
    """A Stop is set while the main thread is inside compiled code, where Python cannot run its handler."""
    began = process(ELSEWHERE, cwd=tmp_path)
    out, err = began.communicate(timeout=120)
    assert (began.returncode, out, err) == (0, "interrupted\n", "")


def test_nothing_is_left_behind(place, monkeypatch, default_handlers):
    monkeypatch.chdir(place)
    cli.main([*RUN, "--quiet"])
    for listener in [t for t in threading.enumerate() if t.name == "ivlite-signals"]:
        listener.join()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        signals = Interrupts()
        listener = next(t for t in threading.enumerate() if t.name == "ivlite-signals")
        assert signal.set_wakeup_fd(signals.ends) == signals.ends
        signals.restore()
        listener.join()
    assert signal.set_wakeup_fd(-1) == -1
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (files, threads)


def test_a_job_in_the_background_goes_on(place):
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    began = subprocess.Popen([sys.executable, "-m", "ivlite", *RUN], cwd=place, stdout=subprocess.PIPE, bufsize=0)
    signal.signal(signal.SIGINT, previous)
    began.stdout.read(1)
    began.send_signal(signal.SIGINT)
    began.communicate(timeout=60)
    assert began.returncode == 0


EARLY = [
    RUN, [*RUN, "--json"], ["inspect", "model.gguf"], ["doctor"], ["verify", "model.gguf"],
    ["calibrate", "model.gguf", "-o", "early.out"], ["eval", "model.gguf", "--against", "model.gguf", "--json"],
    ["bench", "model.gguf"], ["quantize", "checkpoint", "-o", "early.out"], ["quantize", "checkpoint", "--dry-run"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("command", EARLY, ids=" ".join)
def test_a_signal_before_the_command_begins(place, monkeypatch, capsys, default_handlers, command, number, code, word):
    monkeypatch.chdir(place)
    signals = Interrupts()
    try:
        os.kill(os.getpid(), number)
        assert cli.command(command, signals) == code
    finally:
        signals.restore()
    out, err = capsys.readouterr()
    assert word in err and "error" not in err and len(err.splitlines()) == 1
    if command[0] == "run" and "--json" in command:
        data = json.loads(out)
        assert (data["text"], data["finish_reason"], data["model"], data["media"]) == ("", word, None, [])
    elif command[0] == "eval":
        assert json.loads(out) == {"reference": "model.gguf", "interrupted": True, "models": []}
    else:
        assert not out
    assert not (place / "early.out").exists()


def test_the_object_of_an_answer_whose_model_was_loading(place, monkeypatch, capsys, interrupted_in):
    monkeypatch.chdir(place)
    sent = interrupted_in("load")
    assert cli.main([*RUN, "--json"]) == 130 and sent
    data = json.loads(capsys.readouterr().out)
    assert data["text"] == "" and data["finish_reason"] == "interrupted" and data["usage"]["new_tokens"] == 0


def test_the_object_of_an_answer_whose_media_were_opened(place, monkeypatch, capsys, default_handlers):
    from ivlite import prompt
    from ivlite.stop import checkpoint

    monkeypatch.chdir(place)
    monkeypatch.setattr(
        prompt, "draft", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT) or time.sleep(0.2) or checkpoint()
    )
    assert cli.main([*RUN, "--json"]) == 130
    data = json.loads(capsys.readouterr().out)
    assert data["finish_reason"] == "interrupted" and data["model"]["threads"] >= 1


def test_a_stop_while_prompts_are_read(tmp_path, monkeypatch):
    from ivlite.errors import Stopped
    from ivlite.evaluate import dataset
    from ivlite.stop import Stop, using

    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "lines.jsonl").write_text('{"prompt": "a"}\n')
    stop = Stop()
    with using(stop):
        sample = dataset.read(tmp_path)[0]
        assert dataset.read(tmp_path / "lines.jsonl")
        stop.set()
        for read in (
            lambda: dataset.read(tmp_path),
            lambda: dataset.read(tmp_path / "lines.jsonl"),
            lambda: sample.key,
        ):
            with pytest.raises(Stopped):
                read()
