"""Thread pools: who owns them, what they run, and that they end."""

import threading
import time
import weakref

import numpy as np
import pytest

import ivlite
from ivlite import _C, ops


def living():
    """Threads of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Threads:"))


def become(threads, seconds=60):
    """Whether there are that many threads soon: the system counts one for a moment longer than the join takes."""
    end = time.monotonic() + seconds
    while living() != threads and time.monotonic() < end:
        time.sleep(0.001)
    return living() == threads


def norm(rows=4096, **more):
    x = np.ones((rows, 64), np.float32)
    _C.rms_norm(y := np.empty_like(x), x, np.ones(64, np.float32), 1e-6, **more)
    return y


def test_models_keep_their_threads(threads):
    threads(4)
    models = [ivlite.load("demo", threads=n) for n in (3, 1, 2, None)]
    assert [m.threads for m in models] == [3, 1, 2, _C.wanted_threads()]
    assert _C.num_threads() == 4


def test_empty_variables_are_unset(program):
    text = "print(_C.ThreadPool().threads, _C.default_threads(), _C.isa())"
    plain = program(text, IVLITE_NUM_THREADS="", IVLITE_ISA="")[1].split()
    assert plain[0] == plain[1] and plain[2] == _C.isas()[-1]
    assert program(text, IVLITE_NUM_THREADS="3", IVLITE_ISA="ref")[1].split() == ["3", plain[1], "ref"]


@pytest.mark.parametrize("threads", [-1, 1025, 1 << 40])
def test_numbers_that_no_pool_has(threads):
    with pytest.raises(ValueError, match="1 to 1024"):
        _C.ThreadPool(threads)


def test_a_pool_ends_with_what_owns_it():
    before = living()
    for _ in range(20):
        pool = _C.ThreadPool(8)
        assert np.allclose(norm(pool=pool), 1) and become(before + 7)
    del pool
    assert become(before)
    kept = [ops.get("cpu", 4) for _ in range(10)]
    assert become(before + 30)
    kept.clear()
    assert become(before)


def test_a_pool_that_is_replaced_finishes_its_work(threads):
    """Threads in regions, while another changes their number."""
    wrong, end = [], time.monotonic() + 1

    def work():
        while time.monotonic() < end:
            if not np.allclose(norm(), 1):
                wrong.append(1)

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    while time.monotonic() < end:
        for n in (1, 3, 2):
            threads(n)
    for caller in callers:
        caller.join()
    assert not wrong


def test_threads_that_the_system_refuses(program):
    """Those that start work, and `threads` tells; the pool before is whole."""
    text = """
import resource
_C.set_num_threads(2)
pools = []
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, before[1]))  # stacks of 8 MB each
try:
    for _ in range(4):
        pools.append(_C.ThreadPool(1024))
    _C.set_num_threads(1000)
except MemoryError:
    print("memory")
resource.setrlimit(resource.RLIMIT_AS, before)  # the rest may be too little for numpy
counts = [p.threads for p in pools]
print(counts[0], counts[-1] < 1024, _C.num_threads() < 1000)
print(normed(), *(normed(pool=p) for p in pools))
"""
    code, out, err = program(text, OPENBLAS_NUM_THREADS="1")
    assert code == 0, err
    assert "False" not in out and "True True" in out


def test_an_error_in_a_kernel_keeps_nothing():
    class Held:
        pass

    def failing(pool):
        held = Held()
        failing.held = weakref.ref(held)
        _C.decode("q4_0", np.zeros(18, np.uint8), 64, pool=pool)

    pool = _C.ThreadPool(2)
    with pytest.raises(ValueError):
        failing(pool)
    assert failing.held() is None


SHAPES = """
from ivlite.evaluate import synthetic

heads = {s[2] for name, s in synthetic.SIZES.items() if name != "tiny"}
assert heads
for n in sorted(heads):
    # the heads of the real shape, and all else small: hidden, layers, heads, rank, head, ffn, vocabulary, then a small tower
    synthetic.SIZES[f"heads{n}"] = (256, 1, n, 64, 32, 512, 448, 1, 96, 4, 160, 64, (0,))
    states = []
    for threads in (1, 2, 3, 7):
        model = synthetic.random_model(f"heads{n}", "q8_0", threads=threads, context=2048)
        network, cache = model.network, model.network.cache(2048, "q8")
        at, out = 0, []
        for tokens in (40, 1, 1, 1200, 1):  # a prompt, and new tokens before and after attention is split
            x = np.random.default_rng(at).standard_normal((tokens, 256), dtype=np.float32)
            out.append(network.forward(x, np.tile(np.arange(at, at + tokens), (3, 1)), cache))
            at += tokens
        states.append(np.concatenate(out))
    assert np.isfinite(states[0]).all()
    for state in states[1:]:
        assert np.allclose(state[:42], states[0][:42], atol=1e-3), n
print("done")
"""


def test_heads_of_the_real_shapes(program):
    code, out, err = program(SHAPES, timeout=120)
    assert (code, out) == (0, "done\n"), err


@pytest.mark.parametrize("shape", ["demo", "tiny"])
def test_one_processor(program, shape):
    """All that a command does, with one thread because there is one processor."""
    text = f"""
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
from ivlite.cli import main
sys.exit(main(["bench", "--random", "{shape}", "--prompt", "16", "--new", "2"]))
"""
    code, out, err = program(text, timeout=120)
    assert code == 0 and "decode" in out and "1 threads" in out.replace("1 thread,", "1 threads,"), out + err
