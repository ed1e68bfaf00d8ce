"""Answers for the tests of what becomes of them."""

from ivlite.agent.answer import (
    Answer,
    Call,
    Claim,
    Evidence,
    Look,
    Remark,
    Result,
    Said,
    Thought,
    Video,
)  # fmt: skip

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title><svg onload=alert(1)>",
    "<!--", "]]>", "&lt;b&gt;", "{\\an8}<font size=90>", "a --> b\n\n00:00:00.000 --> 00:00:09.000\nforged",
    "\x00\x07\x1b[31m", "\u202egnp.exe", "\ud800", "javascript:alert(1)", "=;#\\\n[CHAPTER]", "🎬 été 夏", "x" * 20_000,
)  # fmt: skip


def answer(path="film.mp4", duration=100.0, text="It begins here [E2], and ends there [E3, E4].", says=(), **more):
    """An answer about one video. says: texts that stand wherever a text can."""
    said = iter([*says, *[""] * 40])
    evidence = (
        Evidence("E1", "v1", 0.0, duration, "frames", tuple(duration * i / 10 for i in range(10)), f"all of it {next(said)}"),
        Evidence("E2", "v1", 0.2 * duration, 0.3 * duration, "frames", (0.2 * duration, 0.252 * duration, 0.3 * duration), f"a start {next(said)}"),
        Evidence("E3", "v1", 0.62 * duration, 0.64 * duration, "text", (), f"words {next(said)}", 0.83),
        Evidence("E4", "v1", 0.8 * duration, 0.8 * duration, "frames", (0.8 * duration,), f"an end {next(said)}"),
        Evidence("E5", "v1", 0.9 * duration, 0.95 * duration, "note", (), f"a note {next(said)}"),
    )  # fmt: skip
    claims = (
        Claim(f"It begins. {next(said)}", ("E2",), True, 0.97),
        Claim(f"It is said [E3]. {next(said)}", ("E3", "E4"), None),
        Claim(f"It is blue. {next(said)}", ("E4",), False, 0.12),
    )
    given = {
        "text": f"{text} {next(said)}", "claims": claims, "evidence": evidence, "confidence": "mid",
        "looked_at": (Look("v1", 0.0, duration, 10, duration / 10), Look("v1", 0.2 * duration, 0.3 * duration, 3, duration / 20)),
        "missing": f"who said it {next(said)}",
        "steps": (
            Thought(f"Where? {next(said)}"), Call(1, f"watch{next(said)}", {"question": next(said)}), Result(1, f"frames {next(said)}"),
            Remark(f"folded {next(said)}"), Said(claims[0]),
        ),
        "usage": {"rounds": 3, "seconds": 12.34, f"more{next(said)}": next(said)},
        "videos": (Video("v1", str(path), duration, f"film{next(said)}.mp4"),),
    }  # fmt: skip
    return Answer(**given | more)
