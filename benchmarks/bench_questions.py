"""Thirty everyday questions: how often the demo's recommended system and BM25 find a function that answers them.

    python benchmarks/bench_questions.py    after `make demo`, or with another profile whose DATASET is docstrings

questions.jsonl names for each question the functions that answer it. Which these are was decided by reading the
docstrings, before any ranking was seen. The questions are used for nothing else: no model, weight or system is selected
on them. The last line of standard output is one JSON object with the number of questions answered in the first 1, 5
and 10 hits.
"""

import json
import math
import os
from pathlib import Path

from embedding_finetune.data.collection import read_data
from embedding_finetune.files import UserError, read_jsonl, run_command_line
from embedding_finetune.serving.available import default_label
from embedding_finetune.serving.index import Index, open_index
from embedding_finetune.settings import Settings

QUESTIONS = Path(__file__).with_name("questions.jsonl")
DEPTHS = 1, 5, 10


def qualified_name(hit: dict) -> str:
    """The function of a hit, whose source is such as `scipy.linalg.eig (scipy 1.17.1)`; "" if it has none."""
    return hit.get("source", "").partition(" ")[0]


def answered(index: Index, questions: list[dict]) -> dict[str, int]:
    """Number of questions (dicts of query, names) with one of their functions in the first k hits: hit@k -> number."""
    answers = index.answer([question["query"] for question in questions], max(DEPTHS))
    ranks = [next((hit["rank"] for hit in hits if qualified_name(hit) in question["names"]), math.inf)
             for question, hits in zip(questions, answers)]
    return {f"hit@{depth}": sum(rank <= depth for rank in ranks) for depth in DEPTHS}


def main() -> None:
    """Print the figures. Raises UserError when the data are not those that the questions are about."""
    settings = Settings.load(os.environ.get("PROFILE", "demo"))
    questions = read_jsonl(QUESTIONS, required=("query", "names"))
    known = {qualified_name({"source": source}) for source in read_data(settings).source.values()}
    if missing := [name for question in questions for name in question["names"] if name not in known]:
        raise UserError(f"{settings.data_dir} has no docstring of {', '.join(missing)}: build the demo's data again")
    found: dict = {"questions": len(questions), "system": default_label(settings)}
    for title, label in (("recommended", found["system"]), ("bm25", "bm25")):
        numbers = answered(open_index(settings, label), questions)
        found |= {f"{title}_{metric}": number for metric, number in numbers.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    run_command_line(main)
