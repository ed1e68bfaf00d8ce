"""Output of an answer: streamed text, the closing line, the JSON object."""

import sys

from ivlite.cli import json_line, say
from ivlite.cli.progress import capable
from ivlite.cli.progress import seconds as clock
from ivlite.machine import gigabytes, peak_memory

WORTH_SAYING = 10  # seconds of waiting that are compared with the plan
STAGES = ("load", "decode", "vision", "prefill", "generate")


THINKING = {True: ("\x1b[2m", "\x1b[0m\n\n", "\x1b[0m"), False: ("[thinking]\n", "\n\n[answer]\n", "")}


class Screen:
    """Prints the deltas of an answer to `out`. Thinking is dimmed on a terminal; otherwise it goes to `aside`, if given.

    A call of a tool is a line of JSON.
    """

    def __init__(self, out, aside=None):
        self.out, self.aside = out, aside
        self.tty = out.isatty()
        self.begin, self.between, self.reset = THINKING[capable(out)]  # what is printed around the thinking
        self.dim = False
        self.open_line = False

    def __call__(self, delta):
        if delta.thinking and not self.tty:
            if self.aside:
                print(delta.text, end="", file=self.aside, flush=True)
            return
        text = delta.text
        if delta.call is not None:
            text = (
                "\n" * self.open_line + json_line({"name": delta.call.name, "arguments": delta.call.arguments}) + "\n"
            )
        if self.tty:  # a model can be talked into printing escape sequences; a terminal must not obey them
            text = "".join(c for c in text if c.isprintable() or c in "\n\t")
        if delta.thinking != self.dim:
            text = (self.begin if delta.thinking else self.between) + text
            self.dim = delta.thinking
        if text:
            self.open_line = not text.endswith("\n")
        self.write(text)

    def write(self, text):
        self.out.write(text)
        self.out.flush()

    def end(self):
        """Resets the dimming and ends the line."""
        self.write((self.reset if self.dim else "") + ("\n" if self.open_line else ""))
        self.dim = self.open_line = False


def show(model, stream, args, progress, text=True):
    """Shows an answer as it is made, with its warnings, and with what --verbose tells. text: print the answer itself."""
    warned = list(stream.reply.warnings)  # what was found when the files were opened is said before the answer
    plan = stream.prompt.plan
    if progress:
        progress.clear()
        progress.expect(plan)
    for warning in warned:
        say("warning", warning)
    if plan.videos and not args.quiet:
        say("plan", plan.line())
    if args.verbose:
        for line in description(model, stream.prompt):
            say("note", line)
    with stream:
        _stream(stream, Screen(sys.stdout, sys.stderr if args.verbose else None), progress, text)
    for warning in stream.reply.warnings:
        if warning not in warned:
            say("warning", warning)
    if stream.reply.unfinished and stream.reply.finish_reason == "length":
        say("warning", "the answer ends within a call, which is left out: raise --max-new-tokens")
    if args.verbose and (drafted := stream.reply.usage["draft_tokens"]):
        say("note", f"{stream.reply.usage['accepted_tokens']:,} of {drafted:,} drafted tokens were accepted")


def _stream(stream, screen, progress, text):
    try:
        for delta in stream:
            if progress:
                progress.clear()
            if text:
                screen(delta)
    finally:
        if progress:
            progress.clear()
        screen.end()


def media_info(prompt):
    """The media of a prompt (frames, sizes, timestamps, warnings) as plain data."""
    out = []
    for index, medium in enumerate(prompt.media):
        out.append(
            {
                "kind": medium.kind,
                "source": str(medium.source),
                "duration": medium.duration,
                "frames": len(medium.frames) if medium.kind == "video" else 1,
                "size": [int(n) for n in medium.size],
                "grid": [int(n) for n in medium.grid],
                "tokens": sum(count for owner, _, count in prompt.spans if owner == index),
                "timestamps": [round(float(t), 3) for t in medium.timestamps],
            }
        )
    return out


def description(model, prompt):
    """Sentences for --verbose: each medium with its first time marks, and the machine's share."""
    for info in media_info(prompt):
        height, width = info["size"]
        marks = ", ".join(f"{t:.1f}" for t in info["timestamps"][:4])
        more = " ..." if len(info["timestamps"]) > 4 else ""
        at = f", time marks {marks}{more} seconds" if marks else ""
        frames = f"{info['frames']} frame{'s' if info['frames'] > 1 else ''} of {width}x{height}"
        yield f"{info['kind']} {info['source']}: {frames}, {info['tokens']} tokens{at}"
    yield f"{len(prompt.token_ids):,} prompt tokens, {model.threads} threads, {model.kv} cache"


def rates(reply):
    """Tokens per second of prefill (of those computed) and of generation, 0 if not timed."""
    usage, spent = reply.usage, reply.timings
    steps = usage["new_tokens"] - (
        reply.finish_reason not in ("stop", "tool_calls")
    )  # the last token was not run through the model
    generation = steps / spent["generate"] if steps > 0 and spent["generate"] > 0 else 0.0
    computed = usage["prompt_tokens"] - usage["cached_tokens"]
    prefill = computed / spent["prefill"] if spent["prefill"] > 0 else 0.0
    return prefill, generation


def as_json(model, prompt, reply):
    """The reply as the one JSON object that --json prints. model, prompt: None where a Stop came before them."""
    prefill, generation = rates(reply)
    data = {
        "text": reply.text,
        "thinking": reply.thinking,
        "tool_calls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in reply.tool_calls],
        "unfinished": reply.unfinished,
        "token_ids": [int(t) for t in reply.token_ids],
        "finish_reason": reply.finish_reason,
        "usage": {name: int(count) for name, count in reply.usage.items()},
        "timings": {name: round(value, 6) for name, value in reply.timings.items()},
        "tokens_per_second": {"prefill": round(prefill, 3), "generate": round(generation, 3)},
        "peak_memory": peak_memory(),
        "warnings": reply.warnings,
        "media": media_info(prompt) if prompt else [],
        "plan": reply.plan and reply.plan.as_data(),
        "model": model and model_info(model),
    }
    return json_line(data)


def model_info(model):
    """The model that answered, as plain data."""
    return {
        "path": str(model.path),
        "name": model.config.name,
        "weights": model.nbytes,
        "kv": model.kv,
        "context": model.context,
        "threads": model.threads,
        "device": model.device,
    }


def span(seconds):
    """Formats seconds: "2.31 s", "14 ms"."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"


def closing_line(reply, loaded=True, device="cpu"):
    """Counts, seconds of each stage, speed, memory, and a card that computed, in one line.

    loaded: the model was loaded for this answer. device: of the model.
    """
    usage, spent = reply.usage, reply.timings
    frames, vision = usage["frames"], usage["vision_tokens"]
    counts = f"{frames:,} frame{'s' if frames > 1 else ''}, " if frames else ""
    stored = usage["stored_tokens"]
    kinds = ((vision, "vision"), (usage["cached_tokens"] - stored, "reused"), (stored, "from the store"))
    kinds = ", ".join(f"{n:,} {kind}" for n, kind in kinds if n > 0)
    counts += f"{usage['prompt_tokens']:,} prompt tokens" + (f" ({kinds})" if kinds else "")
    ends = {"length": " (the limit)", "repetition": " (it repeats itself without end)"}
    counts += f", {usage['new_tokens']:,} new" + ends.get(reply.finish_reason, "")
    left_out = ("load",) * (not loaded) + ("decode", "vision") * (not frames)
    stages = [name for name in STAGES if name not in left_out]
    stages = ", ".join(f"{name} {span(spent[name])}" for name in stages)
    stages += planned(reply.plan)
    on = f" | {device}" if device.startswith("cuda") else ""
    return f"[{counts} | {stages} | {rates(reply)[1]:.2f} tokens/s | peak {gigabytes(peak_memory())}{on}]"


def planned(plan):
    """What was planned until the first token, beside what it took, where it was long enough to matter; else nothing."""
    from ivlite.plan import WAITED_FOR  # imports numpy

    if plan is None or plan.wait is None or plan.wait < WORTH_SAYING:
        return ""
    took = sum(plan.took["seconds"].get(stage, 0.0) for stage in WAITED_FOR)
    return f", planned {clock(plan.wait)} and took {clock(took)} to the first token"
