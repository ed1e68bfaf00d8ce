"""The tensors of torch under the CUDA operations: on the CPU, where the emulated kernels can touch them, and on a card where one is."""

import json
import subprocess
import sys

import numpy as np
import pytest
from emulated_memory import EmulatedMemory, Recorder

from ivlite.errors import DeviceError, OutOfMemoryError, UsageError
from ivlite.ops import cards, cuda

torch = pytest.importorskip("torch", reason="TorchMemory needs torch")
from test_cuda_models import LIMIT, converted, golden, messages_of, test_golden, worst  # noqa: E402, F401

from ivlite.ops import cuda_memory  # noqa: E402


class HostTensors(cuda_memory.TorchMemory):
    """TorchMemory with tensors of the CPU and the kernels compiled for it; streams, events and graphs are those of the emulated card."""

    capture, stream, wait, mark = (
        EmulatedMemory.capture,
        EmulatedMemory.stream,
        EmulatedMemory.wait,
        EmulatedMemory.mark,
    )

    def __init__(self, module):
        self.device, self.index, self.name, self.multiprocessors = torch.device("cpu"), 0, "tensors", 1
        self.kernels, self.kept = Recorder(module.cuda), None

    def launch(self, kernel, *args):
        self.kernels.call(kernel, *args)

    def empty(self, shape, dtype="float32"):
        made = super().empty(shape, dtype)
        if self.kept is not None:
            self.kept.append(made)
        return made

    def pinned(self, shape, dtype):
        return np.empty(shape, dtype)

    def free(self):
        return 1 << 34, 1 << 34


@pytest.fixture
def memory(emulated_module, monkeypatch):
    monkeypatch.setattr(cuda_memory, "STAGED", 1 << 62)  # pinned memory needs a driver
    return HostTensors(emulated_module)


def test_arrays(memory):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    there = memory.put(x)
    assert np.array_equal(memory.get(there), x) and memory.strides(there[:, 1:]) == (4, 1)
    assert memory.pointer(there[1:]) == memory.pointer(there) + 16
    part = memory.contiguous(there[:, 1:3])
    assert memory.strides(part) == (2, 1) and np.array_equal(memory.get(part), x[:, 1:3])
    memory.copy(there[1:], x[:2])
    assert np.array_equal(memory.get(there), x[[0, 0, 1]])
    assert (
        memory.get(memory.zeros(5, "uint8")).tolist() == [0] * 5 and memory.empty((2, 3), "int32").dtype == torch.int32
    )


def test_what_torch_refuses_is_one_sentence(memory, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 24 << 30))

    def refused(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore lines")

    monkeypatch.setattr(torch, "empty", refused)
    with pytest.raises(
        OutOfMemoryError, match=r"tensors has 3.22 GB of 25.77 GB free and 4.00 GB more are needed: use fewer"
    ):
        memory.empty((1000, 1000, 1000))

    def lost(*args, **kwargs):
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch, "empty", lost)
    with pytest.raises(DeviceError, match="^tensors: CUDA error: unspecified launch failure$"):
        memory.empty(3)


def test_what_is_needed_is_said_in_the_bytes_of_its_type(memory, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 24 << 30))

    def refused(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for made in ("empty", "zeros"):
        monkeypatch.setattr(torch, made, refused)
        for dtype, words in (("uint8", "1.00 GB more"), ("float32", "4.00 GB more")):
            with pytest.raises(OutOfMemoryError, match=words):
                getattr(memory, made)(10**9, dtype)


def test_rows_that_may_not_be_written_go_to_the_card_without_a_word(memory, recwarn):
    x = np.frombuffer(bytes(range(12)), np.uint8)
    assert np.array_equal(memory.get(memory.put(x)), x) and not recwarn.list


class Streams:
    """The streams of torch.cuda: which is current, and which waited for which."""

    class Stream:
        def __init__(self, streams, name):
            self.streams, self.cuda_stream = streams, name

        def wait_stream(self, other):
            self.streams.waits.append((self.cuda_stream, other.cuda_stream))

    def __init__(self, monkeypatch):
        self.waits, self.made = [], {}
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        self.go(0)

    def go(self, name):
        self.current = self.made.setdefault(name, self.Stream(self, name))


def test_work_on_another_stream_waits_for_what_was_launched_before(memory, monkeypatch):
    streams, at = Streams(monkeypatch), cuda_memory.TorchMemory.stream
    for name in (0, 0, 7, 7, 3, 7):
        streams.go(name)
        assert at(memory) == name
    assert streams.waits == [(7, 0), (3, 7), (7, 3)]
    memory._recording = streams.made[3]  # what is recorded depends on nothing outside, and nothing waits for it
    streams.go(3)
    assert at(memory) == 3
    streams.go(7)
    assert at(memory) == 7 and len(streams.waits) == 3


def test_a_launch_is_on_the_card_of_its_memory(memory, monkeypatch):
    """Whatever card was the thread's: models on two cards take turns, and what is around them finds its own again."""
    now, seen = [0], []

    class Device:
        def __init__(self, device):
            self.index = device.index

        def __enter__(self):
            self.before, now[0] = now[0], self.index

        def __exit__(self, *exception):
            now[0] = self.before

    class Kernels:
        def use_card(self, index):
            now[0] = index

        def fill(self, *args):
            seen.append((now[0], args))

    monkeypatch.setattr(torch.cuda, "device", Device)
    memory.kernels = Kernels()
    for index in (1, 0, 1, 2):
        memory.device = torch.device("cuda", index)
        memory.index = index
        cuda_memory.TorchMemory.launch(memory, "fill", index)
        assert now == [0]
    assert seen == [(1, (1,)), (0, (0,)), (1, (1,)), (2, (2,))]


@pytest.mark.parametrize("often", [1, 2])
def test_a_recording_without_memory_is_tried_again_without_what_is_kept(memory, monkeypatch, often):
    asked = []

    def captured(run, pool):
        asked.append(pool)
        if asked.count(9) <= often:
            raise OutOfMemoryError("none")
        return run(), None, pool

    memory._captured = captured
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("emptied"))
    if often == 1:
        assert cuda_memory.TorchMemory.capture(memory, lambda: 5, 9) == (5, None, 9)
    else:
        with pytest.raises(OutOfMemoryError):
            cuda_memory.TorchMemory.capture(memory, lambda: 5, 9)
    assert asked == [9, "emptied", 9]


@pytest.mark.parametrize("name", test_golden.NAMES)
def test_a_model_over_tensors(memory, converted, monkeypatch, name):  # noqa: F811
    """Views, slices and sums of the network mean the same in torch."""
    import ivlite
    from ivlite import ops

    monkeypatch.setattr(cards, "check", lambda card: None)
    monkeypatch.setattr(ops, "get", lambda name, threads=None, card=0: cuda.Ops(memory, threads))
    model, expected = ivlite.load(converted(name, "f32"), device="cuda", kv="f32"), golden(name, "mixed")
    logits = model.logits(model.prepare(messages_of("mixed")))
    assert worst(logits[expected["rows"]], expected["logits"]) < LIMIT["f32"]
    told = golden(name, "text")["greedy"].tolist()
    stops = [i for i, token in enumerate(told) if token in model.config.tokens.eos]
    reply = model.chat(messages_of("text"), max_new_tokens=len(told), temperature=0)
    assert reply.token_ids == told[: stops[0] if stops else None]


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a card here")
def test_a_torch_without_cuda_is_refused():
    with pytest.raises(UsageError, match="device cuda cannot be used: PyTorch says: .*pip install"):
        cuda_memory.opened(0)


def test_the_cpu_imports_no_torch():
    code = "import ivlite, sys, json; ivlite.load('demo', context=64); print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout) is False, done.stderr
