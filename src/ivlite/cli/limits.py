"""The machine's limits beside what is measured: bandwidth and rates of operations, for `ivlite bench`."""

import math
import time


class Limits:
    """The machine's limits, probed next to each measurement: other guests of the machine change them within seconds.

    pool: the model's own ThreadPool. Threads of another would still be spinning when the measurement begins.
    """

    EVERY = 0.1  # seconds of decoding between two probes of the bandwidth

    def __init__(self, pool):
        self.pool, self.reads, self.peaks = pool, [], []

    def best(self):
        """{"read": bytes per second, "int8", "matrix": operations per second}, the highest of each."""
        int8, matrix = map(max, zip(*self.peaks, strict=True))
        return {"read": max(self.reads, default=0), "int8": int8, "matrix": matrix}

    def peak(self):
        """int8 operations per second now."""
        self.peaks.append(self._peaks())
        return self.peaks[-1][0]

    def _peaks(self):
        from ivlite.cli import probe

        return probe.peaks(self.pool)

    def _read(self):
        from ivlite.cli import probe

        return probe.read(self.pool)

    def _settle(self):
        """Waits until all is computed."""

    def timed(self, run):
        """Seconds of run(), and the peak rate of operations probed before and after it."""
        before, start = self.peak(), time.perf_counter()
        run()
        self._settle()
        seconds = time.perf_counter() - start
        return seconds, (before + self.peak()) / 2

    def steps(self, step, count):
        """Seconds of step(0) ... step(count - 1), and the bandwidth, bytes per second, probed before each."""
        took, reads, probed = [], [], -math.inf
        for i in range(count):
            if time.perf_counter() - probed > self.EVERY:
                self.reads.append(self._read())
                probed = time.perf_counter()
            start = time.perf_counter()
            step(i)
            took.append(time.perf_counter() - start)
            reads.append(self.reads[-1])
        return took, reads


class CardLimits(Limits):
    """Those of a card: "read" is a copy's bytes per second, read and written; a stage is compared with the bf16 rate, "matrix"."""

    def __init__(self, operations):
        super().__init__(None)
        self.operations = operations

    def peak(self):
        super().peak()
        return self.peaks[-1][1]

    def _peaks(self):
        from ivlite.ops import cuda_probe

        return cuda_probe.matrix(self.operations)

    def _read(self):
        from ivlite.ops import cuda_probe

        return cuda_probe.copy(self.operations)

    def _settle(self):
        self.operations.settle()
