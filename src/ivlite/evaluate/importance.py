"""What calibration learns: the mean squared input of every channel of every linear layer, over many prompts."""

import numpy as np

from ivlite.gguf import statistics


class Statistics:
    """Sums over prompts. Give `observe` to ivlite.load, then after each prompt `keep` or `drop` what was seen.

    model: the model's name. prompts: keys of the prompts kept. tokens: how many these had. rows: per weight, how many
    input vectors it has seen. mean(name): their mean square, float64 (columns,).
    """

    def __init__(self, model):
        self.model, self.prompts, self.tokens = model, [], 0
        self.rows, self.sums = {}, {}
        self.seen = {}  # name -> (rows, sums) of the prompt under way

    def observe(self, names, x):
        """Adds the inputs x, float32 (T, columns), of the weights of these names."""
        squares = np.einsum("tc,tc->c", x, x).astype(np.float64)
        for name in names:
            rows, sums = self.seen.get(name, (0, 0.0))
            self.seen[name] = rows + len(x), sums + squares

    def keep(self, key, tokens):
        """Counts what was seen since the last call as the prompt `key` of so many tokens."""
        for name, (rows, sums) in self.seen.items():
            self.rows[name] = self.rows.get(name, 0) + rows
            self.sums[name] = self.sums.get(name, 0.0) + sums
        self.seen = {}
        self.prompts.append(key)
        self.tokens += tokens

    def drop(self):
        """Forgets what was seen since the last call: the prompt did not come to its end."""
        self.seen = {}

    def mean(self, name):
        return self.sums[name] / self.rows[name]

    def save(self, path):
        """Writes the file; an older one is replaced at once or not at all. Returns notes on the disk. Raises DiskError."""
        means = {name: self.mean(name) for name in self.rows}
        return statistics.save(path, statistics.Importance(self.model, self.tokens, self.prompts, self.rows, means))

    @classmethod
    def load(cls, path):
        """The statistics of a file, to be continued. Raises ModelFileError."""
        found = statistics.load(path)
        stats = cls(found.model)
        stats.prompts, stats.tokens, stats.rows = found.prompts, found.tokens, found.rows
        stats.sums = {name: mean.astype(np.float64) * stats.rows[name] for name, mean in found.means.items()}
        return stats
