"""`ivlite doctor`: shows the machine's features, what ivlite uses of them, and advice."""

import argparse
import platform

from ivlite._version import __version__
from ivlite.cli import json_line
from ivlite.numbers import jsonable
from ivlite.stop import checkpoint

EPILOG = """\
examples:
  ivlite doctor
  ivlite doctor --json > doctor.json      # attach this to a report

IVLITE_ISA=ref|avx2|avxvnni|avx512vnni|amx|neon|i8mm forces an instruction set, IVLITE_NUM_THREADS the number of threads.
"""

PACKAGES = ("numpy", "av", "pillow", "tokenizers")


def add_parser(commands):
    parser = commands.add_parser(
        "doctor",
        help="show what this machine offers",
        description="Shows processor, instruction sets, threads, memory, probed speed, CUDA and versions, and gives advice.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args):
    checkpoint()
    facts = examine()
    print(json_line(jsonable(facts)) if args.json else "\n".join(lines(facts)))
    return 0


def examine():
    """Everything shown, as plain data."""
    from ivlite.cli import probe
    from ivlite.cli.packages import version, wanting
    from ivlite.machine import available_memory, total_memory

    threads = probe.default_threads()
    facts = {
        "ivlite": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **probe.machine(threads),
        **probe.processors(),
        "memory_total": total_memory(),
        "memory_available": available_memory(),
        "huge_pages": probe.huge_pages(),
        "limits": probe.limits(threads),
        "cuda": probe.cuda(),
        "packages": {name: version(name) for name in PACKAGES},
        "wanting": wanting(),
        "ffmpeg": probe.ffmpeg(),
    }
    return facts | {"advice": list(advice(facts))}


def advice(facts):
    """A sentence for each problem."""
    found, usable = facts["isas"], facts["physical_cores"]
    if set(found) <= {"ref"}:
        yield "this processor has neither AVX2 nor ARM's dot products: the plain kernels run, about a hundred times slower"
    elif facts["isa"] == "ref":
        yield "IVLITE_ISA forces the plain kernels: unset it for speed"
    quota = facts["cpu_quota"]
    if quota is not None and quota < facts["threads"]:
        yield f"the container may use {quota:g} processors and ivlite takes {facts['threads']} threads: set IVLITE_NUM_THREADS={max(1, int(quota))}"
    if usable and facts["threads"] > usable:
        yield f"{facts['threads']} threads on {usable} usable cores: threads will wait for each other"
    if facts["huge_pages"] == "never":
        yield "transparent huge pages are off; `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` as root speeds up decoding"
    free = facts["memory_available"]
    if free is not None and free < 8e9:
        yield f"{free / 1e9:.1f} GB of memory are free: an 8B model at q4_k_m takes about 7 GB with its cache"
    cuda = facts["cuda"]
    if cuda["problem"] and (cuda["cards"] or (cuda["driver"] and not cuda["built"])):
        yield f"the card cannot be used: {cuda['problem']}"
    for number, card in enumerate(cuda["cards"]):
        if card["problem"] and card["problem"] != cuda["problem"]:
            yield f"cuda:{number} cannot be used: {card['problem']}"
    yield from facts["wanting"]


def cuda_line(cuda):
    """What of CUDA is here."""
    from ivlite.machine import gigabytes

    kernels = "kernels in this build" if cuda["built"] else "no kernels in this build"
    driver = f"driver {cuda['driver']}" if cuda["driver"] else "no driver"
    parts = [f"{kernels}, {driver}"]
    for card in cuda["cards"]:
        lacks = "" if card["kernels"] else ", not usable"
        parts.append(
            f"{card['name']} ({card['capability']}, {card['multiprocessors']} multiprocessors, {gigabytes(card['memory'])}{lacks})"
        )
    return "; ".join(parts)


def lines(facts):
    """The facts as text."""
    from ivlite.machine import gigabytes

    def known(n):
        return "unknown" if n is None else gigabytes(n)

    quota = "none" if facts["cpu_quota"] is None else f"{facts['cpu_quota']:g} processors"
    limits = facts["limits"]
    rows = {
        "ivlite": f"{facts['ivlite']}, Python {facts['python']}, {facts['system']}",
        "processor": f"{facts['cpu']}",
        "cores": f"{facts['physical_cores'] or 'unknown'} physical, {facts['affinity']} logical usable, container limit: {quota}",
        "instructions": f"{', '.join(facts['isas'])}; in use: {facts['isa']}",
        "threads": str(facts["threads"]),
        "memory": f"{known(facts['memory_total'])}, {known(facts['memory_available'])} free, huge pages: {facts['huge_pages'] or 'unknown'}",
        "probed": f"reads memory at {limits['read'] / 1e9:.1f} GB/s, int8 {limits['int8'] / 1e9:.0f} GOPS",
        "CUDA": cuda_line(facts["cuda"]),
        "packages": ", ".join(f"{name} {v or 'missing'}" for name, v in facts["packages"].items()),
        "FFmpeg": ", ".join(f"{name} {v}" for name, v in facts["ffmpeg"].items()) or "unknown",
    }
    for name, text in rows.items():
        yield f"{name:<14}{text}"
    if facts["advice"]:
        yield ""
        yield from (f"advice: {sentence}" for sentence in facts["advice"])
    else:
        yield "nothing is wrong"
