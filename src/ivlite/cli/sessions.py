"""`ivlite sessions`: what is stored of earlier prompts, and how to remove it."""

import argparse
import time

from ivlite.cli import arguments, json_line
from ivlite.errors import SessionFileError, UsageError, sentence

EPILOG = """\
examples:
  ivlite sessions
  ivlite sessions remove 3f2a91c0
  ivlite sessions clear

`ivlite run` and `ivlite chat` store what a long prompt has left in the cache, where that took over 20 seconds, so that
the next question about the same video is answered at once. The folder is $XDG_CACHE_HOME/ivlite/sessions, or
~/.cache/ivlite/sessions; what was used least recently goes first. --no-store stores nothing.
"""
UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"))


def add_parser(commands):
    parser = commands.add_parser(
        "sessions",
        help="list and remove what is stored of earlier prompts",
        description="Lists what is stored of earlier prompts, with sizes, and removes it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("list", "remove", "clear"), nargs="?", default="list",
                        help="list (default), remove those named, clear: remove all")  # fmt: skip
    parser.add_argument("names", metavar="NAME", nargs="*", help="a name of the list, or its beginning")
    arguments.add_shared(parser, "--json")


def run(args):
    from ivlite.cli import printable, say
    from ivlite.session.store import user_store

    if args.names and args.action != "remove":
        raise UsageError(f"`ivlite sessions {args.action}` takes no names")
    if args.action == "remove" and not args.names:
        raise UsageError(
            "name the sessions to remove; `ivlite sessions` lists them, `ivlite sessions clear` removes all"
        )
    store = user_store(lambda warning: say("warning", warning))
    if args.action == "list":
        facts = listing(store)
        print(json_line(facts) if args.json else printable("\n".join(lines(facts))))
        return 0
    removed = _removed(store, args.names) if args.action == "remove" else store.clear() if store else []
    size = sum(entry.nbytes for entry in removed)
    if args.json:
        print(json_line({"removed": [entry.name for entry in removed], "bytes": size}))
    else:
        from ivlite.machine import gigabytes

        print(f"removed {counted(len(removed))}, {gigabytes(size)}")
    return 0


def _removed(store, names):
    """Removes the entries with these names or beginnings of names; none if one of them is not clear."""
    entries, wanted = store.entries() if store else [], {}
    for name in names:
        found = [entry for entry in entries if entry.name.startswith(name)]
        if len(found) != 1:
            what = "there is no stored session" if not found else f"{len(found)} stored sessions begin with"
            raise UsageError(f"{what} {name}; `ivlite sessions` lists them")
        wanted[found[0].path] = found[0]
    for path in wanted:
        path.unlink(missing_ok=True)
    return list(wanted.values())


def listing(store):
    """The store and its entries as plain data."""
    if store is None:
        return {"folder": None, "bytes": 0, "limit": 0, "sessions": []}
    entries = store.entries()
    return {
        "folder": str(store.folder),
        "bytes": sum(entry.nbytes for entry in entries),
        "limit": store.limit() if store.folder.exists() else 0,
        "sessions": [described(entry) for entry in entries],
    }


def described(entry):
    """One entry as plain data; `fault` is why it cannot be used, or None."""
    from ivlite.numbers import is_finite
    from ivlite.session.file import SessionFile

    facts = {"name": entry.name, "bytes": entry.nbytes, "used": entry.used, "path": str(entry.path), "fault": None}
    facts |= {"model": "", "kv": "", "tokens": 0, "seconds": 0.0, "media": []}
    try:
        with SessionFile.open(entry.path) as file:
            layout, media, took = (
                file.table.layout,
                file.table.meta.get("media", []),
                file.table.meta.get("seconds", 0.0),
            )
            if not (isinstance(media, list) and all(isinstance(medium, dict) for medium in media) and is_finite(took)):
                raise file.damaged("its media, or the time that they took")
    except SessionFileError as error:
        return facts | {"fault": str(error)}
    media = [str(medium.get("source", "")) for medium in media]
    return facts | {
        "model": layout.name,
        "kv": layout.kind,
        "tokens": file.table.length,
        "seconds": took,
        "media": media,
    }


def counted(n):
    return f"{n} session{'' if n == 1 else 's'}"


def ago(seconds):
    """Formats an age: "3 hours ago"."""
    for size, unit in UNITS:
        if seconds >= size:
            n = int(seconds // size)
            return f"{n} {unit}{'' if n == 1 else 's'} ago"
    return "just now"


def lines(facts):
    from ivlite.machine import gigabytes

    if not facts["sessions"]:
        yield "nothing is stored"
        return
    count = counted(len(facts["sessions"]))
    yield f"{facts['folder']}: {count}, {gigabytes(facts['bytes'])} of at most {gigabytes(facts['limit'])}"
    yield ""
    yield f"  {'name':<10}{'size':>9}{'tokens':>9}  {'used':<16}{'model':<24}of"
    now = time.time()
    for entry in facts["sessions"]:
        what = "cannot be used: it is damaged or of another version" if entry["fault"] else ", ".join(entry["media"])
        yield (
            f"  {entry['name']:<10}{gigabytes(entry['bytes']):>9}{entry['tokens']:>9,}  {ago(now - entry['used']):<16}"
            f"{sentence(entry['model'], 22):<24}{sentence(what, 120) or 'text'}"
        )
