"""Search the corpus with a system.

    python -m embedding_finetune search "encrypt with a zigzag cipher" [--system LABEL] [-k 5] [--json]

The default system is the recommended one. If no passage reaches the abstention threshold (see
docs/deploy.md), a note says so; with --json it goes to standard error.
"""

import io
import json
import sys

from embedding_finetune.files import CommandLine, UserError
from embedding_finetune.serving.abstention import low_score_note, threshold_line
from embedding_finetune.serving.available import add_system_option, default_label
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
    header = (f"{index.manifest['label']}, {index.manifest['passages']:,} passages; "
              f"{threshold_line(index.manifest['abstention'])}")
    print(*filter(None, [header, exactness_line(index.manifest), note and f"\n{note}"]), "", sep="\n")
    for hit in hits:
        text = "".join(letter if letter.isprintable() else " " for letter in hit["text"])  # removes escape sequences
        source = f"  {hit['source']}" if "source" in hit else ""
        print(f"{hit['rank']:3}  {hit['score']:.4f}  {hit['id']}{source}")
        print(f"     {text[:SHOWN]}{' …' if len(text) > SHOWN else ''}\n")


def main() -> None:
    """Run the `search` command. Raises UserError when the query is empty or there is no such system."""
    parser = CommandLine("search", "Search the corpus for the passages that answer a query.")
    parser.add_argument("query", metavar="QUERY")
    add_system_option(parser, "system to search with: any label of the comparison, or of a compiled model")
    parser.add_argument("-k", type=int, default=5, help="number of passages to show (default: 5)")
    parser.add_argument("--json", action="store_true",
                        help="print a JSON list of rank, score, id, text, source, above_threshold")
    options = parser.parse_args()
    query = options.query.encode("utf-8", "replace").decode().strip()  # lone surrogates are not valid text
    if not query or options.k < 1:
        raise UserError("the query is empty: give one that is not empty" if not query else "-k must be 1 or more")
    settings = Settings.load()
    index = open_index(settings, options.system or default_label(settings))
    [hits] = index.answer([query], options.k)
    note = low_score_note(hits, index.manifest["abstention"])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        if options.json:
            if note:
                print(note, file=sys.stderr)
            print(json.dumps(hits, ensure_ascii=False, indent=2))
        else:
            _show(index, hits, note)
        sys.stdout.flush()
    except OSError as error:
        raise UserError(f"cannot write the answer: {error.strerror}") from None
