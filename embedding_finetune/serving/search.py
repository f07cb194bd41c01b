"""Search the corpus with a model, with BM25 or with both.

    python -m embedding_finetune search "how do I join two tables" [--model LABEL] [-k 5] [--json]

By default the fine-tuned model that dev chose answers. Where no passage reaches the threshold (see docs/scores.md) that
is said, with --json on standard error.
"""

import json
import sys

from embedding_finetune.files import CommandLine, UserError
from embedding_finetune.serving.abstention import is_answerable, threshold_line
from embedding_finetune.serving.available import default_label
from embedding_finetune.serving.index import exactness_line, open_index
from embedding_finetune.settings import Settings

SHOWN = 400  # characters of a passage on a terminal
NOT_LIKELY = "no passage is likely to answer this"


def _show(index, hits, note):
    about = (f"{index.manifest['label']}, {index.manifest['passages']:,} passages; "
             f"{threshold_line(index.manifest['abstention'])}")
    print(*filter(None, [about, exactness_line(index.manifest), note and f"\n{note}"]), "", sep="\n")
    for hit in hits:
        text = "".join(letter if letter.isprintable() else " " for letter in hit["text"])  # no escape sequences
        source = f"  {hit['source']}" if "source" in hit else ""
        print(f"{hit['rank']:3}  {hit['score']:.4f}  {hit['id']}{source}")
        print(f"     {text[:SHOWN]}{' …' * (len(text) > SHOWN)}\n")


def main():
    """Raises UserError when the query is empty or there is no such model."""
    parser = CommandLine("search", "Search the corpus.")
    parser.add_argument("query")
    parser.add_argument("--model", metavar="LABEL",
                        help="raw, reference, a recipe's label, bm25, hybrid_LABEL, LABEL-FORM of a compiled model")
    parser.add_argument("-k", type=int, default=5, help="passages that are shown (5)")
    parser.add_argument("--json", action="store_true", help="a list of rank, score, id, text, source, above_threshold")
    options = parser.parse_args()
    query = options.query.encode("utf-8", "replace").decode().strip()  # half a surrogate pair is no text
    if not query or options.k < 1:
        raise UserError("give a query that is not empty" if not query else "-k must be 1 or more")
    settings = Settings.load()
    index = open_index(settings, options.model or default_label(settings))
    [hits] = index.answer([query], options.k)
    note = "" if is_answerable(hits) else NOT_LIKELY
    sys.stdout.reconfigure(errors="replace")
    try:
        if options.json:
            print(note, file=sys.stderr, end="\n" * bool(note))
            print(json.dumps(hits, ensure_ascii=False, indent=2))
        else:
            _show(index, hits, note)
        sys.stdout.flush()
    except OSError as error:
        raise UserError(f"cannot write the answer: {error.strerror}") from None
