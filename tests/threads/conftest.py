"""What these tests share: programs that run in a process of their own, since what they test ends or freezes one."""

import os
import subprocess
import sys

import pytest

BEGIN = """
import os, sys, threading, time
import numpy as np
import ivlite
from ivlite import _C

HEADS, DIM = 4, 64

def attend(rows, **more):
    # one parallel region whose time grows with the square of rows
    q = np.ones((rows, HEADS, DIM), np.float32)
    _C.attention(np.empty_like(q), q, q, q, 0.1, rows, True, **more)

def rows_for(seconds):
    rows = 512
    while True:
        start = time.monotonic()
        attend(rows)
        took = time.monotonic() - start
        if took > 0.25:
            return int(rows * max(1, seconds / took) ** 0.5)
        rows *= 2

def normed(**more):
    x = np.ones((4096, 64), np.float32)
    y = np.empty_like(x)
    _C.rms_norm(y, x, np.ones(64, np.float32), 1e-6, **more)
    return bool(np.allclose(y, 1))
"""


@pytest.fixture
def program():
    """program(text, timeout=60, **environment) runs it after BEGIN and gives (exit code, standard output, standard error)."""

    def run(text, timeout=60, **environment):
        result = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", BEGIN + text],
            capture_output=True, text=True, timeout=timeout, env=os.environ | {"IVLITE_NUM_THREADS": ""} | environment,
        )  # fmt: skip
        return result.returncode, result.stdout, result.stderr

    return run
