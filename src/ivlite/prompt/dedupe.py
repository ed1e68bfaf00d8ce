"""Leaves frame pairs out of a prompt that show nearly what the one before them shows."""

from dataclasses import replace

import numpy as np

from ivlite.media.medium import Seen


def deduped(prompt, progress=None):
    """The Prompt without the frame pairs that are nearly the last one that stays, and with a warning that says how many.

    The others keep their time marks and positions, as if nothing were left out. Decodes every video once and holds two
    pairs of it; vision decodes what stays a second time. progress("dedupe", done, total) counts frames. Raises
    MediaError, Stopped.
    """
    total = sum(2 * m.grid[0] for m in prompt.media if m.kind == "video" and not isinstance(m, Seen))
    kept, notes, done = [], [], 0
    for medium in prompt.media:
        pairs = list(range(medium.grid[0]))
        if medium.kind == "video" and not isinstance(medium, Seen):
            pairs = []
            for pair, repeats in enumerate(medium.repeats()):
                pairs += [] if repeats else [pair]
                done += 2
                if progress:
                    progress("dedupe", done, total)
            notes += remarks(medium, len(pairs))
        kept.append(pairs)
    if all(len(pairs) == medium.grid[0] for pairs, medium in zip(kept, prompt.media, strict=True)):
        return prompt
    return without(prompt, kept, notes)


def remarks(medium, kept):
    if left := medium.grid[0] - kept:
        pairs = f"{left} of {medium.grid[0]} frame pairs of video {medium.source}"
        yield f"{pairs} show{'s' if left == 1 else ''} nearly what the one before shows: left out (dedupe)"


def without(prompt, kept, notes):
    """The Prompt with the given pairs of each medium."""
    keep = np.ones(len(prompt.token_ids), bool)
    chosen = [set(pairs) for pairs in kept]
    stays = [pair in chosen[medium] for medium, pair in prompt.pairs()]
    for (_, before, n), (_, first, count), stay in zip(prompt.spans, prompt.spans[1:], stays[1:], strict=False):
        if not stay:  # its time mark, the start of vision, its tokens and the end
            keep[before + n + 1 : first + count + 1] = False
    places = np.cumsum(keep) - 1
    spans = [(medium, int(places[first]), count)
             for (medium, first, count), stay in zip(prompt.spans, stays, strict=True) if stay]  # fmt: skip
    media = [medium.only(pairs) for medium, pairs in zip(prompt.media, kept, strict=True)]
    return replace(
        prompt, token_ids=np.array(prompt.token_ids)[keep].tolist(), positions=prompt.positions[:, keep],
        grid_thw=np.array([m.grid for m in media], np.int64).reshape(-1, 3),
        timestamps=[list(m.timestamps) for m in media], frames=[list(m.frames) for m in media], media=media,
        warnings=[*prompt.warnings, *notes], spans=spans,
    )  # fmt: skip
