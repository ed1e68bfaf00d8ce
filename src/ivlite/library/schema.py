"""The tables of a library. docs/guides/library.md describes them for people."""

import contextlib
import sqlite3
from collections.abc import Iterator

APPLICATION, VERSION = 0x49564C42, 1  # "IVLB"; of the tables
OTHERS = "is a database of another program"
KINDS = ("subtitle", "speech", "caption", "ocr", "note")  # of texts

TABLES = f"""
CREATE TABLE video (
  id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, path BLOB NOT NULL, duration REAL NOT NULL, added REAL NOT NULL,
  used REAL NOT NULL, meta TEXT NOT NULL
);
CREATE INDEX video_path ON video (path);
CREATE TABLE segment (
  id INTEGER PRIMARY KEY, video INTEGER NOT NULL REFERENCES video ON DELETE CASCADE, start REAL NOT NULL, finish REAL NOT NULL,
  maker TEXT, UNIQUE (video, start)
);
CREATE TABLE source (
  id INTEGER PRIMARY KEY, video INTEGER NOT NULL REFERENCES video ON DELETE CASCADE, kind TEXT NOT NULL, name TEXT NOT NULL,
  mark TEXT NOT NULL, meta TEXT NOT NULL, UNIQUE (video, kind, name)
);
CREATE TABLE text (
  id INTEGER PRIMARY KEY, video INTEGER NOT NULL REFERENCES video ON DELETE CASCADE,
  kind TEXT NOT NULL CHECK (kind IN {KINDS}), source INTEGER REFERENCES source ON DELETE CASCADE,
  segment INTEGER REFERENCES segment ON DELETE CASCADE, start REAL NOT NULL, finish REAL NOT NULL, body TEXT NOT NULL
);
CREATE INDEX text_video ON text (video, start);
CREATE INDEX text_source ON text (source);
CREATE INDEX text_segment ON text (segment);
CREATE TABLE note (
  id INTEGER PRIMARY KEY REFERENCES text ON DELETE CASCADE, evidence TEXT NOT NULL, run TEXT, added REAL NOT NULL
);
CREATE TABLE run (
  id TEXT PRIMARY KEY, question TEXT NOT NULL, state TEXT NOT NULL, data TEXT NOT NULL, added REAL NOT NULL, used REAL NOT NULL
);
CREATE TABLE step (
  run TEXT NOT NULL REFERENCES run ON DELETE CASCADE, number INTEGER NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL,
  PRIMARY KEY (run, number)
) WITHOUT ROWID;
CREATE TABLE evidence (
  run TEXT NOT NULL REFERENCES run ON DELETE CASCADE, name TEXT NOT NULL, video INTEGER REFERENCES video ON DELETE SET NULL,
  start REAL NOT NULL, finish REAL NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (run, name)
) WITHOUT ROWID;
CREATE INDEX evidence_video ON evidence (video);
"""

# Words of languages with spaces, and substrings for those without; both hold no text of their own.
INDEXES = {"words": "unicode61 remove_diacritics 2", "grams": "trigram"}
INDEX = """
CREATE VIRTUAL TABLE {name} USING fts5 (body, content='text', content_rowid='id', tokenize='{tokenizer}');
CREATE TRIGGER {name}_added AFTER INSERT ON text BEGIN
  INSERT INTO {name} (rowid, body) VALUES (new.id, new.body);
END;
CREATE TRIGGER {name}_removed AFTER DELETE ON text BEGIN
  INSERT INTO {name} ({name}, rowid, body) VALUES ('delete', old.id, old.body);
END;
CREATE TRIGGER {name}_changed AFTER UPDATE OF body ON text BEGIN
  INSERT INTO {name} ({name}, rowid, body) VALUES ('delete', old.id, old.body);
  INSERT INTO {name} (rowid, body) VALUES (new.id, new.body);
END;
"""


def state(connection: sqlite3.Connection) -> str:
    """What a database holds: "" (a library of this version), "empty", or what is wrong with it."""
    with _snapshot(connection):
        (application,), (version,) = (
            connection.execute("PRAGMA application_id").fetchone(),
            connection.execute("PRAGMA user_version").fetchone(),
        )
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if application == APPLICATION:
        return "" if version == VERSION else f"is of version {version}, and this is ivlite for version {VERSION}"
    if {"video", "segment", "run", "step"} <= tables:  # of a library whose header is damaged
        return "is damaged"
    return OTHERS if tables or application or version else "empty"


@contextlib.contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """What is read within is of one moment: another program that makes the tables now is seen whole or not at all."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def create(connection: sqlite3.Connection) -> None:
    """Makes the tables, within a transaction. Indexes that this SQLite lacks are left out: searches do without them."""
    for statement in TABLES.split(";\n"):
        connection.execute(statement)
    for name in usable():
        for statement in INDEX.format(name=name, tokenizer=INDEXES[name]).split("\nCREATE ")[1:]:
            connection.execute(f"CREATE {statement}")
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def intact(connection: sqlite3.Connection) -> bool:
    """Whether the tables of a library are those that `create` makes; its full-text indexes may be fewer."""
    wanted = sqlite3.connect(":memory:")
    sql = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    try:
        create(wanted)
        found = set(connection.execute(sql).fetchall())
        fewer = tuple(f"{name}_" for name in INDEXES if ("table", name) not in {row[:2] for row in found})
        missing = [name for _, name, _ in set(wanted.execute(sql)) - found if not f"{name}_".startswith(fewer)]
        return not [name for name in missing if not _shadow(name)]
    except (sqlite3.Error, UnicodeDecodeError):
        return False
    finally:
        wanted.close()


def _shadow(name: str) -> bool:
    """Whether a table is one that SQLite makes for a full-text index: its form is SQLite's own."""
    return name.endswith(("_data", "_idx", "_content", "_docsize", "_config")) and name.split("_")[0] in INDEXES


def usable() -> list[str]:
    """The names of the full-text indexes that this SQLite can make."""
    found = []
    connection = sqlite3.connect(":memory:")
    for name, tokenizer in INDEXES.items():
        try:
            connection.execute(f"CREATE VIRTUAL TABLE {name} USING fts5 (body, tokenize='{tokenizer}')")
            found.append(name)
        except sqlite3.Error:
            pass
    connection.close()
    return found
