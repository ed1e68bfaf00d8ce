"""The caches of calls that have ended: a call whose prompt begins like an earlier one's goes on from there."""

import threading
from contextlib import contextmanager

from ivlite.engine.meter import Meter
from ivlite.engine.runner import Runner, usable
from ivlite.errors import Stopped, UsageError
from ivlite.machine import MARGIN, available_memory
from ivlite.stop import checkpoint, waiting

COUNT = 4  # caches
MOST = 1 << 30  # bytes of all of them; the one used last may be larger
GROWTH = 1024  # tokens at least by which a cache grows; they take memory when they are written
LEAST = 16  # tokens that a prompt must keep of a cache: fewer are computed faster than they are found
DEAR = 64  # tokens that a call may always overwrite in a cache; it takes a copy rather than more of them than it keeps


class Pool:
    """Runners that wait for the next call, the one used last at the end. Any thread may call any method.

    network, kv, store: of the Runners. A Runner that is taken belongs to one call until it is given back.
    """

    past, tail, stop, tools = None, "", None, ()

    def __init__(self, network, kv, store=None):
        self._network, self._kv, self._store = network, kv, store
        self._idle = []
        self._busy = {}  # a Runner of a call -> what its first rows are and stay until the call ends, once its prompt was run
        self._copies = []  # Runners whose rows are being copied
        self._lock = threading.Lock()
        self._copied = threading.Condition(self._lock)
        self._choosing = threading.Lock()
        self._open, self._engine = True, False
        self._count = self._bytes = 0  # what an Engine wants to have kept

    def shared_by(self, count, nbytes):
        """From now on an Engine runs the calls, so many at once, in so many bytes of all caches (None: any number)."""
        self._engine, self._count = True, max(self._count, count)
        self._bytes = max(self._bytes, 1 << 60 if nbytes is None else nbytes)

    @property
    def nbytes(self):
        """Bytes of the rows that wait."""
        return sum(map(size, tuple(self._idle)))

    @property
    def coming(self):
        """Bytes of the rows of calls in progress, where an Engine lets others wait for their end."""
        return sum(map(size, tuple(self._busy))) if self._engine else 0

    def answer(self, prompt, sampler, eos, limit, meter):
        """Yields the tokens of an answer, and its Steps; see Runner.answering."""
        runner = self.take(prompt, len(prompt.token_ids) + limit)
        runner.meter, sound = meter, False
        with self._lock:
            self._busy[runner] = None
        try:
            items = runner.answering(prompt, sampler, eos, limit)
            first = next(items, None)  # an answer without a token ends so
            if first is None:
                sound = True
                return "stop"
            self._stay(runner, len(prompt.token_ids))
            yield first
            reason = yield from items
            sound = True
            return reason
        except (Stopped, GeneratorExit):  # what is computed is worth keeping
            sound = True
            raise
        finally:
            self._taken_back(runner)
            if sound:
                self.give(runner)

    def _stay(self, runner, tokens):
        """The first rows of a Runner stay as they are while its call lasts: others may copy them."""
        held = runner.held.copy(tokens)
        held.positions  # noqa: B018  # lays out its arrays: from now on threads only read them
        with self._lock:
            self._busy[runner] = held if self._engine else None

    def _taken_back(self, runner):
        """A call has ended; waits until nobody copies from its cache."""
        with self._copied:
            self._busy.pop(runner, None)
            while runner in self._copies:
                self._copied.wait()

    def ended(self, reply, end):
        """The stream is over."""

    def foreseen(self, prompt):
        """The number of tokens of a prompt that answer would not run, as far as that is known without reading large files."""
        with self._lock:
            best = max((runner.foreseen(prompt) for runner in self._idle), default=0)
        return self.stored(prompt, best if best >= LEAST else 0)

    def stored(self, prompt, mine, base=0):
        """The same with a Runner that keeps `mine` of them, those before the base in any case, and the store."""
        return self._store.keeper(self._there(), self._kv).foreseen(prompt, mine, base) if self._store else mine

    def _there(self):
        """The network. Raises Stopped or UsageError where the model was closed meanwhile."""
        network = self._network
        if network is None:
            checkpoint()
            raise UsageError("the model is closed: load it again")
        return network

    def take(self, prompt, capacity):
        """A Runner with room for `capacity` tokens: the one that keeps most of the prompt, or a new one."""
        with waiting(), self._one_at_a_time():
            with self._lock:
                idle, self._idle = self._idle, []  # ours: files may have to be read for their digests
                lent = [(held, runner) for runner, held in self._busy.items() if held is not None]
            try:
                runner = self._of_others(lent, idle, prompt, capacity) or self._chosen(idle, prompt, capacity)
                runner = runner or Runner(self._there(), capacity, self._kv, None, self._store)
            finally:
                with self._lock:
                    self._idle = [*idle, *self._idle] if self._open else []
        if runner.cache.capacity < capacity:  # rows are moved, so not for a few tokens every time
            runner.cache.reserve(capacity + max(GROWTH, capacity // 4))
        return runner

    @contextmanager
    def _one_at_a_time(self):
        """Two calls that begin at once find the same caches."""
        while not self._choosing.acquire(timeout=0.1):
            checkpoint()
        try:
            yield
        finally:
            self._choosing.release()

    def _of_others(self, lent, idle, prompt, capacity):
        """A copy of what a prompt may keep of a call in progress, if that is more than of any idle Runner; or None."""
        shared, held, source = max(
            ((usable(h, prompt, h.shared(prompt)), h, r) for h, r in lent), key=lambda x: x[0], default=(0, None, None)
        )
        mine = max((runner.foreseen(prompt, reading=True) for runner in idle), default=0)
        if shared < mine + LEAST or not self._shrink(idle, idle, len(prompt.token_ids) * source.cache.token_bytes):
            return None
        with self._lock:
            if source not in self._busy:  # the call has ended meanwhile
                if source in self._idle:
                    self._idle.remove(source)
                    idle.append(source)
                return None
            self._copies.append(source)
        try:
            return source.copy(shared, capacity, held=held)
        finally:
            with self._copied:
                self._copies.remove(source)
                self._copied.notify_all()

    def _chosen(self, idle, prompt, capacity):
        """The Runner to go on with, taken from `idle`, or a copy; None for neither."""
        usable_of = ((r.foreseen(prompt, reading=True), r) for r in idle)
        shared, best = max(usable_of, key=lambda pair: pair[0], default=(0, None))
        others = [runner for runner in idle if runner is not best or shared < LEAST]
        if best is None:
            return None
        need, lost = len(prompt.token_ids) * best.cache.token_bytes, best.held.length - shared
        if best in others:
            self._shrink(idle, others, need)
            return None
        copied = lost > max(DEAR, shared)
        roomy = self._shrink(idle, others, need if copied else need - shared * best.cache.token_bytes)
        if copied and roomy:
            return best.copy(shared, capacity)
        idle.remove(best)
        return best

    def give(self, runner):
        """Takes a Runner back, whose last call has ended."""
        runner.held.settle()
        runner.meter = Meter()  # the call's own has its progress function, which may hold anything
        with self._lock:
            if not self._open or not runner.held.length:
                return
            self._idle.append(runner)
            count, most = max(COUNT, self._count), max(MOST, self._bytes)
            while len(self._idle) > 1 and (len(self._idle) > count or self.nbytes > most):
                del self._idle[0]

    def _shrink(self, idle, others, nbytes):
        on_card = getattr(self._network.ops, "free_memory", None)
        return shrink(idle, others, nbytes, on_card or available_memory)

    def spare(self, nbytes):
        """Whether so many bytes are free, after caches that wait were freed where it was needed."""
        with self._lock:
            return self._shrink(self._idle, self._idle, nbytes)

    def trim(self, left, prompt):
        """Whether the caches that wait take `left` bytes at most beside the call of a prompt; drops them for that.

        The one that the call will go on with is part of the call, and dropped last.
        """
        with self._lock:
            shared = {runner: runner.foreseen(prompt) for runner in self._idle}
            best = max(self._idle, key=lambda runner: shared[runner], default=None)
            lost = 0 if best is None else best.held.length - shared[best]
            part = best is not None and shared[best] >= LEAST and lost <= max(DEAR, shared[best])
            others = [runner for runner in self._idle if not part or runner is not best]
            while others and sum(map(size, others)) > left:
                self._idle.remove(others.pop(0))
            return left >= 0

    def clear(self):
        """Frees the caches that wait."""
        with self._lock:
            self._idle = []

    def close(self):
        """Frees the caches, and from now on those that are given back."""
        with self._lock:
            self._idle, self._open, self._network = [], False, None


def size(runner):
    """Bytes of the rows that a Runner holds."""
    return runner.held.length * runner.cache.token_bytes


def shrink(idle, others, nbytes, available):
    """Drops `others`, the one used last at the end, from `idle` where memory is short; returns whether nbytes are free."""
    others = list(others)
    while (free := available()) is not None and free < nbytes + MARGIN:
        if not others:
            return False
        idle.remove(others.pop(0))
    return True
