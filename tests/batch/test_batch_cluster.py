"""Who gets what in a cluster, with a ray that is scripted: nodes die, join and refuse at chosen moments."""

import json
import random
from types import SimpleNamespace

import pytest

from ivlite.batch import cluster
from ivlite.batch.answering import Line
from ivlite.batch.task import Task
from ivlite.errors import AddressError, ModelFileError, UsageError


class RayError(Exception):
    pass


class Call:
    """The reference of a result."""

    def __init__(self, node, actor, name, args):
        self.node, self.actor, self.name, self.args = node, actor, name, args


class Method:
    def __init__(self, actor, name):
        self.remote = lambda *args: actor.called(name, args)


class Actor:
    def __init__(self, node):
        self.node, self.dead = node, False
        self.ready, self.answer = Method(self, "ready"), Method(self, "answer")

    def called(self, name, args):
        return Call(self.node, self, name, args)


class Ray:
    """A cluster. answer(node, task) is what an actor says, or raises RayError where its process dies of it."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, nodes, answer, ready=lambda node: ([], None), identity="m"):
        self.alive, self.answers, self.ready_with, self.identity_is, self.killed = (
            set(nodes),
            answer,
            ready,
            identity,
            [],
        )
        self.rng, self.started, self.most = random.Random(1), [], 0
        affinity = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node_id, soft: node_id)
        self.util = SimpleNamespace(scheduling_strategies=affinity)

    def nodes(self):
        return [
            {"NodeID": n, "Alive": n in self.alive, "NodeManagerHostname": n, "Resources": {"CPU": 1.0}}
            for n in "abcdef"
        ]

    def remote(self, kind):
        def options(**given):
            assert given["max_restarts"] == 0 and given["num_cpus"] == 1

            def made(*args):
                self.started.append(given["scheduling_strategy"])
                return Actor(given["scheduling_strategy"])

            return SimpleNamespace(remote=made)

        return SimpleNamespace(options=options)

    def wait(self, refs, num_returns, timeout):
        self.most = max(self.most, len(refs))
        done = self.rng.sample(refs, self.rng.randint(1, len(refs)))
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref):
        if ref.node not in self.alive or ref.actor.dead:
            raise RayError
        if ref.name == "ready":
            return *self.ready_with(ref.node), self.identity_is
        try:
            return self.answers(ref.node, *ref.args)
        except RayError:
            ref.actor.dead = True
            raise

    def kill(self, actor):
        self.killed.append(actor.node)


@pytest.fixture
def answered(monkeypatch):
    """answered(ray, n) has a cluster answer n tasks; returns the lines by index, of which each came once, and what was said."""
    monkeypatch.setattr(cluster, "ROLL_CALL", 0.0)

    def run(ray, count=40):
        machine, said, found = SimpleNamespace(identity=lambda: "m", parallel=2, settings={}), [], {}
        work = ((n, Task(f"t{n}", {}, [{"role": "user", "content": str(n)}], {})) for n in range(count))
        with cluster.Cluster(ray, machine, work, said.append) as whole:
            for index, task, line in whole.answers(lambda: None):
                assert index not in found and task.id == f"t{index}"
                found[index] = line
        assert sorted(found) == list(range(count))
        return found, said

    return run


def told(node, task):
    return Line(task.id.encode())


@pytest.mark.parametrize("seed", range(20))
def test_each_is_answered_once_whoever_dies(answered, seed):
    rng = random.Random(seed)

    def answer(node, task):
        if rng.random() < 0.1:
            ray.alive.add("d")
        if len(ray.alive) > 1 and rng.random() < 0.1:
            ray.alive.remove(rng.choice(sorted(ray.alive)))
        if node not in ray.alive:
            raise RayError
        return told(node, task)

    ray = Ray("abc", answer)
    ray.rng = rng
    found, _ = answered(ray)
    for n, line in found.items():
        assert line.data == f"t{n}".encode() if line.error is None else line.error["class"] == "OutOfMemoryError"
    assert ray.most <= 4 * (2 + cluster.AHEAD)  # what is under way is bounded


def test_one_model_on_each_node(answered):
    ray = Ray("abc", told)
    answered(ray)
    assert sorted(ray.started) == ["a", "b", "c"] and sorted(ray.killed) == ["a", "b", "c"]


def test_an_input_that_workers_die_of_is_a_failure(answered):
    def answer(node, task):
        if task.id == "t7":
            raise RayError
        return told(node, task)

    found, said = answered(Ray("abcdef", answer))
    assert found[7].error["class"] == "OutOfMemoryError" and "3 workers died" in found[7].error["message"]
    assert json.loads(found[7].data)["id"] == "t7" and any("goes to others" in sentence for sentence in said)
    assert [n for n, line in found.items() if line.error and n != 7] == []


def test_nodes_that_cannot_answer_are_named_and_left_out(answered):
    ready = {"a": ([], ("ModelFileError", "there is no file /m.gguf")), "b": (["the CPU computes"], None)}
    found, said = answered(Ray("ab", told, ready.get))
    assert (
        len(found) == 40
        and any("node a" in s and "no file" in s for s in said)
        and any("the CPU computes" in s for s in said)
    )


def test_where_none_can_answer_it_is_an_error(answered):
    with pytest.raises(ModelFileError, match="no file"):
        answered(Ray("ab", told, lambda node: ([], ("ModelFileError", "there is no file"))))
    with pytest.raises(ModelFileError, match="another one"):
        answered(Ray("ab", told, identity="another"))
    with pytest.raises(AddressError, match="ray start"):
        answered(Ray("", told))


def test_a_node_that_fails_in_the_middle(answered):
    """As when its card is lost: what it had goes to others."""
    found, said = answered(
        Ray("ab", lambda node, task: ("DeviceError", "the card is lost") if node == "a" else told(node, task))
    )
    assert all(line.error is None for line in found.values()) and any("card is lost" in sentence for sentence in said)


def test_without_ray(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **more):
        if name.split(".")[0] == "ray":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"ivlite\[ray\]"):
        next(cluster.answers(SimpleNamespace(), iter(()), None, print))


@pytest.mark.parametrize("port", ["65536", "99999999", "9" * 400])
def test_a_port_that_there_is_not(port):
    ray = SimpleNamespace(is_initialized=lambda: False, init=lambda *args, **more: pytest.fail("it was tried"))
    with (
        pytest.raises(AddressError, match="there is no Ray cluster at 127.0.0.1:"),
        cluster.connected(ray, f"127.0.0.1:{port}"),
    ):
        pass
