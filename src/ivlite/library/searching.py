"""Searches of texts: words first, then substrings, then single characters. What a person types is never a query language."""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ivlite.library.database import Database

MOST_TERMS = 32
LONGEST = 200  # characters of a term
TERM = re.compile(r'"([^"]+)"|([^\s"]+)')
UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
ENDS = "?!.,;:…()[]{}'\"“”„‘’«»¿¡。、，？！"  # of a word in a sentence, and no part of it
MOST_WORDS = 500  # of a query, that are counted
LEAST = 0.1  # weight of a term, however common
SUBSTRING, PARTLY = 0.8, 0.7  # scores of a term within a word, and of parts of a term without spaces
GRAM = 3  # characters of an entry of the substring index
LIKE = "text.body LIKE ? ESCAPE '\\'"
MOST_PIECES = 64
CANDIDATES = 8  # times as many rows as are wanted are looked at
# Ids of videos whose path has shown another content since.
STALE = "SELECT old.id FROM video old JOIN video new ON new.path = old.path AND (new.used, new.id) > (old.used, old.id)"


@dataclass(frozen=True)
class Hit:
    """A text that matches. video: its id in the library. kind: of the text. start, end: seconds. score: 0 to 1, of the terms found."""

    id: int
    video: int
    kind: str
    start: float
    end: float
    text: str
    score: float


@dataclass(frozen=True)
class Where:
    """Conditions on texts, as SQL and its values."""

    sql: str = ""
    values: tuple[Any, ...] = ()

    @classmethod
    def of(
        cls, videos: Iterable[int] | None, start: float | None, end: float | None, kinds: Iterable[str] | None
    ) -> "Where":
        sql, values = "" if videos is not None else f" AND text.video NOT IN ({STALE})", list[Any]()
        conditions: tuple[tuple[str, Iterable[Any] | None], ...] = (("video", videos), ("kind", kinds))
        for name, given in conditions:
            if given is not None:
                wanted = list(given)
                sql += f" AND text.{name} IN ({', '.join('?' * len(wanted))})" if wanted else " AND 0"
                values += wanted
        if start is not None:
            sql, values = sql + " AND text.finish > ?", [*values, float(start)]
        if end is not None:
            sql, values = sql + " AND text.start < ?", [*values, float(end)]
        return cls(sql, tuple(values))


def clean(text: str) -> str:
    """A text as it is stored and searched: composed characters, without what SQLite does not hold."""
    text = text.encode("utf-8", "replace").decode() if not text.isascii() else text
    return unicodedata.normalize("NFC", text.replace("\0", " "))


def folded(text: str) -> str:
    """A text without case and accents, to compare."""
    parts = unicodedata.normalize("NFD", text.casefold())
    return "".join(c for c in parts if not unicodedata.combining(c)) if not parts.isascii() else parts


def terms(query: str) -> list[str]:
    """The words of a query; several in quotes are one."""
    found = [
        " ".join((phrase or word.strip(ENDS) or word).split())[:LONGEST]
        for phrase, word in TERM.findall(clean(query)[: MOST_TERMS * LONGEST])
    ]
    return list(dict.fromkeys(term for term in found if term))[:MOST_TERMS]


def search(database: Database, query: str, where: Where, k: int) -> list[Hit]:
    """The k best Hits, the best first."""
    wanted = terms(query)
    if not wanted or k < 1:
        return []
    marks, hits = weights(database, [mark for term in wanted if (mark := folded(term))]), dict[int, Hit]()
    for stage in stages(wanted, database.indexes):
        columns = "text.id, text.video, text.kind, text.start, text.finish, text.body"
        sql = f"SELECT {columns} FROM {stage.sql}{where.sql} ORDER BY {stage.order} LIMIT ?"
        for hit in database.rows(sql, (*stage.values, *where.values, CANDIDATES * k), partial(scored, marks)):
            hits.setdefault(hit.id, hit)
        if len(hits) >= k:
            break
    order, phrase = {number: n for n, number in enumerate(hits)}, " ".join(marks)
    return sorted(hits.values(), key=lambda hit: (-hit.score, phrase not in folded(hit.text), order[hit.id]))[:k]


def weights(database: Database, marks: Iterable[str]) -> dict[str, float]:
    """What each folded term counts: the rarer its rarest word is in the library, the more (the inverse document frequency)."""
    words = {mark: re.findall(r"[^\W_]+", mark) for mark in marks}
    if "words" not in database.indexes:
        return dict.fromkeys(words, 1.0)
    database.rows("CREATE VIRTUAL TABLE IF NOT EXISTS temp.vocabulary USING fts5vocab('main', 'words', 'row')")
    every = list(dict.fromkeys(word for listed in words.values() for word in listed))[:MOST_WORDS]
    sql = f"SELECT term, doc FROM temp.vocabulary WHERE term IN ({', '.join('?' * len(every))})"
    known = dict(database.rows(sql, every))
    ((total,),) = database.rows("SELECT count(*) FROM text")
    rarest = {mark: min((known.get(word, 0) for word in listed), default=0) for mark, listed in words.items()}
    return {mark: max(LEAST, math.log((total + 1) / (count + 0.5))) for mark, count in rarest.items()}


def scored(marks: Mapping[str, float], id: int, video: int, kind: str, start: float, end: float, body: str) -> Hit:
    return Hit(id, video, kind, float(start), float(end), body, score(body, marks))


@dataclass(frozen=True)
class Stage:
    """One search: SQL after FROM, to which conditions are added, the values in it, and its order."""

    sql: str
    values: tuple[Any, ...]
    order: str = "text.id"


def stages(wanted: Sequence[str], indexes: Sequence[str]) -> Iterator[Stage]:
    """The searches for terms, from exact to loose."""
    spoken = [term for term in wanted if any(c.isalnum() for c in term)]
    long, short = [t for t in wanted if len(t) >= GRAM], [t for t in wanted if len(t) < GRAM]
    if "words" in indexes and spoken:
        yield _matching("words", spoken, " ")
    if "grams" in indexes and long:
        stage = _matching("grams", long, " ")
        yield replace(stage, sql=stage.sql + f" AND {LIKE}" * len(short), values=(*stage.values, *map(like, short)))
    else:
        yield Stage("text WHERE 1" + f" AND {LIKE}" * len(wanted), tuple(map(like, wanted)))
    if "words" in indexes and len(spoken) > 1:
        yield _matching("words", spoken, " OR ")
    if "grams" in indexes and (parts := [p for t in wanted for p in pieces(t, GRAM)]):
        yield _matching("grams", parts[:MOST_PIECES], " OR ")
    odd = [t for t in short if not t.isascii() and len(wanted) > 1]
    if loose := ([p for t in wanted for p in pieces(t, 2)] + odd)[:MOST_PIECES]:
        yield Stage(f"text WHERE ({' OR '.join([LIKE] * len(loose))})", tuple(map(like, loose)))


def _matching(index: str, wanted: Sequence[str], operator: str) -> Stage:
    """A search in a full-text index, in the order of its own ranking."""
    sql = f"{index} JOIN text ON text.id = {index}.rowid WHERE {index} MATCH ?"
    return Stage(sql, (operator.join(map(quoted, wanted)),), f"{index}.rank")


def quoted(term: str) -> str:
    """A term as a string of FTS5: nothing in it is an operator."""
    return '"' + term.replace('"', '""') + '"'


def like(term: str) -> str:
    """A term as a pattern of LIKE: nothing in it is a wildcard."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", term) + "%"


def pieces(term: str, size: int) -> list[str]:
    """The parts of `size` characters of the longer runs of a term in scripts without spaces: a question holds a name somewhere."""
    runs = UNSPACED.findall(term)
    return [run[i : i + size] for run in runs if len(run) > size for i in range(len(run) - size + 1)]


def score(text: str, marks: Mapping[str, float]) -> float:
    """How much of the folded terms a text holds, 0 to 1, each by its weight: a word counts whole, a part of one less."""
    if not marks:
        return 1.0
    text = folded(text)
    return round(sum(weight * _found(text, mark) for mark, weight in marks.items()) / sum(marks.values()), 4)


def _found(text: str, mark: str) -> float:
    at = text.find(mark)
    if at < 0:
        parts = pieces(mark, 2) or [p for p in re.split(r"\W+", mark) if p]
        return PARTLY * sum(part in text for part in parts) / len(parts) if parts and parts != [mark] else 0.0
    while at >= 0:
        before, after = text[at - 1 : at] if at else "", text[at + len(mark) : at + len(mark) + 1]
        if not (joins(before, mark[0]) or joins(mark[-1], after)):
            return 1.0
        at = text.find(mark, at + 1)
    return SUBSTRING


def joins(a: str, b: str) -> bool:
    """Whether two characters belong to one word: not where a script has no spaces."""
    return a.isalnum() and b.isalnum() and not UNSPACED.match(a) and not UNSPACED.match(b)
