"""Out-of-domain test sets (OUT_OF_DOMAIN_SETS), to measure what fine-tuning costs on other domains.

Each is a folder or a Hub dataset in BEIR layout, or `general`: general-knowledge questions with answers, shipped in a
package. Dev queries are used for model selection (see training.merging), test queries for reporting.
"""

import dataclasses

import yaml

from embedding_finetune.data.cleaning import beir_folder
from embedding_finetune.data.collection import Collection
from embedding_finetune.data.deduplication import clean
from embedding_finetune.data.readers import Row
from embedding_finetune.data.readers.beir import is_beir, read_beir
from embedding_finetune.extras import package_folder
from embedding_finetune.files import UserError
from embedding_finetune.setting_checks import names_in
from embedding_finetune.settings import Settings, path_of

GENERAL = "general"
PACKAGE = "chatterbot_corpus"  # BSD licence; pinned in requirements.txt, so that the questions are always the same
TOPICS = "trivia science literature history sports".split()  # topics whose questions have factual answers
DEV_SHARE = 3  # every third query is a dev query


def out_of_domain_sets(settings: Settings) -> dict[str, Collection]:
    """Name -> Collection of OUT_OF_DOMAIN_SETS, in order.

    Raises UserError when a set cannot be read or has no test queries.
    """
    found = {}
    for name in names_in(settings.out_of_domain_sets, "OUT_OF_DOMAIN_SETS"):
        found[name] = (general_knowledge() if name == GENERAL else
                       read_beir(beir_folder(name) or path_of(name), settings.max_bad_rows)[0])
        if "test" not in found[name].splits.values():
            raise UserError(f"OUT_OF_DOMAIN_SETS: {name} has no qrels/test.tsv with a positive")
    return found


def check_set(name: str) -> str:
    """A phrase on a set of OUT_OF_DOMAIN_SETS, which is not read; raises UserError when there is no such set."""
    if name == GENERAL:
        package_folder(PACKAGE, f"OUT_OF_DOMAIN_SETS={GENERAL}")
        return "general-knowledge questions"
    if not is_beir(path_of(name)):
        raise UserError(f"{name} is not a folder in BEIR's layout")
    return "a folder in BEIR's layout"


def general_knowledge() -> Collection:
    """343 general-knowledge questions and their 350 short answers, as a Collection with dev and test splits."""
    folder = package_folder(PACKAGE, f"OUT_OF_DOMAIN_SETS={GENERAL}") / "data" / "english"
    conversations = (conversation for topic in TOPICS for conversation in
                     yaml.safe_load((folder / f"{topic}.yml").read_text(encoding="utf-8"))["conversations"])
    found, _ = clean(Row(str(question), [str(answer)]) for question, answer, *_ in conversations)
    ids = sorted(found.queries)  # ids are hashes, so the order is arbitrary but fixed
    splits = {query: "test" if place % DEV_SHARE else "dev" for place, query in enumerate(ids)}
    return dataclasses.replace(found, splits=splits)
