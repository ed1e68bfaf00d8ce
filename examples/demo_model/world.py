"""The demo's synthetic world: coloured shapes that appear, move and vanish; pictures; and questions with true answers.

A scene is described in seconds and in shares of the frame, so that it can be drawn at any size, for training in memory
or into a video file. What is held out for evaluation: one motion of every colour and shape, and phrasings.
"""

from dataclasses import dataclass, field

import numpy as np

COLORS = {
    "red": (222, 38, 38), "green": (35, 170, 55), "blue": (45, 85, 235),
    "yellow": (240, 212, 40), "purple": (165, 55, 205), "white": (244, 244, 244),
}  # fmt: skip
SHAPES = ["circle", "square", "triangle", "cross"]
MOTIONS = ["left", "right", "up", "down", "still", "picture"]  # the last one stands for still images
NUMBERS = ["zero", "one", "two", "three", "four"]
ASPECTS = [1.0, 1.0, 4 / 3, 16 / 9, 3 / 4, 9 / 16, 3 / 2]  # width / height of the source
RATES = [5, 8, 10, 12, 15, 24, 25, 30]
WHOLE = (0.0, 0.0, 1.0, 1.0)
SIGN, BESIDE = 0.036, 0.3  # radius of a sign and its distance from its shape, as shares of the shorter side
INKS = {
    "red": "white",
    "green": "white",
    "purple": "white",
    "blue": "yellow",
    "white": "blue",
    "yellow": "blue",
}  # of signs
FPS, MIN_FRAMES, MAX_FRAMES, MIN_PIXELS, MAX_PIXELS = 2, 4, 16, 4096, 8192  # as in the model's preprocessor files


def held_out(color, shape, motion):
    """Whether training never shows this combination: for every colour and shape it is one of the six motions."""
    at = list(COLORS).index(color) + 2 * SHAPES.index(shape) + MOTIONS.index(motion)
    return at % 6 == 0


# ------------------------------------------------------------------------------------------------ scenes


@dataclass
class Actor:
    """One shape: where it goes (shares of the frame, from -> to) and when it is there (seconds)."""

    color: str
    shape: str
    motion: str
    path: tuple
    radius: float
    start: float = 0.0
    end: float = 1e9
    first: int = 0  # the first frame pair that shows it
    shown: tuple = (-1.0, 1e9)  # seconds between which it is drawn
    sign: str = ""  # a small shape beside it, if any
    tint: np.ndarray = field(default_factory=lambda: np.zeros(3, np.float32))

    @property
    def name(self):
        return f"{self.color} {self.shape}"

    def at(self, t):
        """x and y at times t (F,), each (F,)."""
        (x0, y0), (x1, y1) = self.path
        s = np.clip((t - self.start) / (self.end - self.start), 0, 1)
        return x0 + (x1 - x0) * s, y0 + (y1 - y0) * s


@dataclass
class Scene:
    """A clip or a picture. times: seconds of the frames the model sees; marks: of each pair, as text."""

    aspect: float
    actors: list
    background: dict
    rate: int = 0
    total: int = 1
    begin: int = 0
    times: np.ndarray = field(default_factory=lambda: np.zeros(1))
    marks: list = field(default_factory=list)
    glance: bool = False  # one pair of frames whose shapes have no order
    zoom: object = None  # the Scene of a part between two of the frames, with an actor that only it shows

    @property
    def drawn(self):
        """The actors that a file of the scene shows."""
        return [*self.actors, *(self.zoom.actors if self.zoom else [])]

    @property
    def is_video(self):
        return bool(self.marks)

    def model_size(self):
        """(H, W) at which the model sees it; the rule of ivlite's `fitted` for these shapes."""
        return (64, 64) if self.aspect == 1 else (64, 96) if self.aspect > 1 else (96, 64)


def sampled(total, rate, begin=0):
    """Frame indexes that the runtime takes from frames begin .. total - 1 of a video: int array (n,)."""
    left = total - begin
    n = min(max(int(left / rate * FPS), MIN_FRAMES), MAX_FRAMES, left)
    return begin + np.linspace(0, left - 1, n).round().astype(int)


def new_background(rng):
    base = rng.uniform(40, 150) + rng.uniform(-18, 18, 3)
    return {"base": base, "slope": rng.uniform(-30, 30, 2), "blobs": rng.normal(0, rng.uniform(0, 14), (5, 5, 3))}


def new_actor(rng, motion, lane, taken, test):
    """A shape of a colour that is not yet taken; in the training world, of a combination that is not held out."""
    while True:
        color, shape = str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))
        if color not in taken and (test or not held_out(color, shape, motion)):
            break
    taken.add(color)
    a, b = rng.uniform(0.2, 0.29), rng.uniform(0.71, 0.8)
    c = rng.uniform(0.24, 0.76) if lane is None else (0.26, 0.74)[lane] + rng.uniform(-0.03, 0.03)
    if motion in ("still", "picture"):
        d = rng.uniform(0.22, 0.78)
        path = ((d, c), (d, c))
    else:
        path = {"left": ((b, c), (a, c)), "right": ((a, c), (b, c)), "up": ((c, b), (c, a)), "down": ((c, a), (c, b))}
        path = path[motion]
    tint = rng.normal(0, 7, 3).astype(np.float32)
    return Actor(color, shape, motion, path, rng.uniform(0.19, 0.24), tint=tint)


def windows(rng, n, count, parallel):
    """(first, last + 1) frames of each actor, in order of appearance; the first pairs differ."""
    if parallel:
        a = int(rng.integers(0, max(1, n - 7)))
        b = int(rng.integers(a + 2, max(a + 3, n - 3)))
        return [(a, int(rng.integers(max(a + 4, b + 1), n + 1))), (b, int(rng.integers(min(b + 4, n), n + 1)))]
    spare = n - 3 * count
    cuts = np.sort(rng.integers(0, spare + 1, 2 * count))
    out, used = [], 0
    for k in range(count):
        a = int(cuts[2 * k]) + used
        used += 3
        out.append((a, int(cuts[2 * k + 1]) + used))
    return out


def new_video(rng, test=False, most=3, begin=None, long=False):
    """A clip of 2 to 60 seconds, which may start late in its file, as a Scene. test: with a held-out combination."""
    while True:
        rate = int(rng.choice(RATES))
        seconds = rng.uniform(44, 60) if long else rng.uniform(2, 12) if rng.random() < 0.6 else rng.uniform(2, 60)
        offset = (rng.uniform(0, 60) if rng.random() < 0.3 else 0) if begin is None else begin
        first = int(round(offset * rate))
        total = first + max(4, int(seconds * rate))
        frames = sampled(total, rate, first)
        n = len(frames)
        count = min(int(rng.integers(1, most + 1)), n // 4)
        parallel = count == 2 and n >= 9 and not long and rng.random() < 0.5
        scene = Scene(float(rng.choice(ASPECTS)), [], new_background(rng))
        stage(rng, scene, frames, rate, count, parallel, test)
        scene.rate, scene.total, scene.begin = rate, total, first
        if not test or any(held_out(a.color, a.shape, a.motion) for a in scene.actors):
            return scene


def stage(rng, scene, frames, rate, count, parallel, test):
    """Gives a scene its times, marks and actors."""
    times = frames / rate
    scene.times = times
    scene.marks = marks_of(frames, rate)
    across = rng.random() < 0.5
    lanes = rng.permutation(2) if parallel else [None] * count
    edges = np.concatenate([[-1.0], (times[1:] + times[:-1]) / 2, [1e6]])
    taken = set()
    for (a, b), lane in zip(windows(rng, len(frames), count, parallel), lanes, strict=True):
        moves = MOTIONS[:5] if lane is None else ["left", "right"] if across else ["up", "down"]
        actor = new_actor(rng, str(rng.choice(moves)), None if lane is None else int(lane), taken, test)
        actor.start, actor.end, actor.first = times[a] - 1e-6, times[b - 1] + 1e-6, a // 2
        actor.shown = (edges[a], edges[b])
        scene.actors.append(actor)


def marks_of(frames, rate):
    """The time mark of each pair of frames, as the prompt writes it."""
    padded = np.append(frames, frames[-1:]) if len(frames) % 2 else frames
    return [f"{(a / rate + b / rate) / 2:.1f}" for a, b in padded.reshape(-1, 2)]


def new_zoomable(rng, test=False):
    """A clip of 44 to 60 seconds in which something happens between two of the frames that the model sees."""
    while True:
        scene = new_video(rng, test=False, most=2, begin=0, long=True)
        step = scene.times[1] - scene.times[0]
        gaps = [
            k for k in range(1, len(scene.times) - 2) if not any(shown(a, scene.times[k : k + 2]) for a in scene.actors)
        ]
        if not gaps:
            continue
        t0 = scene.times[gaps[int(rng.integers(len(gaps)))]] + rng.uniform(0.15, step - 1.95)
        t1 = t0 + rng.uniform(1.7, 2.6)
        if not any(scene.times[k] + 0.05 < t0 and t1 < scene.times[k + 1] - 0.05 for k in gaps):
            continue
        start, end = int(t0 - 0.3), int(np.ceil(t1 + 0.3))
        rate = scene.rate
        if start < 1 or end * rate >= scene.total or any(a.shown[0] < end and a.shown[1] > start for a in scene.actors):
            continue
        frames = np.linspace(start * rate, end * rate, FPS * (end - start)).round().astype(int)
        zoom = Scene(scene.aspect, [], scene.background, rate, end * rate + 1, start * rate, frames / rate)
        zoom.marks = marks_of(frames, rate)
        actor = new_actor(rng, str(rng.choice(MOTIONS[:5])), None, {a.color for a in scene.actors}, test)
        actor.start, actor.end, actor.shown = t0, t1, (t0, t1)
        actor.first = next(i for i, t in enumerate(zoom.times) if t >= t0) // 2
        if test and not held_out(actor.color, actor.shape, actor.motion):
            continue
        zoom.actors, scene.zoom = [actor], zoom
        return scene


def shown(actor, times):
    """Whether an actor is to be seen at any of the times."""
    return bool(((times >= actor.shown[0]) & (times < actor.shown[1])).any())


def new_picture(rng, test=False, most=4):
    """A still image of up to four shapes, each in a square of its own, in reading order."""
    while True:
        scene = Scene(float(rng.choice(ASPECTS)), [], new_background(rng))
        h, w = (s // 32 for s in scene.model_size())
        cells = np.sort(rng.permutation(h * w)[: rng.integers(1, most + 1)])
        taken = set()
        for cell in cells:
            actor = new_actor(rng, "picture", None, taken, test)
            x, y = (np.array([cell % w, cell // w]) + 0.5 + rng.uniform(-0.06, 0.06, 2)) / (w, h)
            actor.path, actor.radius = ((x, y), (x, y)), rng.uniform(0.17, 0.22)
            scene.actors.append(actor)
        if not test or any(held_out(a.color, a.shape, "picture") for a in scene.actors):
            return scene


def new_glance(rng, test=False):
    """One pair of frames full of shapes, each on its way: what the vision tower learns from before anything else."""
    start = rng.uniform(0, 60)
    scene = Scene(float(rng.choice(ASPECTS)), [], new_background(rng), glance=True)
    scene.times, scene.marks = np.array([start, start + 0.5]), [f"{start + 0.25:.1f}"]
    wide, high = max(1.0, scene.aspect), max(1.0, 1 / scene.aspect)
    taken, steps = set(), {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
    for at in rng.uniform(0.17, 0.83, (8, 2)):
        others = [np.hypot(*((at - np.mean(a.path, 0)) * (wide, high))) for a in scene.actors]
        if len(others) == 4 or min(others, default=1) < 0.42:
            continue
        actor = new_actor(rng, str(rng.choice(MOTIONS[:5])), None, taken, test)
        half = np.array(steps[actor.motion]) * rng.uniform(0.015, 0.1)
        actor.path, actor.start, actor.end = (tuple(at - half), tuple(at + half)), start, start + 0.5
        scene.actors.append(actor)
    return scene


# ------------------------------------------------------------------------------------------------ drawing


def distance(shape, x, y, r):
    """Signed distance (negative inside) of points from a shape of radius r around 0, y pointing down."""
    ax, ay = np.abs(x), np.abs(y)
    if shape == "circle":
        return np.sqrt(x * x + y * y) - r
    if shape == "square":
        return np.maximum(ax, ay) - 0.85 * r
    if shape == "triangle":
        return np.maximum(y - 0.7 * r, (ax * 1.7 - (y + r) * 1.0) / 1.97)
    return np.minimum(np.maximum(ax - r, ay - 0.32 * r), np.maximum(ay - r, ax - 0.32 * r))


def to_sign(actor):
    """(dx, dy) from the middle of an actor to its sign, across its way and towards the middle of the frame."""
    x, y = actor.path[0]
    if actor.motion in ("left", "right"):
        return 0.0, BESIDE if y < 0.5 else -BESIDE
    return BESIDE if x < 0.5 else -BESIDE, 0.0


def backdrop(background, h, w, box=WHOLE):
    """float32 (h, w, 3)."""
    x0, y0, x1, y1 = box
    v, u = np.linspace(y0, y1, h)[:, None], np.linspace(x0, x1, w)[None]

    def spread(at):  # bilinear weights (n, 5)
        return np.maximum(0, 1 - np.abs(4 * at.reshape(-1, 1) - np.arange(5)))

    blobs = np.einsum("ha,abc,wb->hwc", spread(v), background["blobs"], spread(u), optimize=True)
    slope = background["slope"]
    return (background["base"] + blobs + (slope[0] * v + slope[1] * u)[..., None]).astype(np.float32)


def draw(scene, times, h, w, softness=1.0, box=WHOLE):
    """uint8 (F, h, w, 3): the frames of a scene at times (F,), or a box of them (x0, y0, x1, y1 in shares of the frame)."""
    wide, high = max(1.0, scene.aspect), max(1.0, 1 / scene.aspect)
    out = np.repeat(backdrop(scene.background, h, w, box)[None], len(times), 0)
    x0, y0, x1, y1 = box
    x = ((x0 + (np.arange(w) + 0.5) / w * (x1 - x0)) * wide)[None, None].astype(np.float32)
    y = ((y0 + (np.arange(h) + 0.5) / h * (y1 - y0)) * high)[None, :, None].astype(np.float32)
    edge = softness * (wide * (x1 - x0) / w + high * (y1 - y0) / h) / 2
    for actor in scene.drawn:
        seen = np.flatnonzero((times >= actor.shown[0]) & (times < actor.shown[1]))
        if not len(seen):
            continue
        cx, cy = actor.at(times[seen])
        cx, cy = (cx * wide).astype(np.float32)[:, None, None], (cy * high).astype(np.float32)[:, None, None]
        layers = [(actor.shape, actor.radius, np.asarray(COLORS[actor.color], np.float32) + actor.tint, (0.0, 0.0))]
        if actor.sign:
            layers.append((actor.sign, SIGN, np.asarray(COLORS[INKS[actor.color]], np.float32), to_sign(actor)))
        for shape, radius, ink, (dx, dy) in layers:
            far = distance(shape, x - cx - np.float32(dx), y - cy - np.float32(dy), np.float32(radius))
            inside = np.clip(0.5 - far / edge, 0, 1)[..., None]
            out[seen] += inside.astype(np.float32) * (ink - out[seen])
    return np.clip(out, 0, 255).astype(np.uint8)


def compressed(rng, frames):
    """Frames (F, h, w, 3) with what a video codec does to them, cheaply: coarse colour, blocks and noise."""
    x = frames.astype(np.float32)
    if rng.random() < 0.7:
        grey = x.mean(-1, keepdims=True)
        color = (x - grey).reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, 3).mean((2, 4))
        x = grey + color.repeat(2, 1).repeat(2, 2)
    blocks = rng.normal(0, rng.uniform(0, 4), (len(x), x.shape[1] // 8, x.shape[2] // 8, 1)).astype(np.float32)
    x += blocks.repeat(8, 1).repeat(8, 2) + rng.normal(0, rng.uniform(0, 4), 3).astype(np.float32)
    noise = rng.standard_normal(x.shape[:3], np.float32)[..., None] * np.float32(rng.uniform(0, 5))
    return np.clip(x + noise, 0, 255).astype(np.uint8)


def model_frames(rng, scene):
    """uint8 (2 * pairs, H, W, 3): what the model sees, drawn at its size."""
    h, w = scene.model_size()
    frames = draw(scene, scene.times, h, w, rng.uniform(0.8, 1.8))
    frames = compressed(rng, frames) if rng.random() < 0.7 else frames
    if len(frames) == 1 or len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    return frames
