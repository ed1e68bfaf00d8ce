"""A conversation about one video, the answers printed as they come: python examples/stream.py model.gguf clip.mp4"""

import sys

import ivlite

path, video = sys.argv[1:3]
model = ivlite.load(path, context=16384)
messages = [{"role": "user", "content": [{"type": "video", "video": video}]}]

while question := input("? "):
    if messages[-1]["role"] == "user":  # the first question goes into the message that holds the video
        messages[-1]["content"].append({"type": "text", "text": question})
    else:
        messages.append({"role": "user", "content": question})
    stream = model.stream(messages, max_new_tokens=512)
    for delta in stream:
        print(delta.text, end="", flush=True)
    print()
    messages.append({"role": "assistant", "content": stream.reply.text})
