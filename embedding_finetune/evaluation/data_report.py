"""What the data are like, before any training: counts, lengths, languages, suspicious rows, and a first search.

`DATA_DIR/dataset_report.json` holds it; what would take long is looked at in a seeded sample, whose size is stated.
It ends with sentences computed from it: what to mend first, and what the test set can tell.
"""

from collections import Counter

import ftfy.badness
import numpy as np
import regex

from embedding_finetune.data.collection import SPLITS
from embedding_finetune.data.near_duplicates import near_duplicates
from embedding_finetune.data.normalize import normalize, word_tokens
from embedding_finetune.evaluation.metrics import mean, per_query
from embedding_finetune.evaluation.significance import ALPHA, add_significance, outcome, queries_needed
from embedding_finetune.files import write_json
from embedding_finetune.hub import load, positions_of
from embedding_finetune.models.encoder import make_encoder
from embedding_finetune.models.encoder_config import base_encoder_config
from embedding_finetune.retrieval.analyzer import SHARE, language_shares, script_title
from embedding_finetune.retrieval.base import make_retriever
from embedding_finetune.retrieval.dense import Dense

TEXTS = 10_000  # passages, or pairs, that are looked at one by one
CHECK_QUERIES, CHECK_PASSAGES = 200, 1000  # of the first search
RIVALS = 3  # that a fine-tuned model is compared with: raw, bm25, reference
DIFFERENCES = (0.01, 0.02, 0.05, 0.1)  # in recall@1, of which the report says how many queries they take
WORTH_A_SENTENCE = 0.01  # share of the rows
TAG = regex.compile(r"</?(a|b|br|div|em|h[1-6]|i|img|li|ol|p|pre|script|span|strong|style|table|td|th|tr|u|ul)\b[^<>]*>"
                    r"|&(amp|gt|lt|nbsp|quot|#\d+);", regex.IGNORECASE)
FIXES = {  # kind of suspicious pair -> what to do
    "query and passage are equal": "they teach nothing: drop them",
    "query stands in the passage": "BM25 finds them without understanding: hide the query there, or drop them",
    "passage stands in the query": "the question holds its answer: drop them",
    "HTML": "strip the tags",
    "mojibake": "read the source in its right encoding, or let ftfy mend it",
    "passage of fewer than 3 words": "they answer little: drop them, or join them with what stands around them",
}
# How far a ready-made model was ahead of BM25 in recall@1, and what fine-tuning its one vector then brought, on the
# sets of docs/second_ladder.ipynb: the further behind, the more.
MEASURED = {"MS MARCO": (0.09, 0.00), "docstrings": (0.02, 0.07), "COVID-QA": (-0.20, 0.14)}
ALIKE = 0.1  # differences from these beyond which nothing is said


def report_data(settings, collection, counts, first_look=True):
    """The report of a collection with its parts, as it is written to dataset_report.json; `counts` is what reading it
    did (sources.read_pairs). `first_look=False` leaves out the search.

    Raises UserError when the base model cannot be had.
    """
    rng, config = np.random.default_rng(settings.seed), base_encoder_config(settings)
    report = {"reading": dict(counts), "counts": _count(collection), "suspicious": suspicious_pairs(collection, rng),
              "near_duplicates": _near_duplicates(collection, rng), "tokens": token_lengths(config, collection, rng),
              "languages": {side: {f"{code or 'unknown'} ({script_title(script)})": round(share, 4)
                                   for (script, code), share in language_shares(list(texts.values())).items()
                                   if share >= SHARE}  # below, it is a stretch of text that was taken for another's
                            for side, texts in (("queries", collection.queries), ("passages", collection.corpus))}}
    if first_look and report["counts"]["dev queries"]:
        report["first_look"] = _baseline_check(settings, config, collection, rng)
    report["test_set"] = minimum_detectable_effect(report["counts"]["test queries"], report.get("first_look"))
    report["sentences"] = summary_sentences(report)
    write_json(settings.data_dir / "dataset_report.json", report)
    return report


def _count(collection):
    positives = [passage for query in collection.queries for passage in collection.positives(query)]
    uses = Counter(positives)
    return {"queries": len(collection.queries), "passages": len(collection.corpus), "pairs": len(positives),
            "passages that answer nothing": len(collection.corpus) - len(uses),
            "passages that answer several queries": sum(count > 1 for count in uses.values()),
            "queries with several positives": sum(len(collection.positives(query)) > 1 for query in collection.queries),
            **{f"{part} queries": sum(own == part for own in collection.splits.values()) for part in SPLITS}}


def _some(items, number, rng):
    """A seeded sample in its order; all where there are no more."""
    items = list(items)
    chosen = np.sort(rng.permutation(len(items))[:number])
    return [items[index] for index in chosen]


def suspicious_pairs(collection, rng):
    """Kind -> number and share of the pairs, and the query ids of three; `of` is the number of pairs looked at."""
    pairs = _some(((query, passage) for query in collection.queries for passage in collection.positives(query)),
                  TEXTS, rng)
    found = {kind: [] for kind in FIXES}
    for query, passage in pairs:
        for kind in _suspicions(collection.queries[query], collection.corpus[passage]):
            found[kind].append(query)
    return {"of": len(pairs)} | {kind: {"pairs": len(ids), "share": len(ids) / max(1, len(pairs)), "queries": ids[:3]}
                                 for kind, ids in found.items()}


def _suspicions(query, passage):
    asked, answer = (f" {' '.join(word_tokens(text))} " for text in (query, passage))  # a word is whole, or one character
    if normalize(query) == normalize(passage):
        yield "query and passage are equal"
    elif asked in answer and len(asked.split()) > 2:
        yield "query stands in the passage"
    elif answer in asked and len(answer.split()) > 2:
        yield "passage stands in the query"
    if TAG.search(query) or TAG.search(passage):
        yield "HTML"
    if any("\ufffd" in text or ftfy.badness.is_bad(text) for text in (query, passage)):
        yield "mojibake"
    if len(answer.split()) < 3:
        yield "passage of fewer than 3 words"


def _near_duplicates(collection, rng):
    texts = _some(collection.corpus.values(), TEXTS, rng)
    pairs = near_duplicates(texts)
    return {"of": len(texts), "pairs": len(pairs), "passages": len(np.unique(pairs)),
            "share": len(np.unique(pairs)) / max(1, len(texts)),
            "examples": [[texts[one][:200], texts[other][:200]] for one, other in pairs[:3].tolist()]}


def token_lengths(config, collection, rng):
    """Lengths of queries and passages in the base model's tokens, prompt included, and the share that is cut.

    `limit` is what the settings allow, `unknown` the share of the tokens that the model has no word for, `histogram`
    how many texts lie between each two of `edges`.
    """
    tokenizer, found = load("AutoTokenizer", config.name, config.trusted), {}
    for side, texts, prompt, limit in (("queries", collection.queries, config.query_prompt, config.query_max_len),
                                       ("passages", collection.corpus, config.passage_prompt, config.passage_max_len)):
        some = [prompt + text for text in _some(texts.values(), TEXTS, rng)]
        ids = tokenizer(some, verbose=False)["input_ids"]
        sizes = np.array([len(row) for row in ids])
        unknown = sum(row.count(tokenizer.unk_token_id) for row in ids)
        top = int(np.quantile(sizes, 0.99))  # the longest are counted with these
        histogram, edges = np.histogram(np.minimum(sizes, top), bins=np.arange(0, top + 2 + top // 40, 1 + top // 40))
        found[side] = {
            "of": len(some), "limit": limit, "cut": float((sizes > limit).mean()),
            "unknown": float(unknown / sizes.sum()),
            **{name: int(np.quantile(sizes, share, method="inverted_cdf")) for name, share in
               (("median", 0.5), ("90 %", 0.9), ("95 %", 0.95), ("99 %", 0.99), ("longest", 1))},
            "histogram": histogram.tolist(), "edges": edges.tolist()}
    return found | {"model": config.title, "most": positions_of(config.name, config.trusted)}


def _baseline_check(settings, config, collection, rng):
    """How far BM25 and the untrained base get on dev queries, in a small corpus; and how often only one is right."""
    dev = collection.split("dev").sample(CHECK_QUERIES, settings.seed)
    judged = dev.judged_passages()
    others = [passage for passage in collection.corpus if passage not in judged]
    chosen = judged | set(_some(others, max(0, CHECK_PASSAGES - len(judged)), rng))
    corpus = {passage: text for passage, text in collection.corpus.items() if passage in chosen}
    bm25 = make_retriever("bm25", settings.bm25_language).index(corpus)
    base = Dense(make_encoder(settings, config)).index(corpus)
    values = {label: per_query(dev.qrels, retriever.search(dev.queries))
              for label, retriever in (("bm25", bm25), ("base", base))}
    rows = add_significance([{"label": label} for label in values], values, seed=settings.seed)
    gaps = values["bm25"]["recall@1"] - values["base"]["recall@1"]
    return {"queries": len(dev.queries), "passages": len(corpus), "bm25_language": bm25.config["language"],
            **{label: mean(table) for label, table in values.items()},
            "bm25_to_base": rows[0]["against"]["base"]["recall@1"], "disagree": float((gaps != 0).mean())}


def minimum_detectable_effect(size, first_look=None):
    """How many queries it takes to tell each of DIFFERENCES in recall@1, and the least that `size` queries tell.

    Two models are taken to disagree on as many queries as BM25 and the base do in the first look, on a fifth without
    one; the difference must hold among RIVALS planned comparisons (significance.queries_needed).
    """
    disagree = first_look["disagree"] if first_look else 0.2

    def needed(difference):
        better, worse = (round(5000 * (max(disagree, difference) + sign * difference)) for sign in (1, -1))
        return queries_needed(np.repeat([1, -1, 0], [better, worse, 10_000 - better - worse]), RIVALS)

    return {"queries": size, "disagree": disagree, "needed": {str(gap): needed(gap) for gap in DIFFERENCES},
            "tells": next((step / 100 for step in range(1, 51) if needed(step / 100) <= size), None)}


def summary_sentences(report):
    """What follows from a report: what to mend, the most frequent first, how far a search gets, what the test tells."""
    problems, tokens = [], report["tokens"]
    for side, name in (("queries", "QUERY_MAX_LEN"), ("passages", "PASSAGE_MAX_LEN")):
        own = tokens[side]
        wanted = min(own["95 %"], tokens["most"])
        advice = f"raise it to {wanted}, which 95 % fit" if wanted == own["95 %"] else "split them"
        problems.append((own["cut"], f"{name}={own['limit']} cuts {own['cut']:.1%} of the {side}: {advice}"))
        problems.append((own["unknown"], f"{tokens['model']} does not know {own['unknown']:.1%} of what the {side} "
                         "say, its vocabulary is of another language: take a multilingual base, or one of theirs"))
    for kind, advice in FIXES.items():
        own = report["suspicious"][kind]
        problems.append((own["share"], f"{kind}: {own['pairs']} of {report['suspicious']['of']} pairs, such as query "
                         f"{', '.join(own['queries'])}; {advice}"))
    near = report["near_duplicates"]
    problems.append((near["share"], f"{near['passages']} of {near['of']} passages say nearly the same as another one: "
                     "a search that finds the other one is counted as wrong; merge them, or list both as positives"))
    asked, answers = report["languages"]["queries"], report["languages"]["passages"]
    apart = 1 - sum(min(share, answers.get(language, 0)) for language, share in asked.items())
    problems.append((apart * (apart > 0.5), f"the queries are in {', '.join(asked)}, the passages in "
                     f"{', '.join(answers)}: they share few words, so BM25 is no rival; take a multilingual base"))
    worst = sorted((problem for problem in problems if problem[0] >= WORTH_A_SENTENCE), key=lambda one: -one[0])
    order = [f"{'To mend first' if number == 0 else 'Then'}: {text}." for number, (_, text) in enumerate(worst)]
    return (order or ["Nothing to mend was found."]) + _of_the_search(report) + [_of_the_test(report["test_set"])]


def _of_the_search(report):
    look = report.get("first_look")
    if not look:
        return []
    bm25, base = look["bm25"]["recall@1"], look["base"]["recall@1"]
    found = outcome(look["bm25_to_base"])
    hint = ("words alone nearly suffice, there is little to win; harder queries would tell more" if bm25 >= 0.9 else
            f"BM25 is ahead{found.note}: a model must first catch up with it" if found.word == "better" else
            f"the base is ahead already{found.note}: fine-tuning has to improve on a good model"
            if found.word == "worse" else "no significant difference between the two")
    name, (lead, gain) = min(MEASURED.items(), key=lambda item: abs(item[1][0] - (base - bm25)))
    alike = (f" Where a base was {abs(lead):.2f} {'ahead' if lead > 0 else 'behind'}, on {name}, fine-tuning its one "
             f"vector brought {gain:+.2f} (docs/second_look.md).") if abs(lead - (base - bm25)) < ALIKE else ""
    return [f"Of {look['queries']} dev queries in {look['passages']} passages BM25 ranks a positive first for "
            f"{bm25:.1%}, the untrained base for {base:.1%}: {hint}.{alike}"]


def _of_the_test(test):
    tells = f"a difference of {test['tells']} in recall@1 or more" if test["tells"] else "no difference below 0.5"
    needed = ", ".join(f"{float(f'{number:.2g}'):,.0f} for {gap}" for gap, number in test["needed"].items())
    return (f"The {test['queries']} test queries tell {tells} (at {1 - ALPHA:.0%}, if two models disagree on "
            f"{test['disagree']:.0%} of the queries); it takes about {needed}.")
