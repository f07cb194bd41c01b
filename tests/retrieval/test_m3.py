"""A stand-in of BGE-M3's layout: scores are FlagEmbedding's, the words' part that of a plain loop."""

import shutil

import pytest
import torch
from FlagEmbedding import BGEM3FlagModel
from tiny import tiny_pairs, tiny_texts, tiny_xlmr

from embedding_finetune.files import UserError
from embedding_finetune.retrieval.m3 import WEIGHTS, M3
from embedding_finetune.retrieval.model_use import ModelUse

TEXTS = tiny_texts(tiny_pairs(12))
CORPUS = {f"p{number}": text for number, text in enumerate(TEXTS[1::2])}
QUERIES = {"q1": TEXTS[0], "q2": TEXTS[4]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m3") / "model"
    tiny_xlmr(folder, TEXTS)
    torch.manual_seed(1)
    hidden = 32 if (config := (folder / "config.json").read_text()).find('"hidden_size": 32') > 0 else \
        int(config.split('"hidden_size": ')[1].split(",")[0])
    torch.save(torch.nn.Linear(hidden, 1).state_dict(), folder / "sparse_linear.pt")
    torch.save(torch.nn.Linear(hidden, hidden).state_dict(), folder / "colbert_linear.pt")
    return folder


def use(folder):
    return ModelUse("reference", "stand-in", str(folder), "cls", "", "", 24, 40)


def test_scores_are_flagembeddings(folder):
    stage = M3(use(folder)).index(CORPUS)
    run = stage.score(QUERIES, {query: list(CORPUS) for query in QUERIES})
    model = BGEM3FlagModel(str(folder), use_fp16=False, devices=["cpu"])
    for query, text in QUERIES.items():
        theirs = model.compute_score([[text, passage] for passage in CORPUS.values()], max_passage_length=40,
                                     weights_for_different_modes=list(WEIGHTS))
        assert [run[query][passage] for passage in CORPUS] == pytest.approx(
            theirs["colbert+sparse+dense"], abs=1e-3)  # the tokens' vectors are float16
    words, own = stage.model.encode_queries([QUERIES["q1"]], return_dense=False, return_sparse=True)[
        "lexical_weights"][0], stage.words[0]
    assert stage.model.compute_lexical_matching_score(words, own) == pytest.approx(
        sum(weight * own[word] for word, weight in words.items() if word in own))
    assert stage.bytes_per_passage > 100 and stage.ms_per_query > 0


def test_what_is_no_m3_is_refused(folder, tmp_path):
    plain = shutil.copytree(folder, tmp_path / "plain")
    (plain / "colbert_linear.pt").unlink()
    with pytest.raises(UserError, match="stand-in has no colbert_linear.pt: it is no BGE-M3"):
        M3(use(plain))
    torch.save({"weight": print}, plain / "colbert_linear.pt")
    with pytest.raises(UserError, match="something else than weights"):
        M3(use(plain))
