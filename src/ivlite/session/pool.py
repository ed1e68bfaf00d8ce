"""The caches of calls that have ended: a call whose prompt begins like an earlier one's goes on from there."""

import threading

from ivlite.engine.meter import Meter
from ivlite.engine.runner import Runner
from ivlite.errors import Stopped, UsageError
from ivlite.machine import MARGIN, available_memory
from ivlite.stop import checkpoint

COUNT = 4  # caches
MOST = 1 << 30  # bytes of all of them; the one used last may be larger
GROWTH = 1024  # tokens at least by which a cache grows; they take memory when they are written
LEAST = 16  # tokens that a prompt must share: fewer are computed faster than they are found
DEAR = 64  # tokens that a call may always overwrite in a cache; it takes a copy rather than more of them than it shares


class Pool:
    """Runners that wait for the next call, the one used last at the end. Any thread may call any method.

    network, kv, store: of the Runners. A Runner that is taken belongs to one call until it is given back.
    """

    past, tail, stop, tools = None, "", None, ()

    def __init__(self, network, kv, store=None):
        self._network, self._kv, self._store = network, kv, store
        self._idle = []
        self._lock = threading.Lock()
        self._open = True

    @property
    def nbytes(self):
        """Bytes of the rows that wait."""
        return sum(map(size, tuple(self._idle)))

    def answer(self, prompt, sampler, eos, limit, meter):
        """Yields the tokens of an answer; see Runner.answer."""
        runner = self.take(prompt, len(prompt.token_ids) + limit)
        runner.meter, sound = meter, False
        try:
            reason = yield from runner.answer(prompt, sampler, eos, limit)
            sound = True
            return reason
        except (Stopped, GeneratorExit):  # what is computed is worth keeping
            sound = True
            raise
        finally:
            if sound:
                self.give(runner)

    def ended(self, reply, end):
        """The stream is over."""

    def foreseen(self, prompt):
        """The number of tokens of a prompt that answer would not run, as far as that is known without reading large files."""
        with self._lock:
            best = max((runner.foreseen(prompt) for runner in self._idle), default=0)
        return self.stored(prompt, best if best >= LEAST else 0)

    def stored(self, prompt, mine):
        """The same with a Runner that holds `mine` of them, and the store."""
        return self._store.keeper(self._there(), self._kv).foreseen(prompt, mine) if self._store else mine

    def _there(self):
        """The network. Raises Stopped or UsageError where the model was closed meanwhile."""
        network = self._network
        if network is None:
            checkpoint()
            raise UsageError("the model is closed: load it again")
        return network

    def take(self, prompt, capacity):
        """A Runner with room for `capacity` tokens: the one that shares the longest prefix with the prompt, or a new one."""
        with self._lock:
            idle, self._idle = self._idle, []  # ours: files may have to be read for their digests
        try:
            runner = self._chosen(idle, prompt, capacity)
            runner = runner or Runner(self._there(), capacity, self._kv, None, self._store)
        finally:
            with self._lock:
                self._idle = [*idle, *self._idle] if self._open else []
        if runner.cache.capacity < capacity:  # rows are moved, so not for a few tokens every time
            runner.cache.reserve(capacity + max(GROWTH, capacity // 4))
        return runner

    def _chosen(self, idle, prompt, capacity):
        """The Runner to go on with, taken from `idle`, or a copy; None for neither."""
        shared, best = max(((r.held.shared(prompt), r) for r in idle), key=lambda pair: pair[0], default=(0, None))
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
            while len(self._idle) > 1 and (len(self._idle) > COUNT or self.nbytes > MOST):
                del self._idle[0]

    def _shrink(self, idle, others, nbytes):
        on_card = getattr(self._network.ops, "free_memory", None)
        return shrink(idle, others, nbytes, on_card or available_memory)

    def spare(self, nbytes):
        """Whether so many bytes are free, after caches that wait were freed where it was needed."""
        with self._lock:
            return self._shrink(self._idle, self._idle, nbytes)

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
