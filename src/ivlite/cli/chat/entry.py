"""What a person enters: texts of several lines, words, and file names in quotes."""

import os
import re
from dataclasses import dataclass

from ivlite.cli.run import unreadable
from ivlite.errors import UsageError
from ivlite.files import expanded

FENCE = '"""'


def unfinished(text):
    """Whether a text goes on in the next line: it ends with a backslash, or has an open block of three quotes."""
    start = text.lstrip()
    if start.startswith(FENCE):
        return FENCE not in start[len(FENCE) :]
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def finished(text):
    """The text that is meant: without the quotes around a block and the backslashes before line ends."""
    start = text.lstrip()
    if start.startswith(FENCE):
        inside, _, rest = start[len(FENCE) :].partition(FENCE)
        return inside.strip("\n") + rest
    lines = text.split("\n")
    return "\n".join(line[:-1] if unfinished(line) else line for line in lines)


@dataclass(frozen=True)
class Word:
    """A word of a line. text: without quotes and backslashes; raw: as written; start, end: where it stands."""

    text: str
    raw: str
    start: int
    end: int


# File names as shells and terminals write them. Quotes count at the beginning of a word only: elsewhere they are apostrophes.
QUOTED = r"""'[^']*'|"(?:\\["\\$`]|\\(?!["\\$`])|[^"\\])*\""""
WORD = re.compile(rf"(?:{QUOTED})(?:{QUOTED}|\\.|[^\s\\'\"])*(?!\S)|(?:\\.|\S)+", re.DOTALL)
PIECE = re.compile(r"""'([^']*)'|"((?:\\["\\$`]|\\(?!["\\$`])|[^"\\])*)"|\\(.)|(.)""", re.DOTALL)


def words(text):
    """The Words of a text; a quote that is never closed stands for itself."""
    return [Word(plain(found[0]), found[0], *found.span()) for found in WORD.finditer(text)]


def plain(raw):
    """A word without its quotes and backslashes."""
    if raw[:1] not in ("'", '"'):
        return re.sub(r"\\(.)", r"\1", raw, flags=re.DOTALL)
    out = ""
    for single, double, escaped, other in PIECE.findall(raw):
        out += single or re.sub(r'\\(["\\$`])', r"\1", double) or escaped or other
    return out


def quoted(name):
    """A file name as words() reads it: with backslashes before what separates or quotes."""
    return re.sub(r"""([\s\\'"])""", r"\\\1", name)


def leading_file(text):
    """(file name, other words) of the arguments of a command that begin with a file name.

    A name with spaces need not be quoted: the longest beginning that names a file is taken, else the first word.
    """
    from ivlite.media.source import is_file

    found = words(text)
    for word in reversed(found):
        for name in (text[: word.end], plain(text[: word.end])):
            if is_file(expanded(name)):
                return name, [w.text for w in found if w.start >= word.end]
    return (found[0].text, [w.text for w in found[1:]]) if found else ("", [])


def proper(text):
    """A text that is to be understood. Raises UsageError for one with bytes that are no UTF-8, as names of files may have."""
    try:
        return text.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the question {unreadable(error)}") from None


def only_file(text):
    """The file name that a text is; a name with spaces need not be quoted."""
    from ivlite.media.source import is_file

    found = words(text)
    return found[0].text if len(found) == 1 and not is_file(expanded(text)) else text


def dragged(text, kind):
    """([(kind, file name)], the rest): words that are media files with their folder, as a terminal writes what is dragged in.

    kind(name): "video", "image", or None for any other word. Within a sentence the file's own name stays.
    """
    found, rest, at = [], "", 0
    for word in words(text):
        name = word.text
        if name.startswith(("/", "~", "./", "../", "file:")) and (what := kind(name)):
            found.append((what, name))
            before, after = rest + text[at : word.start], text[word.end :]
            rest = before + (os.path.basename(name) if before.strip() and after.strip() else "")
            at = word.end
    return found, (rest + text[at:]).strip()


def parts(messages, *types):
    """The parts of messages that are of these types; messages may come from a session file."""
    found = []
    for message in messages:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in types and isinstance(part.get(kind), str):
                found.append(part)
    return found


def media_kind(name):
    """ "video" or "image" if a name is that of an existing file of such a type, else None."""
    from ivlite.media.folders import kind_of
    from ivlite.media.source import is_file, named_path

    try:
        path = named_path(name, "file")
    except Exception:  # an address, a name that cannot be one
        return None
    kind = kind_of(path)
    return kind if kind and is_file(path) else None
