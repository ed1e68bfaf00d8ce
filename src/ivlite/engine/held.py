"""What the rows of a cache stand for: token ids, rotary positions, frame pairs, and the logits where prompts ended."""

import os

import numpy as np

from ivlite.errors import MediaError

ENDS = 4  # prompts whose last logits are kept: 0.6 MB each for a vocabulary of 150,000


class Held:
    """The tokens whose rows a cache holds, in order.

    Two prompts share the rows of a prefix where token ids, positions and the keys of the frame pairs are equal. The last
    frame pair may be there in part. chunks: {first token: end} of each chunk of a prefill that a prompt's end did not cut. given: how many of
    the first rows were read from a store. lows: {file: how many of the first rows are as they were saved to it}.
    """

    def __init__(self):
        self.length = 0
        self._ids, self._positions = np.empty(0, np.int64), np.empty((3, 0), np.int64)  # with room for more
        self._added = [], []  # the newest token ids, and arrays of their positions, that are not in these yet
        self.spans: list[Span] = []
        self.chunks: dict[int, int] = {}
        self._ends: dict[int, np.ndarray] = {}  # length -> logits after it, the one used last at the end
        self.next = 0  # position of the next token
        self.given = 0
        self.lows: dict[object, int] = {}

    @classmethod
    def of(cls, prompt):
        """What a cache holds after a Prompt."""
        held = cls()
        held.append(prompt.token_ids, prompt.positions, prompt.next_position)
        for (_, first, count), (medium, pair) in zip(prompt.spans, prompt.pairs(), strict=True):
            held.spans.append(Span(first, count, medium=prompt.media[medium], pair=pair))
        return held

    @property
    def token_ids(self):
        return self._arrays()[0].tolist()

    @property
    def positions(self):
        """int64 (3, length)."""
        return self._arrays()[1]

    @property
    def keys(self):
        """16 bytes per span."""
        return [span.key for span in self.spans]

    def append(self, ids, positions, following=None):
        """Adds tokens with their positions (3, n); `following`: the position of the next one, if it is not one more."""
        self._added[0].extend(ids)
        self._added[1].append(positions)
        self.length += len(ids)
        if following is None and len(ids):  # a vision block's last token has its last row and column
            following = int(positions[:, -1].max()) + 1
        self.next = self.next if following is None else following

    def _arrays(self):
        """Token ids (length,) and positions (3, length)."""
        ids, positions = self._added
        if ids:
            first = self.length - len(ids)
            if self.length > len(self._ids):
                room = max(self.length, 2 * len(self._ids), 256)
                self._ids = np.concatenate([self._ids[:first], np.empty(room - first, np.int64)])
                self._positions = np.concatenate([self._positions[:, :first], np.empty((3, room - first), np.int64)], 1)
            self._ids[first : self.length] = ids
            self._positions[:, first : self.length] = np.concatenate(positions, 1)
            self._added = [], []
        return self._ids[: self.length], self._positions[:, : self.length]

    def truncate(self, length):
        """Forgets all tokens from `length` on."""
        if length == self.length:
            return
        positions = self._arrays()[1]
        # A vision block's last token has its last row and column; text goes on after the longer side.
        self.next = int(positions[:, length - 1].max()) + 1 if length else 0
        self.length, self.given = length, min(self.given, length)
        self.lows = {file: min(low, length) for file, low in self.lows.items()}
        while self.spans and self.spans[-1].first >= length:
            self.spans.pop()
        self.chunks = {first: end for first, end in self.chunks.items() if end <= length}
        self._ends = {n: logits for n, logits in self._ends.items() if n <= length}

    def shared(self, prompt, reading=True):
        """The number of leading tokens of a Prompt whose rows are held. Raises MediaError, Stopped (keys of media).

        reading: False to count no frame pair for whose key a large file must be read, or pixels.
        """
        n = min(self.length, len(prompt.token_ids))
        ids, positions = self._arrays()
        same = ids[:n] == np.asarray(prompt.token_ids[:n], np.int64)
        same &= (positions[:, :n] == prompt.positions[:, :n]).all(0)
        n = n if same.all() else int(same.argmin())
        mine = iter(self.spans)
        for (_, first, count), (medium, pair) in zip(prompt.spans, prompt.pairs(), strict=True):
            if first >= n:
                break
            span = next(mine, None)
            if (
                span is None
                or (span.first, span.count) != (first, count)
                or not span.shows(prompt.media[medium], pair, reading)
            ):
                return first
        following = next(mine, None)  # a frame pair here, and plain text there
        return n if following is None else min(n, following.first)

    def logits(self, length):
        """The logits kept after `length` tokens, or None."""
        found = self._ends.pop(length, None)
        if found is not None:
            self._ends[length] = found
        return found

    def keep_logits(self, logits, length=None):
        """Keeps the logits (vocab,) after the first `length` tokens, or all."""
        length = self.length if length is None else length
        self._ends.pop(length, None)
        self._ends[length] = logits
        while len(self._ends) > ENDS:
            del self._ends[next(iter(self._ends))]

    @property
    def ends(self):
        """(length, logits) of the prompts that ended here, the one used last at the end."""
        return list(self._ends.items())

    def settle(self):
        """Lets go of media whose keys are known."""
        for span in self.spans:
            span.settle()

    def copy(self, length):
        """The first `length` tokens of these."""
        out = Held()
        out.follow(self, length)
        out.given = min(self.given, length)
        return out

    def follow(self, other, length):
        """Adds those of another Held behind these, up to `length`; it begins with the same tokens."""
        first = self.length
        ids, positions = other._arrays()
        following = other.next if first < length == other.length else None
        self.append(ids[first:length].tolist(), positions[:, first:length].copy(), following)
        self.spans += [span for span in other.spans if first <= span.first < length]
        self.chunks |= {begin: end for begin, end in other.chunks.items() if first <= begin and end <= length}
        for n, logits in other.ends:
            if first < n <= length:
                self.keep_logits(logits, n)


class Span:
    """A block of vision tokens. key: 16 bytes, or None to ask a medium for that of its n-th frame pair when needed."""

    def __init__(self, first, count, key=None, medium=None, pair=0):
        self.first, self.count = first, count
        self._key, self._medium, self._pair = key, medium, pair

    @property
    def key(self):
        if self._key is None:
            try:
                self._key = self._medium.pair_keys()[self._pair]
            except MediaError:  # pixels that are gone equal no others
                self._key = os.urandom(16)
            self._medium = None
        return self._key

    def shows(self, medium, pair, reading=True):
        """Whether this is the n-th frame pair of a medium. Reads no file where it is the same medium.

        reading: False to say no where a large file must be read for a key, or pixels.
        """
        mine = self._medium
        if mine is not None and pair == self._pair and mine in (medium, getattr(medium, "medium", None)):
            return True
        if not reading and not (medium.has_keys() and (self._key is not None or mine.has_keys())):
            return False
        return self.key == medium.pair_keys()[pair]

    def settle(self):
        """Lets go of the medium if its keys need no reading of files."""
        if self._key is None and self._medium.has_keys():
            self._key, self._medium = self._medium.pair_keys()[self._pair], None
