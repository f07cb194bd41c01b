"""The small inputs are what the other tests take them for."""

import bm25s
import torch
from tiny import tiny_bert, tiny_pairs, tiny_texts, tiny_xlmr
from transformers import AutoModel, AutoTokenizer


def test_pairs_have_the_promised_irregularities():
    rows = tiny_pairs(40)
    assert len(rows) == len({row["id"] for row in rows}) == 40
    assert [number for number, row in enumerate(rows) if len(row["pos"]) == 2] == [3, 13, 23, 33]
    for ten in range(0, 40, 10):
        assert rows[ten + 5]["pos"] == rows[ten + 4]["pos"] and rows[ten + 5]["query"] != rows[ten + 4]["query"]
        assert rows[ten + 7]["query"] == rows[ten + 6]["query"] and rows[ten + 7]["pos"] != rows[ten + 6]["pos"]
        assert rows[ten + 9] == rows[ten + 8] | {"id": rows[ten + 9]["id"]}
    assert len({row["query"] for row in rows}) == 40 - 4 * 2
    assert len({text for row in rows for text in row["pos"]}) == 40 + 4 - 4 * 2
    assert rows == tiny_pairs(40) != tiny_pairs(40, seed=8)


def test_words_find_the_passages_of_the_pairs():
    rows = tiny_pairs(100)
    passages = sorted({text for row in rows for text in row["pos"]})
    index = bm25s.BM25()
    index.index(bm25s.tokenize(passages, show_progress=False), show_progress=False)
    found, _ = index.retrieve(bm25s.tokenize([row["query"] for row in rows], show_progress=False), corpus=passages, k=2,
                              show_progress=False)
    assert all(set(best) & set(row["pos"]) for best, row in zip(found, rows))


def test_models_load_encode_long_texts_and_are_the_same_each_time(tmp_path):
    texts = [*tiny_texts(tiny_pairs(30)), "a smørrebrød – to go"]
    for make, special in ((tiny_bert, ["[CLS]", "[SEP]", "[PAD]"]), (tiny_xlmr, ["<s>", "</s>", "<pad>"])):
        first, second = make(tmp_path / f"{make.__name__}1", texts), make(tmp_path / f"{make.__name__}2", texts)
        for path in first.iterdir():
            assert path.read_bytes() == (second / path.name).read_bytes()
        tokenizer = AutoTokenizer.from_pretrained(first)
        model, report = AutoModel.from_pretrained(first, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        batch = tokenizer(["the otter – smørrebrød " * 200, "heron"], truncation=True, padding=True,
                          return_tensors="pt")
        tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][1])
        assert [tokens[0], tokens[2], tokens[3]] == special
        assert tokenizer.unk_token_id not in batch["input_ids"]
        with torch.inference_mode():
            assert model(**batch).last_hidden_state.shape == (2, 512, 64)
