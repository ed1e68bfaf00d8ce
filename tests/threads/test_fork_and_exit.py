"""Children that are forked, and programs that end, while threads are at work."""

import pytest

LOADED = """
import multiprocessing
fork = multiprocessing.get_context("fork")
question = [{"role": "user", "content": "What colours are there?"}]

def ask(model):
    return model.chat(question, max_new_tokens=3, temperature=0).text

def child(threads, model):
    said = [ask(ivlite.load("demo", threads=threads))] if threads != "none" else []
    said += [ask(model)] if model else []
    assert said and len(set(said)) == 1 and normed(), said

def expect(*args):
    process = fork.Process(target=child, args=args)
    process.start()
    process.join(60)
    print(process.exitcode, flush=True)
"""


def test_children_load_and_answer(program):
    """With any number of threads, and with the model that they inherit."""
    text = (
        LOADED
        + """
model = ivlite.load("demo", threads=2)
ask(model)
for threads in (2, 1, 5, None, "none"):
    expect(threads, model)
print(ask(model) != "")
"""
    )
    code, out, err = program(text, timeout=240)
    assert (code, out.split()) == (0, ["0"] * 5 + ["True"]), err


def test_children_of_a_process_at_work(program):
    """Forked while other threads are inside of regions, of the model's pool and of the process's own."""
    text = (
        LOADED
        + """
model = ivlite.load("demo", threads=2)
pool, end = _C.ThreadPool(3), False

def work(**more):
    while not end:
        normed(**more)

workers = [threading.Thread(target=work, kwargs=k) for k in ({}, {"pool": pool}, {"pool": model.network.ops.pool})]
for worker in workers:
    worker.start()
for threads in (1, 4, "none") * 2:
    expect(threads, model)
end = True
for worker in workers:
    worker.join()
"""
    )
    code, out, err = program(text, timeout=240)
    assert (code, out.split()) == (0, ["0"] * 6), err


def test_a_child_of_a_child(program):
    text = (
        LOADED
        + """
pool = _C.ThreadPool(3)
normed(pool=pool)
if (one := os.fork()) == 0:
    normed(pool=pool)
    if (two := os.fork()) == 0:
        os._exit(0 if normed(pool=pool) and pool.threads == 3 else 1)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(two, 0)[1]))
print(os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]), normed(pool=pool))
"""
    )
    assert program(text)[:2] == (0, "0 True\n")


PICTURE = """
from PIL import Image
picture = {"type": "image", "image": Image.new("RGB", (64, 64))}
asked = [{"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}]
"""
WORK = {
    "kernel": "rows = 256\ndef work():\n    while True: attend(rows)",
    "short kernels": "def work():\n    while True: normed()",
    "own pool": "pool = _C.ThreadPool(3)\ndef work(pool=pool):\n    while True: attend(256, pool=pool)",
    "long kernel": "def work():\n    attend(1 << 15)",
    # Imported first: Python refuses the first import of concurrent.futures while the interpreter exits.
    "loads": "load = ivlite.load\ndef work():\n    while True: load('demo', threads=2)",
    "chat": "model = ivlite.load('demo')\ndef work(model=model):\n    while True: model.chat([{'role': 'user', 'content': 'a'}], max_new_tokens=9)",
    "decode": f"model = ivlite.load('demo')\n{PICTURE}def work(model=model):\n    while True: model.encode_vision(model.prepare(asked))",
    "verify": "from ivlite.quantize import check, verify\ndef work():\n    while True: verify('demo')",
    "waiting": """
pool = _C.ThreadPool(2)
threading.Thread(target=attend, args=(1 << 14,), kwargs={"pool": pool}, daemon=True).start()
def work():
    attend(512, pool=pool)""",
}


def test_answers_while_the_interpreter_exits(program):
    text = f"""
import atexit
{PICTURE}
model = ivlite.load('demo')
whole = model.chat(asked, max_new_tokens=4, temperature=0).text
@atexit.register
def work():
    assert model.chat(asked, max_new_tokens=4, temperature=0).text == whole
    from ivlite.quantize import verify
    assert verify('demo').ok
    print('done')
"""
    assert program(text) == (0, "done\n", "")


GIVEN_UP = "model = pool = None; sys.exit(5)"  # for work that has one; it goes on with its own reference


@pytest.mark.parametrize(
    "end, name",
    [("sys.exit(5)", name) for name in WORK]
    + [(GIVEN_UP, name) for name, text in WORK.items() if "model =" in text or "pool =" in text],
)
def test_the_end_while_daemons_work(program, name, end):
    """A program ends with its own exit code, at moments of every kind."""
    for delay in (0, 0.003, 0.02, 0.1, 0.3):
        text = (
            WORK[name]
            + f"""
threading.Thread(target=work, daemon=True).start()
threading.Thread(target=work, daemon=True).start()
time.sleep({delay})
{end}
"""
        )
        code, out, err = program(text)
        assert (code, out, err) == (5, "", ""), delay
