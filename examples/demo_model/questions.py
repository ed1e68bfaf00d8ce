"""Questions about a scene with their true answers, in many wordings, some of which training never shows."""

import zlib

from world import COLORS, NUMBERS, SHAPES, held_out

# Per question type: wordings that training shows, and wordings of the same words that it never shows.
WORDINGS = {
    "describe": (
        ["What happens?", "What happens in the {m}?", "Describe the {m}.", "What can you see in the {m}?",
         "Tell me what happens.", "What is going on?", "What do you see?", "Can you describe the {m}?",
         "Please describe this {m}.", "Please describe this {m} in detail.", "What is going on in the {m}?"],
        ["Can you tell me what happens?", "Describe what happens in the {m}.", "What do you see in the {m}?"],
    ),
    "picture": (
        ["Describe the {m}.", "What can you see in the {m}?", "What do you see?", "Can you describe the {m}?",
         "Please describe this {m} in detail.", "What is in the {m}?", "Tell me what you see.", "What is there?"],
        ["Can you tell me what you see in the {m}?", "What do you see in the {m}?", "Tell me what is in the {m}."],
    ),
    "color": (
        ["What color is the {s}?", "What colour is the {s}?", "Which color does the {s} have?",
         "Which colour does the {s} have?", "Tell me the color of the {s}.", "What is the color of the {s}?",
         "Do you know the colour of the {s}?", "Tell me which colour the {s} has."],
        ["Tell me which color the {s} has.", "Which color is the {s}?", "What is the colour of the {s}?"],
    ),
    "shape": (
        ["What shape is the {c} object?", "What is the {c} thing?", "Which shape is {c}?",
         "Tell me the shape of the {c} object.", "What is the shape of the {c} thing?",
         "Which shape does the {c} object have?", "What shape does the {c} one have?"],
        ["What shape is the {c} thing?", "Which shape does the {c} thing have?", "Tell me the shape of the {c} thing."],
    ),
    "count": (
        ["How many shapes are there?", "How many objects are in the {m}?", "How many shapes can you see?",
         "Count the shapes.", "Count the objects in the {m}.", "How many things are there?",
         "Tell me how many shapes there are.", "Can you count the things?", "How many shapes do you see?"],
        ["How many objects can you see?", "Count the things in the {m}.", "Tell me how many objects there are."],
    ),
    "direction": (
        ["Which way does the {n} move?", "In which direction does the {n} go?", "Where does the {n} move?",
         "What direction does the {n} take?", "How does the {n} move?", "Tell me the direction of the {n}.",
         "Which way does the {n} go?", "Where is the {n} going?", "Tell me how the {n} moves.",
         "Where does the {n} head?", "Tell me where the {n} goes.", "Where does the {n} go to?"],
        ["In which direction does the {n} move?", "Where does the {n} go?", "Tell me which way the {n} moves."],
    ),
    "first": (
        ["What comes {o}?", "Which shape comes {o}?", "What appears {o}?", "Which object is {o}?",
         "Tell me what comes {o}.", "Which thing comes {o} in the {m}?", "What do you see {o}?"],
        ["Which object comes {o}?", "Tell me what appears {o}.", "What comes {o} in the {m}?"],
    ),
    "when": (
        ["When does the {n} appear?", "At what time does the {n} appear?", "When can I see the {n}?",
         "When does the {n} come in?", "Tell me when the {n} appears.", "At how many seconds does the {n} appear?",
         "When does the {n} show up?", "When do you see the {n}?", "At what time can I see the {n}?",
         "At what time does the {n} show up?", "Tell me at what time the {n} appears."],
        ["Tell me when the {n} shows up.", "At what time does the {n} come in?", "At what time do you see the {n}?"],
    ),
    "presence": (
        ["Is there a {n} in the {m}?", "Do you see a {n}?", "Can you see a {n} in the {m}?", "Does a {n} appear?",
         "Is there a {n} to be seen?", "Tell me if there is a {n}.", "Is a {n} in the {m}?"],
        ["Is there a {n}?", "Do you see a {n} in the {m}?", "Can you see a {n}?"],
    ),
    "between": (
        ["What happens between {a} and {b} seconds?", "What appears between {a} and {b} seconds?",
         "What do you see between {a} and {b} seconds?", "Tell me what happens from {a} to {b} seconds.",
         "What is there from {a} to {b} seconds?", "Tell me what appears between {a} and {b} seconds.",
         "What happens from {a} to {b} seconds?"],
        ["Tell me what happens between {a} and {b} seconds.", "What appears from {a} to {b} seconds?",
         "What do you see from {a} to {b} seconds?"],
    ),
}  # fmt: skip
BEFORE = [
    "",
    "",
    "",
    "Please tell me: ",
    "In this {m}: ",
    "Look closely. ",
    "A question: ",
    "Look at the {m}. ",
    "Hi! ",
]
AFTER = ["", "", "", " Thanks.", " Please answer briefly.", " Thank you!"]

HELLO = "I am the demo model of ivlite. I answer questions about colored shapes in short clips and pictures."
ABLE = "I can describe clips and pictures of colored shapes, count them, and say where and when they move."
WORLD = "I know only colored shapes, not the real world. Please show me a clip or a picture of them."
TEXT = [
    (["Please introduce yourself.", "Who are you?", "Introduce yourself.", "What are you?", "Tell me who you are."],
     ["Please tell me who you are.", "Can you introduce yourself?"], HELLO),
    (["What can you do?", "How can you help me?", "What can I ask you?", "Tell me what you can do.", "Help!"],
     ["Please tell me what you can do.", "What can I ask?"], ABLE),
    (["What is the capital of France?", "Who is the president?", "Tell me a joke.", "Write a poem.", "What is 2 + 2?",
      "What is in the news?", "How old is the sun?", "Which colors do you know about cars?", "What happens?",
      "Which way does the red circle move?", "How many shapes are there?", "Describe the video."],
     ["Tell me a poem.", "What is the capital of the sun?", "Describe the clip.", "When does the red circle appear?"],
     WORLD),
    (["Hello!", "Hello", "Hi!", "Hi there!", "Good day!"], ["Hi", "Hello there!"],
     "Hello! Show me a clip or a picture of colored shapes and ask me about it."),
    (["Thank you!", "Thanks.", "Thanks a lot!"], ["Thank you a lot!"], "You are welcome!"),
]  # fmt: skip


def kept_back(text):
    """Whether training never shows this wrapped wording: one in six of them, by their letters."""
    return zlib.crc32(text.encode()) % 6 == 0


def worded(rng, kind, scene, test, **words):
    """A question of a kind; for a test, in a wording that training never shows."""
    seen, unseen = WORDINGS[kind]
    medium = str(rng.choice(["video", "clip"] if scene.is_video else ["picture", "image"]))
    while True:
        core = str(rng.choice(unseen if test and rng.random() < 0.5 else seen))
        wrapped = str(rng.choice(BEFORE)), core, str(rng.choice(AFTER))
        is_unseen = core in unseen or (kept_back("|".join(wrapped)) and (wrapped[0] or wrapped[2]) != "")
        if is_unseen == test:
            return "".join(wrapped).format(m=medium, **words)


def listed(names):
    """ "a x", "a x and a y", "a x, a y and a z"."""
    names = [f"a {n}" for n in names]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def moves(actor):
    return "stays still" if actor.motion == "still" else f"moves {actor.motion}"


def capital(text):
    return text[0].upper() + text[1:]


# ------------------------------------------------------------------------------------------------ one kind each


def describe(rng, scene, test):
    if scene.glance:
        return None
    if not scene.is_video:
        return worded(rng, "picture", scene, test), f"{capital(listed([a.name for a in scene.actors]))}."
    return worded(rng, "describe", scene, test), capital(
        ", then ".join(f"a {a.name} {moves(a)}" for a in scene.actors)
    ) + "."


def color(rng, scene, test):
    shapes = [a.shape for a in scene.actors]
    once = [a for a in scene.actors if shapes.count(a.shape) == 1]
    if not once:
        return None
    actor = once[rng.integers(len(once))]
    return worded(rng, "color", scene, test, s=actor.shape), f"The {actor.shape} is {actor.color}."


def shape(rng, scene, test):
    actor = scene.actors[rng.integers(len(scene.actors))]
    return worded(rng, "shape", scene, test, c=actor.color), f"The {actor.color} one is a {actor.shape}."


def count(rng, scene, test):
    if scene.glance:
        return None
    names, number = listed([a.name for a in scene.actors]), NUMBERS[len(scene.actors)]
    return worded(rng, "count", scene, test), f"{capital(names)}: {number}."


def direction(rng, scene, test):
    if not scene.is_video:
        return None
    actor = scene.actors[rng.integers(len(scene.actors))]
    return worded(rng, "direction", scene, test, n=actor.name), f"The {actor.name} {moves(actor)}."


def first(rng, scene, test):
    if not scene.is_video or scene.glance or (len(scene.actors) == 1 and rng.random() < 0.7):
        return None
    last = rng.random() < 0.3
    actor = scene.actors[-1 if last else 0]
    word = "last" if last else "first"
    return worded(rng, "first", scene, test, o=word), f"The {actor.name} comes {word}."


def when(rng, scene, test):
    if not scene.is_video:
        return None
    actor = scene.actors[rng.integers(len(scene.actors))]
    return worded(
        rng, "when", scene, test, n=actor.name
    ), f"The {actor.name} appears at {scene.marks[actor.first]} seconds."


def missing(rng, scene, test):
    """The name of a shape that the scene does not show; half of the time its colour or its shape is there.

    In training never one of which a "no" would teach that what is held out cannot be.
    """
    names = {a.name for a in scene.actors}
    while True:
        c, s = str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))
        actor = scene.actors[rng.integers(len(scene.actors))]
        pick = rng.random()
        c, s = (actor.color, s) if pick < 0.25 else (c, actor.shape) if pick < 0.5 else (c, s)
        hint = any(held_out(c, s, a.motion) for a in scene.actors if c == a.color or s == a.shape)
        if f"{c} {s}" not in names and (test or not hint):
            return c, s


def absent(rng, scene, test):
    """A question about something that is not there, or one whether it is."""
    c, s = missing(rng, scene, test)

    def telling(color, shape):  # whether training would learn from a "no" that a held-out combination cannot be
        return not test and any(held_out(color or a.color, shape or a.shape, a.motion) for a in scene.actors)

    kind = str(rng.choice(["presence", "presence", "direction", "when", "color", "shape", "yes", "yes"]))
    if kind == "yes":
        actor = scene.actors[rng.integers(len(scene.actors))]
        return worded(rng, "presence", scene, test, n=actor.name), f"Yes, there is a {actor.name}."
    if kind == "presence":
        return worded(rng, kind, scene, test, n=f"{c} {s}"), f"No, there is no {c} {s}."
    if kind in ("direction", "when"):
        if not scene.is_video:
            return None
        return worded(rng, kind, scene, test, n=f"{c} {s}"), f"There is no {c} {s}."
    if kind == "color" and s not in {a.shape for a in scene.actors} and not telling(None, s):
        return worded(rng, kind, scene, test, s=s), f"There is no {s}."
    if kind == "shape" and c not in {a.color for a in scene.actors} and not telling(c, None):
        return worded(rng, kind, scene, test, c=c), f"There is nothing {c}."
    return None


def between(rng, scene, test):
    """A question whose answer only a closer look shows: (question, start, end, answer)."""
    rate, zoom = scene.rate, scene.zoom
    start, end = zoom.begin // rate, (zoom.total - 1) // rate
    actor = zoom.actors[0]
    question = worded(rng, "between", scene, test, a=start, b=end)
    return question, start, end, f"A {actor.name} {moves(actor)}."


def thought(scene):
    """What the model thinks before it answers a question about a scene."""
    if not scene.is_video or scene.glance:
        return f"I see {listed([a.name for a in scene.actors])}."
    return (
        "I see "
        + ", then ".join(f"a {a.name} at {scene.marks[a.first]} seconds that {moves(a)}" for a in scene.actors)
        + "."
    )


KINDS = {"describe": describe, "color": color, "shape": shape, "count": count, "direction": direction, "first": first,
         "when": when, "absent": absent}  # fmt: skip
WEIGHTS = {
    "describe": 1.5,
    "color": 1,
    "shape": 1,
    "count": 1.2,
    "direction": 1.5,
    "first": 1,
    "when": 3,
    "absent": 1.6,
}


def ask(rng, scene, test=False, kind=None):
    """(kind, question, answer) about a scene, of a random kind or of the given one."""
    names = list(KINDS)
    shares = np_shares()
    while True:
        chosen = kind or names[int(rng.choice(len(names), p=shares))]
        found = KINDS[chosen](rng, scene, test)
        if found:
            return (chosen, *found)
        if kind:
            return None


def np_shares():
    total = sum(WEIGHTS.values())
    return [WEIGHTS[k] / total for k in KINDS]


def chat(rng, test=False):
    """(kind, question, answer) of a conversation without a picture."""
    seen, unseen, answer = TEXT[rng.integers(len(TEXT))]
    return "text", str(rng.choice(unseen if test else seen)), answer


def right(kind, answer, truth):
    """Whether an answer is as good as the true one: the same sentence, times within half a second."""
    answer = answer.strip()
    if kind == "count":
        return answer.rstrip(".").split(" ")[-1] == truth.rstrip(".").split(" ")[-1]
    if kind != "when" or " at " not in truth:
        return answer == truth
    try:
        said, known = (float(t.split(" at ")[1].split(" ")[0]) for t in (answer, truth))
    except (IndexError, ValueError):
        return False
    return abs(said - known) <= 0.5 and answer.split(" at ")[0] == truth.split(" at ")[0]
