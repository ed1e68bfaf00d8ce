"""Asks the installed package about a clip that it makes: `python tests/tools/answers.py`, with no compiler on the PATH.

The test of a wheel (pyproject's cibuildwheel, tests/tools/wheel.py).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import ivlite

ROOT = Path(__file__).resolve().parents[2]
TOLD = "A yellow circle moves right, then a red cross moves left."


def said(*arguments):
    command = [sys.executable, "-m", "ivlite", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main():
    assert ROOT not in Path(ivlite.__file__).parents, f"this is the package of the source tree: {ivlite.__file__}"
    sys.path.insert(0, str(ROOT / "examples" / "demo_model"))
    import evaluate

    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        evaluate.clip(clip)
        answer = said("run", "demo", "--video", str(clip), "What happens?", "--temperature", "0", "--no-store")
    assert answer == TOLD, answer
    print(said("doctor"))
    print(answer)


if __name__ == "__main__":
    main()
