"""`--engine ray` on a cluster of three nodes, one of which is killed in the middle."""

import json
import os

import pytest
from batch_runs import CLIP, PATIENCE, count, records, run, started, until

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A cluster and two of its nodes, beside that of the driver."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()

    def node():
        for _ in range(3):
            try:
                return cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 << 20, include_dashboard=False)
            except Exception as error:  # ray gives a node 30 seconds to start, and a busy machine may take longer
                why = error
        pytest.skip(f"ray starts no node here: {why}")

    try:
        node()
        yield cluster, [node(), node()]
    finally:
        cluster.shutdown()


def test_a_node_is_killed_in_the_middle(nodes, films, capsys, monkeypatch):
    """The output has the bytes of one machine's, drawn answers too; nothing of ray's is printed."""
    cluster, others = nodes
    lines = [
        {
            "video": str(CLIP),
            "start": 0,
            "end": 1 + n % 7,
            "prompt": f"{n}: what happens?",
            "id": f"q{n}",
            "seed": n,
            "temperature": n % 2,
        }
        for n in range(60)
    ] + [{"video": "gone.mp4"}]
    (films / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run(capsys, monkeypatch, "--inputs", "list.jsonl", out="local.jsonl")
    args = ("--inputs", "list.jsonl", "--engine", "ray", "--address", cluster.address, "--parallel", "2", "--json")
    process = started(*args, "-o", "out.jsonl", env=os.environ | {"PYTHONUNBUFFERED": "1"})
    until(lambda: count("out.jsonl") + count(".out.jsonl.partial") >= 10, process)
    cluster.remove_node(others.pop(), allow_graceful=False)
    printed, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 4, err
    assert json.loads(printed)["answered"] == 60  # standard output has that object alone
    assert all(line.startswith((b"ivlite: ", b"[60 answered, 1 failed")) for line in err.splitlines()), err
    with open("out.jsonl", "rb") as ours, open("local.jsonl", "rb") as alone:
        assert ours.read() == alone.read()
    again = run(capsys, monkeypatch, *args)  # all is there: no node is asked
    assert again.records == records("local.jsonl") and again.code == 4


def test_an_address_of_nobody(films, capsys, monkeypatch):
    done = run(capsys, monkeypatch, "videos", "--engine", "ray", "--address", "127.0.0.1:1")
    assert done.code == 8 and "there is no Ray cluster at 127.0.0.1:1" in done.err and done.err.count("\n") == 1
