"""Training batches: many questions about one clip in one sequence, each of which sees the clip and itself only."""

import json

import numpy as np
import questions
import world
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ivlite.agent.tools import ZOOM
from ivlite.prompt import TOOLS_AFTER, TOOLS_BEFORE

SPECIAL = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
    <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>""".split()
KEPT = """<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
    <tool_response> </tool_response> <think> </think>""".split()
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 1024
TOOLS = f"{TOOLS_BEFORE}\n{json.dumps(ZOOM, ensure_ascii=False)}{TOOLS_AFTER}"
CALL = '<tool_call>\n{"name": "zoom", "arguments": {"start": START, "end": END}}\n</tool_call>'
# Texts around questions and answers: the tokens of these, too, are those that were learnt.
FRAMING = [
    TOOLS,
    "user\n",
    "assistant\n",
    "system\n",
    "\n",
    "<think>\n",
    ".\n</think>\n\n",
    "<0.5 seconds>",
    "\n<tool_response>\n",
]
LENGTH = 320  # tokens of a training sequence
LONG = 512  # of one with tools
SHORT = 128  # of one about a picture or a single pair of frames
IGNORE = -100
UNHEARD = 2  # words, at most, that would make one place of an answer a held-out combination


def new_tokenizer():
    """Byte-level BPE over what the world says, with the added tokens of the released tokenizer."""
    rng, texts = np.random.default_rng(7), ["user assistant system tool seconds\n", TOOLS] * 500
    for i in range(4000):
        scene = world.new_picture(rng) if i % 4 == 0 else world.new_video(rng)
        texts += [" ".join(questions.ask(rng, scene, bool(i % 2))[1:]), " ".join(questions.chat(rng, bool(i % 2))[1:])]
        texts.append(questions.thought(scene))
        if i % 8 == 1:
            texts.append(" {} {} {} {}".format(*questions.between(rng, world.new_zoomable(rng), True)) + CALL)
    t = Tokenizer(models.BPE())
    t.normalizer, t.decoder = normalizers.NFC(), decoders.ByteLevel()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), level])
    size = VOCABULARY - len(SPECIAL) - len(KEPT)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIAL])
    t.add_tokens([AddedToken(s, normalized=False, special=False) for s in KEPT])
    return t


def texts(rng, count=400):
    """What is said and read in the stages before the agent's: every wording, and answers to questions about `count` scenes."""
    words = {
        "m": "video clip picture image",
        "o": "first last",
        "s": "circle",
        "c": "red",
        "n": "red circle",
        "a": 1,
        "b": 2,
    }
    out = [*FRAMING]
    for seen, unseen in questions.WORDINGS.values():
        out += [
            (f"{b}{core}{a}").format(**words)
            for core in seen + unseen
            for b in questions.BEFORE
            for a in questions.AFTER
        ]
    for seen, unseen, answer in questions.TEXT:
        out += [*seen, *unseen, answer]
    for i in range(count):
        scene = world.new_picture(rng) if i % 4 == 0 else world.new_video(rng)
        out += [questions.ask(rng, scene, bool(i % 2))[2], questions.thought(scene)]
    for color in world.COLORS:
        out += [f" a {color} {shape} The {color} {shape}, A {color} {shape}" for shape in world.SHAPES]
    return out + [CALL]


class Speaker:
    """Token ids of texts, remembered; control tokens in a text are tokens here, since all texts are our own."""

    def __init__(self, tokenizer):
        self.tokenizer, self.known = tokenizer, {}
        self.image_pad, self.video_pad = (tokenizer.token_to_id(f"<|{n}_pad|>") for n in ("image", "video"))
        words = {
            "color": list(world.COLORS),
            "shape": world.SHAPES,
            "way": world.MOTIONS[:4],
            "verb": ["moves", "stays"],
        }
        self.words = {}  # token id -> what kind of word it is, and the word
        for kind, listed in words.items():
            for word in listed:
                (i,) = tokenizer.encode(f" {word}", add_special_tokens=False).ids
                self.words[i] = kind, word

    def encode(self, text):
        if text not in self.known:
            if len(self.known) > 200000:
                self.known.clear()
            self.known[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.known[text]

    def barred(self, ids, actors):
        """Per token of an answer, UNHEARD ids (-1 for none): words that would tell a held-out combination there.

        Training never shows those, so that a loss over them would teach that they cannot be, and what is said about
        what is new would follow this lesson instead of the picture. They are left out of the softmax.
        """
        of_color, by_name = {a.color: a for a in actors}, {word: i for i, (_, word) in self.words.items()}
        actor, out = None, []
        for i in ids:
            kind, word = self.words.get(i, (None, None))
            actor = of_color.get(word) if kind == "color" else actor
            found = [by_name[w] for w in new_words(kind, actor)] if actor else []
            found = [w for w in found if w != i]
            out.append(found + [-1] * (UNHEARD - len(found)))
        return out


def new_words(kind, actor):
    """The words of a kind with which an actor would be of a held-out combination."""
    color, shape, motion = actor.color, actor.shape, actor.motion
    if kind == "color":
        return [c for c in world.COLORS if world.held_out(c, shape, motion)]
    if kind == "shape":
        return [s for s in world.SHAPES if world.held_out(color, s, motion)]
    if kind == "way":
        return [m for m in world.MOTIONS[:4] if world.held_out(color, shape, m)]
    return ["stays"] if kind == "verb" and world.held_out(color, shape, "still") else []


class Tape:
    """A stretch of token ids and what goes with each: its position, whether it is learnt, whether it is a picture's."""

    def __init__(self, speaker, at=0):
        self.speaker, self.at = speaker, at
        self.ids, self.learnt, self.barred, self.positions, self.seen, self.scenes = [], [], [], [], [], []

    def text(self, text, actors=None):
        """Adds a text; one about actors is an answer, which is to be learnt."""
        ids = self.speaker.encode(text)
        self.ids += ids
        self.learnt += [actors is not None] * len(ids)
        self.barred += self.speaker.barred(ids, actors or [])
        self.positions.append(np.arange(self.at, self.at + len(ids))[None].repeat(3, 0))
        self.at += len(ids)

    def look(self, scene):
        """The tokens of a scene as the prompt has them: marks, and one block of vision tokens per pair of frames."""
        h, w = (s // 32 for s in scene.model_size())
        row, col = np.divmod(np.arange(h * w), w)
        self.scenes.append(scene)
        for mark in scene.marks or [None]:
            self.text((f"<{mark} seconds>" if mark else "") + "<|vision_start|>")
            self.seen += range(len(self.ids), len(self.ids) + h * w)
            self.ids += [self.speaker.video_pad if scene.is_video else self.speaker.image_pad] * (h * w)
            self.learnt += [False] * (h * w)
            self.barred += [[-1] * UNHEARD] * (h * w)
            self.positions.append(np.stack([row * 0, row, col]) + self.at)
            self.at += max(h, w)
            self.text("<|vision_end|>")

    def ask(self, actors, question, answer, thought=None):
        self.text(f"{question}<|im_end|>\n<|im_start|>assistant\n")
        if thought:
            self.text("<think>\n")
            answer = f"{thought}\n</think>\n\n{answer}"
        self.text(f"{answer}<|im_end|>", actors)

    def targets(self):
        """What follows each token, where that is learnt."""
        return [i if learn else IGNORE for i, learn in zip(self.ids[1:], self.learnt[1:], strict=True)] + [IGNORE]


def sequence(rng, speaker, scene, length, test=False):
    """One packed sequence of a scene (None: no picture) and as many conversations about it as fit, as a dict.

    ids, targets, segment (length,), positions (3, length), barred (length, UNHEARD), as targets; seen: indexes of vision tokens; scenes: in their order;
    kinds: (segment, kind). Segment 0 is what everything sees; each further one sees itself too; -1 is padding.
    """
    base = Tape(speaker)
    if scene is not None and scene.zoom:
        base.text(f"<|im_start|>system\n{TOOLS}<|im_end|>\n")
    base.text("<|im_start|>user\n")
    if scene is not None:
        base.look(scene)
    out = {k: [] for k in ("ids", "targets", "segment", "barred", "positions", "seen", "scenes", "kinds")}
    put(out, base, 0)
    number, misses = 1, 0
    while misses < 3:
        tape = Tape(speaker, base.at)
        kind = converse(rng, tape, scene, test, zoom=scene is not None and scene.zoom and number == 1)
        if len(out["ids"]) + len(tape.ids) > length:
            misses += 1
            continue
        put(out, tape, number)
        out["kinds"].append((number, kind))
        number += 1
    left = length - len(out["ids"])
    out["positions"] = np.pad(np.concatenate(out["positions"], 1), ((0, 0), (0, left)))
    for key, blank in (("ids", 0), ("targets", IGNORE), ("segment", -1), ("barred", [-1] * UNHEARD)):
        out[key] += [blank] * left
    return out


def put(out, tape, number):
    out["seen"] += [len(out["ids"]) + i for i in tape.seen]
    out["scenes"] += tape.scenes
    out["ids"] += tape.ids
    out["targets"] += tape.targets()
    out["barred"] += tape.barred[1:] + [[-1] * UNHEARD]
    out["segment"] += [number] * len(tape.ids)
    out["positions"] += tape.positions


def converse(rng, tape, scene, test, zoom):
    """Writes one conversation about a scene; returns its kind."""
    if scene is None:
        kind, question, answer = questions.chat(rng, test)
        tape.ask([], question, answer)
        return kind
    if zoom:
        question, start, end, answer = questions.between(rng, scene, test)
        tape.text(f"{question}<|im_end|>\n<|im_start|>assistant\n")
        tape.text(f"{call(start, end)}<|im_end|>", [])
        tape.text("\n<|im_start|>user\n<tool_response>\n")
        tape.look(scene.zoom)
        tape.text("\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
        tape.text(f"{answer}<|im_end|>", scene.zoom.actors)
        return "zoom"
    kind, question, answer = questions.ask(rng, scene, test)
    if rng.random() < 0.1 and not scene.glance:
        tape.ask(scene.actors, question, answer, questions.thought(scene))
        return "think"
    tape.ask(scene.actors, question, answer)
    if not test and rng.random() < 0.1:  # a second question in the same conversation
        tape.text("\n<|im_start|>user\n")
        tape.ask(scene.actors, *questions.ask(rng, scene)[1:])
    return kind


def call(start, end):
    """The text of a call of the zoom tool."""
    return CALL.replace("START", str(start)).replace("END", str(end))


def labels(scene):
    """What the probe and the hint should see in a scene: `answers` of its pairs of frames."""
    times = scene.times if len(scene.times) % 2 == 0 else np.append(scene.times, scene.times[-1:])
    h, w = (s // 32 for s in scene.model_size())
    return answers(times.reshape(-1, 2), scene.marks, (h, w), scene.aspect, scene.actors)


def answers(pairs, marks, size, aspect, actors):
    """What the probe and the hint should see in pairs of frames: int (tokens, 9) of colour, shape, motion (0 is nothing), the
    tens, ones and tenths of the time mark, whether a shape appears here, and the fifths at which a box around it (around
    its sign, if it has one) begins, across and down. IGNORE where that is not known.

    pairs: (P, 2) seconds; marks: P time marks, or none; size: (h, w) in tokens.
    """
    h, w = size
    out = np.zeros((len(pairs), h, w, 9), np.int64)
    out[..., 3:] = IGNORE
    for p, mark in enumerate(marks):
        tenths = round(10 * float(mark))
        out[p, ..., 3:6] = tenths // 100 % 10 if tenths >= 100 else 10, tenths // 10 % 10, tenths % 10
    wide, high = max(1.0, aspect), max(1.0, 1 / aspect)
    placed = []
    for a in actors:
        names = (1 + list(world.COLORS).index(a.color), 1 + world.SHAPES.index(a.shape))
        seen = np.flatnonzero(((pairs >= a.shown[0]) & (pairs < a.shown[1])).any(1))
        for p in seen:
            visible = [t for t in pairs[p] if a.shown[0] <= t < a.shown[1]]
            x, y = a.at(np.array(visible))
            far = 1.1 * a.radius + (max(map(abs, world.to_sign(a))) if a.sign else 0)
            reach = far / wide, far / high
            left, right = int(max(0, (x.min() - reach[0]) * w)), int(min(w - 1e-6, (x.max() + reach[0]) * w))
            top, bottom = int(max(0, (y.min() - reach[1]) * h)), int(min(h - 1e-6, (y.max() + reach[1]) * h))
            out[p, top : bottom + 1, left : right + 1, :3] = IGNORE
            motion = 1 + min(world.MOTIONS.index(a.motion), 4) if len(visible) == 2 else IGNORE
            box = corner(a, x.mean(), y.mean(), wide, high)
            placed.append(((p, int(y.mean() * h), int(x.mean() * w)), (*names, motion), int(p == seen[0]), box))
    for cell, seen, first, box in placed:
        out[(*cell, slice(0, 3))], out[(*cell, slice(7, 9))] = seen, box
        out[(*cell, 6)] = first if marks else IGNORE
    return out.reshape(-1, 9)


def corner(actor, x, y, wide, high):
    """(across, down) in fifths of a frame: the corner of the box of two fifths around an actor at (x, y), or around its sign."""
    return tuple(min(3, max(0, round((v - 0.2) / 0.2))) for v in place(actor, x, y, wide, high))


def place(actor, x, y, wide, high):
    """(x, y) of the sign of an actor at (x, y), or of the actor itself where it has none."""
    dx, dy = world.to_sign(actor) if actor.sign else (0.0, 0.0)
    return x + dx / wide, y + dy / high


def batch(rng, speaker, size, stage, test=False):
    """`size` sequences whose frames have one size, as a dict of arrays. stage 0..1 goes from easy to everything."""
    aspect = float(rng.choice([1.0, 1.0, 4 / 3, 16 / 9, 3 / 4, 9 / 16, 3 / 2]))
    tools = stage >= 0.9 and rng.random() < 0.15
    length, size = (LONG, max(1, size * LENGTH // LONG * 2 // 3)) if tools else (LENGTH, size)
    rows = []
    for _ in range(size):
        roll, scene = rng.random(), None
        if tools:
            scene = of_shape(rng, aspect, world.new_zoomable, test)
        elif roll > 0.025:
            still, most = roll < 0.2 + 0.3 * (1 - stage), 1 + int(rng.random() < 1.5 * stage) * 3
            new = world.new_picture if still else world.new_video
            scene = of_shape(rng, aspect, new, test, most=most if still else min(3, most))
        rows.append(sequence(rng, speaker, scene, length, test))
    return packed(rng, rows, length)


def packed(rng, rows, length):
    """Sequences of one length and one size of frames as a dict of arrays."""
    scenes = [s for r in rows for s in r["scenes"]]
    out = {key: np.array([r[key] for r in rows]) for key in ("ids", "targets", "segment", "barred")}
    return out | {
        "positions": np.stack([r["positions"] for r in rows], 1),
        "at": np.array([b * length + i for b, r in enumerate(rows) for i in r["seen"]]),
        "frames": np.concatenate([world.model_frames(rng, s) for s in scenes]),
        "labels": np.concatenate([labels(s) for s in scenes]),
        "kinds": [(b, number, kind) for b, r in enumerate(rows) for number, kind in r["kinds"]],
    }


def naming(rng, speaker, size):
    """A batch about pictures and single pairs of frames: what is what, without the course of time."""
    aspect = float(rng.choice(world.ASPECTS))
    news = [world.new_picture if rng.random() < 0.5 else world.new_glance for _ in range(size)]
    return packed(rng, [sequence(rng, speaker, of_shape(rng, aspect, new), SHORT) for new in news], SHORT)


def glance(rng, size):
    """Frames and labels of `size` scenes of one shape, for the tower alone."""
    aspect = float(rng.choice(world.ASPECTS))
    scenes = [of_shape(rng, aspect, world.new_glance) for _ in range(size)]
    frames = np.concatenate([world.model_frames(rng, s) for s in scenes])
    return {"frames": frames, "labels": np.concatenate([labels(s) for s in scenes])}


def of_shape(rng, aspect, new, test=False, **more):
    """A scene with frames of the model's size for that aspect."""
    while True:
        scene = new(rng, test=test, **more)
        if (scene.aspect > 1) - (scene.aspect < 1) == (aspect > 1) - (aspect < 1):
            return scene
