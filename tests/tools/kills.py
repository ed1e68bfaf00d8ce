"""Kills a process that saves a session file, at random moments; each time the file must have one of its states, whole.

python tests/tools/kills.py 100          # how many kills; the suite does 20
"""

import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_session_file_faults import killed_at_random


def main():
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = random.randrange(1 << 30)
    print(f"{kills} kills, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        states = killed_at_random(Path(folder) / "talk.ivs", kills, random.Random(seed))
    print(f"every file was whole; {states} states were seen")


if __name__ == "__main__":
    main()
