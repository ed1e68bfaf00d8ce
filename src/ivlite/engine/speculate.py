"""Speculation: tokens that are likely to follow, or that a grammar demands, run in one call with the one before them.

They are likely where the text went the same way before (prompt lookup).

The logits of a checked token are those of a call of its own, to the last bit (`same_rows` of a network), so an answer does not
depend on what was drafted. How much is drafted does depend on measured times.
"""

from ivlite.engine.step import Step
from ivlite.stop import checkpoint

ROWS = 16  # tokens of a call, at most
INDEXED = 1 << 15  # tokens of a prompt that are looked up, the last ones: about 16 MB
GRAM = 3  # tokens that are looked up together, at most
SOLID = 4  # tokens of a match beyond which a single token that differs does not end it
LONG = 16  # strength of a match from which greater ones are not told apart

# The tokens of an endless repetition, and how often its period is there: far more than a table or a list of equal rows has.
REPEATED, COPIES = 2048, 32


class Lookup:
    """A growing text, and the place in it whose next token is the guess for the next one.

    The place follows the last occurrence of the newest tokens, three of them or else two or one. It is kept as long as its
    guesses are right, and over a single token that differs, as values of records do.

    length: the number of tokens before the place that equal the newest ones, as far as known. strength: the same, where a
    long match before a token that differs counts.
    """

    def __init__(self, ids):
        self.ids = []
        self.at, self.length, self.strength = -1, 0, 0  # at: the index of the guess, or -1
        self._followers = [{} for _ in range(GRAM)]  # the newest n + 1 tokens -> index of what followed them
        for token in ids:
            self.ids.append(token)
            self._note()
        self.given = len(self.ids)

    def add(self, token):
        """Adds a token; returns whether it was the guess, None without a guess."""
        hit = None if self.at < 0 else self.ids[self.at] == token
        self.ids.append(token)
        if hit:
            self.at, self.length, self.strength = self.at + 1, self.length + 1, self.strength_after(1)
        else:
            self._find()
        self._note()
        return hit

    def strength_after(self, tokens):
        """The strength after so many guesses that are right."""
        return self.strength + tokens if self.strength or not tokens else SOLID + tokens

    def _find(self):
        one, two, three = self._followers
        a, b, c = (None, None, *self.ids[-GRAM:])[-GRAM:]
        if (at := three.get((a, b, c))) is not None:
            self.at, self.length = at, 3
        elif self.strength > SOLID:
            self.at, self.length = self.at + 1, 0
        elif (at := two.get((b, c))) is not None:
            self.at, self.length = at, 2
        else:
            self.at = one.get(c, -1)
            self.length = int(self.at >= 0)
        self.strength = self.length

    def _note(self):
        ids, (one, two, three) = self.ids, self._followers
        at = len(ids)
        one[ids[-1]] = at
        if at >= 2:
            two[ids[-2], ids[-1]] = at
        if at >= GRAM:
            three[ids[-3], ids[-2], ids[-1]] = at

    def guess(self, count):
        """The next `count` tokens as they followed the last time; behind the end of the text, what repeats goes on."""
        period = len(self.ids) - self.at
        return [self.ids[self.at + i % period] for i in range(count)]

    @property
    def endless(self):
        """Whether the tokens since the given ones end with REPEATED, and COPIES times the same block."""
        if self.length < REPEATED // 2:
            return False
        period = len(self.ids) - self.at
        repeated = min(self.length + period, len(self.ids) - self.given)
        return repeated >= max(REPEATED, COPIES * period)


class Chances:
    """How often guesses were right, by the strength of the match: the last thirty or so of each."""

    PRIOR = (0.4, 0.15, 0.3, 0.5, 0.7, 0.8, 0.9)
    CLASS = (0, 1, 2, 3, *[4] * 4, *[5] * 8, 6)  # of a strength up to LONG

    def __init__(self):
        self.rates, self.counts = list(self.PRIOR), [4] * len(self.PRIOR)

    def note(self, strength, hit):
        i = self.CLASS[min(strength, LONG)]
        self.counts[i] += 1
        self.rates[i] += (hit - self.rates[i]) / min(self.counts[i], 32)

    def of(self, strength):
        return self.rates[self.CLASS[min(strength, LONG)]]


class Costs:
    """What a call of n tokens costs in calls of one token, as measured, and a guess where there is no measurement.

    A disturbed measurement would end drafting for good, so measurements that do are forgotten little by little.
    """

    SLOPE = 0.2  # of one more token, until a call of several was measured

    def __init__(self):
        self.one, self.measured, self._guesses = 0.0, {}, {}

    def note(self, tokens, seconds):
        if tokens == 1:
            self.one = self.one + (min(seconds, 2 * self.one) - self.one) / 4 if self.one else seconds
            return
        if not self.one:  # the first call had forced tokens
            return
        cost = min(seconds / self.one, 2 * tokens)
        old = self.measured.get(tokens)
        self._guesses.clear()
        self.measured[tokens] = cost if old is None else old + (cost - old) / 4

    def forget(self):
        """Called where a likely guess is not checked because of what was measured."""
        for tokens, cost in self.measured.items():
            self.measured[tokens] = 1 + 0.99 * (cost - 1)
        self._guesses.clear()

    def of(self, tokens):
        if tokens == 1:
            return 1.0
        if (known := self.measured.get(tokens)) is not None:
            return known
        if tokens not in self._guesses:
            self._guesses[tokens] = self._guess(tokens)
        return self._guesses[tokens]

    def _guess(self, tokens):
        """Between two measured numbers on the line through them, beyond on that of the last two."""
        points = [(1, 1.0), *sorted(self.measured.items())]
        below, above = [p for p in points if p[0] < tokens], [p for p in points if p[0] > tokens]
        pair = below[-1:] + above[:1] if above else below[-2:]
        (n, cost), slope = pair[0], self.SLOPE
        if len(pair) == 2:
            slope = max(0.0, (pair[1][1] - cost) / (pair[1][0] - n))
        return cost + slope * (tokens - n)


class Decoder:
    """The logits after each token of an answer, from calls of one token or, where that pays, of several.

    Made after a Runner has run the prompt. After each `next` the runner may hold tokens beyond those given; `settle` removes
    them. drafted: False guesses nothing, as for an answer that is sampled; then endless repetition is not looked for either.
    forced: a function that returns the tokens that must follow, or None.
    """

    GAIN = 1.05  # more tokens per second than without, to be worth it

    def __init__(self, runner, prompt, drafted, forced=None):
        self.runner, self.meter, self.forced = runner, runner.meter, forced or list
        self.rows = min(ROWS, runner.network.same_rows)
        self.prompt, self.lookup = (prompt if drafted else None), None
        self.chances, self.costs = Chances(), Costs()
        self.length = runner.cache.length  # tokens of prompt and answer that the cache holds
        self.draft, self.logits, self.used = [], None, 0

    def next(self, token, left):
        """Yields a Step where one must be run, and returns float32 logits (vocab,) after the next token.

        They are None where the answer repeats itself without end. A Step that nobody has run is run when the generator goes
        on. left: the tokens that may follow it, one at least.
        """
        if self.prompt is not None:
            if self.lookup is None:
                self.lookup = Lookup(text(self.prompt)[-INDEXED:])
            self._look_up(token)
            if self.lookup.endless:
                return None
        if self.used < len(self.draft) and self.draft[self.used] == token:
            checkpoint()
            self.used += 1
            self.meter.accepted += 1
        else:
            yield from self._check(token, left)
        self.length += 1
        return self.logits[self.used]

    def _look_up(self, token):
        strength = self.lookup.strength
        if (hit := self.lookup.add(token)) is not None:
            self.chances.note(strength, hit)

    def _check(self, token, left):
        """Runs a token and the draft of what follows."""
        self.settle()
        room = min(self.rows, left, self.runner.cache.capacity - self.length)
        forced = self.forced()[: room - 1]
        draft = forced or (self.lookup.guess(self._count(room - 1)) if self.lookup else [])
        step = Step(self.runner, [token, *draft], 1 + len(forced))
        yield step
        self.logits = step.run()
        if step.seconds is not None:
            self.costs.note(len(step.tokens), step.seconds)
        self.draft, self.used = step.tokens[1:], 0
        self.meter.drafted += len(self.draft)

    def _count(self, most):
        """The number of tokens to draft: that of the most tokens per second."""
        look = self.lookup
        if look.at < 0 or most < 1 or not self.costs.one:
            return 0
        chance = expected = 1.0
        count, best = 0, self.GAIN
        for n in range(1, most + 1):
            chance *= self.chances.of(look.strength_after(n - 1))
            if chance < 0.05:
                break
            expected += chance
            if (rate := expected / self.costs.of(n + 1)) > best:
                count, best = n, rate
        if not count and expected > 2:
            self.costs.forget()
        return count

    def settle(self):
        """Removes from the runner the tokens that were drafted and did not come."""
        self.draft = []
        if self.runner.cache.length > self.length:
            self.runner.truncate(self.length)


def text(prompt):
    """The token ids of a Prompt without its vision tokens."""
    out, at = [], 0
    for _, first, count in prompt.spans:
        out += prompt.token_ids[at:first]
        at = first + count
    return out + list(prompt.token_ids[at:])
