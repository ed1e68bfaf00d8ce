"""The importance of weight columns for the quantizer, from a file of `ivlite calibrate`."""

import zlib
from pathlib import Path

import numpy as np

from ivlite.errors import ModelFileError
from ivlite.files import expanded
from ivlite.gguf import statistics
from ivlite.gguf.statistics import ADVICE


def misfit(vectors, specs):
    """Why vectors of importance, by the names of weights, cannot be of a model with these TensorSpecs; "" if they can."""
    columns = {spec.gguf: spec.shape[-1] for spec in specs if spec.kind != "vector" and len(spec.shape) == 2}
    for name, values in vectors.items():
        if name not in columns:
            return f"{name!r:.80} is no layer of this model"
        if len(values) != columns[name]:
            return f"{name} has {len(values)} values where the layer has {columns[name]} columns"
    return ""


class Calibration:
    """The statistics of one model: `get(name, columns)`, `metadata` for the model file, `checksum` of the vectors.

    model: the name of that which was run. specs: TensorSpecs of the model to convert. Raises ModelFileError if the file is
    damaged or of a model with other layers.
    """

    def __init__(self, path, specs):
        self.path = Path(expanded(path))
        found = statistics.load(self.path)
        if wrong := misfit(found.means, specs):
            raise ModelFileError(f"{path}: {wrong}; {ADVICE}")
        self.vectors, self.model = found.means, found.model
        self.metadata = {"ivlite.calibration.tokens": found.tokens, "ivlite.calibration.model": found.model}
        self.checksum = 0
        for name in sorted(self.vectors):
            self.checksum = zlib.crc32(self.vectors[name], zlib.crc32(name.encode(), self.checksum))

    def get(self, name, columns):
        """float32 (columns,) of a weight, zero for padding; None if it has no statistics or only zeros."""
        values = self.vectors.get(name)
        if values is None or not values.any():
            return None
        return np.pad(values, (0, columns - len(values)))
