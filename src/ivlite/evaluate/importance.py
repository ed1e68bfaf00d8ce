"""Calibration statistics: the mean squared input of every channel of every linear layer, over many prompts."""

import numpy as np

from ivlite.gguf import statistics


class Statistics:
    """Sums over prompts. Pass `observe` to ivlite.load; after each prompt call `keep` or `drop`.

    model: the model's name. prompts: keys of the prompts kept. tokens: their total number of tokens. rows: weight name ->
    number of input vectors. mean(name): their mean square, float64 (columns,).
    """

    def __init__(self, model):
        self.model, self.prompts, self.tokens = model, [], 0
        self.rows, self.sums = {}, {}
        self.seen = {}  # name -> (rows, sums) of the current prompt

    def observe(self, names, x):
        """Adds the inputs x, float32 (T, columns), of the weights with these names."""
        squares = np.einsum("tc,tc->c", x, x).astype(np.float64)
        for name in names:
            rows, sums = self.seen.get(name, (0, 0.0))
            self.seen[name] = rows + len(x), sums + squares

    def keep(self, key, tokens):
        """Adds the inputs since the last call to the sums, as the prompt `key` with that many tokens."""
        for name, (rows, sums) in self.seen.items():
            self.rows[name] = self.rows.get(name, 0) + rows
            self.sums[name] = self.sums.get(name, 0.0) + sums
        self.seen = {}
        self.prompts.append(key)
        self.tokens += tokens

    def drop(self):
        """Discards the inputs since the last call, of a prompt that was not finished."""
        self.seen = {}

    def mean(self, name):
        return self.sums[name] / self.rows[name]

    def save(self, path):
        """Writes the file; replaces an older one atomically. Returns notes about the disk. Raises DiskError."""
        means = {name: self.mean(name) for name in self.rows}
        return statistics.save(path, statistics.Importance(self.model, self.tokens, self.prompts, self.rows, means))

    @classmethod
    def load(cls, path):
        """The statistics of a file; more prompts can be added. Raises ModelFileError."""
        found = statistics.load(path)
        stats = cls(found.model)
        stats.prompts, stats.tokens, stats.rows = found.prompts, found.tokens, found.rows
        stats.sums = {name: mean.astype(np.float64) * stats.rows[name] for name, mean in found.means.items()}
        return stats
