"""Data report before training: counts, lengths, languages, suspicious pairs, and a baseline check.

The report is written to `DATA_DIR/dataset_report.json`. Expensive statistics use a seeded sample, whose size is
reported. It ends with sentences computed from it: what to fix first, and the smallest difference that the test set can
detect.
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

TEXTS = 10_000  # sample size of passages or pairs
CHECK_QUERIES, CHECK_PASSAGES = 200, 1000  # of the baseline check
RIVALS = 3  # baselines of a fine-tuned model: raw, bm25, reference
DIFFERENCES = (0.01, 0.02, 0.05, 0.1)  # in recall@1; the report says how many queries are needed for each
WORTH_A_SENTENCE = 0.01  # problems that affect a smaller share of the rows are not mentioned
TAG = regex.compile(r"</?(a|b|br|div|em|h[1-6]|i|img|li|ol|p|pre|script|span|strong|style|table|td|th|tr|u|ul)\b[^<>]*>"
                    r"|&(amp|gt|lt|nbsp|quot|#\d+);", regex.IGNORECASE)
FIXES = {  # kind of suspicious pair -> what to do
    "query and passage are equal": "nothing can be learned from them: drop them",
    "query stands in the passage": "BM25 finds them by exact match: remove the query from the passage, or drop them",
    "passage stands in the query": "the query contains its answer: drop them",
    "HTML": "strip the tags",
    "mojibake": "read the source with its correct encoding, or repair it with ftfy",
    "passage of fewer than 3 words": "they rarely answer a query: drop them, or merge them with the text around them",
}
# Per dataset of docs/second_ladder.ipynb: lead of an off-the-shelf model over BM25 in recall@1, and the gain from
# fine-tuning it as a single-vector model. The further the model was behind, the larger the gain.
MEASURED = {"MS MARCO": (0.09, 0.00), "docstrings": (0.02, 0.07), "COVID-QA": (-0.20, 0.14)}
ALIKE = 0.1  # a lead that differs more than this from all of MEASURED is not compared with them


def report_data(settings, collection, counts, baseline_check=True):
    """Write the report of a collection with its splits to dataset_report.json; returns it as a dict.

    `counts` are the row counts of cleaning.read_pairs. `baseline_check=False` skips the search. Raises UserError when
    the base model is not available.
    """
    rng, config = settings.rng(), base_encoder_config(settings)
    report = {"reading": dict(counts), "counts": _count(collection), "suspicious": suspicious_pairs(collection, rng),
              "near_duplicates": _near_duplicates(collection, rng), "tokens": token_lengths(config, collection, rng),
              "languages": {side: {f"{code or 'unknown'} ({script_title(script)})": round(share, 4)
                                   for (script, code), share in language_shares(list(texts.values())).items()
                                   if share >= SHARE}  # smaller shares are mostly misdetected text
                            for side, texts in (("queries", collection.queries), ("passages", collection.corpus))}}
    if baseline_check and report["counts"]["dev queries"]:
        report["first_look"] = _baseline_check(settings, config, collection, rng)
    report["test_set"] = minimum_detectable_effect(report["counts"]["test queries"], report.get("first_look"))
    report["sentences"] = summary_sentences(report)
    write_json(settings.paths.dataset_report, report)
    return report


def _count(collection):
    positives = [passage for query in collection.queries for passage in collection.positives(query)]
    uses = Counter(positives)
    return {"queries": len(collection.queries), "passages": len(collection.corpus), "pairs": len(positives),
            "passages that answer nothing": len(collection.corpus) - len(uses),
            "passages that answer several queries": sum(count > 1 for count in uses.values()),
            "queries with several positives": sum(len(collection.positives(query)) > 1 for query in collection.queries),
            **{f"{name} queries": sum(split == name for split in collection.splits.values()) for name in SPLITS}}


def _sample(items, number, rng):
    """A random sample of at most `number` items, in their original order."""
    items = list(items)
    chosen = np.sort(rng.permutation(len(items))[:number])
    return [items[index] for index in chosen]


def suspicious_pairs(collection, rng):
    """Kind -> number of pairs, their share, and three query ids; `of` is the number of sampled pairs."""
    pairs = _sample(((query, passage) for query in collection.queries for passage in collection.positives(query)),
                    TEXTS, rng)
    found = {kind: [] for kind in FIXES}
    for query, passage in pairs:
        for kind in _suspicions(collection.queries[query], collection.corpus[passage]):
            found[kind].append(query)
    return {"of": len(pairs)} | {kind: {"pairs": len(ids), "share": len(ids) / max(1, len(pairs)), "queries": ids[:3]}
                                 for kind, ids in found.items()}


def _suspicions(query, passage):
    # The spaces at both ends make only whole words match; in scripts without spaces a word is one character.
    asked, answer = (f" {' '.join(word_tokens(text))} " for text in (query, passage))
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
    texts = _sample(collection.corpus.values(), TEXTS, rng)
    pairs = near_duplicates(texts)
    return {"of": len(texts), "pairs": len(pairs), "passages": len(np.unique(pairs)),
            "share": len(np.unique(pairs)) / max(1, len(texts)),
            "examples": [[texts[one][:200], texts[other][:200]] for one, other in pairs[:3].tolist()]}


def token_lengths(config, collection, rng):
    """Lengths of queries and passages in tokens of the base model, prompt included, and the share that is truncated.

    `limit` is the maximum length of the settings, `cut` the share of longer texts, `unknown` the share of [UNK] tokens,
    `histogram` the number of texts between consecutive `edges`, `most` the number of positions of the model.
    """
    tokenizer, found = load("AutoTokenizer", config.name, config.trusted), {}
    for side, texts, prompt, limit in (("queries", collection.queries, config.query_prompt, config.query_max_len),
                                       ("passages", collection.corpus, config.passage_prompt, config.passage_max_len)):
        sample = [prompt + text for text in _sample(texts.values(), TEXTS, rng)]
        ids = tokenizer(sample, verbose=False)["input_ids"]
        sizes = np.array([len(row) for row in ids])
        unknown = sum(row.count(tokenizer.unk_token_id) for row in ids)
        top = int(np.quantile(sizes, 0.99))  # longer texts are counted in the last bin
        histogram, edges = np.histogram(np.minimum(sizes, top), bins=np.arange(0, top + 2 + top // 40, 1 + top // 40))
        found[side] = {
            "of": len(sample), "limit": limit, "cut": float((sizes > limit).mean()),
            "unknown": float(unknown / sizes.sum()),
            **{name: int(np.quantile(sizes, share, method="inverted_cdf")) for name, share in
               (("median", 0.5), ("90 %", 0.9), ("95 %", 0.95), ("99 %", 0.99), ("longest", 1))},
            "histogram": histogram.tolist(), "edges": edges.tolist()}
    return found | {"model": config.title, "most": positions_of(config.name, config.trusted)}


def _baseline_check(settings, config, collection, rng):
    """Metrics of BM25 and the untrained base model on dev queries over a small corpus, and how often they disagree."""
    dev = collection.split("dev").sample(CHECK_QUERIES, settings.rng())
    judged = dev.judged_passages()
    unjudged = [passage for passage in collection.corpus if passage not in judged]
    chosen = judged | set(_sample(unjudged, max(0, CHECK_PASSAGES - len(judged)), rng))
    corpus = {passage: text for passage, text in collection.corpus.items() if passage in chosen}
    bm25 = make_retriever("bm25", settings).index(corpus)
    base = Dense(make_encoder(settings, config)).index(corpus)
    values = {label: per_query(dev.qrels, retriever.search(dev.queries, copies=dev.copies))
              for label, retriever in (("bm25", bm25), ("base", base))}
    rows = add_significance([{"label": label} for label in values], values)
    gaps = values["bm25"]["recall@1"] - values["base"]["recall@1"]
    return {"queries": len(dev.queries), "passages": len(corpus), "bm25_language": bm25.config["language"],
            **{label: mean(table) for label, table in values.items()},
            "bm25_to_base": rows[0]["against"]["base"]["recall@1"], "disagree": float((gaps != 0).mean())}


def minimum_detectable_effect(size, baseline_check=None):
    """Queries needed to detect each of DIFFERENCES in recall@1, and the smallest difference that `size` queries detect.

    Two models are assumed to disagree on the same share of queries as BM25 and the base model in the baseline check, or
    on 20 % without a check. The test is corrected for RIVALS planned comparisons (significance.queries_needed).
    """
    disagree = baseline_check["disagree"] if baseline_check else 0.2

    def needed(difference):
        better, worse = (round(5000 * (max(disagree, difference) + sign * difference)) for sign in (1, -1))
        return queries_needed(np.repeat([1, -1, 0], [better, worse, 10_000 - better - worse]), RIVALS)

    return {"queries": size, "disagree": disagree, "needed": {str(gap): needed(gap) for gap in DIFFERENCES},
            "tells": next((step / 100 for step in range(1, 51) if needed(step / 100) <= size), None)}


def summary_sentences(report):
    """Sentences computed from a report: problems by frequency, the baseline check, the detectable difference."""
    problems, tokens = [], report["tokens"]
    for side, name in (("queries", "QUERY_MAX_LEN"), ("passages", "PASSAGE_MAX_LEN")):
        lengths = tokens[side]
        wanted = min(lengths["95 %"], tokens["most"])
        advice = f"raise it to {wanted}, which fits 95 %" if wanted == lengths["95 %"] else "split them"
        problems.append((lengths["cut"], f"{name}={lengths['limit']} truncates {lengths['cut']:.1%} of the {side}: "
                         f"{advice}"))
        problems.append((lengths["unknown"], f"{tokens['model']} has no vocabulary entry for "
                         f"{lengths['unknown']:.1%} of the tokens of the {side}: use a "
                         "multilingual base model, or one for their language"))
    for kind, advice in FIXES.items():
        found = report["suspicious"][kind]
        problems.append((found["share"], f"{kind}: {found['pairs']} of {report['suspicious']['of']} pairs, such as "
                         f"query {', '.join(found['queries'])}; {advice}"))
    near = report["near_duplicates"]
    problems.append((near["share"], f"{near['passages']} of {near['of']} passages are near-duplicates of another one: "
                     "a search that returns the other one counts as wrong; merge them, or list both as positives"))
    asked, answers = report["languages"]["queries"], report["languages"]["passages"]
    apart = 1 - sum(min(share, answers.get(language, 0)) for language, share in asked.items())
    problems.append((apart if apart > 0.5 else 0.0, f"the queries are in {', '.join(asked)}, the passages in "
                     f"{', '.join(answers)}: they share few words, so BM25 is a weak baseline; "
                     "use a multilingual base model"))
    worst = sorted((problem for problem in problems if problem[0] >= WORTH_A_SENTENCE), key=lambda problem: -problem[0])
    order = [f"{'Fix first' if number == 0 else 'Then'}: {text}." for number, (_, text) in enumerate(worst)]
    return (order or ["No problems found."]) + _baseline_sentences(report) + [_test_set_sentence(report["test_set"])]


def _baseline_sentences(report):
    check = report.get("first_look")
    if not check:
        return []
    bm25, base = check["bm25"]["recall@1"], check["base"]["recall@1"]
    found = outcome(check["bm25_to_base"])
    hint = ("lexical matching nearly suffices, so there is little to gain; harder queries would test more"
            if bm25 >= 0.9 else
            f"BM25 is ahead{found.note}: fine-tuning must first close this gap" if found.word == "better" else
            f"the base model is already ahead{found.note}: fine-tuning has to improve on a good model"
            if found.word == "worse" else "no significant difference between the two")
    name, (lead, gain) = min(MEASURED.items(), key=lambda item: abs(item[1][0] - (base - bm25)))
    alike = (f" On {name}, where the base model was {abs(lead):.2f} {'ahead' if lead > 0 else 'behind'}, single-vector "
             f"fine-tuning gained {gain:+.2f} (docs/second_look.md).") if abs(lead - (base - bm25)) < ALIKE else ""
    return [f"Of {check['queries']} dev queries over {check['passages']} passages, BM25 ranks a positive first for "
            f"{bm25:.1%}, the untrained base model for {base:.1%}: {hint}.{alike}"]


def _test_set_sentence(test):
    detects = (f"can detect a difference of {test['tells']} in recall@1 or more" if test["tells"] else
               "cannot detect a difference in recall@1 below 0.5")
    needed = ", ".join(f"{float(f'{number:.2g}'):,.0f} for {gap}" for gap, number in test["needed"].items())
    return (f"The {test['queries']} test queries {detects} (at {1 - ALPHA:.0%}, if two models disagree on "
            f"{test['disagree']:.0%} of the queries); queries needed: about {needed}.")
