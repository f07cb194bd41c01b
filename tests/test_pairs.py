import ast
import dataclasses
import json

import pytest

from embedding_finetune import pairs as module
from embedding_finetune.experiment import Experiment
from embedding_finetune.files import ExperimentError
from embedding_finetune.pairs import clean, load_pairs, normalise, passage_id


def test_texts_are_the_same_up_to_case_space_and_unicode_form():
    assert normalise("  The\u00a0CAF\u0045\u0301 \n ﬁne ") == "the café fine"
    assert passage_id("The Fine\ncafé") == passage_id("the ﬁne  CAFE\u0301") != passage_id("the fine cafe")
    assert passage_id("abc") == "pba7816bf8f01cfea"  # the first 16 digits of its SHA-256


def test_cleaning_merges_queries_and_passages_and_keeps_all_positives():
    raw = [("What is X?", ["X is a letter. "], "7"),
           ("what  is x?", ["x IS a letter.", "X comes before Y."], "8"),
           ("what is y?", ["X comes before y."], None),
           ("  ", ["nothing"], "9"),
           ("what is z?", ["", "What is Z?"], "10")]
    pairs, counts = clean(raw)
    assert pairs[0] == {"id": "7", "query": "What is X?", "pos": ["X is a letter.", "X comes before Y."]}
    assert pairs[1]["pos"] == ["X comes before Y."] and pairs[1]["id"].startswith("q") and len(pairs) == 2
    assert counts == {"rows read": 5, "rows merged: same query": 1, "passages met again": 2, "rows dropped: empty query": 1,
                      "positives dropped: empty": 1, "positives dropped: same as the query": 1,
                      "rows dropped: no positive left": 1, "queries with several positives": 1}


def test_one_id_for_two_queries_is_refused():
    with pytest.raises(ExperimentError, match="the id '1' names two queries: 'a' and 'b'"):
        clean([("a", ["x"], "1"), ("b", ["y"], "1")])


def local(tmp_path, *rows, **settings):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dataclasses.replace(Experiment.load("demo"), dataset=str(path), **settings)


@pytest.mark.parametrize("row, message", [
    ({"query": "a"}, "line 2: no 'pos'"),
    ({"query": "a", "pos": "x"}, "row 2: 'pos' must be a list of texts"),
    ({"query": "a", "pos": [1]}, "row 2: 'pos' must be a list of texts"),
    ({"query": None, "pos": ["x"]}, "row 2: 'query' must be a text"),
    ({"query": "a", "pos": ["x"], "id": "1 2"}, "row 2: the id '1 2' must be one word"),
])
def test_broken_local_rows_are_named(tmp_path, row, message):
    with pytest.raises(ExperimentError, match=message):
        load_pairs(local(tmp_path, {"query": "b", "pos": ["y"]}, row))


def test_a_data_set_that_is_none_is_refused(tmp_path):
    with pytest.raises(ExperimentError, match="DATASET=docstring is neither msmarco nor docstrings nor an existing file"):
        load_pairs(dataclasses.replace(Experiment.load("demo"), dataset="docstring"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ExperimentError, match="empty.jsonl is empty"):
        load_pairs(dataclasses.replace(Experiment.load("demo"), dataset=str(tmp_path / "empty.jsonl")))


def test_max_pairs_takes_a_seeded_sample_in_the_files_order(tmp_path):
    rows = [{"query": f"query {number}", "pos": [f"passage {number}"], "id": number} for number in range(100)]
    first, counts = load_pairs(local(tmp_path, *rows, max_pairs=10, seed=1))
    again, _ = load_pairs(local(tmp_path, *rows, max_pairs=10, seed=1))
    other, _ = load_pairs(local(tmp_path, *rows, max_pairs=10, seed=2))
    ids = [int(pair["id"]) for pair in first]
    assert first == again != other and ids == sorted(ids) and len(set(ids)) == 10
    assert counts["queries left out by MAX_PAIRS"] == 90 and counts["passages kept"] == 10


def test_docstrings_of_public_names_become_pairs():
    source = '''
class Kettle:
    """Boil water in a vessel with a lid.

    The vessel stands on a stove until the water in it boils, which takes some minutes at sea level.
    """
    def pour(self):
        """Fill a cup from the kettle.

        Too short.
        """
    def _lid(self):
        """A private thing nobody should find here.

        The words of this passage are many enough to make a pair if only the name were public.
        """
'''
    found = [pair for docstring in module._public_docstrings(ast.parse(source)) for pair in module._as_pair(docstring)]
    assert found == [("Boil water in a vessel with a lid.", ["The vessel stands on a stove until the water in it boils, which "
                                                             "takes some minutes at sea level."], None)]


def test_docstrings_of_an_installed_package(monkeypatch):
    monkeypatch.setattr(module, "DOCSTRING_PACKAGES", ("networkx",))
    pairs, counts = load_pairs(Experiment.load("demo"))
    queries = [pair["query"] for pair in pairs]
    assert len(pairs) > 300 and "Returns the average shortest path length." in queries
    monkeypatch.setattr(module, "DOCSTRING_PACKAGES", ("no-such-package",))
    with pytest.raises(ExperimentError, match="no-such-package is not installed"):
        load_pairs(Experiment.load("demo"))
