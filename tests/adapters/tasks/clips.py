"""What the tasks of this folder do with a document: {"video": path, "question": text, "choices": [texts], "answer": index}."""


def visuals(doc, *_):
    return [doc["video"]]


def text(doc, *_):
    return doc["question"]


def told(doc):
    return doc["choices"][doc["answer"]]


def spoken(doc, results, **_):
    return {"right": float(results[0] == told(doc))}


def messages(doc, *_):
    video = {"type": "video", "url": doc["video"], "end_time": doc["end"]}
    return [{"role": "user", "content": [video, {"type": "text", "text": doc["question"]}]}]


def rounds(doc, lmms_eval_specific_kwargs=None, round_idx=None, previous_output=None, previous_round_info=None):
    """Asks its question, then another about what was answered."""
    if round_idx is None:
        return doc["question"]
    if round_idx == 2:
        return None, None, True, previous_output, None
    return [doc["video"]], f"{previous_output[-1]} {doc['question']}", False, previous_output, {"round": round_idx}


def both(doc, results, **_):
    first, second = results[0] if isinstance(results[0], list) else results
    return {"rounds": float(first == told(doc) and bool(second))}
