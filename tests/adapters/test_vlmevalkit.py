"""VLMEvalKit's client and loop ask a server about videos. docs/guides/evaluating.md says how it is installed for this test."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vlmeval") is None, reason="VLMEvalKit is not installed")
ASKED = {
    "What happens?": {"fps": 2, "max_frames": 16, "min_pixels": 1024, "max_pixels": 65536},
    "What shape is the red thing?": {},
}


def test_predictions(url, clip, demo, tmp_path):
    """Those of the model itself, with a video by its file or whole within the request, in one piece or as a stream."""
    documents = [{"video": str(clip), "question": text, "settings": more} for text, more in ASKED.items()]
    runs = [{"local_media": True, "stream": False}, {"local_media": False, "stream": True}]
    asked = json.dumps({"url": url, "documents": documents, "runs": runs})
    program = Path(__file__).parent / "run_vlmevalkit.py"
    done = subprocess.run(
        [sys.executable, str(program)], input=asked, text=True, capture_output=True, cwd=tmp_path,
        env=os.environ | {"NO_PROXY": "127.0.0.1"}, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    expected = [
        demo.chat(
            [{"role": "user", "content": [{"type": "video", "video": str(clip), **more}, {"type": "text", "text": text}]}],
            temperature=0,
        ).text
        for text, more in ASKED.items()
    ]  # fmt: skip
    assert all(expected) and json.loads(done.stdout.splitlines()[-1]) == [expected, expected]
