"""What a step draws, the order of the rows, the layout of a batch, and the plan of sub-batches against brute force."""

from collections import Counter

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from batches_for_tests import batch_of
from tiny_training import rows_of, use, write_rows
from transformers import AutoTokenizer

from embedding_finetune.data.normalize import PSEUDO_QUERY_PREFIX
from embedding_finetune.data.row_store import read_rows, text_hash
from embedding_finetune.training.batches import Collator, EpochSampler, TrainingSet, sub_batches


@pytest.fixture(scope="module")
def rows(tiny):
    return rows_of(tiny)


def texts_of(batch):
    """The token ids of each text that is laid out, without padding."""
    return [tuple(ids[mask.bool()].tolist()) for sub in batch["texts"]
            for ids, mask in zip(sub["input_ids"], sub["attention_mask"], strict=True)]


def test_a_draw_is_one_positive_and_distinct_negatives_of_its_row(rows):
    training = TrainingSet(rows, use(query_prompt="find: ", passage_prompt="text: "), group=4, seed=3)
    for number, row in enumerate(rows):
        item = training[2, number]
        positive, *negatives = [text.removeprefix("text: ") for text in item["passages"]]
        assert item["query"] == "find: " + row["query"] and all(text.startswith("text: ") for text in item["passages"])
        assert positive in row["pos"] and len(set(negatives)) == 3 and set(negatives) <= set(row["neg"])
        assert item["passage_keys"] == [text_hash(text) for text in (positive, *negatives)]


def test_a_row_with_too_few_negatives_repeats_some_and_leaves_none_out(rows):
    training = TrainingSet(rows, use(), group=10, seed=3)  # 9 of 6 negatives, so none comes a third time
    counts = Counter(place for epoch in range(40) for place in training.draw(epoch, 1)[1])
    assert set(counts) == set(range(6))
    assert all(max(Counter(training.draw(epoch, 1)[1]).values()) == 2 for epoch in range(40))


def test_every_positive_and_every_negative_is_drawn_equally_often(rows):
    training = TrainingSet(rows, use(), group=4, seed=0)
    draws = [training.draw(epoch, 0) for epoch in range(3000)]  # row 0 has two positives and six negatives
    positives, negatives = Counter(draw[0] for draw in draws), Counter(place for draw in draws for place in draw[1])
    assert set(positives) == {0, 1} and set(negatives) == set(range(6))
    assert all(abs(count - 1500) < 140 for count in (*positives.values(), *negatives.values()))  # five deviations


def test_a_draw_depends_on_seed_epoch_and_row_alone(rows):
    def draws(seed, epoch):
        return [TrainingSet(rows, use(), 4, seed).draw(epoch, row) for row in range(60)]

    assert draws(1, 0) == draws(1, 0) != draws(2, 0)
    assert draws(1, 1) not in (draws(1, 0), draws(2, 0))  # seed and epoch are not added up


def test_the_order_of_rows_is_that_of_accelerates_sampler():
    ours = EpochSampler(20, 6, seed=9)
    theirs = SeedableRandomSampler(range(20), generator=torch.Generator(), data_seed=9)
    orders = []
    for ours.epoch in range(3):
        theirs.set_epoch(ours.epoch)
        batches = list(ours)
        assert [len(batch) for batch in batches] == [6, 6, 6, 2] and len(ours) == 4
        assert [row for batch in batches for _, row in batch] == list(theirs)
        assert {epoch for batch in batches for epoch, _ in batch} == {ours.epoch}
        orders.append(batches)
    assert orders[0] != orders[1]
    ours.drop_last = True
    assert list(ours) == orders[2][:3] and len(ours) == 3


def test_all_positives_of_a_query_are_known_wherever_they_stand(tmp_path):
    rows = [{"query": "a", "pos": ["x"], "neg": ["n"]}, {"query": "b", "pos": ["z"], "neg": ["n"]},
            {"query": "a", "pos": ["y", "x"], "neg": ["n"]}]
    training = TrainingSet(read_rows(write_rows(tmp_path / "rows.arrow", rows)), use(), 2, seed=0)
    keys = [training[0, row]["positive_keys"] for row in range(3)]
    assert keys[0] == keys[2] == sorted([text_hash("x"), text_hash("y")]) and set(keys[1]) == {text_hash("z")}
    assert {len(own) for own in keys} == {2}  # of one width, so that processes can exchange them


def test_the_teachers_scores_are_those_of_the_drawn_texts(tiny):
    rows = rows_of(tiny, scores=True)
    training = TrainingSet(rows, use(), 4, seed=5)
    for number, row in enumerate(rows):
        known = dict(zip(row["pos"] + row["neg"], row["pos_scores"] + row["neg_scores"], strict=True))
        item = training[0, number]
        assert item["teacher_scores"] == [known[text] for text in item["passages"]]
    assert TrainingSet(rows_of(tiny), use(), 4, seed=5)[0, 0]["teacher_scores"] is None


@pytest.mark.parametrize("side", ["right", "left"])
def test_each_distinct_text_is_laid_out_once_and_found_again(tiny, side):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "bert", padding_side=side)
    token_ids = [[2, 9, 3], [2, 8, 8, 8, 3], [2, 9, 3], [2, 7, 3]]
    texts, rows = sub_batches(tokenizer, token_ids, call_cost=100)
    [sub] = texts  # calls cost more than padding here
    assert sub["attention_mask"].tolist() == [[1] * 5, [1] * 3 + [0] * 2, [1] * 3 + [0] * 2]
    laid_out = [ids[mask.bool()].tolist() for ids, mask in zip(sub["input_ids"], sub["attention_mask"], strict=True)]
    assert [laid_out[row] for row in rows] == token_ids


def test_a_batch_holds_no_text_twice(tiny):
    batch, features = batch_of(tiny)
    texts = texts_of(batch)
    assert len(texts) == len(set(texts)) < len(batch["rows"]) == 6 + 6 * 4
    wanted = [tuple(ids[mask.bool()].tolist()) for side in ("queries", "passages")
              for ids, mask in zip(features[side]["input_ids"], features[side]["attention_mask"], strict=True)]
    assert [texts[row] for row in batch["rows"]] == wanted
    assert batch["passage_keys"].dtype == torch.int64


def test_queries_and_passages_are_cut_each_at_their_own_length(rows, tiny):
    how = use(query_prompt="river moon ", query_max_len=6, passage_max_len=11)
    training, tokenizer = TrainingSet(rows, how, 4, seed=1), AutoTokenizer.from_pretrained(tiny / "bert")
    items = [training[0, row] for row in range(5)]
    batch = Collator(tokenizer, how)(items)
    texts = texts_of(batch)
    laid_out = [texts[row] for row in batch["rows"]]
    assert [len(text) for text in laid_out[:5]] == [6] * 5  # 2 words of the prompt, 3 of the query, [CLS] and [SEP]
    assert max(map(len, laid_out[5:])) == 11
    whole = tokenizer(items[0]["query"])["input_ids"]
    assert laid_out[0] == (*whole[:5], whole[-1]) and len(whole) == 7


def test_a_pseudo_query_is_taken_out_of_its_passage_nine_times_in_ten(tmp_path):
    passage = "Guide > Install\nthe falcon carries\n marble over the harbour"
    rows = [{"query": "carries marble over", "pos": [passage], "neg": ["a carries marble over b"],
             "id": f"{PSEUDO_QUERY_PREFIX}span-1"},
            {"query": "Guide Install", "pos": [passage], "neg": ["moon"], "id": f"{PSEUDO_QUERY_PREFIX}title-1"},
            {"query": "carries marble over", "pos": [passage], "neg": ["moon"], "id": "q1"}]
    rows = read_rows(write_rows(tmp_path / "rows.arrow", rows))
    training, epochs = TrainingSet(rows, use(), 2, seed=1), range(500)
    span, title, written = ([training[epoch, row]["passages"][0] for epoch in epochs] for row in range(3))
    assert set(written) == {passage}
    for seen, hidden in ((span, "Guide > Install\nthe falcon the harbour"),
                         (title, "the falcon carries\n marble over the harbour")):
        counts = Counter(" ".join(text.split()) for text in seen)
        assert set(counts) == {" ".join(hidden.split()), " ".join(passage.split())}
        assert abs(counts[" ".join(passage.split())] - 50) < 35  # five deviations
    item = training[0, 0]
    assert item["passage_keys"] == [text_hash(passage), text_hash("a carries marble over b")]  # whatever is taken out
    assert item["passages"][1] == "a carries marble over b" and span == [training[e, 0]["passages"][0] for e in epochs]
