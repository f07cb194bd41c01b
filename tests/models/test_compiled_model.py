"""A graph takes the place of PyTorch's model: what it gives is pooled and normalised, on the CPU, by its library."""

import importlib.metadata
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import openvino
import pytest
import torch
from tiny_training import use
from transformers import AutoTokenizer

from embedding_finetune.artifacts.manifest import COMPILED_RECORD
from embedding_finetune.files import UserError, write_json
from embedding_finetune.models.compiled_model import (
    GRAPHS,
    CompiledModel,
    compiled_format,
    openvino_core,
    runtime_versions,
)
from embedding_finetune.models.encoder import Encoder

TEXTS = ["moon cools river", "harbour", "copper shelters the moon " * 9]


@pytest.fixture(params=["onnx", "openvino"])
def folder(request, tiny, tmp_path):
    """A folder whose graph gives a token with the number n the hidden state (n, 1); n is its id, but for padding."""
    shutil.copytree(tiny / "bert", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    ints = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["texts", "tokens"])
            for name in ("input_ids", "token_type_ids", "attention_mask")]
    hidden = onnx.helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, ["texts", "tokens", 2])
    node, constant = onnx.helper.make_node, onnx.numpy_helper.from_array
    nodes = [node("Add", ["input_ids", "token_type_ids"], ["ids"]), node("Cast", ["ids"], ["number"], to=1),
             node("Cast", ["attention_mask"], ["mask"], to=1), node("Unsqueeze", ["number", "last"], ["one"]),
             node("Unsqueeze", ["mask", "last"], ["other"]),
             node("Concat", ["one", "other"], ["last_hidden_state"], axis=2)]
    graph = onnx.helper.make_graph(nodes, "graph", ints, [hidden], [constant(np.array([2]), "last")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model" / GRAPHS[request.param]
    path.parent.mkdir()
    onnx.save(model, path if request.param == "onnx" else tmp_path / "graph.onnx")
    if request.param == "openvino":
        openvino.save_model(openvino_core().read_model(tmp_path / "graph.onnx"), path)
    write_json(tmp_path / "model" / COMPILED_RECORD, {"format": request.param})
    return tmp_path / "model"


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
def test_an_encoder_runs_the_graph_and_pools_what_it_gives(folder, pooling, tiny):
    encoder = Encoder(use(name=str(folder), pooling=pooling, normalize=False))
    found, tokenizer = encoder.encode_passages(TEXTS), AutoTokenizer.from_pretrained(tiny / "bert")
    for text, vector in zip(TEXTS, found, strict=True):
        ids = tokenizer(text, truncation=True, max_length=48)["input_ids"]
        number = {"cls": ids[0], "mean": np.mean(ids), "last_token": ids[-1]}[pooling]
        np.testing.assert_allclose(vector, [number, 1], rtol=1e-5)


def test_a_graph_stays_on_the_cpu_and_its_library_is_part_of_what_vectors_are_found_by(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    encoder = Encoder(use(name=str(folder)), cache=tmp_path / "cache")
    assert encoder.encode_queries(TEXTS).shape == (3, 2)
    [identity] = (tmp_path / "cache").glob("*/identity.json")
    package = {"onnx": "onnxruntime", "openvino": "openvino"}[compiled_format(folder)]
    identity = json.loads(identity.read_text())
    assert identity[package] == importlib.metadata.version(package) and identity["device"] == "cpu"
    assert COMPILED_RECORD in identity["model"]
    assert compiled_format("BAAI/bge-m3") is None and runtime_versions(tmp_path) == {}  # other models


def test_a_graph_that_is_broken_or_gone_is_one_line(folder):
    path = folder / GRAPHS[compiled_format(folder)]
    for damage in (lambda: path.write_bytes(b"no graph"), path.unlink):
        damage()
        with pytest.raises(UserError, match=f"cannot load {path} .*compile it again with") as caught:
            CompiledModel(folder)
        assert "\n" not in str(caught.value)


def test_graphs_that_come_and_go_leave_the_process_its_signals(folder):
    """With a second OpenVINO in the process, the end of a child was its end as well (SIGSEGV)."""
    code = ("import gc, signal, subprocess, sys\n"
            "from embedding_finetune.models.compiled_model import CompiledModel\n"
            "signal.signal(signal.SIGCHLD, lambda *_: None)\n"
            "models = [CompiledModel(sys.argv[1]) for _ in range(2)]\n"
            "del models[0]; gc.collect(); del models[0]; gc.collect()\n"
            "subprocess.run(['true'])")
    assert subprocess.run([sys.executable, "-X", "faulthandler", "-c", code, folder]).returncode == 0
