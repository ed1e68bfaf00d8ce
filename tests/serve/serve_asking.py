"""What requests of the tests are made of."""

import base64
import io
from pathlib import Path

from PIL import Image

CLIP = Path(__file__).parents[2] / "examples" / "clip.mp4"
WHAT = "What happens?"
TOLD = "A yellow circle moves right, then a red cross moves left."


def data_uri(path=CLIP, kind="video/mp4"):
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def asked(*parts, **more):
    """The body of a greedy chat request of one user message."""
    content = [*parts[:-1], {"type": "text", "text": parts[-1]}] if len(parts) > 1 else parts[0]
    return {"model": "demo", "messages": [{"role": "user", "content": content}], "temperature": 0, **more}


def picture(color="red", size=64):
    """A picture of one colour as a data: URI."""
    out = io.BytesIO()
    Image.new("RGB", (size, size), color).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


PICTURE = picture()
