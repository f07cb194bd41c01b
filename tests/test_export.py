"""A finished folder means the same to FlagEmbedding, sentence-transformers and transformers."""

import json

import pytest
import torch
from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from embedding_finetune.export import check_parity, export, write_metrics
from embedding_finetune.files import ExperimentError

TEXTS = ["moon cools river", "the falcon carries marble over the harbour and mirrors the glacier", "copper"]


def exported(tiny, folder, **options):
    export(AutoModel.from_pretrained(tiny / "bert"), AutoTokenizer.from_pretrained(tiny / "bert"), folder,
           query_instruction="find: ", query_max_length=16, passage_max_length=48, **options)
    return str(folder)


@pytest.mark.parametrize("pooling, normalize", [("cls", True), ("mean", True), ("mean", False)])
def test_three_libraries_give_the_same_vectors(tiny, tmp_path, pooling, normalize):
    folder = exported(tiny, tmp_path / "model", pooling=pooling, normalize=normalize)
    flag = BaseEmbedder(folder, pooling_method=pooling, normalize_embeddings=normalize, use_fp16=False, devices=["cpu"],
                        query_instruction_for_retrieval="find: ")
    sentence = SentenceTransformer(folder, device="cpu")
    for theirs, named in ((flag.encode_queries(TEXTS), {"prompt_name": "query"}), (flag.encode_corpus(TEXTS), {})):
        torch.testing.assert_close(torch.tensor(sentence.encode(TEXTS, **named)), torch.tensor(theirs), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(sentence.encode_query(TEXTS)), torch.tensor(flag.encode_queries(TEXTS)), atol=1e-5, rtol=1e-4)
    assert not (flag.encode_queries(TEXTS) == flag.encode_corpus(TEXTS)).all()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        one = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0]
    vector = one[0] if pooling == "cls" else one.mean(0)
    vector = torch.nn.functional.normalize(vector, dim=0) if normalize else vector
    torch.testing.assert_close(vector, torch.tensor(flag.encode_corpus(TEXTS[:1])[0]), atol=1e-5, rtol=1e-4)


def test_model_card(tiny, tmp_path):
    exported(tiny, tmp_path / "model", card={"temperature": 0.05}, curve=[{"step": 7, "recall@10": 0.5, "mrr@10": 0.25}])
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| temperature | 0.05 |" in card and "| 7 | 0.5000 | 0.2500 |" in card and "find: " in card


def test_metrics_enter_the_card_and_replace_older_ones(tiny, tmp_path):
    exported(tiny, tmp_path / "model")
    before = (tmp_path / "model" / "README.md").read_text()
    for value in (0.25, 0.75):
        write_metrics(tmp_path / "model", {"recall@1": value, "mrr@10": 0.5})
    card = (tmp_path / "model" / "README.md").read_text()
    table = "| metric | value |\n|---|---|\n| recall@1 | 0.7500 |\n| mrr@10 | 0.5000 |"
    assert card == before.replace("Not evaluated yet.", table) and card != before


def test_a_folder_of_flagembeddings_trainer_is_completed_in_place(tiny, tmp_path):
    folder = tmp_path / "model"
    AutoModel.from_pretrained(tiny / "bert").save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny / "bert").save_pretrained(folder)
    exported(tiny, folder)
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
    assert not list(folder.glob("*.partial"))


def test_a_folder_that_reads_differently_is_refused(tiny, tmp_path):
    folder = exported(tiny, tmp_path / "model", pooling="cls")
    with pytest.raises(ExperimentError, match="query vectors of FlagEmbedding and sentence-transformers agree only to a cosine"):
        check_parity(folder, pooling="mean", normalize=True, query_instruction="find: ", query_format="{}{}", max_length=48)
