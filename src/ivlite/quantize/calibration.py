"""Importance of columns for the encoders, from the file that `ivlite calibrate` writes.

That is a GGUF file of architecture "internvideo3-stats": one float32 vector `<weight>.importance` per linear layer, the
mean square of each of its inputs, and in the metadata how many tokens were seen and of which model.
"""

import zlib
from pathlib import Path

import numpy as np

from ivlite.errors import ModelFileError
from ivlite.gguf import GGUFFile

ARCHITECTURE = "internvideo3-stats"
TOKENS, MODEL = f"{ARCHITECTURE}.tokens", f"{ARCHITECTURE}.model"
SUFFIX = ".importance"
ADVICE = "make the statistics of this model with `ivlite calibrate`"


class Calibration:
    """The statistics of one model: `get(name, columns)`, `metadata` for the model file, `checksum` of the vectors.

    specs: TensorSpecs of the model to convert. Raises ModelFileError for a file that is damaged or of another model.
    """

    def __init__(self, path, specs):
        self.path, self.vectors = Path(path), {}
        linear = {spec.gguf: spec for spec in specs if spec.kind != "vector" and len(spec.shape) == 2}
        with GGUFFile(path) as file:
            found = file.metadata.get("general.architecture")
            if found != ARCHITECTURE:
                raise ModelFileError(f"{path} has architecture {found!r:.60} and holds no statistics; {ADVICE}")
            tokens, model = file.metadata.get(TOKENS), file.metadata.get(MODEL)
            if type(tokens) is not int or not isinstance(model, str):
                raise ModelFileError(f"{path} does not say of how many tokens and which model it is; {ADVICE}")
            for info in file.tensors.values():
                name = info.name.removesuffix(SUFFIX)
                if name not in linear or not info.name.endswith(SUFFIX):
                    raise ModelFileError(f"{path} has {info.name!r:.80}, which is no layer of this model; {ADVICE}")
                self.vectors[name] = self._vector(file, info, linear[name].shape[-1])
        self.metadata = {"ivlite.calibration.tokens": tokens, "ivlite.calibration.model": model}
        self.checksum = 0
        for name in sorted(self.vectors):
            self.checksum = zlib.crc32(self.vectors[name], zlib.crc32(name.encode(), self.checksum))

    def _vector(self, file, info, columns):
        if info.format != "f32" or info.shape != (columns,):
            raise ModelFileError(
                f"{self.path}: {info.name} is {info.format} {list(info.shape)} where the layer has {columns} columns; {ADVICE}"
            )
        values = file.read(info.name).view(np.float32)
        if not np.isfinite(values).all() or values.min() < 0:
            raise ModelFileError(f"{self.path}: {info.name} has values that are no squares; {ADVICE}")
        return values

    def get(self, name, columns):
        """float32 (columns,) of a weight, zeros where rows are padded; None for one without statistics or of zeros."""
        values = self.vectors.get(name)
        if values is None or not values.any():
            return None
        return np.pad(values, (0, columns - len(values)))
