"""A batch on a Ray cluster: one model per node, in an actor that answers several inputs at once. The only place that imports ray.

Inputs are handed out one by one, so a node has as many under way as it answers at once. What a node had under way when it died is
answered by another one; a node that joins gets a model. Lines have the bytes that a batch on one machine gives them, and the
driver alone writes them.

These are plain actors, pinned to their nodes. The pools of actors of Ray Data bind what is under way to an actor, and restart that on
whichever node has a processor free, which has a model in its memory already.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ivlite import errors
from ivlite._version import __version__
from ivlite.batch.answering import FATAL, Answerer, Line, Machine, failed
from ivlite.batch.local import AHEAD, LOOK
from ivlite.batch.resume import SPLIT
from ivlite.batch.task import Task
from ivlite.engine.batch import MOST
from ivlite.errors import AddressError, IvliteError, OutOfMemoryError, UsageError
from ivlite.files import cache_folder, keep_digests
from ivlite.stop import checkpoint

ROLL_CALL = 1.0  # seconds between two looks at the nodes
DEATHS = 3  # of actors: after so many a node gets no other one, and an input is a failure
Told = Callable[[str], object]
Fault = tuple[str, str]  # class and message of an error: exceptions of other machines do not travel well


class Node:
    """The actor: loads a model, and answers with it."""

    def __init__(self, machine: Machine, version: str) -> None:
        self.machine, self.version, self.open = machine, version, ExitStack()
        self.answerer: Answerer | None = None

    def ready(self) -> tuple[list[str], Fault | None, str]:
        """Loads the model. Returns remarks, why it cannot answer or None, and what the model is."""
        remarks: list[str] = []
        try:
            if self.version != __version__:
                raise UsageError(f"it has ivlite {__version__}, and the batch is of {self.version}: install the same")
            keep_digests(cache_folder())
            self.answerer = self.open.enter_context(self.machine.opened(remarks.append))
            return remarks, None, self.answerer.digest
        except Exception as error:
            return remarks, fault(error), ""

    def answer(self, task: Task) -> Line | Fault:
        """The line of a task, or why this node can answer no more."""
        assert self.answerer is not None
        try:
            return self.answerer.line(task)
        except FATAL as error:
            return fault(error)


def fault(error: Exception) -> Fault:
    text = str(error) if isinstance(error, IvliteError) else f"{type(error).__name__}: {errors.sentence(error, 300)}"
    return type(error).__name__, text


def raised(found: Fault) -> IvliteError:
    kind = getattr(errors, found[0], IvliteError)
    return kind(found[1]) if isinstance(kind, type) and issubclass(kind, IvliteError) else IvliteError(found[1])


@dataclass
class Member:
    """A node with its actor. under_way: what it answers, by the reference of the result. ready: whether its model is loaded."""

    name: str
    actor: Any
    loading: Any
    ready: bool = False
    under_way: dict[Any, tuple[int, Task]] = field(default_factory=dict)


class Cluster:
    """The nodes, and what they do. A context manager that ends their actors."""

    def __init__(self, ray: Any, machine: Machine, work: Iterable[tuple[int, Task]], told: Told) -> None:
        self.ray, self.machine, self.work, self.told = ray, machine, iter(work), told
        self.identity = machine.identity()
        self.slots = (machine.parallel or MOST) + AHEAD
        self.members: dict[str, Member] = {}
        self.deaths: dict[str, int] = {}  # of actors, by node
        self.refused: dict[str, Fault] = {}  # nodes that cannot answer, and why
        self.again: deque[tuple[int, Task]] = deque()
        self.lost: dict[int, int] = {}  # how many actors died with an input
        self.more = True
        self._called = float("-inf")

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members.values():
            with contextlib.suppress(Exception):
                self.ray.kill(member.actor)

    def answers(self, tick: Callable[[], object]) -> Iterator[tuple[int, Task, Line]]:
        while True:
            checkpoint()
            tick()
            self._call_roll()
            for member in self.members.values():
                self._give(member)
            if not self.more and not self.again and not any(m.under_way for m in self.members.values()):
                return
            yield from self._heard()

    # -------------------------------------------------------------------------------------------- nodes

    def _call_roll(self) -> None:
        """Gives nodes that have none a model. Raises the fault of the nodes where none is left that could answer."""
        if time.monotonic() - self._called < ROLL_CALL:
            return
        self._called = time.monotonic()
        nodes = {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}
        able = {id: node for id, node in nodes.items() if node["Resources"].get("CPU", 0) >= 1}
        for id in [id for id in self.members if id not in nodes]:
            self._died(id)
        for id, node in able.items():
            if id not in self.members and id not in self.refused:
                self.members[id] = self._member(id, node)
        if not self.members:
            if able:
                raise raised(next(self.refused[id] for id in able))
            raise AddressError("no node of the Ray cluster offers a processor: start some with `ray start`")

    def _member(self, id: str, node: dict[str, Any]) -> Member:
        pinned = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        card = node["Resources"].get("GPU", 0) >= 1 and self.machine.settings.get("device") != "cpu"
        actor = self.ray.remote(Node).options(
            num_cpus=1, num_gpus=int(card), max_restarts=0, max_task_retries=0, max_concurrency=self.slots + 1,
            scheduling_strategy=pinned(node_id=id, soft=False),
        ).remote(self.machine, __version__)  # fmt: skip
        return Member(
            node.get("NodeManagerHostname") or node.get("NodeManagerAddress") or id[:8], actor, actor.ready.remote()
        )

    def _died(self, id: str) -> None:
        """Takes back what a node had under way whose actor is gone."""
        member = self.members.pop(id)
        self.deaths[id] = self.deaths.get(id, 0) + 1
        for index, task in member.under_way.values():
            self.lost[index] = self.lost.get(index, 0) + 1
            self.again.append((index, task))
        if self.deaths[id] >= DEATHS:
            self._refuse(
                id,
                member,
                ("OutOfMemoryError", f"its worker died {DEATHS} times: the memory of the node may be too small"),
            )
        elif member.under_way:
            self.told(
                f"the worker of node {member.name} is gone: what it had under way ({len(member.under_way)}) goes to others"
            )

    def _refuse(self, id: str, member: Member, why: Fault) -> None:
        self.refused[id] = why[0], f"node {member.name}: {why[1]}"
        self.told(self.refused[id][1])
        with contextlib.suppress(Exception):
            self.ray.kill(member.actor)

    # -------------------------------------------------------------------------------------------- work

    def _give(self, member: Member) -> None:
        """Gives a node as much as it answers at once."""
        while member.ready and len(member.under_way) < self.slots and (item := self._next()) is not None:
            member.under_way[member.actor.answer.remote(item[1])] = item

    def _next(self) -> tuple[int, Task] | None:
        if self.again:
            return self.again.popleft()
        item = next(self.work, None) if self.more else None
        self.more = item is not None
        return item

    def _heard(self) -> Iterator[tuple[int, Task, Line]]:
        """Takes what has come."""
        refs = {ref: id for id, m in self.members.items() for ref in (*m.under_way, *([] if m.ready else [m.loading]))}
        if not refs:
            time.sleep(LOOK)
            return
        done, _ = self.ray.wait(list(refs), num_returns=len(refs), timeout=LOOK)
        for ref in done:
            if (member := self.members.get(refs[ref])) is None:  # it died with an earlier one
                continue
            try:
                result = self.ray.get(ref)
            except Exception as error:
                if not isinstance(error, self.ray.exceptions.RayError):
                    raise
                self._died(refs[ref])
                yield from self._given_up()
                continue
            if ref == member.loading:
                self._loaded(refs[ref], member, *result)
                continue
            index, task = member.under_way.pop(ref)
            if isinstance(result, Line):
                yield index, task, result
            else:
                self._leaves(refs[ref], member, (index, task), result)

    def _loaded(self, id: str, member: Member, remarks: list[str], why: Fault | None, identity: str) -> None:
        for sentence in remarks:
            self.told(f"node {member.name}: {sentence}")
        if why is None and identity != self.identity:
            why = "ModelFileError", "its model file is another one: copy this machine's there"
        if why is not None:
            del self.members[id]
            self._refuse(id, member, why)
            return
        member.ready = True

    def _leaves(self, id: str, member: Member, item: tuple[int, Task], why: Fault) -> None:
        """A node can answer no more."""
        del self.members[id]
        self.again += [item, *member.under_way.values()]
        self._refuse(id, member, why)

    def _given_up(self) -> Iterator[tuple[int, Task, Line]]:
        """The lines of inputs with which too many actors died: they may be why."""
        for item in [item for item in self.again if self.lost.get(item[0], 0) >= DEATHS]:
            self.again.remove(item)
            index, task = item
            error = OutOfMemoryError(f"{DEATHS} workers died while they answered it, perhaps for lack of memory")
            yield index, task, failed(task, f"{task.asked(self.identity)}{SPLIT}{task.content()}", error)


def answers(machine: Machine, work: Iterable[tuple[int, Task]], address: str | None, told: Told,
            tick: Callable[[], object] = lambda: None) -> Iterator[tuple[int, Task, Line]]:  # fmt: skip
    """Yields (index, Task, Line) as the nodes answer, in any order. address: of the cluster; None: that of this machine.

    Raises UsageError (ray is not installed), AddressError (there is no such cluster), Stopped, and the fault of all nodes.
    """
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise UsageError("--engine ray needs ray: pip install 'ivlite[ray]'") from None
    with connected(ray, address), Cluster(ray, machine, work, told) as cluster:
        try:
            yield from cluster.answers(tick)
        except ray.exceptions.RayError as error:
            raise AddressError(
                f"the Ray cluster is gone ({errors.sentence(error, 200)}): what is written is kept"
            ) from None


class WithoutRay:
    """A stream without what ray's threads print: they print to standard output."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name.startswith("ray_") else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def reach(address: str | None) -> None:
    """Raises OSError where nobody listens at host:port: ray would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to a cluster. One that a program has already stays. Ray's own words do not reach the user."""
    if ray.is_initialized():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        reach(address)
        ray.init(address or "auto", configure_logging=False, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, ValueError, OverflowError, RuntimeError) as error:  # OverflowError: a port beyond 65535
        where = f"at {address}" if address else "on this machine"
        raise AddressError(
            f"there is no Ray cluster {where} ({errors.sentence(error, 200)}): start one with `ray start --head`"
        ) from None
    finally:
        for number, handler in handlers.items():  # ray takes SIGTERM
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, handler)
    try:
        with contextlib.redirect_stdout(WithoutRay(sys.stdout)), contextlib.redirect_stderr(WithoutRay(sys.stderr)):
            yield
    finally:  # what was held back, because others might say the same, is printed now, by this thread
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            ray.shutdown()
