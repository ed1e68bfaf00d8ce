"""`ivlite serve` beside `llama-server`: several streams, a short question while a long prompt is in prefill, a second question.

    python benchmarks/streams.py --llama-server build/llama/bin/llama-server     # both, in turn, in one run
    python benchmarks/streams.py                                                 # ivlite alone

Both serve random weights of the 8B shape with one small vocabulary (`rivals.py`: what llama.cpp gets), written once
into --folder: 11 GB of disk, and of memory while both are up. They always say the likeliest token, at a temperature just above 0: at 0 ivlite
guesses tokens of texts that repeat themselves. Both are asked over HTTP with the same requests, one side after the other in each
round and the first one in turn; what counts is the median over rounds of the ratio. llama-server runs with as many slots as streams and
with the same threads. Building it, from the sources that llama-cpp-python ships (10 minutes on two cores):

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B build/llama -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \\
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
    cmake --build build/llama --target llama-server

*Streams*: tokens per second of all together, from the first token of the last one to the last token of the first one to end.
*A short question*: seconds until its first token, idle and while a prompt of --long tokens is in prefill for somebody else.
*A second question*: about a prompt of --film tokens that was asked about before.
"""

import argparse
import http.client
import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack, contextmanager

STREAMS = (1, 2, 4, 8)
WORD = " video"  # a token of the small vocabulary


class Answer:
    """A streamed answer: when its first and its last piece came, and how many tokens it has. close() leaves it."""

    def __init__(self, url, question, new, **more):
        at = urllib.parse.urlsplit(url)
        self.first = self.last = self.tokens = 0
        self.connection = http.client.HTTPConnection(at.hostname, at.port, timeout=3600)
        body = {
            "messages": [{"role": "user", "content": question}], "max_tokens": new, "temperature": 0.01, "stream": True,
            "stream_options": {"include_usage": True}, "cache_prompt": True, "ignore_eos": True, **more,
        }  # fmt: skip
        self.began = time.perf_counter()
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})

    def read(self):
        """Waits for the whole answer; returns itself."""
        response = self.connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"status {response.status}: {response.read(500)}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("choices") and any(
                chunk["choices"][0]["delta"].get(k) for k in ("content", "reasoning_content")
            ):
                self.last = time.perf_counter()
                self.first = self.first or self.last
            if chunk.get("usage"):
                self.tokens = chunk["usage"]["completion_tokens"]
        return self

    def close(self):
        if self.connection.sock is not None:
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    @property
    def wait(self):
        """Seconds until the first piece."""
        if not self.first:
            raise SystemExit("an answer has no text")
        return self.first - self.began


def together(url, count, new, seed):
    """Tokens per second of so many answers, while all of them are being written."""
    answers = [Answer(url, f"{seed} {n}{WORD * 20}", new, seed=seed + n) for n in range(count)]
    threads = [threading.Thread(target=answer.read) for answer in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # the first piece is one token or a few that make a character: the rates are those of all others
    rates = [(a.tokens - 1) / max(1e-6, a.last - a.first) for a in answers]
    if max(a.first for a in answers) < min(a.last for a in answers):
        return sum(rates)
    print("answers were not written together: raise --new", file=sys.stderr)
    return statistics.median(rates)


def short(url, seed):
    return Answer(url, f"{seed}{WORD * 12}", 2, seed=seed).read().wait


def beside(url, long, seed, questions=3):
    """Seconds until the first token of short questions, while a long prompt of somebody else is in prefill."""
    film = Answer(url, f"film {seed}{WORD * long}", 1)
    ended = threading.Event()

    def wait():
        try:
            film.read()
            ended.set()
        except (OSError, http.client.HTTPException):
            pass  # it was left

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)
    waits = []
    while len(waits) < questions and not ended.is_set():
        waits.append(short(url, seed + len(waits)))
        if ended.is_set() and len(waits) > 1:
            waits.pop()  # its end was not beside the prefill
    film.close()
    thread.join()
    return statistics.median(waits) if waits else float("nan")


def second(url, film, seed):
    """(seconds until the first token of a question about a long prompt, and of the next one)."""
    text = f"{seed}{WORD * film}"
    return tuple(Answer(url, f"{text} {question}", 2).read().wait for question in ("Who is it?", "And what is next?"))


# ------------------------------------------------------------------------------------------------ the servers


@contextmanager
def ivlite_server(model, threads, context):
    command = [
        sys.executable,
        "-m",
        "ivlite",
        "serve",
        model,
        "--port",
        "0",
        "--quiet",
        "--no-store",
        "--context",
        str(context),
    ]
    process = subprocess.Popen([*command, "--threads", str(threads)], stdout=subprocess.PIPE, text=True)
    try:
        found = re.search(r"(http://\S+)/v1", process.stdout.readline())
        if not found:
            raise SystemExit("ivlite serve does not begin")
        yield found[1]
    finally:
        process.kill()
        process.communicate()


@contextmanager
def llama_server(program, model, threads, context):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = ["-c", str(context * max(STREAMS)), "-np", str(max(STREAMS)), "-t", str(threads), "-tb", str(threads)]
    command = [program, "-m", model, "--host", "127.0.0.1", "--port", str(port), "-fa", "on", "--log-disable", *size]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        while process.poll() is None:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        else:
            raise SystemExit("llama-server does not begin")
        yield url
    finally:
        process.kill()
        process.wait()


def servers(args, held):
    """{name: url}, each side's server."""
    from ivlite import _C

    threads = args.threads or _C.num_threads()
    context = max(args.long, args.film) + 2 * args.new + 512
    from clip import write_model
    from rivals import once, written
    from versus import RIVAL

    ours = once(args.folder, f"random-{args.size}-{args.type}.gguf", write_model, args.type, args.size)
    found = {"ivlite": held.enter_context(ivlite_server(ours, threads, context))}
    if args.llama_server:
        theirs = written(args.folder, RIVAL[args.type])
        found["llama-server"] = held.enter_context(llama_server(args.llama_server, theirs, threads, context))
    return found


# ------------------------------------------------------------------------------------------------ what is shown


def measured(url, args, seed):
    """{what: number} of one round; of streams tokens per second, of the others seconds."""
    found = {f"{n} streams, tokens/s": together(url, n, args.new, 1000 * seed + 10 * n) for n in STREAMS}
    found["a short question alone, s"] = short(url, 1000 * seed + 100)
    found[f"beside a prefill of {args.long:,}, s"] = beside(url, args.long, 1000 * seed + 200)
    found[f"a question about {args.film:,} tokens, s"], found["the second about them, s"] = second(
        url, args.film, 1000 * seed + 300
    )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", metavar="PROGRAM")
    parser.add_argument(
        "--size", choices=("8b", "4b", "tiny"), default="8b", help="of ivlite's model; llama.cpp's is 8b"
    )
    parser.add_argument("--type", choices=("q4_0", "q4_k_s", "q4_k_m"), default="q4_k_m")
    parser.add_argument("--folder", default="build")
    parser.add_argument("--new", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--long", type=int, default=8000, help="tokens of the prompt that is in prefill")
    parser.add_argument("--film", type=int, default=2000, help="tokens of the prompt that is asked about twice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    with ExitStack() as held:
        urls = servers(args, held)
        rounds = []
        for url in urls.values():  # pages touched
            short(url, 1)
        for r in range(args.rounds):
            names = list(urls) if r % 2 == 0 else list(urls)[::-1]
            rounds.append({name: measured(urls[name], args, r + 1) for name in names})
            print(f"round {r + 1}: {json.dumps(rounds[-1])}", flush=True)
    show(rounds, list(urls))


def show(rounds, names):
    """Medians, and the median ratio: of rates ours to theirs, of seconds theirs to ours."""
    one = {name: statistics.median(r[name]["1 streams, tokens/s"] for r in rounds) for name in names}
    for what in rounds[0][names[0]]:
        values = {name: statistics.median(r[name][what] for r in rounds) for name in names}
        line = f"{what:<36}" + "".join(f"{name} {value:8.3f}  " for name, value in values.items())
        if what.endswith("tokens/s"):
            line += f"ivlite / one stream {values['ivlite'] / one['ivlite']:.2f}  "
        if len(names) > 1:
            pairs = [(r["ivlite"][what], r["llama-server"][what]) for r in rounds]
            ratio = statistics.median(a / b if what.endswith("tokens/s") else b / a for a, b in pairs)
            line += f"{ratio:.2f} x llama-server"
        print(line.rstrip())


if __name__ == "__main__":
    main()
