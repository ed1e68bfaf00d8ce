"""The store: what a long prompt left in the cache serves the next process, and nothing in its folder can do harm."""

import errno
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from session_fakes import PlainCache, clip, layout, written

import ivlite
from ivlite.session.file import SessionFile
from ivlite.session.packing import pack
from ivlite.session.state import SessionState
from ivlite.session.store import Store, user_store

QUESTIONS = ("What moves?", "Which colour is it?")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "sessions", worth=0.0, limit=10**9)


def filled(store, tokens=300, used=None, model="a" * 64, kind="q8"):
    """Adds an entry of that many tokens; returns its path."""
    cache = PlainCache(1000).grow(tokens)
    made = layout(cache, model=model, kind=kind)
    state = SessionState(
        token_ids=list(range(tokens)), positions=np.zeros((3, tokens), np.int64), rows=tokens, tools=[]
    )
    file = SessionFile(store.new_path(made), durable=False)
    meta, arrays = pack(state)
    file.save(made, meta | {"maker": "x", "contents": {}, "seconds": 1.0}, arrays, cache, tokens)
    if used is not None:
        os.utime(file.path, (used, used))
    return file.path


# ------------------------------------------------------------------------------------------------ the folder


def test_what_was_used_least_recently_goes_first(store):
    paths = [filled(store, used=1000 + i) for i in range(5)]
    size = store.entries()[0].nbytes
    os.utime(paths[0])
    store._limit = 4 * size
    assert store.make_room(2 * size, keep=None)
    assert {entry.path for entry in store.entries()} == {paths[0], paths[4]}
    assert store.make_room(4 * size, keep=paths[4])  # it is rewritten: its size is in the sum already
    assert [entry.path for entry in store.entries()] == [paths[4]]
    assert not store.make_room(4 * size + 1, keep=None)
    assert [entry.path for entry in store.entries()] == [paths[4]]


def test_the_limit_is_a_tenth_of_a_small_disk(store, monkeypatch):
    filled(store)
    mine = store.entries()[0].nbytes
    for free, limit in ((10**9, (10**9 // 4096 * 4096 + mine) // 10), (10**13, 20_000_000_000)):
        monkeypatch.setattr(os, "statvfs", lambda _, free=free: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096))
        assert Store(store.folder).limit() == limit


def test_unfinished_files_of_killed_processes_are_removed(store):
    path = filled(store)
    left = path.with_name(f".{path.name}.partial")
    left.write_bytes(b"x")
    assert store.make_room(1, keep=None) and left.exists()  # it may be in use
    os.utime(left, (1, 1))
    assert store.make_room(1, keep=None) and not left.exists()
    left.write_bytes(b"x")
    assert len(store.clear()) == 1 and not left.exists() and not store.entries()


def test_foreign_names_in_the_folder(store):
    path = filled(store)
    (store.folder / "notes.txt").write_text("x")
    (store.folder / "folder.ivs").mkdir()
    (store.folder / "link.ivs").symlink_to("/none")
    os.mkfifo(store.folder / "pipe.ivs")
    assert [entry.path for entry in store.entries()] == [path]
    assert store.make_room(store._limit, keep=None) and not store.entries()  # the others stay, and are in nobody's way
    filled(store)
    assert len(store.clear()) == 1 and len(os.listdir(store.folder)) == 5  # with the lock


def test_a_file_in_place_of_the_folder(store):
    store.folder.write_text("x")
    assert store.entries() == store.clear() == [] and store.limit() == 10**9


def test_the_folder_of_a_store_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("kept")
    path = filled(store)
    monkeypatch.chdir("/")
    assert path == store.entries()[0].path and path.parent == tmp_path / "kept"


def test_sizes_that_read_alike_are_given_exactly(store, monkeypatch):
    from ivlite.machine import two_sizes

    assert two_sizes(2_000_000, 1_000_000) == ("2 MB", "1 MB")
    assert two_sizes(1_000_001, 1_000_000) == ("1,000,001 bytes", "1,000,000 bytes")


def test_processes_that_make_room_at_once(store):
    store._limit = 8 * 400_000
    pids = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            try:
                for _ in range(6):
                    path = filled(store)
                    assert store.make_room(0, keep=path)
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert {os.waitpid(pid, 0)[1] for pid in pids} == {0}
    assert store.make_room(0, keep=None)
    assert 0 < sum(entry.nbytes for entry in store.entries()) <= store.limit()
    for entry in store.entries():
        SessionFile.open(entry.path).close()


# ------------------------------------------------------------------------------------------------ answers from it


def asked(source, question):
    video = {"type": "video", "video": source} | ({"fps": 2} if isinstance(source, list) else {"nframes": 12})
    return [{"role": "user", "content": [video, {"type": "text", "text": question}]}]


def process(store, **settings):
    """A model as a new process has it: nothing in memory."""
    return ivlite.load("demo", store=store or False, **settings)


@pytest.fixture
def video(tmp_path):
    return written(tmp_path / "clip.avi")


def test_the_second_question_in_another_process(store, video):
    first = process(store).chat(asked(video, QUESTIONS[0]), temperature=0)
    assert first.usage["stored_tokens"] == 0 and len(store.entries()) == 1
    with process(store) as model:
        again = model.chat(asked(video, QUESTIONS[0]), temperature=0)
        assert again.text == first.text
        assert again.usage["stored_tokens"] == again.usage["cached_tokens"] == again.usage["prompt_tokens"]
        assert again.timings["prefill"] == 0 and again.timings["vision"] == 0
    with process(store) as model:
        other = model.chat(asked(video, QUESTIONS[1]), temperature=0)
        assert other.usage["stored_tokens"] > other.usage["vision_tokens"] and other.timings["vision"] == 0
    with process(None) as model:
        alone = model.chat(asked(video, QUESTIONS[1]), temperature=0)
        assert alone.text == other.text and alone.usage["stored_tokens"] == 0
    assert len(store.entries()) <= 2


def test_little_work_is_not_kept(store, video):
    store.worth = 60.0
    process(store).chat(asked(video, QUESTIONS[0]))
    assert not store.entries()


def test_other_clips_models_and_kinds_are_not_mixed_up(store, video, tmp_path):
    answers = {}
    for shade in (0, 120):
        for kv in ("q8", "f32"):
            written(video, shade)
            answers[shade, kv] = process(None, kv=kv).chat(asked(video, QUESTIONS[0]), temperature=0).token_ids
    for _ in range(2):
        for (shade, kv), expected in answers.items():
            written(video, shade)
            reply = process(store, kv=kv).chat(asked(video, QUESTIONS[0]), temperature=0)
            assert reply.token_ids == expected
    for entry in store.entries():
        os.utime(entry.path)
    again = process(store, vit="fp32").chat(asked(video, QUESTIONS[0]), temperature=0)
    assert again.usage["stored_tokens"] < again.usage["vision_tokens"]


def test_a_video_that_changed_is_not_used_and_it_is_said(store, video):
    """Row 70: encoded again in place, with the name, the size and the time of change that it had."""
    process(store).chat(asked(video, QUESTIONS[0]))
    info = video.stat()
    assert written(video, shade=99).stat().st_size == info.st_size
    os.utime(video, ns=(info.st_atime_ns, info.st_mtime_ns))
    reply = process(store).chat(asked(video, QUESTIONS[0]))
    assert reply.usage["stored_tokens"] < reply.usage["vision_tokens"]
    assert sum("has changed" in warning and "clip.avi" in warning for warning in reply.warnings) == 1
    later = process(store).chat(asked(video, QUESTIONS[1]))  # the new content is stored as well
    assert later.usage["stored_tokens"] > later.usage["vision_tokens"] and not later.warnings


def interrupted(model, messages, chunks):
    """Asks, and stops the prefill after that many chunks; returns the reply."""
    stop = ivlite.Stop()

    def progress(stage, done, total):
        if stage == "prefill" and done >= chunks:
            stop.set()

    return model.chat(messages, temperature=0, stop=stop, progress=progress)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr("ivlite.engine.runner.CHUNK", 32)


def test_an_interrupted_prefill_goes_on(store, video, small_chunks):
    whole = process(None).chat(asked(video, QUESTIONS[0]), temperature=0)
    reply = interrupted(process(store), asked(video, QUESTIONS[0]), 64)
    assert reply.finish_reason == "interrupted" and not reply.text
    assert len(list(store.folder.glob("*-q8-*"))) == 1
    reply = process(store).chat(asked(video, QUESTIONS[0]), temperature=0)
    assert reply.usage["stored_tokens"] >= 64 and reply.text == whole.text
    assert len(list(store.folder.glob("*-q8-*"))) == 1  # the same entry went on
    reply = process(store).chat(asked(video, QUESTIONS[0]), temperature=0)
    assert reply.usage["stored_tokens"] == reply.usage["prompt_tokens"] and reply.text == whole.text


def counted(model):
    """A list that gets the number of frame pairs of every batch that a model's vision tower encodes."""
    pairs, vision = [], model.network.vision

    def counting(batch, *more):
        pairs.append(len(batch))
        return vision(batch, *more)

    model.network.vision = counting
    return pairs


def test_frames_that_were_seen_before_a_stop(store, video, monkeypatch):
    """The first chunk is not complete: what the vision tower has done by then is kept."""
    monkeypatch.setattr("ivlite.engine.vision.PATCHES", 24)  # batches of one pair
    whole = process(None).chat(asked(video, QUESTIONS[0]), temperature=0)
    for stops in (2, 4):
        stop = ivlite.Stop()
        reply = process(store).chat(
            asked(video, QUESTIONS[0]),
            stop=stop,
            progress=lambda stage, done, total, stops=stops, stop=stop: (
                stage == "vision" and done >= stops and stop.set()
            ),
        )
        assert reply.finish_reason == "interrupted" and reply.usage["cached_tokens"] == 0
    names = os.listdir(store.folder)
    assert [name for name in names if "vision" in name]
    model = process(store)
    pairs = counted(model)
    reply = model.chat(asked(video, QUESTIONS[0]), temperature=0)
    assert reply.text == whole.text and sum(pairs) == 6 - 4
    assert not [name for name in os.listdir(store.folder) if "vision" in name]
    model = process(store)
    assert model.chat(asked(clip(shade=9), QUESTIONS[0]), temperature=0).finish_reason == "stop"


def rewritten(path, data):
    path.write_bytes(data)
    return path


def test_damaged_features_are_not_used(store, video):
    whole = process(None).chat(asked(video, QUESTIONS[0]), temperature=0)
    stop = ivlite.Stop()
    process(store).chat(asked(video, QUESTIONS[0]), stop=stop, progress=lambda s, d, t: s == "vision" and stop.set())
    path = next(store.folder.glob("*-vision-*"))
    data = path.read_bytes()
    for at in range(0, len(data), len(data) // 8):
        path.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
        model = process(store)
        assert model.chat(asked(video, QUESTIONS[0]), temperature=0).text == whole.text
        for entry in store.entries():
            entry.path.unlink()
    with SessionFile.open(rewritten(path, data)) as file:
        table, rows = file.table, PlainCache(file.table.layout.token_bytes)
        file.restore(rows)
        for name, value in (
            ("rows", np.array([1 << 40])),
            ("keys", np.zeros((1, 3), np.uint8)),
            ("wide", np.zeros(0, np.int64)),
        ):
            file.save(table.layout, table.meta, table.arrays | {name: value}, rows, rows.length)
            assert process(store).chat(asked(video, QUESTIONS[0]), temperature=0).text == whole.text
            for entry in store.entries():
                entry.path.unlink()


def test_a_long_prefill_is_saved_on_its_way(store, video, small_chunks):
    """A kill loses what was computed since the last save, and no more."""
    store.interval = 0.0
    if (pid := os.fork()) == 0:
        try:
            seen = []

            def progress(stage, done, total):
                seen.append(done)
                if stage == "prefill" and done >= 96:
                    os.kill(os.getpid(), signal.SIGKILL)

            process(store, threads=1).chat(asked(video, QUESTIONS[0]), progress=progress)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    reply = process(store).chat(asked(video, QUESTIONS[0]), temperature=0)
    assert 64 <= reply.usage["stored_tokens"] <= 96
    assert reply.text == process(None).chat(asked(video, QUESTIONS[0]), temperature=0).text


def test_damaged_entries_are_removed_and_computed_again(store, video):
    expected = process(store).chat(asked(video, QUESTIONS[0]), temperature=0)
    path = store.entries()[0].path
    data = path.read_bytes()
    for at in (5, len(data) // 2, len(data) - 3, 12288 + 9):
        path.write_bytes(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])
        reply = process(store).chat(asked(video, QUESTIONS[0]), temperature=0)
        assert reply.text == expected.text and reply.finish_reason == expected.finish_reason
        for entry in store.entries():
            entry.path.unlink()
    os.symlink("/dev/zero", path)
    assert process(store).chat(asked(video, QUESTIONS[0]), temperature=0).text == expected.text


HOSTILE = [
    {"seconds": "x"}, {"seconds": None}, {"seconds": float("nan")}, {"contents": []}, {"contents": None}, {"maker": 1}, {"media": [1]},
    {"messages": 0}, {"turns": [[None]]}, {"tokens": np.zeros((2, 2), np.int32)}, {"tokens": np.zeros(9, np.float32)},
    {"positions": np.zeros((3, 1), np.int32)}, {"spans": np.full((1, 3), -1, np.int64)}, {"keys": np.zeros((1, 1), np.uint8)},
    {"logits": np.full((1, 7), np.nan, np.float32)}, {"logits": "nan"}, {"ends": np.array([1 << 40], np.int64)}, {"ends": None},
]  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: next(iter(change)))
def test_entries_with_odd_contents_do_no_harm(store, video, change):
    """Files whose checksums are right and whose parts are not."""
    with process(store) as model:
        expected = model.chat(asked(video, QUESTIONS[0]), temperature=0)
        entry = store.entries()[0]
        with SessionFile.open(entry.path) as file:
            table, cache = file.table, PlainCache(file.table.layout.token_bytes)
            file.restore(cache)
            for name, value in change.items():
                if name == "logits" and isinstance(value, str):
                    value = np.full_like(table.arrays["logits"], np.nan)
                (table.meta if name in table.meta else table.arrays)[name] = value
            arrays = {name: array for name, array in table.arrays.items() if array is not None}
            file.save(table.layout, table.meta, arrays, cache, cache.length)
    reply = process(store).chat(asked(video, QUESTIONS[0]), temperature=0)
    assert reply.text == expected.text and not reply.warnings


@pytest.mark.parametrize("where", ["pwrite", "mkdir", "statvfs", "scandir"])
def test_a_disk_that_fails_costs_one_warning(store, video, monkeypatch, where):
    expected = process(None).chat(asked(video, QUESTIONS[0]), temperature=0)
    real = getattr(os, where)

    def failing(target, *more, **settings):
        if where == "pwrite" or str(target).startswith(str(store.folder)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(target, *more, **settings)

    store._limit = None
    model = process(store)
    monkeypatch.setattr(os, where, failing)
    for _ in range(2):
        reply = model.chat(asked(video, QUESTIONS[0]), temperature=0)
        assert reply.text == expected.text
    first = process(store).chat(asked(video, QUESTIONS[1]), temperature=0)
    assert sum("not kept" in warning and "No space left" in warning for warning in first.warnings) == 1
    monkeypatch.undo()
    assert not [entry for entry in store.entries() if entry.nbytes]


def test_an_entry_larger_than_the_store(store, video):
    store._limit = 1000
    reply = process(store).chat(asked(video, QUESTIONS[0]))
    assert len([w for w in reply.warnings if "more than the store holds" in w]) == 1 and not store.entries()


def test_entries_that_go_while_they_are_used(store, video, monkeypatch):
    expected = process(store).chat(asked(video, QUESTIONS[0]), temperature=0)
    restore = SessionFile.restore

    def removing(self, *more):
        os.unlink(self.path)
        return restore(self, *more)

    with monkeypatch.context() as patch:
        patch.setattr(SessionFile, "restore", removing)
        assert process(store).chat(asked(video, QUESTIONS[0]), temperature=0).text == expected.text
    assert not store.entries()


def test_turns_of_one_conversation_share_an_entry(store, video):
    model = process(store)
    messages = asked(video, QUESTIONS[0])
    for turn in range(4):
        reply = model.chat(messages, temperature=0)
        messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": f"And then, {turn}?"}]
    assert len(store.entries()) == 1


def test_rows_of_another_prompt_do_not_stay(store, video, tmp_path):
    """A cache that holds another video, with the same beginning and more tokens, gets every row from the store."""
    first, other = asked(video, QUESTIONS[0]), asked(written(tmp_path / "other.avi", shade=77), QUESTIONS[1] * 9)
    process(store).chat(first, temperature=0)
    rows = []
    for before in ((), (other,), (first, other), (other, first)):
        model = process(store)
        runner = model.runner(1024)
        for messages in before:
            runner.extend(model.prepare(messages))
        logits = runner.extend(model.prepare(first))
        rows.append(
            (
                runner.cache.dump(0, runner.cache.length).tobytes(),
                logits.tobytes(),
                runner.held.token_ids,
                runner.held.keys,
            )
        )
    assert rows[1:] == rows[:-1]


def test_two_processes_ask_at_once(store, video):
    expected = process(None).chat(asked(video, QUESTIONS[0]), temperature=0)
    pids = []
    for _ in range(3):
        if (pid := os.fork()) == 0:
            try:
                reply = process(store, threads=1).chat(asked(video, QUESTIONS[0]), temperature=0)
                os._exit(0 if reply.token_ids == expected.token_ids and not reply.warnings else 3)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    reply = process(store).chat(asked(video, QUESTIONS[0]), temperature=0)
    assert reply.usage["stored_tokens"] == reply.usage["prompt_tokens"]
    assert not [name for name in os.listdir(store.folder) if "partial" in name]


def test_pixels_in_memory(store):
    for _ in range(2):
        reply = process(store).chat(asked(clip(), QUESTIONS[0]), temperature=0)
    assert reply.usage["stored_tokens"] == reply.usage["prompt_tokens"]
    other = process(store).chat(asked(clip(shade=50), QUESTIONS[0]), temperature=0)
    assert other.usage["stored_tokens"] < other.usage["vision_tokens"]


def test_python_writes_nothing_unless_asked(tmp_path, monkeypatch, video):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ivlite.load("demo") as model:
        assert model.store is None
        model.chat(asked(video, QUESTIONS[0]))
    assert not list(tmp_path.glob("cache/ivlite/sessions")) and not list(tmp_path.glob("cache/ivlite/digests"))
    with ivlite.load("demo", store=True) as model:
        assert model.store.folder == tmp_path / "cache" / "ivlite" / "sessions"


def test_a_folder_of_its_own(tmp_path, monkeypatch, video):
    monkeypatch.setattr("ivlite.session.store.WORTH", 0.0)
    with ivlite.load("demo", store=tmp_path / "a" / "b") as model:
        model.chat(asked(video, QUESTIONS[0]))
    assert list((tmp_path / "a" / "b").glob("*.ivs"))
    for odd in (5, b"x", object(), ["a"]):
        with pytest.raises(ivlite.IvliteError, match="store is"):
            ivlite.load("demo", store=odd)


def test_no_place_for_a_store(monkeypatch, video):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    said = []
    assert user_store(said.append) is None and len(said) == 1
    with ivlite.load("demo", store=True) as model:
        replies = [model.chat(asked(video, question)) for question in QUESTIONS]
    assert [sum("nothing is kept" in w for w in reply.warnings) for reply in replies] == [1, 0]
