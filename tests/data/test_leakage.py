"""The audit finds what of the dev and test part is in a training file, and says so before anything is trained."""

import dataclasses

import pytest
from tiny_training import changed_rows, write_rows

from embedding_finetune.data.collection import Collection, read_data, write_data
from embedding_finetune.data.leakage import check_leakage, check_leakage_on_disk
from embedding_finetune.files import UserError

FILE = "training_neg_10.arrow"


def change_rows(settings, change):
    """Let `change` change a training file's rows, a list of dicts."""
    changed_rows(settings.data_dir / FILE, lambda rows: change(rows) or rows)


def test_clean_files_have_nothing_of_either_part(built):
    files = [FILE, "training_neg_50.arrow"]
    table = check_leakage_on_disk(built, files)
    assert table.to_numpy().sum() == 0
    assert table.index.tolist() == [(file, part) for file in files for part in ("dev", "test")]


@pytest.mark.parametrize("part", ["dev", "test"])
@pytest.mark.parametrize("kind", ["queries", "positives", "negatives"])
def test_each_kind_of_leak_is_found_in_either_part(built, part, kind):
    """However a text is written: case, spaces and compatibility characters tell no two texts apart."""
    held_out = read_data(built).split(part)
    query, text = next(iter(held_out.queries.values())), held_out.corpus[held_out.positive_pool()[0][0]]
    changes = {"queries": lambda rows: rows[3].update(query=query.upper()),
               "positives": lambda rows: rows[3]["pos"].append(f" {text}\n"),
               "negatives": lambda rows: rows[3]["neg"].__setitem__(0, text.replace(" ", "\u3000"))}
    change_rows(built, changes[kind])
    with pytest.raises(UserError, match=f'{FILE} is not clean.*"against": "{part}".*"{kind}": 1'):
        check_leakage_on_disk(built, [FILE])


@pytest.mark.parametrize("change, found", [
    (lambda row: row["neg"].__setitem__(0, row["pos"][0].upper()), '"own positives as negatives": 1'),
    (lambda row: row["neg"].__setitem__(0, row["neg"][1] + " "), '"repeated negatives": 1'),
])
def test_a_row_that_contradicts_itself_is_found(built, change, found):
    change_rows(built, lambda rows: change(rows[3]))
    with pytest.raises(UserError, match=found):
        check_leakage_on_disk(built, [FILE])


LONG = "the heron of the lower valley builds its nest with twigs of willow and comes back every year in spring"


def near(settings):
    """Data with two test passages that say nearly what two training passages say, and one that says something else."""
    corpus = {"a": LONG, "b": "moon", "c": f"{LONG} again", "d": f"Yes: {LONG}, they say.",
              "e": "copper engines cool slowly in the harbour", "f": "marble"}
    judged = {"1": "a", "2": "b", "3": "c", "4": "d", "5": "e", "6": "f"}
    parts = {"1": "train", "2": "train", "3": "test", "4": "test", "5": "test", "6": "dev"}
    collection = Collection({query: f"query {query}" for query in judged}, corpus,
                            {query: {passage: 1} for query, passage in judged.items()}, parts)
    write_data(settings, collection, {})
    write_rows(settings.data_dir / FILE, [{"query": "query 1", "pos": [LONG], "neg": ["moon"]},
                                          {"query": "query 2", "pos": ["moon"], "neg": [LONG]}])
    return collection


def test_near_duplicates_of_held_out_passages_are_counted_each_once(settings):
    near(settings)
    with pytest.raises(UserError, match='"against": "test".*"negatives": 0, "near-duplicates": 2'):
        check_leakage_on_disk(settings, [FILE])


def test_near_duplicates_are_no_leak_where_they_may_be_apart(settings):
    lenient = dataclasses.replace(settings, group_near_duplicates=False)
    collection = near(lenient)
    table = check_leakage(lenient, collection, [FILE])
    assert table["near-duplicates"].to_dict() == {(FILE, "dev"): 0, (FILE, "test"): 2}
    assert table.drop(columns="near-duplicates").to_numpy().sum() == 0


def test_data_that_was_changed_by_hand_is_not_audited(built):
    (built.data_dir / "queries.jsonl").write_text((built.data_dir / "queries.jsonl").read_text() + "\n")
    with pytest.raises(UserError, match="are not those that build_train_dataset.ipynb wrote"):
        check_leakage_on_disk(built, [FILE])
