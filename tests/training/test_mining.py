"""Mined negatives and a teacher's scores: from the training part alone, and made anew only when there is a reason."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from tiny import tiny_bert, tiny_pairs, tiny_texts
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification

from embedding_finetune.data.collection import Collection, read_data
from embedding_finetune.data.near_duplicates import near_duplicates
from embedding_finetune.data.negatives import negative_candidates
from embedding_finetune.data.normalize import normalize
from embedding_finetune.data.row_store import read_rows
from embedding_finetune.files import UserError
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.recipes import find_recipe
from embedding_finetune.retrieval import resumable_search
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.retrieval.known_systems import make_reranker
from embedding_finetune.training import training_data as rows_module
from embedding_finetune.training.export import export
from embedding_finetune.training.mining import Miner
from embedding_finetune.training.training_data import make_training_file, training_path, training_rows


def recipe_of(settings, label="hard", **changes):
    ours = {"candidates": ["bm25", "model"], "filter": "none", "num_negatives": 4, "mining_top_k": 20,
            "teacher_temperature": 0.5}
    return dataclasses.replace(find_recipe(settings, label), **ours | changes)


def make(settings, recipe):
    """(rows of the training file, share of each source)"""
    sources = make_training_file(settings, recipe, read_data(settings), Miner(settings, recipe))
    return list(read_rows(training_path(settings, recipe), teacher=bool(recipe.teacher))), sources


def test_rows_have_mined_negatives_and_their_sources_add_up(built):
    rows, sources = make(built, recipe_of(built))
    assert sum(sources.values()) == pytest.approx(1) and set(sources) == {"bm25", "model", "bm25 and model", "random"}
    assert sources["random"] < 0.1
    train = read_data(built).split("train")
    assert [row["query"] for row in rows] == list(train.queries.values())
    pool = {train.corpus[passage] for passage in train.positive_pool()[0]}
    for row in rows:
        assert len({*map(normalize, row["neg"])} - {*map(normalize, row["pos"])}) == 4 and set(row["neg"]) <= pool
        near = near_duplicates(row["pos"] + row["neg"])
        assert not any(one < len(row["pos"]) <= other for one, other in near.tolist())


def test_the_models_candidates_are_its_nearest_passages(built):
    """Against a plain product of all vectors, without near-duplicates to be left out."""
    train = read_data(built).split("train")
    pool, positives = train.positive_pool()
    chosen, sources = Miner(built, recipe_of(built, candidates=["model"])).mine(negative_candidates(read_data(built)))
    encoder = Encoder(load_encoder_config(built, "reference"))
    scores = encoder.encode_queries(train.queries.values()) @ encoder.encode_passages(
        [train.corpus[passage] for passage in pool]).T
    alike = near_duplicates([train.corpus[passage] for passage in pool]).tolist()
    for row, (own, found) in enumerate(zip(positives, chosen)):
        unsafe = {*own, *(other for pair in alike if set(pair) & set(own) for other in pair)}
        scores[row, list(unsafe)] = -np.inf
        np.testing.assert_allclose(scores[row, found], np.sort(scores[row])[::-1][:4], atol=1e-6)
    assert sources["model"].all() and not sources["random"].any() and len(sources) == 2


def test_only_eligible_passages_are_mined(built):
    """The others, such as negatives that came with the data, are behind them in the pool."""
    pool = negative_candidates(read_data(built))
    half = dataclasses.replace(pool, num_eligible=pool.num_eligible // 2)
    chosen, _ = Miner(built, recipe_of(built)).mine(half)
    assert chosen.max() < half.num_eligible


def test_mining_in_blocks_finds_the_same_and_goes_on(built, monkeypatch):
    """Whatever retriever: the second time nothing is searched for, the third time with another depth all is."""
    pool, recipe = negative_candidates(read_data(built)), recipe_of(built)
    expected = Miner(built, recipe).mine(pool)
    assert not (built.output_dir / "cache" / "hits").exists()
    monkeypatch.setattr(resumable_search, "BLOCK", 50)
    asked = []
    for kind in (BM25, Dense):
        monkeypatch.setattr(kind, "search_batch", lambda self, texts, depth, top=kind.search_batch:
                            asked.append(len(texts)) or top(self, texts, depth))
    for depth, searched in ((20, True), (20, False), (30, True)):
        asked.clear()
        chosen, _ = Miner(built, dataclasses.replace(recipe, mining_top_k=depth)).mine(pool)
        assert (sum(asked) == 2 * len(pool.train.queries)) is searched and max(asked, default=0) <= 50
        assert depth != 20 or (chosen == expected[0]).all()


def test_passages_that_share_no_word_with_the_query_are_no_hard_negatives(built):
    """BM25 finds one passage for the first query, none for the second, all for the third; random ones fill up."""
    words = "moon harbour copper falcon marble lantern orchard engine".split()
    corpus = {f"p{number}": f"{word} river" for number, word in enumerate(words)}
    queries = {"a": "harbour", "b": "zebra", "c": "river"}
    qrels = {query: {passage: 1 for passage in own} for query, own in
             zip(queries, (["p0", "p2"], ["p3", "p4"], ["p5", "p6", "p7", "p1"]))}
    train = Collection(queries, corpus, qrels, dict.fromkeys(queries, "train"))
    chosen, sources = Miner(built, recipe_of(built, candidates=["bm25"])).mine(negative_candidates(train))
    pool, _ = train.positive_pool()
    assert pool[chosen[0][0]] == "p1"
    assert {pool[position] for position in chosen[2]} == {"p0", "p2", "p3", "p4"}
    assert {source: where.sum() for source, where in sources.items()} == {"bm25": 5, "random": 7}


def test_bm25_mines_in_the_language_of_the_setting(built, capsys):
    """A change of it makes other candidates, and so another training file; of the model's candidates it makes none."""
    recipe, german = recipe_of(built), dataclasses.replace(built, bm25_language="de")
    Miner(german, recipe).mine(negative_candidates(read_data(built)))
    assert "BM25 analyzer language: de (All scripts)" in capsys.readouterr().out
    assert Miner(german, recipe).inputs() != Miner(built, recipe).inputs()
    alone = recipe_of(built, candidates=["model"])
    assert Miner(german, alone).inputs() == Miner(built, alone).inputs()


def test_nothing_of_the_test_and_dev_part_is_used(built):
    """Other texts in the test and dev part, but the same training part: the same rows, scores and all."""
    collection, miner = read_data(built), Miner(built, recipe_of(built, "hard_kd"))
    train_pool = set(collection.split("train").positive_pool()[0])
    other = dataclasses.replace(
        collection,
        queries={query: text if collection.splits.get(query) == "train" else f"another {text}"
                 for query, text in collection.queries.items()},
        corpus={passage: text if passage in train_pool else f"quite another passage, {text}"
                for passage, text in collection.corpus.items()} | {"p": "one passage more"})
    rows = []
    for pool in map(negative_candidates, (collection, other)):
        chosen, _ = miner.mine(pool)
        texts = np.array(pool.texts())
        rows.append([row | {side: texts[row[side]].tolist() for side in ("pos", "neg")}
                     for row in training_rows(pool, chosen, miner.scores(pool, chosen))])
    assert rows[0] == rows[1]


@pytest.fixture
def mined(monkeypatch):
    """One entry for each time that negatives are mined."""
    calls, mine = [], Miner.mine
    monkeypatch.setattr(Miner, "mine", lambda self, train: calls.append(None) or mine(self, train))
    return calls


def test_a_file_is_mined_anew_when_models_recipe_or_data_change_and_only_then(built, tmp_path, mined, monkeypatch):
    """A path, a title, a note, the name of MODEL_FILE, and what is not read are no reason."""
    reference, models = shutil.copytree(built.reference_model, tmp_path / "reference"), tmp_path / "models.toml"
    models.write_text('["none"]\npooling = "mean"\n')
    settings = dataclasses.replace(built, reference_model=str(reference), model_file=models)
    recipe = recipe_of(settings)
    make(settings, recipe)
    content = training_path(settings, recipe).read_bytes()

    moved = dataclasses.replace(settings, reference_model=str(reference.rename(tmp_path / "moved")),
                                model_file=models.rename(tmp_path / "renamed.toml"))
    for same in (moved, dataclasses.replace(moved, query_prompt="look up: ", epochs=3.0, retrievers="")):
        make(same, recipe)
    make(moved, dataclasses.replace(recipe, description="told in other words", settings={"EPOCHS": 2}))
    assert len(mined) == 1 and training_path(settings, recipe).read_bytes() == content

    tiny_bert(tmp_path / "moved", tiny_texts(tiny_pairs(120)), seed=9)  # other weights under the same name
    make(moved, recipe)
    assert len(mined) == 2 and training_path(settings, recipe).read_bytes() != content
    make(dataclasses.replace(moved, reference_prompt="look up: "), recipe)
    make(moved, dataclasses.replace(recipe, filter="relative_margin 0.95"))
    moved.model_file.write_text(f'["{moved.reference_model}"]\npassage_prompt = "page: "\n')
    make(moved, recipe)
    assert len(mined) == 5
    monkeypatch.setattr(rows_module, "data_identity", lambda settings: "other data")
    make(moved, recipe)
    assert len(mined) == 6


def test_random_negatives_with_a_teacher_stay_random(built):
    """And no other model is asked for: the one that would mine is not there."""
    random, _ = make(built, recipe_of(built, "neg10"))
    taught, sources = make(built, recipe_of(built, "neg10", teacher="raw", miner="hard", file="training_taught.json"))
    assert sources == {"random": 1.0} and [row["neg"] for row in taught] == [row["neg"] for row in random]
    encoder, row = Encoder(load_encoder_config(built, "raw")), taught[3]
    cosines = encoder.encode_passages(row["neg"]) @ encoder.encode_queries([row["query"]])[0]
    assert np.allclose(row["neg_scores"], cosines / 0.5, atol=1e-5)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    """A tiny cross-encoder with one score."""
    folder = tmp_path_factory.mktemp("reranker")
    base = tiny_bert(folder / "base", tiny_texts(tiny_pairs(120)), initializer_range=0.5)
    torch.manual_seed(5)
    BertForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("teacher", ["reference", "late_reference", "cross_encoder"])
def test_the_teachers_scores_are_its_own_over_the_temperature(built, reranker, monkeypatch, teacher):
    """Cosines, mean cosines of tokens, or logits; the negatives are those that are mined without a teacher."""
    monkeypatch.setattr("embedding_finetune.models.batching.BATCH_TOKENS", {"cpu": 60})  # several for a query
    name = str(reranker) if teacher == "cross_encoder" else teacher
    rows, _ = make(built, recipe_of(built, "hard_kd", teacher=name))
    without, _ = make(built, recipe_of(built))
    assert [row["neg"] for row in rows] == [row["neg"] for row in without]
    for row in rows[:5]:
        texts = [*row["pos"], *row["neg"]]
        if teacher == "reference":
            encoder = Encoder(load_encoder_config(built, "reference"))
            expected = encoder.encode_passages(texts) @ encoder.encode_queries([row["query"]])[0]
        elif teacher == "late_reference":
            stage = make_reranker(built, "late", "reference").index(dict(enumerate(texts)))
            scores = stage.score({"q": row["query"]}, {"q": list(range(len(texts)))})["q"]
            expected = np.array([scores[place] for place in range(len(texts))])
        else:
            tokenizer, model = (kind.from_pretrained(reranker) for kind in (AutoTokenizer,
                                                                            BertForSequenceClassification))
            pairs = tokenizer([row["query"]] * len(texts), texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                expected = model.eval()(**pairs).logits[:, 0].numpy()
        assert [*row["pos_scores"], *row["neg_scores"]] == pytest.approx((expected / 0.5).tolist(), abs=2e-3)


def test_a_late_teacher_is_told_by_how_it_reads_and_not_by_how_its_tokens_are_stored(built):
    def miner(**changed):
        return Miner(dataclasses.replace(built, **changed), recipe_of(built, "hard_kd", teacher="late_reference"))

    stored = miner(token_dtype="int8", token_pool_factor=4)
    assert (stored.stage.dtype, stored.stage.pool_factor) == ("float16", 1)
    assert stored.inputs() == miner().inputs()
    assert miner(reference_prompt="look up: ").inputs() != miner().inputs()


@pytest.mark.parametrize("teacher, message", [
    ("base", "is no reranker that gives one score per pair"),
    ("/no/model", "/no/model is not a model folder"),
])
def test_a_teacher_that_is_no_reranker_is_refused(built, teacher, message):
    recipe = recipe_of(built, "hard_kd", teacher=built.base_model if teacher == "base" else teacher)
    with pytest.raises(UserError, match=message):
        make(built, recipe)
    assert not training_path(built, recipe).exists()


def test_the_second_round_mines_with_the_model_of_the_first(built):
    recipe = recipe_of(built, "hard_round2", candidates=["model"])
    with pytest.raises(UserError, match="hard_round2 mines with the model hard, which is not in .* run "
                                        "`bash finetune_hard.sh hard` first"):
        Miner(built, recipe)
    base, hard = tiny_bert(built.output_dir / "base", tiny_texts(tiny_pairs(120)), seed=9), built.output_dir / "hard"
    export(AutoModel.from_pretrained(base), AutoTokenizer.from_pretrained(base), hard,
           dataclasses.replace(load_encoder_config(built, "reference"), query_prompt=""))
    second, _ = make(built, recipe)
    as_reference = dataclasses.replace(built, reference_model=str(hard))
    same, _ = make(as_reference, recipe_of(as_reference, candidates=["model"]))
    other, _ = make(built, recipe_of(built, candidates=["model"]))
    assert [row["neg"] for row in second] == [row["neg"] for row in same] != [row["neg"] for row in other]
