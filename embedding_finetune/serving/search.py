"""Search the corpus with a system.

    python -m embedding_finetune search "encrypt with a zigzag cipher" [--system LABEL] [-k 5] [--min-score S] [--json]

The default system is the recommended one. A note says what the score of the first hit means (see calibration); with
--json it goes to standard error, and only if the score is unusual for a correct answer.
"""

import io
import json
import math
import sys

from embedding_finetune.files import CommandLine, UserError
from embedding_finetune.serving.available import add_system_option, default_label
from embedding_finetune.serving.calibration import at_least, judge_score
from embedding_finetune.serving.index import open_index
from embedding_finetune.settings import Settings

SHOWN = 400  # characters of a passage on a terminal


def exactness_line(manifest: dict) -> str:
    """Sentence on the recall of an approximate index compared with exact search; "" for an exact index."""
    if "recall_vs_exact" not in manifest:
        return ""
    return ("{index} finds {recall:.1%} of the exact top {depth} of {queries} dev queries, in {ms:.2f} ms per query "
            "compared with {exact_ms:.2f} ms for exact search".format(**manifest["recall_vs_exact"]))


def _show(index, hits, note):
    header = f"{index.manifest['label']}, {index.manifest['passages']:,} passages"
    print(*filter(None, [header, exactness_line(index.manifest), note]), "", sep="\n")
    for hit in hits:
        text = "".join(letter if letter.isprintable() else " " for letter in hit["text"])  # removes escape sequences
        source = f"  {hit['source']}" if "source" in hit else ""
        print(f"{hit['rank']:3}  {hit['score']:.4f}  {hit['id']}{source}")
        print(f"     {text[:SHOWN]}{' …' if len(text) > SHOWN else ''}\n")


def score(text: str) -> float:
    """The value of --min-score. Raises ValueError when it is not a finite number."""
    if not math.isfinite(float(text)):
        raise ValueError
    return float(text)


def main() -> None:
    """Run the `search` command. Raises UserError when the query is empty or there is no such system."""
    parser = CommandLine("search", "Search the corpus for the passages that answer a query.")
    parser.add_argument("query", metavar="QUERY")
    add_system_option(parser, "system to search with: any label of the comparison, or of a compiled model")
    parser.add_argument("-k", type=int, default=5, help="number of passages to show (default: 5)")
    parser.add_argument("--min-score", type=score, metavar="SCORE", help="leave out passages with lower scores")
    parser.add_argument("--json", action="store_true", help="print a JSON list of rank, score, id, text, source")
    options = parser.parse_args()
    query = options.query.encode("utf-8", "replace").decode().strip()  # lone surrogates are not valid text
    if not query or options.k < 1:
        raise UserError("the query is empty: give one that is not empty" if not query else "-k must be 1 or more")
    settings = Settings.load()
    index = open_index(settings, options.system or default_label(settings))
    [found] = index.answer([query], options.k)
    usual, note = judge_score(found, index.manifest["dev"])
    hits, nothing_left = at_least(found, options.min_score)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        if options.json:
            if nothing_left or usual is False:
                print(nothing_left or note, file=sys.stderr)
            print(json.dumps(hits, ensure_ascii=False, indent=2))
        else:
            _show(index, hits, nothing_left or note)
        sys.stdout.flush()
    except OSError as error:
        raise UserError(f"cannot write the answer: {error.strerror}") from None
