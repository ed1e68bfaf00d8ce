"""A batch from its first input to its last: what is known, what is answered, what is counted."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from ivlite.batch.answering import Line
from ivlite.batch.journal import Journal
from ivlite.batch.resume import Known
from ivlite.batch.task import Task

Answers = Callable[[Iterator[tuple[int, Task]]], Any]  # work -> a generator of (index, Task, Line)


@dataclass
class Counts:
    """What has come of a batch so far. answered, failed: by this run. kept: lines of an earlier one. tokens: of prompts, and new."""

    inputs: int
    kept: int
    answered: int = 0
    failed: int = 0
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    began: float | None = None
    code: tuple[int, int] | None = None  # index and exit code of the first failure in the order of the inputs

    @property
    def done(self) -> int:
        return self.kept + self.answered + self.failed

    @property
    def seconds(self) -> float:
        """Since the model was loaded."""
        return 0.0 if self.began is None else time.monotonic() - self.began

    @property
    def exit_code(self) -> int:
        return 0 if self.code is None else self.code[1]

    def start(self) -> None:
        """Work begins; further calls change nothing."""
        self.began = time.monotonic() if self.began is None else self.began

    def add(self, index: int, line: Line) -> None:
        if line.error is None:
            self.answered += 1
        else:
            self.failed += 1
            code = index, int(line.error["exit_code"])
            self.code = code if self.code is None else min(self.code, code)
        for n in (0, 1):
            self.tokens[n] += line.tokens[n]


def run(journal: Journal, tasks: Sequence[Task], known: Known, answers: Answers, counts: Counts,
        told: Callable[[Task, Line], object]) -> None:  # fmt: skip
    """Answers what is missing in the Journal; told(task, line) is called for each. Raises Stopped, DiskError, ..."""

    def missing() -> Iterator[tuple[int, Task]]:
        yield from ((i, tasks[i]) for i in range(len(tasks)) if i not in there)

    there = {*range(journal.next), *journal.held}
    if len(there) == len(tasks):
        return
    with closing(answers(missing())) as lines:
        for index, task, line in lines:
            journal.put(index, line.data)
            counts.add(index, line)
            told(task, line)
