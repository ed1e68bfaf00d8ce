"""The store: a bounded folder of what long prompts left in the cache, so that a later process need not compute it again.

One session file per entry, with the rows of a prompt and no messages; no index. What was used least recently goes first.
"""

import contextlib
import os
import secrets
import stat
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ivlite._version import __version__
from ivlite.engine.runner import usable
from ivlite.errors import DiskError, SessionFileError, UsageError, shown
from ivlite.files import cache_folder, keep_digests, opened, reason
from ivlite.machine import two_sizes
from ivlite.numbers import is_finite
from ivlite.output import Busy, lock
from ivlite.session import features
from ivlite.session.file import Damaged, SessionFile, absolute
from ivlite.session.packing import held_by, pack, unpack
from ivlite.session.state import SessionState
from ivlite.session.table import Layout
from ivlite.stop import checkpoint, using

WORTH = 20.0  # seconds of work that are kept
INTERVAL = 180.0  # seconds between two saves of a long prefill
LEAST = 64  # tokens: fewer are computed as fast as they are read
LIMIT = 20_000_000_000  # bytes of all entries; and at most a tenth of what is free on the disk without them
LOOKED_AT = 100  # entries of one model that are compared with a prompt, those used last
STALE = 600.0  # seconds: an unfinished file this old was left by a process that was killed
SUFFIX = ".ivs"


@dataclass(frozen=True)
class Entry:
    """A file of the store. name: what `ivlite sessions` calls it. used: when it was used last, seconds since 1970."""

    path: Path
    name: str
    nbytes: int
    used: float


class Store:
    """The entries in a folder. Any process may add, use and remove entries at any time.

    worth: seconds of work from which on it is kept. interval: seconds between two saves of a long prefill. limit: bytes
    of all entries; None: 20 GB, or less where the disk is small.
    """

    def __init__(self, folder, worth=WORTH, interval=INTERVAL, limit=None):
        self.folder, self.worth, self.interval, self._limit = Path(absolute(folder)), worth, interval, limit

    def keeper(self, network, kind):
        """A Keeper for a Runner over a network, with a cache of that kind."""
        return self.keeper_of(network.source, network.config, network.ops, kind)

    def keeper_of(self, source, config, operations, kind):
        """The same for a source of weights that need not be loaded."""
        layout = Layout.of_source(source, config, kind)
        return Keeper(self, layout, type(operations).__module__, config.text.vocab_size)

    def entries(self):
        """All entries, the one used last first."""
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.folder) as files:
            for file in files:
                if file.name.endswith(SUFFIX) and not file.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        info = file.stat(follow_symlinks=False)
                        name = file.name.removesuffix(SUFFIX).rsplit("-", 1)[-1]
                        if stat.S_ISREG(info.st_mode):  # folders, links, pipes: not made here, and not to be removed
                            found.append(Entry(Path(file.path), name, info.st_size, info.st_mtime))
        return sorted(found, key=lambda entry: -entry.used)

    def limit(self):
        """Bytes that all entries may take."""
        if self._limit is not None:
            return self._limit
        disk = os.statvfs(self.folder)
        return min(LIMIT, (disk.f_bavail * disk.f_frsize + sum(e.nbytes for e in self.entries())) // 10)

    def of_model(self, layout):
        """The entries of a Layout's model and kind of cache."""
        return [entry for entry in self.entries() if entry.path.name.startswith(_prefix(layout))]

    def new_path(self, layout):
        """A path for a new entry. Makes the folder."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.folder / f"{_prefix(layout)}{secrets.token_hex(4)}{SUFFIX}"

    def make_room(self, nbytes, keep):
        """Removes the entries used least recently, until `nbytes` more are within the limit; `keep` is a path to keep.

        Returns whether they fit.
        """
        with self._turn():
            self._sweep()
            entries, limit = [e for e in self.entries() if e.path != keep], self.limit()
            if nbytes > limit:
                return False
            total = sum(entry.nbytes for entry in entries)
            while entries and total + nbytes > limit:
                entry = entries.pop()
                entry.path.unlink(missing_ok=True)
                total -= entry.nbytes
            return True

    def clear(self):
        """Removes all entries and unfinished files; returns the entries."""
        entries = self.entries()
        for entry in entries:
            entry.path.unlink(missing_ok=True)
        self._sweep(0.0)
        return entries

    @contextlib.contextmanager
    def _turn(self):
        """One process at a time makes room, where the filesystem has locks."""
        with open(
            self.folder / ".lock", "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)
        ) as file:
            for _ in range(100):
                try:
                    lock(file.fileno(), self.folder)
                    break
                except Busy:
                    time.sleep(0.02)
            yield

    def _sweep(self, age=STALE):
        """Removes the unfinished files of processes that were killed."""
        for path in self.folder.glob(f".*{SUFFIX}.partial*"):
            with contextlib.suppress(OSError), opened(path) as file:
                lock(file.fileno(), path)  # Busy: it is being written
                if time.time() - os.fstat(file.fileno()).st_mtime >= age:
                    path.unlink()


def user_store(warn=None):
    """The Store of this user, in the cache folder; None, with warn(sentence), where nothing can be kept.

    From then on digests of files are kept there as well.
    """
    folder = cache_folder(warn)
    if folder is None:
        return None
    keep_digests(folder)
    return Store(folder / "sessions", WORTH, INTERVAL)


def chosen(store, warn=None):
    """The Store of an argument: True for the user's, a folder, a Store; False and None for none. Raises UsageError."""
    if store is True:
        return user_store(warn)
    if isinstance(store, str | os.PathLike):
        return Store(store, WORTH, INTERVAL)
    if store not in (False, None) and not isinstance(store, Store):
        raise UsageError(f"store is {shown(store)}; it must be True, False or a folder")
    return store or None


def _prefix(layout):
    return f"{layout.model[:16]}-{layout.kind}-"


class Keeper:
    """Reads from a store what a Runner needs, and keeps in it what the runner computed: see `Runner.extend`.

    One per runner. layout: of its cache. device: the operations, because rows of others are rounded otherwise. vocabulary:
    the number of logits.
    """

    def __init__(self, store, layout, device="cpu", vocabulary=None):
        self.store, self.layout, self.maker, self.vocabulary = store, layout, f"{__version__} {device}", vocabulary
        self.file = None  # the entry that holds a beginning of what the runner holds
        self.began = self.saved = time.monotonic()
        self.features = self.off = False

    # -------------------------------------------------------------------------------------------- before a prefill

    def recall(self, runner, prompt, base=None):
        """Replaces what a runner holds with what the store has, where that is more of the prompt. Raises Stopped.

        base: of a session, whose rows before it stay as they are.
        """
        self.began = self.saved = time.monotonic()
        mine = runner.foreseen(prompt, base, reading=True)
        base = base if base and mine >= base else 0  # 0: another conversation
        if self.off or len(prompt.token_ids) - mine < LEAST:
            return
        try:
            file, held, shared = self._best(prompt, mine + LEAST, base, runner.meter.warn)
        except OSError as error:
            return self._fail(runner, error)
        if file is not None:
            # One prefill's rows or the other's: where chunks end is known of either, not of a mixture.
            runner.truncate(mine if base else 0)
            self._restore(runner, file, held, shared)
        if self._unseen(runner, prompt):
            self.features = features.recall(self.store, self.layout, self.maker, runner.network, _paths(prompt))
        self.began = self.saved = time.monotonic()

    def foreseen(self, prompt, mine=0, base=0):
        """The number of tokens of a prompt that recall would leave to no prefill; `mine`: those that the runner would keep.

        Reads no rows, and no large file for its digest.
        """
        if self.off or len(prompt.token_ids) - mine < LEAST:
            return mine
        try:
            file, held, shared = self._best(prompt, mine + LEAST, base, reading=False)
        except OSError:
            return mine
        if file is None:
            return mine
        file.close()
        return usable(held, prompt, shared, base)

    def _unseen(self, runner, prompt):
        """Whether a prompt has frame pairs that a runner does not hold."""
        return bool(prompt.spans) and sum(prompt.spans[-1][1:]) > runner.held.length

    def _best(self, prompt, least, base=0, warn=None, reading=True):
        """(file, Held, shared tokens) of the entry that saves a prompt most; (None, None, 0) without one of `least` tokens.

        base: the rows before it stay. warn(sentence) is told of files that have changed. reading: see Held.shared.
        """
        best, most, changed, known = (None, None, 0), least - 1, {}, set()
        for entry in self.store.of_model(self.layout)[:LOOKED_AT]:
            checkpoint()
            file = self._opened(entry)
            try:
                held = self._beginning(file, prompt, least, changed, known, reading) if file else None
                shared = held.shared(prompt, reading) if held else 0
                if held and (use := usable(held, prompt, shared, base)) > most:
                    most, file, best = use, best[0], (file, held, shared)
            except Damaged:
                entry.path.unlink(missing_ok=True)
            finally:
                if file is not None:
                    file.close()
        for path in changed.keys() - known if warn else ():
            warn(f"{changed[path]} has changed since it was watched: what is stored of it is not used")
        return best

    def _opened(self, entry):
        """The SessionFile of an entry; None if it is gone, damaged, or of another maker."""
        try:
            file = SessionFile.open(entry.path, durable=False)
        except Damaged:
            entry.path.unlink(missing_ok=True)
            return None
        except SessionFileError:  # of another version, or gone meanwhile
            return None
        meta = file.table.meta
        usable = file.table.layout == self.layout and meta.get("maker") == self.maker
        if usable and isinstance(meta.get("contents"), dict) and is_finite(meta.get("seconds")):
            return file
        file.close()
        return None

    def _beginning(self, file, prompt, least, changed, known, reading):
        """The Held of an entry whose first `least` tokens are those of a prompt; None for others. Raises Damaged."""
        for medium in prompt.media:
            if (path := _path(medium)) is not None and (reading or medium.has_keys()):
                self._compare(medium, path, file.table.meta["contents"].get(path), changed, known)
        tokens = file.table.arrays.get("tokens", np.empty(0))[:least]
        if len(tokens) < least or not np.array_equal(tokens, prompt.token_ids[:least]):
            return None
        state = unpack(file)
        state.ends = [
            (n, logits) for n, logits in state.ends if logits.shape == (self.vocabulary,) and np.isfinite(logits).all()
        ]
        return held_by(state)

    def _compare(self, medium, path, stored, changed, known):
        """Notes whether a medium of the prompt has the content that an entry has stored under its path."""
        if stored is None:
            return
        if stored == medium.content().digest().hex():
            known.add(path)
        else:
            changed[path] = f"{medium.kind} {medium.source}"

    def _restore(self, runner, file, held, shared):
        """Reads the rows of `shared` tokens from an entry. What is damaged is removed; the rows before it are used."""
        mine = runner.held.length
        try:
            file.restore(runner.cache, shared, partial(runner.meter.progress, "restore"))
            os.utime(file.path)  # used now
        except SessionFileError:
            with contextlib.suppress(OSError):
                os.unlink(file.path)
            file = None
        except OSError:
            pass  # removed meanwhile; its rows are here
        finally:
            length = runner.cache.length
            runner.held.follow(held, length)
            runner.held.given, runner.meter.stored = length, length - mine
            if file is not None:
                file.close()
            self.file = None if mine else file  # rows of a session that it goes on from are none of the entry's
            if self.file is not None:
                runner.held.lows[file] = length

    # -------------------------------------------------------------------------------------------- during and after it

    def computed(self, runner, prompt):
        """Saves what a runner holds of a prompt, if the last save was long ago."""
        if time.monotonic() - self.saved > self.store.interval:
            self._keep(runner, prompt)

    def ended(self, runner, prompt, stopped=False):
        """Saves what a runner holds of a prompt whose prefill has ended or was stopped, if it was much work."""
        dear = time.monotonic() - self.began > self.store.worth
        if stopped and dear and self._unseen(runner, prompt):
            keep = partial(features.keep, self.store, self.layout, self.maker, runner.network, _paths(prompt))
            self._tried(runner, keep)
        if dear:
            self._keep(runner, prompt, partial(runner.meter.progress, "store"))
        if self.features and not stopped:
            self._tried(runner, partial(features.remove, self.store, self.layout))

    def _keep(self, runner, prompt, report=None):
        if runner.held.length >= LEAST:
            self._tried(runner, partial(self._save, runner, prompt, report))

    def _tried(self, runner, save):
        """Calls save(), unless saving has failed before."""
        if self.off:
            return
        try:
            with using(None):  # a Stop ends the prefill and not this
                save()
        except (OSError, SessionFileError) as error:  # DiskError is an OSError
            self._fail(runner, error)
        self.saved = time.monotonic()

    def _save(self, runner, prompt, report):
        if any(not medium.has_keys() and medium.content() is None for medium in prompt.media):
            return  # pixels in memory that were not all seen
        held, work = runner.held, time.monotonic() - self.saved
        file, unchanged, seconds = self._target(held)
        if file is None:
            file = SessionFile(self.store.new_path(self.layout), durable=False)
        meta, arrays = pack(state_of(held, prompt))
        contents = {path: m.content().digest().hex() for m in prompt.media if (path := _path(m)) is not None}
        meta |= {"maker": self.maker, "contents": contents, "seconds": seconds + work}
        nbytes = held.length * self.layout.token_bytes + sum(a.nbytes for a in arrays.values())
        if not self.store.make_room(nbytes, Path(file.path)):
            need, limit = two_sizes(nbytes, self.store.limit())
            raise DiskError(f"{need} are more than the store holds ({limit})")
        file.save(self.layout, meta, arrays, runner.cache, held.length, unchanged, report)
        held.lows[file] = held.length
        self.file = file

    def _target(self, held):
        """(the entry to go on with or None, its rows that are unchanged, the seconds of work in them)."""
        if self.file is None or not os.path.exists(self.file.path):
            return None, 0, 0.0
        table, unchanged = self.file.table, held.lows.get(self.file, 0)
        seconds = float(table.meta["seconds"])
        lost = seconds * (table.length - unchanged) / max(1, table.length)
        return (self.file, unchanged, seconds - lost) if lost <= self.store.worth else (None, 0, 0.0)

    def _fail(self, runner, error):
        """One warning, and nothing more is kept: a full or read-only disk costs no answer."""
        self.off = True
        why = str(error) if isinstance(error, (DiskError, SessionFileError)) else reason(error)
        runner.meter.warn(f"what was computed is not kept for later commands: {why}")


def state_of(held, prompt):
    """The SessionState of what a runner holds of a prompt, without messages."""
    spans = [span for span in prompt.spans if span[1] < held.length]
    media = [
        {"kind": m.kind, "source": str(m.source), "frames": len(m.frames), "duration": m.duration} for m in prompt.media
    ]
    return SessionState(
        token_ids=held.token_ids, positions=held.positions, rows=held.length, spans=spans, keys=held.keys, media=media,
        ends=[end for end in held.ends if end[0] == held.length], chunks=held.chunks,
    )  # fmt: skip


def _paths(prompt):
    """The resolved paths of the files that a prompt shows."""
    return sorted({path for medium in prompt.media if (path := _path(medium)) is not None})


def _path(medium):
    """The resolved path of the file that a medium comes from; None for others."""
    path = getattr(medium.content(), "path", None)
    return None if path is None else os.path.realpath(path)
