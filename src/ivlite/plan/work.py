"""What of a prompt is still to be done."""


def before(draft):
    """The tokens of the conversation before a Draft."""
    return len(draft.after[0].token_ids) if draft.after else 0


def vision_seconds(speeds, laid, held):
    """Seconds of the vision tower for the frame pairs of a Prompt that are not among its first `held` tokens."""
    pairs = zip(laid.media, laid.firsts(held), strict=True)
    return sum(speeds.vision(m.grid[0] - first, m.grid[1] * m.grid[2]) for m, first in pairs)


def decoding(laid, held):
    """Bytes of memory for the files of a Prompt while they are decoded, one after the other."""
    pairs = zip(laid.media, laid.firsts(held), strict=True)
    return max((m.memory(first < m.grid[0]) for m, first in pairs), default=0)
