"""`ivlite serve` beside `llama-server`: several streams, a short question while a long prompt is in prefill, a second question.

    python benchmarks/streams.py --llama-server build/llama/bin/llama-server     # both, in turn, in one run
    python benchmarks/streams.py                                                 # ivlite alone

Both serve random weights of the 8B shape with one small vocabulary (`rivals.py`: what llama.cpp gets), written once
into --folder: 11 GB of disk, and 16 GB of memory while both are up. They always say the likeliest token. Both are asked over HTTP
with the same requests, one side after the other in each round and the first one in turn; what counts is the median over rounds of
the ratio. llama-server has as many slots as streams, the same threads, and its best setting (`servers.py`), which is looked for
first, with --tuned-layers layers of the same widths. Building it, from the sources that llama-cpp-python ships (20 minutes of a processor):

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B build/llama -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \\
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
    cmake --build build/llama --target llama-server

*Streams*: tokens per second of all together, from the first token of the last one to the last token of the first one to end.
*A short question*: seconds until its first token, idle and while a prompt of --long tokens is in prefill for somebody else, or
(ivlite alone, llama-server takes no videos) while --frames frames of a video go through the vision tower for somebody else. In
llama-server the long prompt has the last slot and the question the first, which is the best that it can do.
*A second question*: about a prompt of --film tokens that was asked about before, in the first round only.
"""

import argparse
import base64
import http.client
import json
import socket
import statistics
import threading
import time
import urllib.parse
from contextlib import ExitStack
from pathlib import Path

import servers

STREAMS = (1, 2, 4, 8)
WORD = " video"  # a token of the small vocabulary
LAST = servers.SLOTS - 1
WANTED = "wanted: 8 streams 3 x one, every number of streams 1.8 x llama-server, a short question beside a prefill 3 s"


class Answer:
    """A streamed answer: when its pieces came, and how many tokens it has and its prompt had."""

    def __init__(self, side, question, new, **more):
        at = urllib.parse.urlsplit(side.url)
        self.pieces, self.tokens, self.prompt, self.ended = [], 0, 0, 0.0
        self.connection = http.client.HTTPConnection(at.hostname, at.port, timeout=3600)
        body = {
            "messages": [{"role": "user", "content": question}], "max_tokens": new, "stream": True,
            "stream_options": {"include_usage": True}, "cache_prompt": True, "ignore_eos": True, **side.more, **more,
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
                self.pieces.append(time.perf_counter())
            if chunk.get("usage"):
                self.tokens, self.prompt = chunk["usage"]["completion_tokens"], chunk["usage"]["prompt_tokens"]
        self.ended = time.perf_counter()
        return self

    def leave(self):
        """Ends the connection; who reads sees its end."""
        if self.connection.sock is not None:
            self.connection.sock.shutdown(socket.SHUT_RDWR)

    @property
    def wait(self):
        """Seconds until the first piece, until the end where no token has a text."""
        return (self.pieces or [self.ended])[0] - self.began

    def between(self, first, last):
        """Tokens that came after `first` until `last`: a piece is one, or a few that make a character."""
        return sum(first < piece <= last for piece in self.pieces) * self.tokens / len(self.pieces)


def together(side, count, new, seed, tries=5):
    """Tokens per second of so many answers, while all of them are being written; of longer ones where the first ended too early."""
    answers = [Answer(side, f"{seed + n}{WORD * 4}", new, seed=seed + n) for n in range(count)]
    threads = [threading.Thread(target=answer.read) for answer in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(answer.pieces for answer in answers):
        raise SystemExit("an answer has no text")
    first, last = max(a.pieces[0] for a in answers), min(a.pieces[-1] for a in answers)
    if first >= last:
        if not tries:
            raise SystemExit("answers were not written together: raise --new")
        return together(side, count, 2 * new, seed, tries - 1)
    return sum(answer.between(first, last) for answer in answers) / (last - first)


def short(side, seed):
    return Answer(side, f"{seed}{WORD * 12}", 2, seed=seed, **side.at(0)).read().wait


def beside(side, film, seed, questions):
    """Seconds until the first token of short questions, while somebody else's long question, an Answer, is being read."""
    ended = threading.Event()

    def wait():
        try:
            film.read()
            ended.set()
        except (OSError, ValueError, http.client.HTTPException):
            pass  # it was left

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(1)
    waits = []
    while len(waits) < questions and not ended.is_set():
        waits.append(short(side, seed + len(waits)))
        if ended.is_set() and len(waits) > 1:
            waits.pop()  # its end was not beside the prefill
    film.leave()
    thread.join()
    film.connection.close()
    Answer(side, WORD, 1).read()  # the step that was under way has ended
    return statistics.median(waits) if waits else float("nan")


def prefill(side, long, seed, questions=3):
    return beside(side, Answer(side, f"film {seed}{WORD * long}", 1, **side.at(LAST)), seed, questions)


def vision(side, video, frames, seed):
    url = "data:video/mp4;base64," + base64.b64encode(Path(video).read_bytes()).decode()
    part = {"type": "video_url", "video_url": {"url": url, "nframes": frames}}
    return beside(side, Answer(side, [part, {"type": "text", "text": f"film {seed}?"}], 1), seed, 3)


def second(side, film, seed):
    """(seconds until the first token of a question about a long prompt, and of the next one)."""
    text = f"{seed}{WORD * film}"
    return tuple(Answer(side, f"{text} {question}", 2).read().wait for question in ("Who is it?", "And what is next?"))


# ------------------------------------------------------------------------------------------------ a run


def ivlite_model(args):
    """The path of ivlite's random model, with --layers text layers."""
    from clip import write_model
    from rivals import once

    from ivlite.evaluate.synthetic import SIZES

    size = args.size
    if args.layers:
        size, shape = f"{size}-{args.layers}-layers", SIZES[size]
        SIZES[size] = (shape[0], args.layers, *shape[2:])
    return once(args.folder, f"random-{size}-{args.type}.gguf", write_model, args.type, size)


def rates(side):
    """{what: a rate} of a setting of llama-server's."""
    prompt = Answer(side, f"1{WORD * 128}", 2, **side.at(1)).read()
    return {
        "prefill, tokens/s": prompt.prompt / prompt.wait,
        **{f"{n} streams, tokens/s": together(side, n, 12, 10 * n) for n in (STREAMS[0], STREAMS[-1])},
        "short questions beside a prefill, 1/s": 1 / prefill(side, 1000, 200, 1),
    }


def started(args, held):
    """{name: Side}, each side's server."""
    from rivals import LAYERS, written
    from versus import RIVAL

    from ivlite import _C

    threads, context = args.threads or _C.num_threads(), max(args.long, args.film) + args.new + 512
    found, program = {}, args.llama_server
    ours = ivlite_model(args)
    if program:
        theirs = written(args.folder, RIVAL[args.type], args.layers or LAYERS)
        small = written(args.folder, RIVAL[args.type], args.layers or args.tuned_layers)
        print(f"{servers.version(program)}, {threads} threads; tuned with {Path(small).name}", flush=True)
        best = servers.tuned(program, small, threads, 2048, rates)
        print(f"llama-server runs with {' '.join(servers.options(best))}", flush=True)
        found["llama-server"] = held.enter_context(servers.llama_server(program, theirs, threads, context, best))
        if found["llama-server"] is None:
            raise SystemExit("llama-server does not begin")
    longest = max(context, 128 * args.frames)
    return {"ivlite": held.enter_context(servers.ivlite_server(ours, threads, longest)), **found}


def measured(name, side, args, number):
    """{what: number} of a round; of streams tokens per second, of the others seconds."""
    ours, first, seed = name == "ivlite", number == 1, 1000 * number
    found = {f"{n} streams, tokens/s": together(side, n, args.new, seed + 10 * n) for n in STREAMS}
    found["a short question alone, s"] = short(side, seed + 100)
    if ours or first:
        found[f"beside a prefill of {args.long:,}, s"] = prefill(side, args.long, seed + 200, 3 if ours else 1)
    if ours and args.frames:
        found[f"beside {args.frames} frames in vision, s"] = vision(side, args.video, args.frames, seed + 400)
    if first:
        names = f"a question about {args.film:,} tokens, s", "the second about them, s"
        found |= zip(names, second(side, args.film, seed), strict=True)
    return found


def begin(sides):
    """Pages touched; both sides must read the same tokens."""
    prompts = {name: Answer(side, f"7{WORD * 12}", 2).read().prompt for name, side in sides.items()}
    if len(set(prompts.values())) > 1:
        raise SystemExit(f"not the same tokens read: {prompts}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--llama-server", metavar="PROGRAM")
    add("--size", choices=("8b", "4b", "tiny"), default="8b", help="of ivlite's model; llama.cpp's is 8b")
    add("--layers", type=int, help="so many text layers on both sides, not all of them")
    add(
        "--tuned-layers", type=int, default=4, help="layers of the model that llama-server's setting is looked for with"
    )
    add("--type", choices=("q4_0", "q4_k_s", "q4_k_m"), default="q4_k_m")
    add("--folder", default="build")
    add("--new", type=int, default=32, help="tokens of an answer")
    add("--long", type=int, default=2000, help="tokens of the prompt that is in prefill")
    add("--frames", type=int, default=120, help="frames of a video in vision; 0: leave that out")
    add("--film", type=int, default=500, help="tokens of the prompt that is asked about twice")
    add("--rounds", type=int, default=3)
    add("--minutes", type=float, default=60, help="no round begins that would not end within so many")
    add("--threads", type=int)
    args = parser.parse_args()
    from clip import write_video
    from rivals import once

    args.video = once(args.folder, "clip.mp4", write_video)
    began, rounds, took = time.perf_counter(), [], 0.0
    with ExitStack() as held:
        sides = started(args, held)
        begin(sides)
        while len(rounds) < args.rounds and time.perf_counter() - began + took < 60 * args.minutes:
            names, start = list(sides)[:: -1 if len(rounds) % 2 else 1], time.perf_counter()
            rounds.append({name: measured(name, sides[name], args, len(rounds) + 1) for name in names})
            took = time.perf_counter() - start
            print(f"round {len(rounds)}, {took:.0f} s: {json.dumps(rounds[-1])}", flush=True)
    shape = f"{args.layers or 'all'} layers of {args.size}"
    print(f"{shape}, {args.type}, {len(rounds)} rounds, {time.perf_counter() - began:.0f} s; {WANTED}")
    show(rounds, list(sides))


def show(rounds, names):
    """Medians over rounds, also of ratios: of rates ours to theirs, of seconds theirs to ours."""
    for what in rounds[0]["ivlite"]:
        sides = [name for name in names if what in rounds[0][name]]
        asked = [r for r in rounds if all(what in r[name] for name in sides)]
        line, rate = f"{what:<36}", what.endswith("tokens/s")
        for name in sides:
            line += f"{name} {statistics.median(r[name][what] for r in rounds if what in r[name]):8.3f}  "
        if rate:
            ones = [r["ivlite"][what] / r["ivlite"]["1 streams, tokens/s"] for r in asked]
            line += f"{statistics.median(ones):.2f} x one stream  "
        if len(sides) > 1:
            ratios = [r["ivlite"][what] / r["llama-server"][what] for r in asked]
            line += f"{statistics.median(x if rate else 1 / x for x in ratios):.2f} x llama-server"
        print(line.rstrip())


if __name__ == "__main__":
    main()
