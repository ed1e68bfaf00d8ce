"""Loads, answers, encodes, stops, closes and forks in several threads at once: what sanitizers watch. Prints one line.

python tests/tools/stress.py [SECONDS]
"""

import os
import sys
import threading
import time
from pathlib import Path

import ivlite

CLIP = Path(__file__).parents[2] / "examples" / "clip.mp4"
VIDEO = {"type": "video", "video": str(CLIP), "fps": 1, "max_pixels": 4096}
MESSAGES = [{"role": "user", "content": [VIDEO, {"type": "text", "text": "What happens?"}]}]
SANITIZER = os.environ.get("LD_PRELOAD", "")
# AddressSanitizer's allocator holds no lock across a fork, so a child of a process that allocates may wait for ever: there
# forks come after the threads. ThreadSanitizer gives up where a forked child starts threads.
BESIDE, AFTER = not SANITIZER, "libasan" in SANITIZER
SETTINGS = {"max_new_tokens": 4, "temperature": 0}


def answer(shared):
    """The model that the threads share: the same answer whatever the others do."""
    return shared.chat(MESSAGES, **SETTINGS).token_ids


def load(shared):
    """A model of its own with other threads, closed while the others compute."""
    with ivlite.load("demo", threads=1 + int(time.monotonic() * 1000) % 3, context=512) as model:
        return model.chat(MESSAGES, **SETTINGS).token_ids


def encode(shared):
    shared.encode_vision(shared.prepare(MESSAGES))


def stop(shared):
    """An answer that another thread ends."""
    stream = shared.stream(MESSAGES, **SETTINGS | {"max_new_tokens": 200})
    threading.Timer(0.05, stream.close).start()
    for _ in stream:
        pass


def fork(shared):
    """A child that loads a model with another number of threads and answers."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if load(None) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"a forked child ended with {os.waitstatus_to_exitcode(status)}")


def main():
    end = time.monotonic() + float(sys.argv[1] if len(sys.argv) > 1 else 30)
    shared, counts, errors, expected = ivlite.load("demo", threads=2, context=512), {}, [], None
    expected = answer(shared)

    def work(job):
        while time.monotonic() < end and not errors:
            try:
                made = job(shared)
                if job is answer and made != expected:
                    raise AssertionError(f"{made} instead of {expected}")
            except BaseException as error:
                errors.append(error)
            counts[job.__name__] = counts.get(job.__name__, 0) + 1

    jobs = (answer, load, encode, stop, *([fork] if BESIDE else []))
    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(20 if AFTER else 0):
        fork(shared)
    shared.close()
    print(", ".join(f"{count} x {name}" for name, count in sorted(counts.items())))
    if errors:
        raise errors[0]


if __name__ == "__main__":
    main()
