"""What tests of the library put into one, and what a search finds."""

from types import SimpleNamespace

from ivlite.library import Library


def cues(*texts):
    return [SimpleNamespace(start=float(i), end=i + 1.0, text=text) for i, text in enumerate(texts)]


def found(library, query, **where):
    return [hit.text for hit in library.search(query, **where)]


def filled(path, clip, count=400):
    with Library.open(path) as library:
        video = library.add_video(clip())
        library.add_texts(
            video, "subtitle", cues(*(f"line {i} of the film about trucks" for i in range(count))), "a.srt"
        )
        library.note(video, "a note")
        library.step(library.begin_run("?"), 1, "call", {"x": "y" * 5000})
