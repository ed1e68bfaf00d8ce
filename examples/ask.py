"""Asks one question about one video: python examples/ask.py model.gguf clip.mp4 "What happens?" """

import sys

import ivlite

path, video, question = sys.argv[1:4]
model = ivlite.load(path)
reply = model.chat(
    [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": video, "fps": 1},
                {"type": "text", "text": question},
            ],
        }
    ],
    max_new_tokens=256,
    temperature=0,
)
print(reply.text)
print(
    reply.usage,
    {stage: round(seconds, 2) for stage, seconds in reply.timings.items()},
    file=sys.stderr,
)
