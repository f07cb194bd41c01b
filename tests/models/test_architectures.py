"""Families of encoders, each used as it was made: sentence-transformers' vectors before, after and in between."""

import dataclasses
import json
import shutil
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tiny import tiny_bert, tiny_modernbert, tiny_mpnet, tiny_pairs, tiny_qwen, tiny_t5, tiny_texts, tiny_xlmr

from embedding_finetune.data.collection import read_data
from embedding_finetune.data.documents.chunker import Chunker
from embedding_finetune.evaluation.data_report import report_data
from embedding_finetune.files import UserError, write_json
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.models.modeling import load_encoder
from embedding_finetune.recipes import find_recipe
from embedding_finetune.retrieval.cross_encoder import CrossEncoder
from embedding_finetune.settings import Settings
from embedding_finetune.training import worker as training
from embedding_finetune.training.arguments import write_settings
from embedding_finetune.training.mining import Miner
from embedding_finetune.training.train import prepare, training_settings


def train(settings):
    folder = settings.output_dir / "neg10"
    recipe = find_recipe(settings, "neg10")
    write_settings(folder, training_settings(settings, recipe, settings, read_data(settings)))
    training.train(folder)

E5 = {"query": "query: ", "document": "passage: "}
TEXTS = ["where does the otter of Bafuka live", "In the valley of Bafuka the heron rests at dawn.",
         "the lynx of Noruka builds with twigs of willow " * 4, "old books tell that near Pelzan " * 30]


@dataclasses.dataclass
class Family:
    """A stand-in: how its weights are made, what stands behind them, and what it is asked with."""

    make: object
    pooling: str
    prompts: dict
    layers: tuple = (Normalize(),)
    in_files: bool = True  # else its prompts stand in MODEL_FILE alone, as for old folders of E5
    settings: dict = dataclasses.field(default_factory=dict)


FAMILIES = {
    "bge-zh": Family(tiny_bert, "cls", {"query": "为这个句子生成表示以用于检索相关文章："}, in_files=False),
    "e5": Family(tiny_bert, "mean", E5, in_files=False),
    "multilingual-e5": Family(tiny_xlmr, "mean", E5),
    "mpnet": Family(tiny_mpnet, "mean", {}),
    "modernbert": Family(tiny_modernbert, "cls", {"query": "search_query: ", "document": "search_document: "}),
    "labse": Family(tiny_bert, "cls", {}, (Dense(64, 48), Normalize())),
    "gtr-t5": Family(tiny_t5, "mean", {}, (Dense(64, 32, bias=False, activation_function=torch.nn.Identity()),
                                           Dense(32, 24), Normalize())),
    "distiluse with LoRA": Family(tiny_bert, "mean", {}, (Dense(64, 32),), settings={"lora_rank": 4}),
    "qwen3 with LoRA": Family(tiny_qwen, "lasttoken", {"query": "Instruct: find\nQuery: ", "document": ""},
                              settings={"lora_rank": 4}),
}


def agree(folder, config, theirs):
    """The Encoder's vectors against sentence-transformers', for texts that are cut and for texts that are not."""
    ours = Encoder(config, batch_size=3)
    for mine, expected in ((ours.encode_queries(TEXTS), theirs.encode_query(TEXTS)),
                           (ours.encode_passages(TEXTS), theirs.encode_document(TEXTS))):
        assert mine.shape == expected.shape
        assert torch.cosine_similarity(torch.as_tensor(mine), torch.as_tensor(expected)).min() >= 0.9999
        assert abs(mine - expected).max() < 1e-4  # also where they are not of length 1
    return mine


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_keeps_its_use_through_fine_tuning_and_export(name, built, tmp_path, monkeypatch):
    family, base = FAMILIES[name], tmp_path / "base"
    weights = family.make(tmp_path / "weights", tiny_texts(tiny_pairs(60)))
    transformer = Transformer(str(weights), max_seq_length=40)
    modules = [transformer, Pooling(64, family.pooling), *family.layers]
    prompts = family.prompts if family.in_files else None
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(base))
    if not family.in_files:
        write_json(base / "config_sentence_transformers.json", {})
        keys = {"query": "query_prompt", "document": "passage_prompt"}
        entry = "".join(f"{keys[side]} = {json.dumps(prompt)}\n" for side, prompt in family.prompts.items())
        (tmp_path / "models.toml").write_text(f'["{base}"]\n{entry}', encoding="utf-8")
        monkeypatch.setenv("MODEL_FILE", str(tmp_path / "models.toml"))
    monkeypatch.setenv("REFERENCE_MODEL", str(base))
    monkeypatch.setenv("BASE_MODEL", str(base))
    monkeypatch.delenv("REFERENCE_POOLING")
    settings = dataclasses.replace(Settings.load(), query_max_len=20, passage_max_len=40, epochs=0.1, dev_corpus_size=9,
                                   dev_steps=0.9, warmup_ratio=0.0, learning_rate=1e-2, **family.settings)

    theirs = SentenceTransformer(str(base), prompts=family.prompts or None, device="cpu")
    before = agree(base, load_encoder_config(settings, "reference"), theirs)

    config = load_encoder_config(settings, "raw")
    assert config.query_prompt == family.prompts.get("query", "")
    assert config.passage_prompt == family.prompts.get("document", "")
    assert (config.query_max_len, config.passage_max_len) == (20, 40) and config.overrides == ""
    train(settings)
    tuned = load_encoder_config(settings, "neg10")
    kept = ("pooling", "query_prompt", "passage_prompt", "query_max_len", "passage_max_len", "normalize", "dense")
    assert [getattr(tuned, key) for key in kept] == [getattr(config, key) for key in kept] and tuned.note == ""
    folder = settings.output_dir / "neg10"
    after = agree(folder, tuned, SentenceTransformer(str(folder), device="cpu"))
    assert abs(after - before).max() > 1e-3  # it has learnt
    for number, layer in enumerate(family.layers, start=2):
        if isinstance(layer, Dense):
            trained = load_file(folder / f"{number}_Dense" / "model.safetensors")["linear.weight"]
            assert abs(trained - layer.linear.weight).max() > 1e-4


# -- program code that a model brings --

CODE = '''
import pathlib
pathlib.Path({marker!r}).write_text("was run")
from transformers import {parents}
class Own{kind}({parent}):
    {body}
'''


@pytest.fixture
def own_code(tmp_path, monkeypatch, tiny_settings):
    """A model whose configuration, weights and tokenizer are of classes that it brings; and the files that show it."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)  # of another test's folder
    folder = shutil.copytree(tiny_settings["BASE_MODEL"], tmp_path / "own")
    bodies = {"Config": ("BertConfig", "model_type = 'own'"), "Tokenizer": ("BertTokenizer", "pass"),
              "Model": ("BertModel", "from .own_config import OwnConfig; config_class = OwnConfig")}
    markers = {kind: tmp_path / f"{kind} was run" for kind in bodies}
    for kind, (parent, body) in bodies.items():
        (folder / f"own_{kind.lower()}.py").write_text(CODE.format(
            marker=str(markers[kind]), parents=parent, parent=parent, kind=kind, body=body))
    return folder, markers


def bring(folder, name, **classes):
    path = folder / name
    write_json(path, json.loads(path.read_text()) | classes)


def test_code_that_a_model_brings_is_not_run_unless_the_model_is_named(own_code, built, monkeypatch):
    folder, markers = own_code
    bring(folder, "config.json", model_type="own", architectures=["OwnModel"], auto_map={
        "AutoConfig": "own_config.OwnConfig", "AutoModel": "own_model.OwnModel"})
    bring(folder, "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map={
        "AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]})
    monkeypatch.setenv("BASE_MODEL", str(folder))
    for trusted in ("", "another/model"):
        settings = dataclasses.replace(Settings.load(), trust_remote_code=trusted)
        with pytest.raises(UserError, match=f"own brings program code .*, set TRUST_REMOTE_CODE={folder}") as error:
            Encoder(load_encoder_config(settings, "raw")).encode_queries(["a"])
        assert "\n" not in str(error.value) and not any(marker.exists() for marker in markers.values())
    settings = dataclasses.replace(settings, trust_remote_code=f"another/model {folder}", epochs=0.1, dev_steps=1.0)
    Encoder(load_encoder_config(settings, "raw")).encode_queries(["a"])
    assert all(marker.exists() for marker in markers.values())
    train(settings)
    write_json(settings.output_dir / "neg10" / "training.json", {"settings": {"BASE_MODEL": str(folder)}})
    agree(folder, load_encoder_config(settings, "neg10"), SentenceTransformer(
        str(settings.output_dir / "neg10"), trust_remote_code=True, device="cpu"))
    with pytest.raises(UserError, match="brings program code"):
        Encoder(load_encoder_config(dataclasses.replace(settings, trust_remote_code=""), "neg10")).encode_queries(["a"])


@pytest.fixture
def trusted(own_code, built):
    """Settings that trust the model with code of its own, laid out as sentence-transformers does, and its folder."""
    folder, _ = own_code
    classes = {"AutoConfig": "own_config.OwnConfig", "AutoModel": "own_model.OwnModel"}
    bring(folder, "config.json", model_type="own", architectures=["OwnModel"], auto_map=classes)
    bring(folder, "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map={
        "AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]})
    write_json(folder / "modules.json", [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate({"": "Transformer", "1_Pooling": "Pooling"}.items())])
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    return dataclasses.replace(built, trust_remote_code=str(folder), epochs=0.1, dev_steps=1.0), folder


def test_the_data_report_reads_a_trusted_model(trusted):
    settings, folder = trusted
    settings = dataclasses.replace(settings, base_model=str(folder))
    report = report_data(settings, read_data(settings), {})
    assert report["tokens"]["most"] == 512 and "first_look" in report


def test_documents_are_cut_by_the_tokenizer_of_a_trusted_model(trusted, monkeypatch):
    settings, folder = trusted
    monkeypatch.setattr("embedding_finetune.settings.ROOT", folder.parent)
    for name in (str(folder), folder.name):  # of the folder, from the root and from the repository
        assert list(Chunker(dataclasses.replace(settings, base_model=name))("", "an otter")) == [(0, "an otter")]
    with pytest.raises(UserError, match="brings program code of its own"):
        Chunker(dataclasses.replace(settings, base_model=str(folder), trust_remote_code=""))


def test_a_trusted_model_is_trained_for_late_interaction(trusted):
    settings, folder = trusted
    settings = dataclasses.replace(settings, base_model=str(folder), architecture="multi_vector", token_dim=8)
    train(settings)
    write_json(settings.output_dir / "neg10" / "training.json", {"settings": {"BASE_MODEL": str(folder)}})
    encoder = Encoder(load_encoder_config(settings, "neg10"))
    assert encoder.encode_query_tokens(["otter"])[0].shape[1] == 8


def test_a_trusted_reranker_is_trained_used_and_asked_as_a_teacher(trusted):
    """The base model is another one, without code."""
    settings, folder = trusted
    kind, name = "ForSequenceClassification", "own_classifier"
    body = "from .own_config import OwnConfig; config_class = OwnConfig"
    (folder / f"{name}.py").write_text(CODE.format(marker=str(folder / "was run"), parents=f"Bert{kind}",
                                                   parent=f"Bert{kind}", kind=kind, body=body))
    bring(folder, "config.json", architectures=[f"Own{kind}"], id2label={"0": "score"}, auto_map={
        "AutoConfig": "own_config.OwnConfig", f"AutoModel{kind}": f"{name}.Own{kind}"})
    settings = dataclasses.replace(settings, reranker_model=str(folder))
    recipe = find_recipe(settings, "reranker")
    untrusted = dataclasses.replace(settings, trust_remote_code="")
    with pytest.raises(UserError, match="own brings program code of its own"):
        prepare(untrusted, recipe)
    _, unfinished = prepare(settings, recipe)
    training.train(unfinished)
    unfinished.rename(settings.output_dir / "reranker")
    assert len(CrossEncoder.of(settings, "reranker").pairs("otter", ["heron", "lynx"])) == 2
    with pytest.raises(UserError, match="reranker brings program code of its own"):
        CrossEncoder.of(untrusted, "reranker").pairs("otter", ["heron"])
    teacher = Miner(settings, dataclasses.replace(recipe, teacher=str(folder))).stage
    assert len(teacher.pairs("otter", ["heron"])) == 1


def test_a_tokenizers_code_is_not_run_either(own_code, built, monkeypatch):
    """The model itself is one that transformers knows; its tokenizer brings code, beside a plain tokenizer.json."""
    folder, markers = own_code
    bring(folder, "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map={
        "AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]})
    monkeypatch.setenv("BASE_MODEL", str(folder))
    for named in (False, True):
        monkeypatch.setenv("TRUST_REMOTE_CODE", str(folder) if named else "")
        Encoder(load_encoder_config(Settings.load(), "raw")).encode_queries(["a"])
        assert markers["Tokenizer"].exists() is named and not markers["Model"].exists()


def test_missing_weights_are_not_drawn_at_random(tiny_settings, tmp_path):
    """As when the weights are those of another architecture that goes by the same name."""
    folder = shutil.copytree(tiny_settings["BASE_MODEL"], tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    load_encoder(str(folder))  # nobody needs the pooler
    save_file({name: tensor for name, tensor in kept.items() if "layer.1.output.dense" not in name},
              folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights of a BertModel .encoder.layer.1.output.dense.bias and 1 more"):
        load_encoder(str(folder))


def test_an_encoder_decoder_is_refused(tmp_path):
    transformers.BartConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is an encoder-decoder .bart., which is not supported: choose an encoder"):
        load_encoder(str(tmp_path))


def test_code_is_not_needed_where_transformers_knows_the_architecture(own_code, built, monkeypatch):
    folder, markers = own_code
    bring(folder, "config.json", auto_map={"AutoConfig": "own_config.OwnConfig", "AutoModel": "own_model.OwnModel"})
    monkeypatch.setenv("BASE_MODEL", str(folder))
    Encoder(load_encoder_config(Settings.load(), "raw")).encode_queries(["a"])
    assert not any(marker.exists() for marker in markers.values())
