"""Runs tasks of this folder with lmms-eval's own code, in a process of its own, since it brings torch.

Standard input: a JSON list of arguments of `simple_evaluate`. The last line of standard output: a JSON list of what each gave:
{task: {"scores": ..., "samples": [...]}}.
"""

import json
import sys
from pathlib import Path

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager


def evaluated(arguments):
    tasks = TaskManager(
        include_path=str(Path(__file__).parent / "tasks"), include_defaults=False, model_name=arguments["model"]
    )
    found = simple_evaluate(task_manager=tasks, log_samples=True, bootstrap_iters=0, **arguments)
    return {
        task: {"scores": found["results"][task], "samples": [sample["resps"] for sample in samples]}
        for task, samples in found["samples"].items()
    }


done = [evaluated(arguments) for arguments in json.load(sys.stdin)]
print(json.dumps(done))
