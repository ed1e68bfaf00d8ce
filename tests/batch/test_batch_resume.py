"""What a batch leaves when it is killed, and how the next run goes on: the same bytes as without."""

import json
import os
import random
import resource
import shutil
import signal
from types import SimpleNamespace

import pytest
from batch_runs import ASKED, count, records, started, until

from ivlite.batch.journal import File, Journal
from ivlite.batch.resume import resumed
from ivlite.batch.task import Task
from ivlite.errors import DiskError, Stopped, UsageError
from ivlite.output import Partial, partial_path


@pytest.fixture
def whole(batch):
    """The bytes of an output that nothing interrupted, of six videos and one that is missing."""
    batch("videos", "gone.mp4", *ASKED, out="whole.jsonl")
    with open("whole.jsonl", "rb") as file:
        return file.read()


def out():
    with open("out.jsonl", "rb") as file:
        return file.read()


def leftovers():
    return [name for name in os.listdir(".") if name.startswith(".out")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_batch_that_is_killed_goes_on(batch, whole, number):
    """At a number of lines that are finished, wherever they are; the kill comes twice."""
    for lines in (1, random.randint(2, 5)):
        process = started("videos", "gone.mp4", *ASKED, "--parallel", "2", "-o", "out.jsonl")
        until(lambda n=lines: count("out.jsonl") + count(".out.jsonl.partial") >= n, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
        codes = {signal.SIGKILL: -9, signal.SIGINT: 130}
        assert process.returncode in (codes[number], 4) and b"Traceback" not in err, err
        if process.returncode > 4:
            assert b"the same command goes on" in err
        kept = out() if os.path.exists("out.jsonl") else b""
        assert whole.startswith(kept) and count("out.jsonl") + count(".out.jsonl.partial") >= min(lines, 1)
    done = batch("videos", "gone.mp4", *ASKED)
    assert done.code == 4 and out() == whole and not leftovers()


def test_half_lines_are_cut(batch, whole):
    lines = whole.splitlines(keepends=True)
    for kept, half in ((b"", lines[0][:1]), (lines[0], lines[1][:-1])):
        with open("out.jsonl", "wb") as file:
            file.write(kept + half)
        with open(".out.jsonl.partial", "wb") as file:
            file.write(lines[4] + lines[2] + lines[3][:99])
        done = batch("videos", "gone.mp4", *ASKED, "--json")
        assert out() == whole and not leftovers()
        assert json.loads(done.out)["kept"] == 2 + bool(kept)


def test_a_video_that_has_changed_is_answered_again(batch, whole):
    batch("videos", "gone.mp4", *ASKED)
    with open("videos/d%s.mp4", "ab") as file:
        file.write(b"\0\0\0\x08free")
    shutil.copy("videos/a b.mp4", "gone.mp4")
    done = batch("videos", "gone.mp4", *ASKED)
    assert done.code == 0 and "videos/d%s.mp4 has changed" in done.err and "gone.mp4 has changed" in done.err
    before, now = whole.splitlines(), out().splitlines()
    assert [i for i in range(7) if before[i] != now[i]] == [3, 6] and b'"error": null' in now[6]
    assert json.loads(now[3])["task"].split("-")[0] == json.loads(before[3])["task"].split("-")[0]


def test_inputs_that_come_between(batch, whole):
    """A folder with new videos: the lines that are there stay, in the new order."""
    batch("videos/e*", "videos/b*", *ASKED)
    done = batch("videos", "gone.mp4", *ASKED, "--json")
    assert json.loads(done.out)["kept"] == 2 and out() == whole


def test_lines_of_another_batch_are_never_taken_nor_lost(batch):
    batch("videos/a b.mp4", "videos/b\n1.mp4", *ASKED)
    before = out()
    for args in (
        ("videos", "--prompt", "What else?", "--temperature", "0"), ("videos", *ASKED, "--seed", "1"), ("videos/a b.mp4", *ASKED),
        ("videos", *ASKED, "--kv", "f32"), ("videos", *ASKED, "--fps", "3"), ("videos", "--agent", *ASKED),
    ):  # fmt: skip
        done = batch(*args)
        assert done.code == 2 and "is of another input, prompt, setting or model" in done.err and out() == before
        assert not leftovers()


@pytest.mark.parametrize(
    "data", [b"notes", b"my notes\n", b"{}\n", b"[]\n", b'{"id": "a", "task": 3}\n', b"\xff\n", b'{"id": "a"}\n']
)
def test_a_file_of_another_program_stays(tmp_path, data):
    (tmp_path / "out.jsonl").write_bytes(data)
    with Journal(str(tmp_path / "out.jsonl")) as journal, pytest.raises(UsageError, match="was not written by"):
        resumed(journal, asked([1]), "m")
    assert (tmp_path / "out.jsonl").read_bytes() == data


def test_two_at_once(batch):
    with Journal("out.jsonl"):
        done = batch("videos", *ASKED)
        assert done.code == 6 and "is being written by another process" in done.err
    assert batch("videos", *ASKED).code == 0


def test_a_full_disk(batch, whole):
    """One sentence, exit code 6, whole lines; and the next run goes on."""
    limit = len(whole) // 2

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = started("videos", "gone.mp4", *ASKED, "--no-store", "--quiet", "-o", "out.jsonl", preexec_fn=limited)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 6 and err.count(b"ivlite: error: ") == 1 and b"out.jsonl cannot be written" in err, err
    kept = out()
    assert whole.startswith(kept) and kept.endswith(b"\n" * bool(kept))
    assert count("out.jsonl") + count(".out.jsonl.partial") >= 1
    batch("videos", "gone.mp4", *ASKED)
    assert out() == whole


def test_an_output_that_is_removed_meanwhile(films):
    with pytest.raises(DiskError, match="removed"), Journal("out.jsonl") as journal:
        os.unlink("out.jsonl")
        journal.put(0, b"{}\n")


# ------------------------------------------------------------------------------------------------ the journal alone


def made(task, error=None):
    mark = f"{task.asked('m')}-{task.content()}"
    return (
        json.dumps({"id": task.id, "text": "x" * random.randint(0, 99), "error": error, "task": mark}).encode() + b"\n"
    )


def asked(numbers):
    return [Task(f"t{n}", {}, [{"role": "user", "content": f"question {n}"}], {}) for n in numbers]


@pytest.mark.parametrize("seed", range(30))
def test_any_order_any_cut(tmp_path, seed):
    """Lines come in any order; the process dies at any moment, with the last write of a file torn; in the end all are there once."""
    rng, path = random.Random(seed), tmp_path / "out.jsonl"
    tasks = asked(range(12))
    lines = [made(task) for task in tasks]
    for _ in range(60):
        journal = Journal(str(path))
        known = resumed(journal, tasks, "m")
        there = {*range(journal.next), *journal.held}
        assert known.kept == len(there)
        missing = [i for i in range(12) if i not in there]
        rng.shuffle(missing)
        for index in missing[: rng.randint(0, 4)]:
            journal.put(index, lines[index])
        if journal.next == 12:
            journal.close()
            break
        os.close(journal.main.fd)  # a kill: nothing is tidied up
        os.close(journal.ahead.fd)
        for torn in (path, partial_path(path)):
            with open(torn, "r+b") as file:
                end = file.seek(0, 2)
                if rng.random() < 0.3 and end:
                    file.truncate(end - rng.randint(1, min(end, 20)))
    assert path.read_bytes() == b"".join(lines) and os.listdir(tmp_path) == ["out.jsonl"]


def test_other_inputs_in_another_order(tmp_path):
    path = tmp_path / "out.jsonl"
    with Journal(str(path)) as journal:
        for index, task in enumerate(asked([3, 1, 2])):
            journal.put(index, made(task))
    before = {json.loads(line)["id"]: line for line in path.read_bytes().splitlines()}
    tasks = asked([0, 1, 2, 3])
    with Journal(str(path)) as journal:
        assert resumed(journal, tasks, "m").kept == 3 and path.read_bytes() == b""
        journal.put(0, made(tasks[0]))
    assert [
        before.get(json.loads(line)["id"], line) for line in path.read_bytes().splitlines()
    ] == path.read_bytes().splitlines()
    assert [record["id"] for record in records(path)] == ["t0", "t1", "t2", "t3"]
    with Journal(str(path)) as journal, pytest.raises(UsageError, match="line 1"):
        resumed(journal, tasks[1:], "m")
    assert len(records(path)) == 4


def test_failures_that_may_be_over_are_tried_again(tmp_path):
    path, tasks = tmp_path / "out.jsonl", asked(range(3))
    errors = [{"class": "MediaError", "exit_code": 4}, {"class": "OutOfMemoryError", "exit_code": 5}, None]
    with Journal(str(path)) as journal:
        for index, task in enumerate(tasks):
            journal.put(index, made(task, errors[index]))
    with Journal(str(path)) as journal:
        known = resumed(journal, tasks, "m")
        assert (known.kept, known.failed, known.again, known.code) == (2, 1, 1, (0, 4))
        assert (journal.next, list(journal.held)) == (1, [2])


def test_the_same_question_twice(tmp_path):
    """One line answers both."""
    path, tasks = tmp_path / "out.jsonl", asked([1, 1, 2, 1])
    lines = [made(tasks[0]), made(tasks[2])]
    with Journal(str(path)) as journal:
        journal.put(2, lines[1])
        journal.put(0, lines[0])
    with Journal(str(path)) as journal:
        assert resumed(journal, tasks, "m").kept == 4 and journal.next == 4
    assert path.read_bytes() == lines[0] * 2 + lines[1] + lines[0]


def test_memory_does_not_grow_with_what_waits(tmp_path):
    """Lines whose turn has not come are kept on the disk."""
    with Journal(str(tmp_path / "out.jsonl")) as journal:
        for index in range(1, 400):
            journal.put(index, b'{"id": "%d"}\n' % index)
        assert all(isinstance(place, tuple) and len(place) == 2 for place in journal.held.values())
        journal.put(0, b'{"id": "0"}\n')
        assert journal.next == 400 and not journal.held
    assert [record["id"] for record in records(tmp_path / "out.jsonl")] == [str(n) for n in range(400)]


def test_work_is_taken_as_places_become_free():
    """However many inputs there are, few are in memory."""
    import threading

    from ivlite.batch import local
    from ivlite.batch.answering import Line

    taken, gate = [], threading.Event()

    class Answerer:
        engine = SimpleNamespace(most=3)

        def line(self, task):
            gate.wait(60)
            return Line(task.id.encode())

    def work():
        for index, task in enumerate(asked(range(1000))):
            taken.append(index)
            yield index, task

    answers = local.answers(Answerer(), work())
    threading.Timer(0.05, gate.set).start()
    first = next(answers)
    assert first[2].data == first[1].id.encode()
    assert len(taken) <= 3 + local.AHEAD + 64 + 10
    answers.close()
    rest = len(taken)
    assert len(taken) == rest < 1000


# ------------------------------------------------------------------------------------------------ what a refusal leaves


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("output", [b"", None])
@pytest.mark.parametrize("hidden", [b"notes of another program", b"", None])
def test_a_refusal_leaves_the_hidden_file(tmp_path, hidden, output):
    """Of an earlier batch, of `ivlite quantize`, of nobody: what holds something stays, and is what the message names."""
    lines = [made(task) for task in asked([1, 2])]
    for data in [hidden] if hidden is not None else [b"".join(lines), lines[0] + b'{"id": "half']:
        path = tmp_path / "out.jsonl"
        (tmp_path / ".out.jsonl.partial").write_bytes(data)
        if output is not None:
            path.write_bytes(output)
        before = {name: held for name, held in files_of(tmp_path).items() if held or name == "out.jsonl"}
        with Journal(str(path)) as journal:
            if data:
                with pytest.raises(UsageError, match=r"\.out\.jsonl\.partial line 1 "):
                    resumed(journal, asked([3]), "m")
        assert files_of(tmp_path) == before


@pytest.mark.parametrize("error", [Stopped.because("interrupted"), DiskError("the disk is gone")])
def test_a_stop_while_videos_are_read_again_leaves_all(tmp_path, error, monkeypatch):
    """Finished lines of which some, or all, wait in the hidden file."""
    tasks = asked([1, 2, 3])
    lines = [made(task) for task in tasks]
    for main, ahead in ((b"", lines[1] + lines[2]), (lines[0], lines[2])):
        (tmp_path / "out.jsonl").write_bytes(main)
        (tmp_path / ".out.jsonl.partial").write_bytes(ahead)

        def fail(*_):
            raise error

        with (
            monkeypatch.context() as patch,
            pytest.raises(type(error)),
            Journal(str(tmp_path / "out.jsonl")) as journal,
        ):
            patch.setattr(Task, "content", fail)
            resumed(journal, tasks, "m")
        assert files_of(tmp_path) == {"out.jsonl": main, ".out.jsonl.partial": ahead}
    with Journal(str(tmp_path / "out.jsonl")) as journal:
        assert resumed(journal, tasks, "m").kept == 2
        journal.put(1, lines[1])
    assert files_of(tmp_path) == {"out.jsonl": b"".join(lines)}


@pytest.mark.parametrize("broken", ["add", "sync", "cut"])
def test_a_disk_that_fails_while_lines_are_moved_loses_none(tmp_path, broken, monkeypatch):
    tasks, path = asked([0, 1, 2]), tmp_path / "out.jsonl"
    lines = [made(task) for task in tasks]
    for main, ahead in ((lines[1] + lines[2], b""), (b"", lines[0] + lines[2])):
        path.write_bytes(main)
        (tmp_path / ".out.jsonl.partial").write_bytes(ahead)

        def fail(*_):
            raise DiskError("the disk is full")

        with monkeypatch.context() as patch, pytest.raises(DiskError), Journal(str(path)) as journal:
            patch.setattr(File, broken, fail)
            resumed(journal, tasks, "m")
            journal.sync()
            journal.main.cut(0)
        found = b"".join(files_of(tmp_path).values())
        assert all(line in found for line in (main + ahead).splitlines(keepends=True))
        for file in tmp_path.iterdir():
            file.unlink()


def test_the_disk_fails_at_the_end(tmp_path, monkeypatch):
    """What is not flushed to the output stays in the hidden file, too."""
    tasks = asked([0, 1])
    with pytest.raises(DiskError), Journal(str(tmp_path / "out.jsonl")) as journal:
        journal.put(1, made(tasks[1]))
        journal.put(0, made(tasks[0]))

        def fail():
            raise DiskError("the disk is gone")

        monkeypatch.setattr(journal, "sync", fail)
    assert len(records(tmp_path / ".out.jsonl.partial")) == 1


def test_an_unfinished_model_of_that_name_stays(batch):
    """`ivlite quantize` with the same -o writes the same hidden file: at work, and after its kill."""
    partial = Partial("out.jsonl", 1000, b"m" * 32)
    try:
        done = batch("videos", *ASKED)
        assert done.code == 6 and "is being written by another process" in done.err
    finally:
        partial.close(keep=True)
    before = partial_path("out.jsonl").read_bytes()
    done = batch("videos", *ASKED)
    assert done.code == 2 and ".out.jsonl.partial line 1 was not written by" in done.err
    assert partial_path("out.jsonl").read_bytes() == before and len(before) > 1000


def test_a_refused_command_leaves_both_files(batch):
    """The answers of a batch that was killed before the first of its inputs was answered."""
    batch("videos/b*", "videos/e*", *ASKED)
    os.rename("out.jsonl", ".out.jsonl.partial")
    with open("out.jsonl", "wb"):
        pass
    before = partial_path("out.jsonl").read_bytes()
    done = batch("videos", *ASKED, "--kv", "f16")
    assert done.code == 2 and ".out.jsonl.partial line 1 is of another" in done.err
    assert partial_path("out.jsonl").read_bytes() == before and out() == b""
    done = batch("videos", *ASKED, "--json")
    assert done.code == 0 and json.loads(done.out)["kept"] == 2 and not leftovers()
