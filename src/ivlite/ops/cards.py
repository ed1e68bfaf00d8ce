"""Which device computes: the names of devices, the cards of this machine, and why one cannot be used."""

import importlib.util
import re

from ivlite.errors import UsageError, shown

DEVICES = ("auto", "cpu", "cuda", "reference")
INSTALL = "pip install 'ivlite[cuda]'"
NO_CARD = 100  # cudaErrorNoDevice
NOT_INITIALIZED = 3  # cudaErrorInitializationError: what a process is told whose parent used a card before it forked
LEAST = 8, 0  # compute capability


def named(device):
    """(name, number of the card or None) of a device: one of DEVICES, or "cuda:1". Raises UsageError."""
    found = re.fullmatch(r"(cuda):(\d{1,3})", device) if isinstance(device, str) else None
    if found:
        return "cuda", int(found[2])
    if not isinstance(device, str) or device not in DEVICES:
        raise UsageError(
            f"device is {shown(device)}; it must be one of {', '.join(DEVICES)}, or cuda:1 for another card"
        )
    return device, None


def count():
    """The number of cards that this build can see; 0 where it has no CUDA kernels or finds no driver."""
    return _counted()[0]


def fault():
    """Why the driver does not say how many cards there are, as the end of a sentence; "" where it does, or has none."""
    return _counted()[1]


def _counted():
    from ivlite import _C

    cuda = _C.cuda
    if not cuda.built:
        return 0, ""
    try:
        return (cuda.cards() if cuda.driver() else 0), ""
    except cuda.Error as error:
        return 0, "" if error.args[0] == NO_CARD else said(error)


def said(error):
    """What the driver says, as the end of a sentence. error: a _C.cuda.Error."""
    code, _, text = error.args
    forked = " (a process that was forked from one that used a card cannot use it: start it with spawn)"
    return f"the driver says: {text}{forked if code == NOT_INITIALIZED else ''}"


def refusal(number=0):
    """Why a card cannot be used, as the end of a sentence; "" if nothing speaks against it."""
    from ivlite import _C

    cuda = _C.cuda
    if not cuda.built:
        return "this build of ivlite has no CUDA kernels: install it from source where nvcc is, with IVLITE_CUDA=ON"
    try:
        if not cuda.driver():
            return "there is no NVIDIA driver here"
        cards = cuda.cards()
        if number >= cards:
            return (
                "the driver finds no card"
                if not cards
                else f"there is no card {number}: there are {cards}, from cuda:0 on"
            )
        card = cuda.card(number)
    except cuda.Error as error:
        return said(error)
    if reason := unfit(card):
        return reason
    if importlib.util.find_spec("torch") is None:
        return f"PyTorch is not installed: {INSTALL}"
    return ""


def unfit(card):
    """Why the kernels of this build do not run on a _C.cuda.Card, as the end of a sentence; "" where they do."""
    major, minor = card.capability
    if card.capability < LEAST:
        return f"{card.name} has compute capability {major}.{minor}, and ivlite's kernels need 8.0 or more"
    if card.has_kernels:
        return ""
    if (
        card.fault
    ):  # another process keeps it for itself, it is lost, its memory is full, the driver is too old for the PTX
        return f"{card.name}: the driver says: {card.fault}"
    return f"this build of ivlite has no kernels for {card.name}, of compute capability {major}.{minor}: install it from source here"


def check(number):
    """Raises UsageError where a card cannot be used."""
    if reason := refusal(number):
        raise UsageError(f"device cuda cannot be used: {reason}")
