"""Images and videos: opened as a plan (which frames, when, at what size), decoded pair by pair when vision runs."""

from ivlite.media.image import open_image
from ivlite.media.source import limits
from ivlite.media.video import open_video

__all__ = ["limits", "open_image", "open_video"]
