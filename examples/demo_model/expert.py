"""What a good agent does with a question about a film, step by step, knowing only what its tools returned.

It searches for what is asked, looks closely where that was found, and finishes with claims that name their evidence. What it
found out for one question it does not search again for the next.
"""

import json

from asides import box_of
from film_questions import TIMES, plain

SCORE = 0.5  # of a span, from which it counts as found
THOUGHTS = {"ground": "I search for it.", "count": "I count the {name}.", "search_text": "I read what is said.",
            "watch": "I look at that part.", "look": "I look closely.", "finish": "I know the answer."}  # fmt: skip
WAY, WHAT = "Which way does it move?", "What is there?"


class Expert:
    """Plays the questions of one conversation in turn."""

    def __init__(self):
        # (name, and which border the search had, if any) -> id of the search; its best span, or None
        self.scans, self.spans = {}, {}
        self.counts = {}  # name -> (id of the search, its spans)
        self.lines, self.searched = [], set()  # of subtitles that were read; words that were searched for
        self.watched = {}  # name or words -> id of frames that the conversation holds
        self.views = {}  # id of a look -> its View
        self.looked, self.signs = {}, {}  # name -> id of a look at the whole frame, and of one at its sign

    def act(self, question):
        """(tool, arguments) of the next step."""
        play = {"count": self.count, "order": self.order, "said": self.said, "spoken": self.said}.get(
            question.kind, self.find
        )
        return play(question)

    def took(self, question, tool, arguments, result, views):
        """Remembers what a call returned: JSON text, and the views that follow it."""
        data = json.loads(result)
        if tool == "ground":
            found = [s for s in data["spans"] if s["score"] >= SCORE]
            name = (arguments["query"], *(part for part in ("start", "end") if part in arguments))
            self.scans[name] = data["scan"]
            self.spans[name] = found[0] if found else None
        elif tool == "count":
            self.counts[arguments["query"]] = data["id"], data["spans"]
        elif tool == "search_text":
            self.lines += data if isinstance(data, list) else []
            self.searched.add(arguments["query"])
        elif tool == "watch":
            self.watched[question.names[0]] = data["known"][0] if "known" in data else data["id"]
        elif tool == "look":
            looks = self.signs if "box" in arguments else self.looked
            looks[question.names[0]] = data["id"]
            self.views[data["id"]] = views[0]

    def thought(self, question, tool):
        """What it thinks before a call."""
        return THOUGHTS[tool].format(name=question.names[-1])

    # ---------------------------------------------------------------------------------------- by kind

    def known(self, name):
        """A span of a name, if one was found."""
        return next((span for key, span in self.spans.items() if key[0] == name and span), None)

    def searched_for(self, name):
        """A search, or the answer after one that found nothing."""
        return nothing(name, self.scans[name,]) if (name,) in self.scans else ("ground", {"query": name})

    def find(self, question):
        """What is asked of a shape that must be found first."""
        (name,) = question.names
        if (span := self.known(name)) is None:
            return self.searched_for(name)
        shown = {"text": f"There is a {name}.", "evidence": [span["id"]]}
        if question.kind == "way":
            if name not in self.watched:
                return watch(span, WAY)
            id = self.watched[name]
            return finish(f"{question.truth[:-1]} [{id}].", [{"text": question.truth, "evidence": [id]}])
        if question.kind == "sign":
            return self.sign(question, name, span, shown)
        return finish(f"{question.truth[:-1]} [{span['id']}].", [shown])

    def order(self, question):
        """Searches for the second of two shapes on that side of the first one where it would be the answer: found, it is; else the first.

        So whether the first or the last is asked for decides where to search, and nothing else. Where it is not found there, it
        must be on the other side.
        """
        one, other = question.names
        if (span := self.known(one)) is None:
            return self.searched_for(one)
        word = question.truth.removesuffix(".").split(" ")[-1]
        sides = ("end", "start") if word == "first" else ("start", "end")
        if (other, sides[0]) not in self.spans:
            return "ground", {"query": other, sides[0]: span["id"]}
        decides = self.spans[other, sides[0]]
        if decides is None and (other, sides[1]) not in self.spans:
            return "ground", {"query": other, sides[1]: span["id"]}
        found = decides or self.spans[other, sides[1]]
        if found is None:
            return nothing(other, self.scans[other, sides[1]])
        name = other if decides else one
        claims = [{"text": f"There is a {n}.", "evidence": [s["id"]]} for n, s in ((one, span), (other, found))]
        return finish(f"The {name} comes {word} [{span['id']}][{found['id']}].", claims)

    def sign(self, question, name, span, shown):
        """One whole frame first: a box is read from one place, of one moment."""
        if name not in self.looked:
            return "look", {"t": span["id"]}
        if name not in self.signs:
            id = self.looked[name]
            view = self.views[id]
            (actor,) = (a for a in view.film.actors if a.name == name)
            return "look", {"t": id, "box": box_of(actor, view.times[0], view.film.aspect)}
        id = self.signs[name]
        return finish(f"{question.truth[:-1]} [{id}].", [shown, {"text": question.truth, "evidence": [id]}])

    def count(self, question):
        (name,) = question.names
        if name not in self.counts:
            return "count", {"query": name}
        scan, spans = self.counts[name]
        if not spans:
            return nothing(name, scan)
        claim = {"text": f"There is a {name}.", "evidence": [s["id"] for s in spans[:6]]}
        return finish(f"The {name} appears {TIMES[len(spans)]} [{scan}].", [claim])

    def said(self, question):
        (words,) = question.names
        line = next((line for line in self.lines if words in line["text"]), None)
        if line is None and words not in self.searched:
            return "search_text", {"query": words, "k": 1}
        if line is None:
            return finish("It is not said.", [{"text": "It is not said.", "evidence": ["E1"]}], "low")
        if words not in self.watched:
            return watch(line, WHAT)
        id = self.watched[words]
        name = plain(question.truth).removeprefix("It is a ").removesuffix(".")
        claims = [{"text": f"There is a {name}.", "evidence": [id]}]
        return finish(f"{question.truth[:-1]} [{id}].", claims)


def watch(span, question, detail="mid"):
    window = {"start": span["id"], "end": span["id"]}
    return "watch", {"windows": [window], "question": question, "detail": detail}


def finish(answer, claims, confidence="high"):
    return "finish", {"answer": answer, "claims": claims, "confidence": confidence}


def nothing(name, scan):
    """The answer where a search found nothing: a name that is not there."""
    return finish(f"There is no {name} [{scan}].", [{"text": f"There is no {name}.", "evidence": [scan]}], "mid")
