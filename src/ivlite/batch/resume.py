"""What an earlier run of the same batch has answered: which lines stay, which inputs are answered again, and why."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ivlite.batch.journal import BEGIN, File, Journal
from ivlite.batch.task import Task
from ivlite.errors import UsageError, shown
from ivlite.stop import checkpoint

# Errors that the same input gives again; others may be over (memory, a decoder or a node that died), and the input is asked again.
LASTING = ("MediaError", "UsageError", "ContextError")
SPLIT = "-"  # between the two digests of a line


@dataclass
class Line:
    """A line of an earlier run. content: digest of what the files held. error: its failure, or None."""

    file: File
    at: int
    size: int
    content: str
    error: dict[str, Any] | None

    @property
    def passing(self) -> bool:
        """Whether it is a failure that may be over."""
        return self.error is not None and self.error.get("class") not in LASTING


@dataclass
class Known:
    """What is known at the start. kept: the number of lines that stay. changed: ids of inputs whose files have changed.

    again: failures that are asked again. code: the exit code of the first failure that stays, and failed: their number.
    """

    kept: int = 0
    failed: int = 0
    again: int = 0
    code: tuple[int, int] | None = None  # index, exit code
    changed: list[str] = field(default_factory=list)


def resumed(
    journal: Journal, tasks: Sequence[Task], model: str, progress: Callable[[str, int, int], object] | None = None
) -> Known:
    """Begins a Journal with what an earlier run left. progress: stage "check", inputs whose files are read.

    Raises UsageError where lines are of other inputs or settings, or of another program: nothing is changed then.
    """
    asked = [task.asked(model) for task in tasks]
    lines, cuts = found(journal, set(asked))
    known, places = Known(), dict[int, tuple[File, int, int]]()
    for index, task in enumerate(tasks):
        checkpoint()
        if not (here := lines.get(asked[index])):
            continue
        if progress:
            progress("check", index, len(tasks))
        if all(line.passing for line in here.values()):
            known.again += 1
        elif (line := here.get(task.content())) is None:
            known.changed.append(task.id)
        elif line.passing:
            known.again += 1
        else:
            places[index] = line.file, line.at, line.size
            known.kept += 1
            if line.error is not None:
                known.failed += 1
                known.code = known.code or (index, int(line.error.get("exit_code") or 1))
    for file, size in cuts:
        file.cut(size)
    journal.keep(*leading(journal, places))
    return known


def leading(journal: Journal, places: dict[int, tuple[File, int, int]]) -> tuple[int, dict[int, tuple[File, int, int]]]:
    """How many lines of the output are already where they belong, and the places of the others."""
    first, at = 0, 0
    while (place := places.get(first)) is not None and place[0] is journal.main and place[1] == at:
        at += place[2]
        del places[first]
        first += 1
    return first, places


def found(journal: Journal, asked: set[str]) -> tuple[dict[str, dict[str, Line]], list[tuple[File, int]]]:
    """The lines of output and hidden file by what was asked and of which contents; where files end whose last line is half.

    Raises UsageError.
    """
    lines: dict[str, dict[str, Line]] = defaultdict(dict)
    cuts = []
    for file in (journal.main, journal.ahead):  # a line whose turn came is in both
        for number, (at, data) in enumerate(file.lines(), 1):
            checkpoint()
            if not data.endswith(b"\n"):
                if not (number > 1 or BEGIN.startswith(data[: len(BEGIN)])):
                    raise other(journal, file, number)
                cuts.append((file, at))
                break
            key, line = read(journal, file, number, at, data)
            if key not in asked:
                raise UsageError(
                    f"{journal.called(file)} line {number} is of another input, prompt, setting or model ({shown(json.loads(data).get('id'))}): "
                    "write to another file, or remove this one"
                )
            if line.content not in lines[key] or lines[key][line.content].passing:
                lines[key][line.content] = line
    return lines, cuts


def read(journal: Journal, file: File, number: int, at: int, data: bytes) -> tuple[str, Line]:
    """What was asked, and the line. Raises UsageError where it is none of a batch."""
    try:
        record = json.loads(data)
        asked, _, content = record["task"].partition(SPLIT)
        error = record["error"]
        if not (data.startswith(BEGIN) and content and isinstance(error, dict | None)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise other(journal, file, number) from None
    return asked, Line(file, at, len(data), content, error)


def other(journal: Journal, file: File, number: int) -> UsageError:
    return UsageError(
        f"{journal.called(file)} line {number} was not written by `ivlite batch`: write to another file, or remove this one"
    )
