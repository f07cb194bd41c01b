"""The tables of README.md, README.zh.md and docs/results.md, from the rows of benchmarks/claims/results.json.

python docs/result_tables.py    rewrites each table between <!-- table NAME --> and the next empty line
"""

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from embedding_finetune.files import atomic_write, run_command_line

CLAIMS = ROOT / "benchmarks" / "claims"
PAGES = "README.md", "README.zh.md", "docs/results.md"
CLAIM_METRICS = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@10": "recall@10", "hit@1": "hit@1"}
SYSTEMS = {  # label -> name
    "bm25": "BM25", "reference": "MiniLM", "hybrid_reference": "MiniLM + BM25",
    "hybrid_late_reference": "MiniLM + BM25, reranked", "single": "tuned MiniLM",
    "hybrid_single": "tuned MiniLM + BM25", "late_tokens_on_reference": "MiniLM, tuned reranking",
    "hybrid_late_tokens_on_reference": "MiniLM + BM25, tuned reranking",
    "hybrid_rerank_reranker_whole_on_reference": "MiniLM + BM25, cross-encoder"}
FRACTIONS = {"_eighth": "628", "_half": "2,513", "": "5,026"}  # suffix of a label -> training queries of MS MARCO
TRANSFERS = [("MS MARCO", "msmarco", "docstrings"), ("COVID-QA", "covidqa", "docstrings"),
             ("docstrings", "docstrings", "msmarco"), ("COVID-QA", "covidqa", "msmarco"),
             ("MS MARCO", "msmarco", "covidqa"), ("docstrings", "docstrings", "covidqa"),
             ("sympy", "sympy", "torch"), ("torch", "torch", "sympy")]
NAMES = {"msmarco": "MS MARCO", "covidqa": "COVID-QA"}


def read_rows():
    """The rows of results.json."""
    return json.loads((CLAIMS / "results.json").read_text(encoding="utf-8"))


def tables():
    """NAME of a table -> its Markdown."""
    everything = read_rows()
    ours = {(row["claim"], row["label"]): row for row in everything if row["label"] and row["leak_free"]}
    found = {name: _systems(ours, name) for name in ("msmarco", "docstrings", "covidqa")}
    for path in sorted(CLAIMS.glob("*.toml")):
        if published := [row for row in everything if row["claim"] == path.stem and row.get("published")]:
            claim = tomllib.loads(path.read_text(encoding="utf-8"))
            mine = [row for row in everything if row["claim"] == path.stem and row["label"]]
            found[path.stem] = _claim(published, [row for row in mine if row["leak_free"]])
            found[f"{path.stem}_published_split"] = _claim(published, [
                row for row in mine if not row["leak_free"]])
            found[f"{path.stem}_in_readme"] = _claim(published, [
                row for row in mine if row["leak_free"] and row["label"] in claim.get("in_readme", ())])
            found[f"{path.stem}_seen"] = _seen([row for row in mine if not row["leak_free"]])
    return found | {"pairs": _pairs(ours), "transfer": _transfer(ours)}


def _claim(published, mine):
    """What was published, and what was measured here without leaks; the best system on dev is bold."""
    metrics = {name: title for name, title in CLAIM_METRICS.items() if any(name in row["metrics"] for row in published)}
    first = next(iter(metrics))
    best = max((row["dev"] for row in mine if row["trained"]), default=None)
    lines = [[f"published: {row['system']}", _millions(row),
              *(_value(row["metrics"].get(name)) for name in metrics), "", ""] for row in published]
    for row in mine:
        name = f"**{row['system']}**" if row["trained"] and row["dev"] == best else row["system"]
        lines.append([name, _millions(row), *(_value(row["metrics"][name]) for name in metrics),
                      _difference(row["against"].get(first)), f"{row['minutes']:.0f}" if row["trained"] else ""])
    titles = list(metrics.values())
    return _markdown(["system", "weights", *titles, f"difference in {titles[0]}", "minutes"], lines)


def _seen(rows):
    """nDCG@10 of the published split, by whether a positive of the test query is one of a training query."""
    groups = ("seen", "unseen")
    counts = next(([f" ({row['by_training'][group]['queries']})" for group in groups] for row in rows
                   if row["by_training"]), ["", ""])
    return _markdown(["system", "all", *(f"{group}{count}" for group, count in zip(groups, counts))], (
        [row["system"], _value(row["metrics"]["ndcg@10"]),
         *(_value(row["by_training"].get(group, {}).get("ndcg@10")) for group in groups)] for row in rows))


def _systems(rows, name):
    return _markdown(["system", "recall@1", "MRR@10"], (
        [title, _mean(row), f"{row['metrics']['mrr@10']:.3f}"]
        for label, title in SYSTEMS.items() for row in [rows[name, label]]))


def _pairs(rows):
    labels = ["single", "late_tokens{}_on_reference", "hybrid_late_tokens{}_on_reference"]
    return _markdown(["system", *FRACTIONS.values()], (
        [SYSTEMS[label.format("")],
         *(_mean(rows["msmarco", label.format(part) if "{}" in label else label + part]) for part in FRACTIONS)]
        for label in labels))


def _transfer(rows):
    systems = {"{}_single": "reference", "late_{}_tokens_on_reference": "late_reference",
               "hybrid_late_{}_tokens_on_reference": "hybrid_late_reference"}
    return _markdown(["tuned on", "evaluated on", "single-vector", "reranking", "reranking + BM25"], (
        [title, NAMES.get(on, on), *(_difference(rows[on, label.format(trained)]["against"][base]["recall@1"])
                                     for label, base in systems.items())]
        for title, trained, on in TRANSFERS))


def _mean(row):
    return "{:.3f} [{:.3f}, {:.3f}]".format(row["metrics"]["recall@1"], *row["ci95"]["recall@1"])


def _difference(pair):
    return "{difference:+.3f} [{ci95[0]:+.3f}, {ci95[1]:+.3f}]".format(**pair) if pair else ""


def _value(value):
    return "" if value is None else f"{value:.3f}"


def _millions(row):
    return f"{row['parameters'] / 1e6:.0f} M" if row["parameters"] else ""


def _markdown(head, rows):
    lines = [re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(row)} |") for row in [head, *rows]]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def filled(page):
    """The text of a page with today's tables; raises KeyError if it asks for one that does not exist."""
    made = tables()
    return re.sub(r"(<!-- table (\w+) -->\n\n).*?(?=\n\n)", lambda found: found[1] + made[found[2]], page,
                  flags=re.DOTALL)


def main():
    """Rewrite the pages."""
    for path in (ROOT / page for page in PAGES):
        text = filled(path.read_text(encoding="utf-8"))
        with atomic_write(path) as file:
            file.write(text)


if __name__ == "__main__":
    run_command_line(main)
