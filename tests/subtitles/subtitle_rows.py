"""A file of two cues, and cues as plain rows."""

SRT = "1\n00:00:01,000 --> 00:00:02,500\n{}\n\n2\n00:00:03,000 --> 00:00:04,000\n{}\n"


def rows(found):
    return [(cue.start, cue.end, cue.text) for cue in found.cues]
