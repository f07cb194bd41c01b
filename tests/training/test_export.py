"""A finished folder means the same to FlagEmbedding, sentence-transformers, transformers and the evaluation here."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from FlagEmbedding import FlagModel
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from tiny_training import use
from transformers import AutoModel, AutoTokenizer

from embedding_finetune.files import UserError, read_json
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.models.modeling import DenseLayers
from embedding_finetune.models.own_config import from_files
from embedding_finetune.training.export import check_parity, complete, export

# The last two are longer than either length: 16 tokens of a query, 48 of a passage.
TEXTS = ["moon cools river", "the falcon carries marble over the harbour and mirrors the glacier",
         "copper shelters the moon " * 6, "harbour falcon engine orchard " * 20]


def exported(tiny, folder, how, side="right", **options):
    export(AutoModel.from_pretrained(tiny / "bert"), AutoTokenizer.from_pretrained(tiny / "bert", padding_side=side),
           folder, how, **options)
    return str(folder)


def by_hand(folder, texts, length, how):
    """Each text alone, so that nothing is padded: what its vector is."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state[0]
        vectors.append({"cls": hidden[0], "mean": hidden.mean(0), "last_token": hidden[-1]}[how.pooling])
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1) if how.normalize else torch.stack(vectors)


@pytest.mark.parametrize("how, side", [
    pytest.param(use(), "right", id="cls"), pytest.param(use(), "left", id="cls left"),
    pytest.param(use(pooling="mean", passage_prompt="text: "), "right", id="mean"),
    pytest.param(use(pooling="mean", normalize=False, query_prompt=""), "right", id="not normalised"),
    pytest.param(use(pooling="last_token", passage_prompt="text: "), "right", id="last token"),
    pytest.param(use(pooling="last_token"), "left", id="last token left"),
    pytest.param(use(query_max_len=48, passage_max_len=16), "right", id="longer queries"),
])
def test_all_libraries_give_the_same_vectors(tiny, tmp_path, how, side):
    """Also where the base's tokenizer pads on the left; here it is trained with padding on the right. FlagEmbedding's
    were compared by the export itself."""
    folder = exported(tiny, tmp_path / "model", how, side)
    queries = by_hand(folder, [how.query_prompt + text for text in TEXTS], how.query_max_len, how)
    passages = by_hand(folder, [how.passage_prompt + text for text in TEXTS], how.passage_max_len, how)
    assert EncoderConfig("", "", "", **from_files(folder, False)) == how
    sentence = SentenceTransformer(folder, device="cpu")
    ours = Encoder(EncoderConfig("", "", folder, **from_files(folder, False)))
    for expected, *found in ((queries, sentence.encode_query(TEXTS), ours.encode_queries(TEXTS)),
                             (passages, sentence.encode_document(TEXTS), ours.encode_passages(TEXTS))):
        for vectors in found:
            torch.testing.assert_close(torch.as_tensor(vectors), expected, atol=1e-5, rtol=1e-4)
    assert (queries - passages).norm(dim=-1).max() > 0.01  # they are used differently


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A finished model with prompts on both sides."""
    return exported(tiny, tmp_path_factory.mktemp("finished") / "model", use(passage_prompt="text: "))


def change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(read_json(path) | values))


@pytest.mark.parametrize("damage, message", [
    (lambda folder: change(folder, "1_Pooling/config.json", pooling_mode_cls_token=False,
                           pooling_mode_mean_tokens=True),
     "query embeddings of transformers and sentence-transformers"),
    (lambda folder: change(folder, "config_sentence_transformers.json", prompts={"query": "", "document": "text: "}),
     "query embeddings"),
    (lambda folder: change(folder, "config_sentence_transformers.json", prompts={"query": "find: ", "document": ""}),
     "passage embeddings"),
    (lambda folder: change(folder, "sentence_bert_config.json", query_length=48), "query embeddings"),
    (lambda folder: change(folder, "sentence_bert_config.json", max_seq_length=40), "passage embeddings"),
], ids=["pooling", "query prompt", "passage prompt", "query length", "passage length"])
def test_the_check_finds_each_way_of_reading_the_folder_differently(finished, tmp_path, damage, message):
    damage(shutil.copytree(finished, tmp_path / "model"))
    with pytest.raises(UserError, match=f"{message}.* have a cosine of only 0.* was not exported"):
        check_parity(tmp_path / "model", use(passage_prompt="text: "))


def test_flagembedding_is_checked_too(finished, monkeypatch):
    monkeypatch.setattr(FlagModel, "encode_corpus", FlagModel.encode_queries)
    with pytest.raises(UserError, match="passage embeddings of transformers and FlagEmbedding have a cosine of only"):
        check_parity(finished, use(passage_prompt="text: "))


def test_nothing_passes_for_a_finished_model_that_failed_the_check(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("embedding_finetune.training.export.check_parity", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exported(tiny, tmp_path / "model", use())
    assert list((tmp_path / "model").iterdir()) == []


@pytest.mark.parametrize("how, said", [
    (use(), "The query prompt is 'find: '; passage texts have no prompt."),
    (use(query_prompt="", passage_prompt="text: "),
     "Query texts have no prompt; the passage prompt is 'text: '."),
    (use(query_prompt="say \"it's\" {so}: ", passage_prompt="p: "),
     "The query prompt is 'say \"it\\'s\" {so}: '; the passage prompt is 'p: '."),
])
def test_the_card_says_the_prompts_and_its_code_runs(tiny, tmp_path, how, said):
    folder = exported(tiny, tmp_path / "mine.partial", how, card={"TEMPERATURE": 0.05},
                      curve=[{"step": 7, "recall@10": 0.5, "mrr@10": 0.25}])
    card = (tmp_path / "mine.partial" / "README.md").read_text()
    assert "# mine\n" in card and "| TEMPERATURE | 0.05 |" in card and "| 7 | 0.5000 | 0.2500 |" in card
    assert said in " ".join(card.split())
    assert "Queries are truncated to 16 tokens, passages to 48 tokens." in " ".join(card.split())
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found = [{"PATH": folder} for _ in blocks]
    for block, names in zip(blocks, found, strict=True):
        exec(block, names)
    sentence, flag, plain = found
    assert float(flag["scores"].item()) == pytest.approx(sentence["scores"].item(), abs=1e-4)
    vector = torch.nn.functional.normalize(plain["hidden"][0, 0], dim=0)
    torch.testing.assert_close(vector, torch.as_tensor(sentence["model"].encode_query("a query")), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes, dense, reason", [
    ({"pooling": "last_token"}, None, "it has only cls and mean pooling"), ({}, (32, 8), "it has no Dense layers"),
    ({"pooling": "last_token"}, (32, 8), "it has only cls and mean pooling and it has no Dense layers"),
])
def test_the_card_says_what_flagembedding_cannot(tiny, tmp_path, changes, dense, reason):
    dense = DenseLayers([Dense(*dense)] if dense else [])
    card = (Path(exported(tiny, tmp_path / "mine", use(**changes), dense=dense)) / "README.md").read_text()
    assert f"FlagEmbedding's FlagModel does not support this model: {reason}." in card
    assert "import FlagModel" not in card
    assert "tokens. sentence-transformers and plain transformers give" in " ".join(card.split())
    assert ("the layers in 2_Dense (sentence-transformers' Dense)" in card) is bool(dense)


def test_a_dense_layer_that_is_left_out_is_found(tiny, tmp_path):
    folder = Path(exported(tiny, tmp_path / "mine", use(), dense=DenseLayers([Dense(32, 32)])))
    assert check_parity(folder, use(dense="2_Dense")) >= 0.9999
    with pytest.raises(UserError, match="query embeddings of transformers and sentence-transformers have a cosine of "
                                        "only"):
        check_parity(folder, use(dense=""))


def test_a_folder_of_flagembeddings_trainer_is_completed_in_place(tiny, tmp_path):
    """Once more over what is there, as after an interruption."""
    folder = tmp_path / "model"
    AutoModel.from_pretrained(tiny / "bert", dtype=torch.float16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny / "bert").save_pretrained(folder)
    for _ in range(2):
        assert complete(folder, use(pooling="mean")) >= 0.9999
        modules = json.loads((folder / "modules.json").read_text())
        assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
        assert from_files(str(folder), False)["pooling"] == "mean"
    assert not list(folder.glob("*.partial")) and not list(folder.glob(".*.partial"))
