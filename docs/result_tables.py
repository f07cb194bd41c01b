"""The tables of docs/results.md, from the rows of docs/recipe.json.

python docs/result_tables.py    rewrites each table between <!-- table NAME --> and the next empty line
"""

import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from embedding_finetune.files import atomic_write, run_command_line

SYSTEMS = {  # label -> name
    "bm25": "BM25", "reference": "MiniLM", "hybrid_reference": "MiniLM + BM25",
    "hybrid_late_reference": "MiniLM + BM25, reranked", "dense": "tuned MiniLM",
    "hybrid_dense": "tuned MiniLM + BM25", "late_tokens_on_reference": "MiniLM, tuned reranking",
    "hybrid_late_tokens_on_reference": "MiniLM + BM25, tuned reranking",
    "hybrid_rerank_reranker_whole_on_reference": "MiniLM + BM25, cross-encoder"}
FRACTIONS = {"_eighth": "628", "_half": "2,513", "": "5,026"}  # suffix of a label -> training queries of MS MARCO
TRANSFERS = [("MS MARCO", "msmarco", "docstrings"), ("COVID-QA", "covidqa", "docstrings"),
             ("docstrings", "docstrings", "msmarco"), ("COVID-QA", "covidqa", "msmarco"),
             ("MS MARCO", "msmarco", "covidqa"), ("docstrings", "docstrings", "covidqa"),
             ("sympy", "sympy", "torch"), ("torch", "torch", "sympy")]
NAMES = {"msmarco": "MS MARCO", "covidqa": "COVID-QA"}
ABLATION = [  # what the page calls a row, its label for docstrings and for MS MARCO where that is another
    ("BM25", "bm25"), ("MiniLM with CLS pooling and prompt", "raw"), ("MiniLM as published", "reference"),
    ("10 random negatives", "random-10"),
    ("* 50 random negatives", "random-50"), ("* 128 queries per batch", "random-10, batch 128"),
    ("* mean pooling", "random-10, mean pooling"), ("BM25 negatives, unfiltered", "BM25 negatives, unfiltered"),
    ("the model's negatives, filtered", "model's negatives, filtered"), ("teacher", "teacher"),
    ("mean pooling, no prompt", "mean pooling, no instruction"),
    ("128 queries per batch, learning rate 1e-4", "batch 128, learning rate 1e-4"),
    ("best on dev + BM25", "batch 128, learning rate 1e-4 + hybrid", "second round + hybrid")]


def read_rows():
    """(rows of second_ladder.py, rows of recipe.py), each (set, label) -> row."""
    rows = json.loads((DOCS / "recipe.json").read_text(encoding="utf-8"))
    return [{(row["set"], row["label"]): row for row in rows if (row.get("ladder") == "second") == second}
            for second in (True, False)]


def tables():
    """NAME of a table -> its Markdown."""
    rows, ablation = read_rows()
    found = {name: _systems(rows, name) for name in ("msmarco", "docstrings", "covidqa")}
    return found | {"pairs": _pairs(rows), "transfer": _transfer(rows), "ablation": _ablation(ablation)}


def _systems(rows, name):
    return _markdown(["system", "recall@1", "MRR@10"], (
        [title, _mean(row), f"{row['mrr@10']:.3f}"]
        for label, title in SYSTEMS.items() for row in [rows[name, label]]))


def _pairs(rows):
    labels = ["dense", "late_tokens{}_on_reference", "hybrid_late_tokens{}_on_reference"]
    return _markdown(["system", *FRACTIONS.values()], (
        [SYSTEMS[label.format("")],
         *(_mean(rows["msmarco", label.format(part) if "{}" in label else label + part]) for part in FRACTIONS)]
        for label in labels))


def _transfer(rows):
    systems = {"{}_dense": "reference", "late_{}_tokens_on_reference": "late_reference",
               "hybrid_late_{}_tokens_on_reference": "hybrid_late_reference"}
    return _markdown(["tuned on", "evaluated on", "single-vector", "reranking", "reranking + BM25"], (
        [title, NAMES.get(on, on), *(_difference(rows[on, label.format(trained)]["baselines"][base])
                                     for label, base in systems.items())]
        for title, trained, on in TRANSFERS))


def _ablation(rows):
    def cells(name, label):
        row = rows.get((name, label))
        return ["", ""] if row is None else [f"{row['recall@1']:.3f}", _difference(row.get("against"))]
    return _markdown(["change", "docstrings", "difference", "MS MARCO", "difference"], (
        [title, *cells("docstrings", labels[0]), *cells("msmarco", labels[-1])] for title, *labels in ABLATION))


def _mean(row):
    return "{:.3f} [{:.3f}, {:.3f}]".format(row["recall@1"], *row["ci95"])


def _difference(pair):
    return "{difference:+.3f} [{ci95[0]:+.3f}, {ci95[1]:+.3f}]".format(**pair) if pair else ""


def _markdown(head, rows):
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in [head, *rows]]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def filled(page):
    """The text of a page with today's tables; raises KeyError if it asks for one that does not exist."""
    made = tables()
    return re.sub(r"(<!-- table (\w+) -->\n\n).*?(?=\n\n)", lambda found: found[1] + made[found[2]], page,
                  flags=re.DOTALL)


def main():
    """Rewrite docs/results.md."""
    path = DOCS / "results.md"
    text = filled(path.read_text(encoding="utf-8"))
    with atomic_write(path) as file:
        file.write(text)


if __name__ == "__main__":
    run_command_line(main)
