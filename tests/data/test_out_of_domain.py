"""Sets of other domains: the one that comes with a package, and folders."""

from collections import Counter
from dataclasses import replace

import pytest

from embedding_finetune.data import out_of_domain
from embedding_finetune.data.collection import Collection, write_collection
from embedding_finetune.data.out_of_domain import general_knowledge, out_of_domain_sets
from embedding_finetune.files import UserError


def test_the_general_set_is_the_same_each_time_and_its_parts_share_no_query():
    first, again = general_knowledge(), general_knowledge()
    assert first == again and list(first.queries) == list(again.queries)
    assert (len(first.queries), len(first.corpus)) == (343, 350)
    assert Counter(first.splits.values()) == {"test": 228, "dev": 115} and first.splits.keys() == first.queries.keys()
    assert all(first.positives(query) for query in first.queries)


def test_questions_stand_with_their_answers():
    found = general_knowledge()
    answers = {found.queries[query]: [found.corpus[passage] for passage in found.positives(query)]
               for query in found.queries}
    assert answers["Who was the 37th President of the United States?"] == ["Richard Nixon"]
    assert answers["What year was President John F. Kennedy assassinated?"] == ["1963"]  # a number would be one in YAML
    assert max(len(text) for text in found.corpus.values()) < 500


def test_folders_and_the_general_set_stand_side_by_side(settings, tmp_path):
    far = Collection({"q": "falcon"}, {"p": "the falcon sleeps"}, {"q": {"p": 1}}, {"q": "test"})
    folder = tmp_path / "a set"
    write_collection(folder, replace(far, queries=far.queries | {"r": "no positive"}, qrels=far.qrels | {"r": {"p": 0}},
                                     splits={"q": "test", "r": "test"}))
    assert out_of_domain_sets(settings) == {}
    found = out_of_domain_sets(replace(settings, out_of_domain_sets=f"'{folder}' general"))
    assert list(found) == [str(folder), "general"] and found["general"] == general_knowledge()
    assert found[str(folder)] == replace(far, predefined=("test",))
    for value, message in (("general nowhere", "nowhere/corpus.jsonl does not exist"),
                           ("it's", "No closing quotation")):
        with pytest.raises(UserError, match=message):
            out_of_domain_sets(replace(settings, out_of_domain_sets=value))
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "train.tsv")
    with pytest.raises(UserError, match="a set has no qrels/test.tsv with a positive"):
        out_of_domain_sets(replace(settings, out_of_domain_sets=f'"{folder}"'))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(out_of_domain, "PACKAGE", "no_such_package")
    message = "the package no_such_package is not installed, and OUT_OF_DOMAIN_SETS=general reads it"
    with pytest.raises(UserError, match=message):
        general_knowledge()
