"""Which card is used, and why one cannot be: one clear sentence each; only device="auto" goes on without it, and says so."""

from types import SimpleNamespace

import pytest

import ivlite
from ivlite import _C, cli, loading, ops
from ivlite.errors import DeviceError, OutOfMemoryError, UsageError
from ivlite.gguf import SHIPPED
from ivlite.ops import cards

GOOD = dict(name="Card", capability=(8, 9), has_kernels=True, fault="", memory=24 << 30, multiprocessors=128)


class Driver:
    """_C.cuda of a machine with these cards; where `fails` is set, it refuses every question about them so."""

    class Error(Exception):
        pass

    def __init__(self, *found, built=True, version=13000, fails=None):
        self.found, self.built, self.version, self.fails = found, built, version, fails

    def driver(self):
        return self.version

    def asked(self, answer):
        if self.fails:
            raise self.Error(*self.fails)
        return answer

    def cards(self):
        return self.asked(len(self.found))

    def card(self, number):
        return self.asked(SimpleNamespace(**self.found[number]))


CASES = {
    "not built": (Driver(built=False), 0, "this build of ivlite has no CUDA kernels: install it from source where nvcc is"),
    "no driver": (Driver(version=0), 0, "there is no NVIDIA driver here"),
    "no card": (Driver(), 0, "the driver finds no card"),
    "another card": (Driver(GOOD), 2, "there is no card 2: there are 1, from cuda:0 on"),
    "too old": (Driver(GOOD | dict(capability=(7, 5), has_kernels=False)), 0, "Card has compute capability 7.5, and ivlite's"),
    "kept by another": (
        Driver(GOOD | dict(has_kernels=False, fault="CUDA-capable device(s) is/are busy or unavailable")),
        0,
        "Card: the driver says: CUDA-capable device(s) is/are busy or unavailable",
    ),
    "of other cards": (
        Driver(GOOD | dict(has_kernels=False)), 0, "this build of ivlite has no kernels for Card, of compute capability 8.9"
    ),
    "forked": (
        Driver(GOOD, fails=(3, "cudaErrorInitializationError", "initialization error")),
        0,
        "the driver says: initialization error (a process that was forked from one that used a card cannot use it: ",
    ),
    "busy": (
        Driver(GOOD, fails=(46, "cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable")),
        0,
        "the driver says: CUDA-capable device(s) is/are busy or unavailable",
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def unusable(request, monkeypatch):
    """(number of a card, why it cannot be used)."""
    driver, number, reason = CASES[request.param]
    monkeypatch.setattr(_C, "cuda", driver)
    return number, reason


def test_each_reason_is_one_line(unusable):
    number, reason = unusable
    said = cards.refusal(number)
    assert said.startswith(reason) and "\n" not in said and len(said) < 300
    with pytest.raises(UsageError, match="^device cuda cannot be used: "):
        ops.get("cuda", card=number)


def test_a_command_ends_with_the_reason(unusable, capsys):
    number, reason = unusable
    assert cli.main(["run", "demo", "Hello", "--device", f"cuda:{number}"]) == 2
    said = capsys.readouterr().err
    assert reason in said and "Traceback" not in said and len(said.strip().splitlines()) == 1


def test_without_torch(monkeypatch):
    monkeypatch.setattr(_C, "cuda", Driver(GOOD))
    monkeypatch.setattr(cards.importlib.util, "find_spec", lambda name: None)
    assert cards.refusal() == "PyTorch is not installed: pip install 'ivlite[cuda]'"


@pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
def test_auto_computes_on_the_cpu_and_says_so_once(unusable, monkeypatch):
    """Where there are cards that cannot be used; a machine without any has nothing to say."""
    number, reason = unusable
    monkeypatch.setattr(cards.importlib.util, "find_spec", lambda name: None)  # no torch, whatever is here
    model = ivlite.load("demo", context=256)
    assert model.device == "cpu"
    there = cards.count() > 0 or "driver says" in reason
    assert model.remarks == ([f"the CPU computes: {cards.refusal()}"] if there else [])


@pytest.mark.parametrize(
    "error",
    [DeviceError("Card: it is lost"), OutOfMemoryError("Card has too little", ["--load mmap"]), UsageError("no")],
)
def test_auto_goes_on_to_the_next_card_and_then_to_the_cpu(monkeypatch, error):
    """In loading alone: what a card refuses later is an error of that request."""
    asked, plain = [], ops.get

    def get(name, threads=None, card=0):
        if name == "cpu":
            return plain(name, threads)
        asked.append(card)
        raise error

    monkeypatch.setattr(ops, "get", get)
    monkeypatch.setattr(cards, "count", lambda: 2)
    monkeypatch.setattr(cards, "refusal", lambda number=0: "")
    operations, remark = loading.chosen_device("auto", 1, lambda o: None)
    assert operations.name == "cpu" and asked == [0, 1] and remark == f"the CPU computes: {error.problem}"
    with pytest.raises(type(error), match=str(error)):
        loading.chosen_device("cuda", 1, lambda o: None)
