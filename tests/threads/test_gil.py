"""No bound function waits for anything while it holds the interpreter's lock."""

import inspect
import re
from pathlib import Path

from ivlite import _C

BINDINGS = Path(__file__).parents[2] / "bindings"


def bound():
    """Names of all functions and methods that the module has."""
    names = set()
    for module, prefix in ((_C, ""), (_C.testing, "testing.")):
        for name, value in vars(module).items():
            if inspect.isclass(value):
                names |= {
                    f"{name}.{m}" for m, f in vars(value).items() if callable(f) and (m == "__init__" or m[0] != "_")
                }
            elif callable(value):
                names.add(prefix + name)
    return names


CALLS = """
F = lambda *shape: np.ones(shape, np.float32)
x, data, frames = F(64, 64), _C.encode("q8_0", F(64 * 64).reshape(-1)), np.zeros((2, 32, 32, 3), np.uint8)
w, w2 = _C.Weight("q8_0", data, 1, 64, 64), _C.Weight("q8_0", data, 2, 32, 64)
key, value = _C.Weight("f32", None, 2, 64, 16), _C.Weight("f32", None, 2, 16, 64)
q, kv_a, up = _C.Weight("f32", None, 1, 64, 64), _C.Weight("f32", None, 1, 80, 64), _C.Weight("f32", None, 1, 128, 64)
o = _C.Weight("f32", None, 1, 64, 32)
def cache():
    made = _C.LatentCache([64], 16, 128, "q8")
    made.append(0, F(64, 64), F(64, 16))
    return made
filled, dumped = cache(), cache()
dumped.advance(64)
layer = lambda: _C.DecoderLayer(F(64), (q, None), (kv_a, None), None, key, value, (o, None), F(64), (up, None), (w, None), True, 1e-6, 0.1)
made_layer, flag = layer(), _C.StopFlag()
expanded = lambda tokens=8: _C.ExpandedAttention(tokens, filled, 0, w2, 0.1)
def added():
    work = expanded()
    work.add(F(8, 2, 16), F(8, 2, 16))
    return work
calls = {
    "formats": lambda: _C.formats(),
    "encode": lambda: _C.encode("q8_0", F(1 << 16)),
    "decode": lambda: _C.decode("q8_0", np.zeros(34 << 11, np.uint8), 1 << 16),
    "transposed": lambda: _C.transposed("q8_0", data, 2, 32, 64, 32, "q8_0"),
    "isa": _C.isa, "isas": _C.isas, "cpu_info": _C.cpu_info,
    "num_threads": _C.num_threads, "wanted_threads": _C.wanted_threads, "default_threads": _C.default_threads,
    "set_num_threads": lambda: _C.set_num_threads(2), "cpu_quota": _C.cpu_quota,
    "probe_int8_peak": lambda: _C.probe_int8_peak(0.01), "probe_matrix_peak": lambda: _C.probe_matrix_peak(0.01),
    "probe_read_bandwidth": lambda: _C.probe_read_bandwidth(1 << 22, 1),
    "ThreadPool.__init__": lambda: _C.ThreadPool(3),
    "StopFlag.__init__": _C.StopFlag, "StopFlag.set": _C.StopFlag().set, "StopFlag.is_set": flag.is_set,
    "StopFlag.after": lambda: flag.after(1e6), "use_stop": lambda: _C.use_stop(flag),
    "Weight.__init__": lambda: _C.Weight("q8_0", data, 1, 64, 64), "Weight.fill": lambda: w.fill(0, data.reshape(64, -1)),
    "Resizer.__init__": lambda: _C.Resizer(8, 8, 4, 4),
    "Resizer.run": lambda: _C.Resizer(8, 8, 4, 4).run(np.zeros((4, 4, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)),
    "DecoderLayer.__init__": layer,
    "DecoderLayer.run": lambda: made_layer.run(F(1, 64), F(1, 8), F(1, 8), [cache()], [1], 0),
    "LatentCache.__init__": cache, "LatentCache.append": cache, "LatentCache.advance": lambda: cache().advance(64),
    "LatentCache.truncate": lambda: cache().truncate(0), "LatentCache.read": lambda: filled.read(0, 0, 64),
    "LatentCache.reserve": lambda: cache().reserve(4096), "LatentCache.dump": lambda: dumped.dump(0, 64),
    "LatentCache.restore": lambda: _C.LatentCache([64], 16, 128, "q8").restore(0, dumped.dump(0, 64)),
    "few_tokens": _C.few_tokens, "cache_token_bytes": lambda: _C.cache_token_bytes([64], 16, "q8"),
    "linear": lambda: _C.linear(F(64, 64), x, w, None, False),
    "mlp": lambda: _C.mlp(F(64, 64), x, w, None, "gelu_tanh", w, None, False),
    "linear_heads": lambda: _C.linear_heads(F(64, 2, 32), F(64, 2, 64), w2),
    "rms_norm": normed, "layer_norm": lambda: _C.layer_norm(F(4096, 64), F(4096, 64), F(64), F(64), 1e-6),
    "rope": lambda: _C.rope(F(64, 8, 64), F(64, 8, 64), F(64, 32), F(64, 32), True),
    "silu_mul": lambda: _C.silu_mul(F(512, 64), F(512, 128)),
    "attention": lambda: attend(64),
    "absorbed_attention": lambda: _C.absorbed_attention(F(8, 2, 64), F(8, 2, 64), F(8, 2, 16), filled, 0, 0.1),
    "expanded_attention": lambda: _C.expanded_attention(F(8, 2, 16), F(8, 2, 16), F(8, 2, 16), filled, 0, w2, 0.1),
    "ExpandedAttention.__init__": expanded, "ExpandedAttention.add": added,
    "ExpandedAttention.step": lambda: added().step(F(8, 2, 16)),
    "patchify": lambda: _C.patchify(F(16, 384), frames, 8, 2, [0.5] * 3, [0.5] * 3),
    "testing.known_isas": _C.testing.known_isas, "testing.use_isa": lambda: _C.testing.use_isa(_C.isa()),
    "testing.overrides": lambda: _C.testing.overrides(_C.isa()), "testing.gelu": lambda: _C.testing.gelu(F(64), F(64), True),
    "testing.quantize_rows": lambda: _C.testing.quantize_rows(F(8, 64)),
}
"""

BESIDE = (
    CALLS
    + """
_C.set_num_threads(2)
rows = rows_for(6)
ended = {}

def call(name):
    calls[name]()
    ended[name] = time.monotonic()

long = threading.Thread(target=attend, args=(rows,))
long.start()
time.sleep(0.3)
start, ticks = time.monotonic(), 0
callers = [threading.Thread(target=call, args=(name,)) for name in calls if name != "set_num_threads"]
for caller in callers:
    caller.start()
    time.sleep(0.005)
    ticks += long.is_alive()
while long.is_alive():
    time.sleep(0.02)
    ticks += 1
print(len(callers), ticks)
for caller in callers:
    caller.join(30)
call("set_num_threads")
print(sorted(set(calls) - set(ended)))
"""
)


def test_every_function_while_another_thread_computes(program):
    """One region of the process's pool takes seconds; all functions are called meanwhile, and the main thread goes on."""
    code, out, err = program(BESIDE, timeout=120)
    assert code == 0, err
    first, left = out.splitlines()
    callers, ticks = map(int, first.split())
    assert ticks > callers + 20, "the interpreter stood still while a kernel ran"
    assert left == "[]", "these never came back"


def test_every_function_is_called_there(program):
    code, out, err = program(CALLS + "print(*sorted(calls))")
    assert code == 0, err
    assert set(out.split()) == bound()


def test_functions_are_bound_in_one_of_three_ways():
    """So that whoever adds one decides whether it keeps the lock: constructors that only handle objects are named here."""
    own = re.compile(r"(?<![\w.])(?:m|\w+)\.def\(\s*(\"\w+\"|py::init(?:<>)?\(&?\w*\))")
    plain = [found for file in sorted(BINDINGS.glob("*.cpp")) for found in own.findall(file.read_text())]
    assert sorted(plain) == ["py::init(&make_layer)", "py::init(&make_pool)", "py::init<>()"]


def test_a_load_beside_an_answer(program):
    text = """
model, end, loads = ivlite.load("demo", threads=2), False, 0
def answer():
    while not end:
        model.chat([{"role": "user", "content": "What colours are there?"}], max_new_tokens=10, temperature=0)
def query():
    while not end:
        _C.num_threads(), _C.set_num_threads(1), _C.set_num_threads(2)
threads = [threading.Thread(target=answer), threading.Thread(target=query)]
for t in threads:
    t.start()
until = time.monotonic() + 4
while time.monotonic() < until or loads < 4:
    ivlite.load("demo", threads=loads % 3 + 1)
    loads += 1
end = True
for t in threads:
    t.join()
print(loads > 3)
"""
    assert program(text)[:2] == (0, "True\n")


def test_nothing_is_imported_inside_a_binding(program):
    """An import runs Python's code, in which an interpreter that ends would unwind a daemon thread through C++ frames."""
    text = """
import builtins
from ivlite.errors import Stopped
flag = _C.StopFlag()
flag.set()

def refuse(name, *_):
    raise AssertionError(f"{name} is imported inside a binding")

builtins.__import__, before = refuse, builtins.__import__
x = np.ones((64, 64), np.float32)  # the first call with arrays
_C.rms_norm(np.empty_like(x), x, np.ones(64, np.float32), 1e-6)
_C.use_stop(flag)
try:
    _C.rms_norm(np.empty_like(x), x, np.ones(64, np.float32), 1e-6)
except Stopped:
    print("stopped")
builtins.__import__ = before
"""
    assert program(text) == (0, "stopped\n", "")
