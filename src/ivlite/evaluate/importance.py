"""What calibration learns: the mean squared input of every channel of every linear layer, over many prompts.

The file is GGUF, architecture "internvideo3-stats": per weight a float32 vector `<weight>.importance` of the layer's
columns; docs/gguf_keys.md lists the keys.
"""

import numpy as np

from ivlite.errors import ModelFileError
from ivlite.gguf import GGUFFile
from ivlite.gguf.writer import GGUFWriter

ARCHITECTURE = "internvideo3-stats"
SUFFIX = ".importance"
REQUIRED = ("tokens", "model", "rows", "prompts")


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
        """Writes the file; an older one is replaced at once or not at all. Raises DiskError."""
        prefix = ARCHITECTURE + "."
        metadata = {
            "general.architecture": ARCHITECTURE,
            prefix + "tokens": self.tokens,
            prefix + "model": self.model,
            prefix + "prompts": self.prompts,
            prefix + "rows": list(self.rows.values()),
        }
        tensors = [(name + SUFFIX, (len(self.sums[name]),), "f32") for name in self.rows]
        with GGUFWriter(path, metadata, tensors) as out:
            for name in self.rows:
                out.write(self.mean(name).astype(np.float32).tobytes())

    @classmethod
    def load(cls, path):
        """The statistics of a file, to be continued. Raises ModelFileError."""
        with GGUFFile(path) as file:
            meta = {key.removeprefix(ARCHITECTURE + "."): value for key, value in file.metadata.items()}
            names = sorted(file.tensors, key=lambda name: file.tensors[name].offset)
            if meta.get("general.architecture") != ARCHITECTURE or not all(key in meta for key in REQUIRED):
                raise ModelFileError(f"{path} holds no calibration statistics: make them with `ivlite calibrate`")
            vectors = [file.tensors[name] for name in names]
            if len(meta["rows"]) != len(names) or any(v.format != "f32" or len(v.shape) != 1 for v in vectors):
                raise ModelFileError(f"{path} is damaged: its vectors and their counts differ; calibrate again")
            stats = cls(meta["model"])
            stats.prompts, stats.tokens = list(meta["prompts"]), int(meta["tokens"])
            for name, rows in zip(names, meta["rows"], strict=True):
                weight = name.removesuffix(SUFFIX)
                stats.rows[weight] = rows
                stats.sums[weight] = file.read(name).view(np.float32).astype(np.float64) * rows
        return stats
