"""Data report before training: counts, lengths, languages, suspicious pairs, and a baseline check.

The report is written to `DATA_DIR/dataset_report.json`. Expensive statistics use a seeded sample, whose size is
reported. It ends with sentences computed from it: what to fix first, and the smallest difference that the test set can
detect.
"""

import html
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import ftfy.badness
import numpy as np
import regex

from embedding_finetune.data.collection import SPLITS, Collection
from embedding_finetune.data.documents.files import DATA_URI
from embedding_finetune.data.near_duplicates import near_duplicates
from embedding_finetune.data.normalize import normalize, word_tokens
from embedding_finetune.evaluation.metrics import mean, per_query
from embedding_finetune.evaluation.significance import ALPHA, MOST_QUERIES, add_significance, outcome, queries_needed
from embedding_finetune.files import write_json
from embedding_finetune.hub import load, positions_of
from embedding_finetune.models.encoder import make_encoder
from embedding_finetune.models.encoder_config import EncoderConfig, base_encoder_config
from embedding_finetune.retrieval.analyzer import SHARE, language_shares, script_title
from embedding_finetune.retrieval.base import make_retriever
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.settings import Settings

TEXTS = 10_000  # sample size of passages or pairs
CHECK_QUERIES, CHECK_PASSAGES = 200, 1000  # of the baseline check
RIVALS = 3  # baselines of a fine-tuned model: raw, bm25, reference
DIFFERENCES = (0.01, 0.02, 0.05, 0.1)  # in recall@1; the report says how many queries are needed for each
WORTH_A_SENTENCE = 0.01  # problems that affect a smaller share of the rows are not mentioned
TAG = regex.compile(r"</?(a|b|br|div|em|h[1-6]|i|img|li|ol|p|pre|script|span|strong|style|table|td|th|tr|u|ul)\b"
                    r"[^<>]*>", regex.IGNORECASE)
ENTITY = regex.compile(r"&(?:#\d+|#x[\da-f]+|[a-z]\w*);", regex.IGNORECASE)


def _has_entities(text: str) -> bool:
    return any(html.unescape(found) != found for found in ENTITY.findall(text))  # not every &name; is one of HTML's


def _occurs(part: str, whole: str) -> bool:
    """Whether at least three words are found in another text. In scripts without spaces a word is one character."""
    words, others = (f" {' '.join(word_tokens(text))} " for text in (part, whole))  # spaces: only whole words match
    return words in others and len(words.split()) > 2


def _are_equal(query: str, passage: str) -> bool:
    return normalize(query) == normalize(passage)


# kind of problem -> (whether a text has it, what to do)
TEXT_PROBLEMS: dict[str, tuple[Callable[[str], bool], str]] = {
    "HTML tags": (lambda text: TAG.search(text) is not None, "strip the tags"),
    "HTML entities": (_has_entities, "decode them with Python's html.unescape"),
    "images within the text (data: URIs)": (lambda text: DATA_URI.search(text) is not None, "remove them"),
    "mojibake": (lambda text: "\ufffd" in text or ftfy.badness.is_bad(text),
                 "read the source with its correct encoding, or repair it with ftfy"),
}
# kind of problem -> (whether a query and its passage have it, what to do)
PAIR_PROBLEMS: dict[str, tuple[Callable[[str, str], bool], str]] = {
    "query and passage are equal": (_are_equal, "nothing can be learned from them: drop them"),
    "query occurs in the passage": (
        lambda query, passage: _occurs(query, passage) and not _are_equal(query, passage),
        "BM25 finds them by exact match: remove the query from the passage, or drop them"),
    "passage occurs in the query": (
        lambda query, passage: _occurs(passage, query) and not _occurs(query, passage),
        "the query contains its answer: drop them"),
    "passage of fewer than 3 words": (
        lambda query, passage: len(word_tokens(passage)) < 3,
        "they rarely answer a query: drop them, or merge them with the text around them"),
}
# Outcome of BM25 against the base model in the baseline check -> what follows; {note} qualifies the significance.
HINTS = {
    "better": "BM25 is ahead{note}: fine-tuning must first close this gap",
    "worse": "the base model is already ahead{note}: fine-tuning has to improve on a good model",
    "not distinguishable": "no significant difference between the two",
}
LITTLE_TO_GAIN = "lexical matching nearly suffices, so there is little to gain; harder queries would test more"
# Per dataset of benchmarks/claims/results.json: lead of an off-the-shelf model over BM25 in recall@1, and the gain from
# fine-tuning it as a single-vector model. The further the model was behind, the larger the gain.
MEASURED = {"MS MARCO": (0.09, 0.00), "docstrings": (0.02, 0.07), "COVID-QA": (-0.20, 0.14)}
ALIKE = 0.1  # a lead that differs more than this from all of MEASURED is not compared with them


def report_data(settings: Settings, collection: Collection, counts: Mapping[str, int],
                baseline_check: bool = True) -> dict[str, Any]:
    """Write the report of a collection with its splits to dataset_report.json; returns it as a dict.

    `counts` are those of cleaning.read_pairs, with its sources. `baseline_check=False` skips the search. Raises
    UserError when the base model is not available.
    """
    rng, config = settings.rng(), base_encoder_config(settings)
    report = {"reading": dict(counts), "sources": [asdict(source) for source in getattr(counts, "sources", ())],
              "counts": _count(collection), "suspicious": suspicious_pairs(collection, rng),
              "near_duplicates": _near_duplicates(collection, rng), "tokens": token_lengths(config, collection, rng),
              "languages": {"queries": _languages(collection.queries), "passages": _languages(collection.corpus)}}
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


def _languages(texts):
    """`language (script)` -> share of the letters. Shares below SHARE are mostly misdetected text."""
    return {f"{code or 'unknown'} ({script_title(script)})": round(share, 4)
            for (script, code), share in language_shares(list(texts.values())).items() if share >= SHARE}


def _sample(items: Iterable, number: int, rng: np.random.Generator) -> list:
    """A random sample of at most `number` items, in their original order."""
    items = list(items)
    chosen = np.sort(rng.permutation(len(items))[:number])
    return [items[index] for index in chosen]


def suspicious_pairs(collection: Collection, rng: np.random.Generator) -> dict[str, Any]:
    """Kind of problem -> number of pairs, their share, and three query ids; `of` is the number of sampled pairs.

    For TEXT_PROBLEMS also the share of the texts of these pairs.
    """
    ids = _sample(((query, passage) for query in collection.queries for passage in collection.positives(query)),
                  TEXTS, rng)
    pairs = [(collection.queries[query], collection.corpus[passage]) for query, passage in ids]

    def found(affected: list[bool]) -> dict[str, Any]:
        queries = [query for (query, _), is_affected in zip(ids, affected) if is_affected]
        return {"pairs": len(queries), "share": len(queries) / max(1, len(pairs)), "queries": queries[:3]}

    result: dict[str, Any] = {"of": len(pairs)}
    for kind, (applies, _) in PAIR_PROBLEMS.items():
        result[kind] = found([applies(query, passage) for query, passage in pairs])
    for kind, (has, _) in TEXT_PROBLEMS.items():
        texts = [[has(text) for text in pair] for pair in pairs]
        result[kind] = found(list(map(any, texts))) | {"share of texts": sum(map(sum, texts)) / max(1, 2 * len(pairs))}
    return result


def _near_duplicates(collection, rng):
    texts = _sample(collection.corpus.values(), TEXTS, rng)
    pairs = near_duplicates(texts)
    return {"of": len(texts), "pairs": len(pairs), "passages": len(np.unique(pairs)),
            "share": len(np.unique(pairs)) / max(1, len(texts)),
            "examples": [[texts[one][:200], texts[other][:200]] for one, other in pairs[:3].tolist()]}


def token_lengths(config: EncoderConfig, collection: Collection, rng: np.random.Generator) -> dict[str, Any]:
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
    whole = collection.split("dev")
    dev = whole.sample(CHECK_QUERIES, settings.rng())
    judged = dev.judged_passages()
    unjudged = [passage for passage in whole.corpus if passage not in judged]
    chosen = judged | set(_sample(unjudged, max(0, CHECK_PASSAGES - len(judged)), rng))
    corpus = {passage: text for passage, text in whole.corpus.items() if passage in chosen}
    bm25 = make_retriever("bm25", settings).index(corpus)
    base = Dense(make_encoder(settings, config)).index(corpus)
    values = {label: per_query(dev.qrels, retriever.search(dev.queries, copies=dev.copies))
              for label, retriever in (("bm25", bm25), ("base", base))}
    rows: list[dict[str, Any]] = [{"label": label} for label in values]
    against_base = add_significance(rows, values)[0]["against"]["base"]
    gaps = values["bm25"]["recall@1"] - values["base"]["recall@1"]
    return {"queries": len(dev.queries), "passages": len(corpus), "bm25_language": bm25.config["language"],
            **{label: mean(table) for label, table in values.items()},
            "bm25_to_base": against_base["recall@1"], "disagree": float(np.mean(gaps != 0))}


def minimum_detectable_effect(size: int, baseline_check: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Queries needed to detect each of DIFFERENCES in recall@1, and the smallest difference that `size` queries detect.

    Two models are assumed to disagree on the same share of queries as BM25 and the base model in the baseline check, or
    on 20 % without a check. The test is corrected for RIVALS planned comparisons (significance.queries_needed).
    """
    disagree = baseline_check["disagree"] if baseline_check else 0.2

    def needed(difference: float) -> int:
        better, worse = (round(5000 * (max(disagree, difference) + sign * difference)) for sign in (1, -1))
        gaps = np.repeat([1, -1, 0], [better, worse, 10_000 - better - worse])
        return queries_needed(gaps, RIVALS) or MOST_QUERIES

    return {"queries": size, "disagree": disagree, "needed": {str(gap): needed(gap) for gap in DIFFERENCES},
            "tells": next((step / 100 for step in range(1, 51) if needed(step / 100) <= size), None)}


def summary_sentences(report: Mapping[str, Any]) -> list[str]:
    """Sentences computed from a report: problems by frequency, the baseline check, the detectable difference."""
    problems = sorted((problem for problem in _problems(report) if problem[0] >= WORTH_A_SENTENCE),
                      key=lambda problem: -problem[0])
    sentences = [f"{'Fix first' if number == 0 else 'Then'}: {text}." for number, (_, text) in enumerate(problems)]
    if not sentences:
        sentences = ["No problems found."]
    if "first_look" in report:
        sentences.append(_baseline_sentence(report["first_look"]))
    return [*sentences, _test_set_sentence(report["test_set"])]


def _problems(report: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    """Yield (share of the rows that are affected, sentence) of each problem that the data may have."""
    tokens, suspicious, near = report["tokens"], report["suspicious"], report["near_duplicates"]
    for side, name in (("queries", "QUERY_MAX_LEN"), ("passages", "PASSAGE_MAX_LEN")):
        lengths = tokens[side]
        if lengths["cut"]:
            yield lengths["cut"], (f"{name}={lengths['limit']} truncates {lengths['cut']:.1%} of the {side}: "
                                   f"{length_advice(lengths, tokens['most'])}")
        yield lengths["unknown"], (f"{tokens['model']} has no vocabulary entry for {lengths['unknown']:.1%} of the "
                                   f"tokens of the {side}: use a multilingual base model, or one for their language")
    for kind, (_, advice) in {**PAIR_PROBLEMS, **TEXT_PROBLEMS}.items():
        found = suspicious[kind]
        of_texts = f" ({found['share of texts']:.1%} of the texts)" if kind in TEXT_PROBLEMS else ""
        yield found["share"], (f"{kind}: {found['pairs']} of {suspicious['of']} pairs{of_texts}, such as query "
                               f"{', '.join(found['queries'])}; {advice}")
    yield near["share"], (f"{near['passages']} of {near['of']} passages are near-duplicates of another one: a search "
                          "that returns the other one counts as wrong; merge them, or list both as positives")
    asked, answers = report["languages"]["queries"], report["languages"]["passages"]
    apart = 1 - sum(min(share, answers.get(language, 0)) for language, share in asked.items())
    yield apart if apart > 0.5 else 0.0, (
        f"the queries are in {', '.join(asked)}, the passages in {', '.join(answers)}: they share few words, so BM25 "
        "is a weak baseline; use a multilingual base model")


def length_advice(lengths: dict, most: int) -> str:
    """What to do about truncated texts: a limit above the present one, if the model reads more; `most` is its maximum.

    `lengths` is a side of `token_lengths` with truncated texts.
    """
    fits = next(share for share in ("95 %", "99 %", "longest") if lengths[share] > lengths["limit"])
    if most <= lengths["limit"]:
        return f"the model reads no more than {most} tokens, so shorten or split them"
    if lengths[fits] > most:
        return f"raise it to {most}, the most that the model reads, and split longer ones"
    return f"raise it to {lengths[fits]}, which fits {'all' if fits == 'longest' else fits}"


def _baseline_sentence(check: Mapping[str, Any]) -> str:
    bm25, base = check["bm25"]["recall@1"], check["base"]["recall@1"]
    if not bm25 and not base:
        return (f"Neither BM25 nor the untrained base model ranks a positive first for any of {check['queries']} dev "
                "queries: check that the queries belong to the passages.")
    found = outcome(check["bm25_to_base"])
    hint = LITTLE_TO_GAIN if bm25 >= 0.9 else HINTS[found.word].format(note=found.note)
    name, (lead, gain) = min(MEASURED.items(), key=lambda item: abs(item[1][0] - (base - bm25)))
    alike = (f" On {name}, where the base model was {abs(lead):.2f} {'ahead' if lead > 0 else 'behind'}, single-vector "
             f"fine-tuning gained {gain:+.2f} (docs/results.md).") if abs(lead - (base - bm25)) < ALIKE else ""
    return (f"Of {check['queries']} dev queries over {check['passages']} passages, BM25 ranks a positive first for "
            f"{bm25:.1%}, the untrained base model for {base:.1%}: {hint}.{alike}")


def _test_set_sentence(test: Mapping[str, Any]) -> str:
    detects = (f"can detect a difference of {test['tells']} in recall@1 or more" if test["tells"] else
               "cannot detect a difference in recall@1 below 0.5")
    needed = ", ".join(f"{float(f'{number:.2g}'):,.0f} for {gap}" for gap, number in test["needed"].items())
    return (f"The {test['queries']} test queries {detects} (at {1 - ALPHA:.0%}, if two models disagree on "
            f"{test['disagree']:.0%} of the queries); queries needed: about {needed}.")
