"""Compiled models give PyTorch's vectors, int8 nearly so, and are used, measured and kept as any other model is."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pandas as pd
import pytest
from finished import finish
from tiny import tiny_pairs, tiny_texts, tiny_xlmr

from embedding_finetune.artifacts.manifest import MANIFEST
from embedding_finetune.contrib import onnx_openvino
from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.results import load_results, system_of
from embedding_finetune.files import UserError, read_json
from embedding_finetune.hub import model_content
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.serving.available import labels
from embedding_finetune.serving.index import open_index
from embedding_finetune.serving.registry import IndexRegistry, OverloadedError
from embedding_finetune.settings import Settings
from embedding_finetune.training.provenance import check_trained

TEXTS = ["the otter of Jukalom", "a", "In the valley of Denforba the lynx rests at dawn among the reeds. " * 9]


@pytest.fixture(scope="module")
def whole(tiny_settings, built_once, tmp_path_factory):
    """The settings of an experiment in which all forms of neg10 are made and measured, and their table."""
    with pytest.MonkeyPatch.context() as patch:
        folders = {"DATA_DIR": str(built_once), "OUTPUT_DIR": str(tmp_path_factory.mktemp("smaller") / "output")}
        for name, value in (tiny_settings | folders).items():
            patch.setenv(name, value)
        settings = Settings.load()
    finish(settings)
    return settings, onnx_openvino.export_compiled(settings, "neg10").set_index("model")


@pytest.fixture
def compiled(whole, tmp_path):
    """The settings of `whole` with a copy of OUTPUT_DIR."""
    shutil.copytree(whole[0].output_dir, tmp_path / "output")
    return replace(whole[0], output_dir=tmp_path / "output")


def vectors(settings, label):
    encoder = Encoder(load_encoder_config(settings, label))
    return np.concatenate([encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS)])


def test_each_form_gives_the_models_vectors_and_is_measured(whole):
    settings, table = whole
    forms = [*filter(onnx_openvino.runs_here, onnx_openvino.COMPILED_FORMATS)]
    assert list(table.index) == ["neg10", *(f"neg10-{form}" for form in forms)] and len(forms) >= 4
    expected, results = vectors(settings, "neg10"), {result["label"]: result for result in load_results(settings)[0]}
    for form in forms:
        label, lowest = f"neg10-{form}", {"int8": 0.9, "bf16": 0.999}.get(form.partition("-")[2], 0.9999)
        found = vectors(settings, label)
        assert (found * expected).sum(axis=1).min() >= lowest
        assert (np.abs(found - expected).max() > 1e-5) == (lowest < 0.9999)
        assert system_of(results[label]).retriever == "neg10" and "recipe" not in results[label]
        assert f"{results[label]['lowest_cosine']:.4f}" == table.loc[label, "lowest cosine"]
        value, difference, *_ = table.loc[label, "mrr@10"].replace(",", "").split()
        assert float(value) == pytest.approx(results[label]["metrics"]["mrr@10"], abs=5e-4)
        assert float(value) - float(difference) == pytest.approx(float(table.loc["neg10", "mrr@10"]), abs=2e-3)
        assert lowest < 0.9999 or "+0.000 [+0.000, +0.000]" in table.loc[label, "recall@1"]
        used, of = load_encoder_config(settings, label), load_encoder_config(settings, "neg10")
        assert replace(used, label=of.label, title=of.title, name=of.name) == of
        assert "| recall@1 |" in (settings.output_dir / label / "README.md").read_text()
    assert (settings.output_dir / "results" / "smaller_neg10.md").read_text().count("\n") == 3 + len(forms)


@pytest.mark.parametrize("label", ["neg10-onnx-int8", "neg10-openvino"])
def test_a_compiled_model_is_searched_with_as_any_other(compiled, label, capsys):
    collection = read_data(compiled)
    queries = dict(list(collection.split("test").queries.items())[:5])
    expected = Dense(Encoder(load_encoder_config(compiled, label))).index(collection.corpus).search(queries, 3)
    assert label in labels(compiled)
    for _ in range(2):  # made, and from the disk
        found = open_index(compiled, label).answer(list(queries.values()), 3)
        assert [[hit["id"] for hit in hits] for hits in found] == [list(ranking) for ranking in expected.values()]
    said = capsys.readouterr().err
    assert said.count("building the index") == 1 and "PyTorch" not in said
    shelf = IndexRegistry(compiled, "bm25")  # of a server
    with pytest.raises(OverloadedError, match=f"the index of {label} is being opened"):
        shelf.get(label)
    shelf.loader.submit(int).result()
    assert label in shelf.labels and shelf.get(label).manifest["label"] == label


def test_a_compiled_model_of_other_weights_or_another_split_is_not_searched_with(compiled):
    def message():
        with pytest.raises(UserError) as caught:
            open_index(compiled, "neg10-onnx")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    record = compiled.output_dir / "neg10-onnx" / "compiled.json"
    before, source = record.read_text(), compiled.output_dir / "neg10" / "training.json"
    (source.parent / MANIFEST).unlink()  # so that the folder may be changed
    record.write_text("{}")
    assert "compiled.json has changed since it was written" in message()
    (record.parent / MANIFEST).unlink()
    assert "compiled.json is damaged: move the folder" in message()
    record.write_text(before)
    config, given = source.with_name("config.json"), source.with_name("config.json").read_text()
    config.write_text(given.replace('"hidden_dropout_prob": 0.1', '"hidden_dropout_prob": 0.2'))
    said = message()
    assert "neg10-onnx was exported from other weights than neg10 has now: run `OVERWRITE=1 python -m " in said
    assert "embedding_finetune export neg10 onnx`" in said
    source.write_text(source.read_text().replace('"data": "', '"data": "other'))
    assert "neg10 was trained on another split" in message()
    with pytest.raises(UserError, match="neg10-onnx is a compiled model: give the label of the model it was made f"):
        onnx_openvino.export_compiled(compiled, "neg10-onnx", ["openvino"])


def test_int8_is_small_and_static(whole):
    folder = whole[0].output_dir
    for path in ("onnx/model.onnx", "openvino/openvino_model.bin"):
        one, other = (folder / f"neg10-{path.partition('/')[0]}{form}" / path for form in ("", "-int8"))
        assert other.stat().st_size < 0.5 * one.stat().st_size
    graph = onnx.load(folder / "neg10-onnx-int8/onnx/model.onnx").graph
    operations = {node.op_type for node in graph.node}
    assert "QuantizeLinear" in operations and not any(name.startswith("Dynamic") for name in operations)


def test_what_is_there_is_kept_and_what_is_of_other_weights_is_in_the_way(compiled, monkeypatch, capsys):
    folder = compiled.output_dir / "neg10-onnx"
    first = model_content(str(folder))
    monkeypatch.setattr(onnx_openvino, "measure", lambda *args: pd.DataFrame([{"model": "measured"}]))
    onnx_openvino.export_compiled(compiled, "neg10", ["onnx"])
    assert "neg10-onnx is already made from these weights: kept" in capsys.readouterr().out
    config = compiled.output_dir / "neg10" / "config.json"
    (config.parent / MANIFEST).unlink()  # so that the folder may be changed
    config.write_text(config.read_text().replace('"hidden_dropout_prob": 0.1', '"hidden_dropout_prob": 0.2'))
    with pytest.raises(UserError, match="neg10-onnx was made from other weights .*; OVERWRITE=1 replaces it"):
        onnx_openvino.export_compiled(compiled, "neg10", ["onnx"])
    assert model_content(str(folder)) == first
    monkeypatch.setenv("OVERWRITE", "1")
    onnx_openvino.export_compiled(compiled, "neg10", ["onnx"])
    assert model_content(str(folder)) != first
    (folder / "compiled.json").unlink()  # another model of this name, which no OVERWRITE may remove
    with pytest.raises(UserError, match="neg10-onnx is not a compiled model: move it out of the way"):
        onnx_openvino.export_compiled(compiled, "neg10", ["onnx"])
    assert (folder / "config.json").exists() and not list(compiled.output_dir.glob("*partial*"))


def test_what_is_only_said_of_a_model_is_no_reason_to_export_it_again(compiled, monkeypatch, capsys):
    record = compiled.output_dir / "neg10-onnx" / "compiled.json"
    monkeypatch.setattr(onnx_openvino, "measure", lambda *args: pd.DataFrame([{"model": "measured"}]))
    monkeypatch.setattr(onnx_openvino, "load_encoder_config", lambda settings, label: replace(
        load_encoder_config(settings, label), title="another", training_data_note="said otherwise", overrides="pooling",
        note="of a file"))
    before = read_json(record)
    assert not {"title", "name", "note"} & before["inputs"]["model"]["config"].keys()  # where it is, nobody need know
    onnx_openvino.export_compiled(compiled, "neg10", ["onnx"])
    check_trained(compiled, "neg10-onnx")
    config = load_encoder_config(compiled, "neg10-onnx")
    assert config.training_data_note == "unknown; fine-tuned on this data set's training part"
    assert capsys.readouterr().out.count("neg10-onnx is already made from these weights: kept") == 1
    monkeypatch.setattr(onnx_openvino, "load_encoder_config", lambda settings, label: replace(
        load_encoder_config(settings, label), pooling="mean"))
    message = "or with another configuration .pooling of model: cls, now mean.; OVERWRITE=1 replaces it"
    with pytest.raises(UserError, match=message):
        onnx_openvino.export_compiled(compiled, "neg10", ["onnx"])


def test_a_graph_with_other_vectors_is_not_kept(compiled, monkeypatch):
    monkeypatch.setattr("embedding_finetune.models.compiled_model.lowest_cosine",
                        lambda one, other: 1.0 if one is other else 0.9998)
    before = (compiled.output_dir / "results" / "neg10-onnx.json").read_bytes()
    with pytest.raises(UserError, match="neg10-onnx gives different vectors from neg10 .cosine 0.9998.: not kept"):
        onnx_openvino.export_compiled(compiled, "neg10", ["onnx"])
    assert not (compiled.output_dir / "neg10-onnx").exists()
    assert (compiled.output_dir / "results" / "neg10-onnx.json").read_bytes() == before
    onnx_openvino.export_compiled(compiled, "neg10", ["onnx-int8"])  # which need not be equal


def test_int8_is_calibrated_on_training_passages_alone(compiled, monkeypatch):
    seen = []
    monkeypatch.setattr(onnx_openvino, "make", lambda settings, config, form, texts, work: seen.extend(texts) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        onnx_openvino.export_compiled(compiled, "neg10", ["onnx-int8"])
    collection = read_data(compiled)
    passages = {part: {collection.corpus[passage] for query in collection.split(part).queries
                       for passage in collection.positives(query)} for part in ("train", "dev", "test")}
    assert set(seen) == passages["train"] and not set(seen) & (passages["dev"] | passages["test"])


def test_without_the_instructions_bfloat16_is_refused_and_left_out(compiled, monkeypatch):
    made = []
    monkeypatch.setattr("embedding_finetune.models.compiled_model.has_bf16", lambda: False)
    monkeypatch.setattr(onnx_openvino, "make", lambda settings, config, form, *more: made.append(form))
    monkeypatch.setattr(onnx_openvino, "measure", lambda *args: pd.DataFrame([{"model": "measured"}]))
    onnx_openvino.export_compiled(compiled, "neg10")
    assert made == ["onnx", "onnx-int8", "openvino", "openvino-int8"]
    with pytest.raises(UserError, match="no instructions for bfloat16: choose from onnx, onnx-int8, openvino, openv"):
        onnx_openvino.export_compiled(compiled, "neg10", ["openvino-bf16"])
    record = compiled.output_dir / "neg10-openvino" / "compiled.json"
    record.write_text(record.read_text().replace('"f32"', '"bf16"'))  # made on a machine that has them
    (record.parent / MANIFEST).unlink()
    with pytest.raises(UserError, match="neg10-openvino computes in bfloat16, for which this processor has no"):
        Encoder(load_encoder_config(compiled, "neg10-openvino")).encode_queries(["a"])


def test_an_xlm_roberta_without_token_types_compiles_too(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_openvino, "measure", lambda *args: pd.DataFrame([{"model": "measured"}]))
    model = str(tiny_xlmr(tmp_path / "xlmr", tiny_texts(tiny_pairs(120))))
    settings = replace(compiled, reference_model=model, reference_pooling="last_token")
    onnx_openvino.export_compiled(settings, "reference", ["openvino"])
    found = vectors(settings, "reference-openvino")
    assert (found * vectors(settings, "reference")).sum(axis=1).min() >= 0.9999
    # .. and not fine-tuned on this data
    assert load_encoder_config(settings, "reference-openvino").training_data_note == "unknown"


def test_a_broken_graph_and_bad_arguments_are_one_line(compiled, monkeypatch):
    (compiled.output_dir / "neg10-onnx" / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="onnx/model.onnx has changed since it was written"):
        Encoder(load_encoder_config(compiled, "neg10-onnx"))
    with pytest.raises(UserError, match="there is no form 'int4': choose from onnx, onnx-int8, openvino"):
        onnx_openvino.export_compiled(compiled, "neg10", ["int4"])
    with pytest.raises(UserError, match="neg50 holds no finished model"):
        onnx_openvino.export_compiled(compiled, "neg50")
    monkeypatch.setattr("sys.argv", ["smaller"])
    with pytest.raises(UserError, match="required: LABEL"):
        onnx_openvino.main()


def test_speeds_take_the_best_of_rounds_in_turns(monkeypatch):
    clock = iter(np.cumsum([0, 4, 0, 1, 0, 3] + [0, 2, 0, 5, 0, 1] + [0, 1, 0, 2, 0, 2] + [0, 8, 0, 9, 0, 9]))
    monkeypatch.setattr(onnx_openvino.time, "perf_counter", lambda: float(next(clock)))
    turns = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def encode_passages(self, texts):
            turns.append(self.name)

        encode_queries = encode_passages

    found = onnx_openvino.speeds({"a": Fake("a"), "b": Fake("b")}, ["p"] * 8, ["q", "r"], rounds=2)
    assert found == {"a": (8.0, 2000.0), "b": (4.0, 3000.0)}
    assert "".join(turns) == "ab" + "aaabbb" * 2
