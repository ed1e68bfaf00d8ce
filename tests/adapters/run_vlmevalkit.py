"""Asks a server about videos with VLMEvalKit's own loop and client, in a process of its own, since it brings torch.

Standard input: JSON, {"url": of /v1, "documents": [{"video", "question", ...}], "runs": [{"local_media", "stream"}]}. The last line
of standard output: a JSON list of what each run predicted. Three of its modules import all its models, which need packages of
their own; they are replaced by empty ones. The client of its releases does not read streams yet; there it asks for whole answers.
"""

import importlib.machinery
import importlib.util
import inspect
import json
import sys
import types
from pathlib import Path

import pandas as pd

ROOT = Path(importlib.util.find_spec("vlmeval").submodule_search_locations[0])
FOLDERS = {"vlmeval": ROOT, "vlmeval.api": ROOT / "api", "vlmeval.api.adapters": None, "vlmeval.config": None}
for name, folder in FOLDERS.items():
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=folder is not None)
    module.__path__ = [] if folder is None else [str(folder)]
    sys.modules[name] = module
sys.modules["vlmeval.config"].supported_VLM, sys.modules["vlmeval.api.adapters"].build_adapter = {}, None

from vlmeval.api.lmdeploy import LMDeployAPI  # noqa: E402
from vlmeval.api.openai_sdk import OpenAISDKWrapper  # noqa: E402
from vlmeval.inference_video import infer_data_job_video  # noqa: E402

STREAMS = "stream" in inspect.signature(OpenAISDKWrapper).parameters


class Clips:
    """A data set as the loop knows it."""

    dataset_name, nframe, fps, pack = "clips", 0, -1, False

    def __init__(self, documents):
        self.documents = documents
        self.data = pd.DataFrame(documents)[["video", "question"]]
        self.data["index"] = range(len(documents))
        self.videos = sorted({document["video"] for document in documents})

    def build_prompt(self, line, video_llm):
        assert video_llm
        document = self.documents[line]
        settings = document.get("settings", {})
        return [
            {"type": "video", "value": document["video"], **settings},
            {"type": "text", "value": document["question"]},
        ]


def predicted(number, url, documents, stream, **settings):
    if STREAMS:
        settings["stream"] = stream
    model = LMDeployAPI(
        model="demo", api_base=f"{url}/chat/completions", video_llm=True, retry=1, wait=0, temperature=0.0, top_k=1, top_p=0.95,
        repetition_penalty=1.0, **settings,
    )  # fmt: skip
    work = Path(f"run{number}")
    work.mkdir()
    file = work / "predictions.tsv"
    infer_data_job_video(model, str(work), "demo", Clips(documents), result_file=str(file), api_nproc=2)
    return pd.read_csv(file, sep="\t")["prediction"].tolist()


asked = json.load(sys.stdin)
done = [predicted(i, asked["url"], asked["documents"], **settings) for i, settings in enumerate(asked["runs"])]
print(json.dumps(done))
