"""Checks an installed build that has CUDA kernels: it needs no CUDA library, loads without a driver, and says why a card cannot be used.

`.ci/run` runs it with the package of `IVLITE_CUDA=ON pip install .` on the path. With a card, that the kernels run there.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import ivlite
from ivlite import _C
from ivlite.ops import cards

NEEDED = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"}


def libraries(path):
    """The shared libraries that a file names as needed."""
    text = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", text))


def fills():
    """Whether a kernel does on the card what it should."""
    cuda, out = _C.cuda, np.zeros(1000, np.uint32)
    memory = cuda.allocate(out.nbytes)
    cuda.fill(memory, 7, len(out), 0)
    cuda.copy_from_card(out.ctypes.data, memory, out.nbytes)
    cuda.release(memory)
    return (out == 7).all()


def command(*words):
    """A command of the installed build, which has ended."""
    return subprocess.run([sys.executable, "-m", "ivlite", *words], capture_output=True, text=True)


def main():
    assert _C.cuda.built, "this build has no CUDA kernels"
    loaders = {name for name in libraries(_C.__file__) if not name.startswith("ld-linux")}
    assert loaders <= NEEDED, f"{_C.__file__} needs {sorted(loaders - NEEDED)}"
    found = cards.count()
    if found and _C.cuda.card(0).has_kernels:
        assert fills()
        print(f"CUDA kernels run on {_C.cuda.card(0).name}")
        return
    reason = cards.refusal()
    assert reason and "\n" not in reason
    demo = Path(ivlite.__file__).parent / "data/demo.gguf"
    done = command("run", demo, "Hello", "--device", "cuda")
    assert done.returncode == 2 and reason in done.stderr and "Traceback" not in done.stderr, done.stderr
    done = command("doctor", "--json")
    found = json.loads(done.stdout)["cuda"]
    assert found["built"] and found["problem"] == reason, done.stdout
    done = command("run", demo, "Hello", "--max-new-tokens", "2")  # device auto
    assert done.returncode == 0, done.stderr
    print(f"CUDA kernels are built, and no card runs them: {reason}")


if __name__ == "__main__":
    main()
