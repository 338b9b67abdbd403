"""A small multiple-choice task in a folder of its own, as a user without a network would write one."""

from __future__ import annotations

import json
from pathlib import Path

from ..tiny_llama import WORDS

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
metadata:
  version: 3.0
"""


def write_task(folder: Path, name: str = "pick_a_word", metric: str = "acc", questions: int = 12) -> Path:
    """Write a task of some questions with three choices each; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    lines = [
        {"question": " ".join(WORDS[i : i + 4]), "choices": [WORDS[i], WORDS[i + 20], WORDS[i + 40]], "answer": i % 3}
        for i in range(questions)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data, metric=metric), encoding="utf-8")
    return folder
