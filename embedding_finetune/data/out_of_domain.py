"""Sets of other domains, OUT_OF_DOMAIN_SETS: what a model gains on its own domain it may lose there.

Each is a folder in BEIR's layout, or `general`: questions of general knowledge, which a package ships, with their
answers. Its dev queries are for choosing (see training.merge), its test queries report.
"""

import importlib.util
from pathlib import Path

import yaml

from embedding_finetune.data.cleaning import clean
from embedding_finetune.data.collection import Collection, read_collection
from embedding_finetune.data.readers import Row
from embedding_finetune.files import UserError
from embedding_finetune.settings import path_of

GENERAL = "general"
PACKAGE = "chatterbot_corpus"  # BSD licence; pinned in requirements.txt, so that everybody reads the same questions
TOPICS = "trivia science literature history sports".split()  # what is asked there has an answer
DEV_SHARE = 3  # every third query is for choosing


def out_of_domain_sets(settings):
    """Name -> Collection of OUT_OF_DOMAIN_SETS, in order. Raises UserError when one cannot be read or has no test queries."""
    found = {}
    for name in settings.out_of_domain_sets.split():
        found[name] = general_knowledge() if name == GENERAL else read_collection(path_of(name))
        if "test" not in found[name].splits.values():
            raise UserError(f"OUT_OF_DOMAIN_SETS: {name} has no qrels/test.tsv")
    return found


def general_knowledge():
    """343 questions of general knowledge and their 350 short answers, as a Collection of dev and test."""
    try:
        folder = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0]) / "data" / "english"
    except AttributeError:
        raise UserError(f"the package {PACKAGE} is not installed, and OUT_OF_DOMAIN_SETS={GENERAL} reads it: "
                        "pip install -r requirements.txt") from None
    conversations = (conversation for topic in TOPICS for conversation in
                     yaml.safe_load((folder / f"{topic}.yml").read_text(encoding="utf-8"))["conversations"])
    found, _ = clean(Row(str(question), [str(answer)]) for question, answer, *_ in conversations)
    ids = sorted(found.queries)  # hashes: an order that means nothing
    return Collection(found.queries, found.corpus, found.qrels,
                      {query: "test" if place % DEV_SHARE else "dev" for place, query in enumerate(ids)})
