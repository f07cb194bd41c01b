"""A stand-in of BGE-M3's layout: scores are FlagEmbedding's, the words' part that of a plain loop; what is none."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from FlagEmbedding import BGEM3FlagModel
from hub import hub, hub_environment
from tiny import SIZES, tiny_pairs, tiny_texts, tiny_xlmr

from embedding_finetune.contrib import bge_m3
from embedding_finetune.contrib.bge_m3 import M3, WEIGHTS
from embedding_finetune.files import UserError
from embedding_finetune.hub import model_content
from embedding_finetune.models.encoder_config import EncoderConfig

TEXTS = tiny_texts(tiny_pairs(12))
CORPUS = {f"p{number}": text for number, text in enumerate(TEXTS[1::2])}
QUERIES = {"q1": TEXTS[0], "q2": TEXTS[4]}
ALL = {query: list(CORPUS) for query in QUERIES}


def tiny_m3(folder, token_dim=SIZES["hidden_size"]):
    """A random model with two random layers beside it, as BGE-M3 has them."""
    tiny_xlmr(folder, TEXTS)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    larger = {name: 8 * value if "encoder" in name and value.ndim == 2 else value for name, value in weights.items()}
    torch.save(larger, folder / "pytorch_model.bin")  # else the first token's vector hardly depends on the text
    torch.manual_seed(1)
    sparse, colbert = (torch.nn.Linear(SIZES["hidden_size"], size) for size in (1, token_dim))
    sparse.bias.data[:] = 0.5  # at random a whole text can weigh nothing
    for name, layer in (("sparse", sparse), ("colbert", colbert)):
        torch.save(layer.state_dict(), folder / f"{name}_linear.pt")
    return folder


@pytest.mark.parametrize("dtype, flags", [(torch.float32, (False, False)), (torch.float16, (True, False)),
                                          (torch.bfloat16, (False, True))])
def test_it_computes_in_the_precision_that_the_model_can_take(tmp_path, monkeypatch, dtype, flags):
    given = {}
    monkeypatch.setattr("FlagEmbedding.BGEM3FlagModel", lambda name, **options: given.update(options))
    monkeypatch.setattr(bge_m3, "encoding_dtype", lambda name, device: dtype)
    M3(EncoderConfig("m3", "m3", str(tiny_m3(tmp_path)), "cls", "", "", 32, 64))._loaded()
    assert (given["use_fp16"], given["use_bf16"]) == flags


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_m3(tmp_path_factory.mktemp("m3") / "model")


def use(folder, **others):
    return EncoderConfig("reference", "stand-in", str(folder), "cls", **{
        "query_prompt": "ask: ", "passage_prompt": "", "query_max_len": 24, "passage_max_len": 40} | others)


def theirs(folder, query, **options):
    """FlagEmbedding's scores, a pair at a time: the zeros that pad a passage in a batch can be a token's best match."""
    model = BGEM3FlagModel(str(folder), use_fp16=False, devices=["cpu"], **options)
    found = [model.compute_score(["ask: " + query, passage], max_query_length=24, max_passage_length=40,
                                 weights_for_different_modes=list(WEIGHTS)) for passage in CORPUS.values()]
    return {part: [scores[part] for scores in found] for part in found[0]}


def test_scores_are_flagembeddings(folder, monkeypatch):
    monkeypatch.setattr(bge_m3, "TOKEN_CHUNK", 5)  # chunks come together in order
    stage = M3(use(folder)).index(CORPUS)
    run = stage.score(QUERIES, ALL)
    for query, text in QUERIES.items():
        expected = theirs(folder, text)
        found = [run[query][passage] for passage in CORPUS]
        assert found == pytest.approx(expected["colbert+sparse+dense"], abs=1e-4)
        assert min(np.ptp(expected[part]) for part in ("dense", "sparse", "colbert")) > 0.01  # each one counts
    assert stage.ms_per_query > 0


def test_what_is_saved_scores_alike_without_the_passages(folder, tmp_path):
    stage = M3(use(folder)).index(CORPUS)
    stage.save(tmp_path)
    again = M3(use(folder)).load(tmp_path)
    texts, places = list(QUERIES.values()), [[3, 0, 5], [2]]
    for one, other in zip(stage.scores(texts, places), again.scores(texts, places), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_the_part_of_the_words_is_that_of_a_plain_loop(folder, monkeypatch):
    """A word weighs what its heaviest token does, and special ones nothing."""
    monkeypatch.setattr(bge_m3, "WEIGHTS", (0, 1, 0))
    stage = M3(use(folder)).index(CORPUS)
    run, model = stage.score(QUERIES, ALL), stage.model
    layer, special = torch.load(folder / "sparse_linear.pt", weights_only=True), set(model.tokenizer.all_special_ids)

    def words(text, length):
        tokens = model.tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            hidden, weights = model.model.model(**tokens).last_hidden_state[0], {}
        for word, vector in zip(tokens["input_ids"][0].tolist(), hidden):
            weight = max(0, (vector @ layer["weight"][0] + layer["bias"][0]).item())
            weights[word] = max(weights.get(word, 0), 0 if word in special else weight)
        return weights

    for query, text in QUERIES.items():
        asked = words("ask: " + text, 24)
        plain = [sum(weight * own.get(word, 0) for word, weight in asked.items())
                 for own in (words(passage, 40) for passage in CORPUS.values())]
        assert max(plain) > 0 and [run[query][passage] for passage in CORPUS] == pytest.approx(plain, abs=1e-5)


def test_token_vectors_may_be_smaller_and_bytes_are_counted(folder, tmp_path):
    small = tiny_m3(tmp_path / "small", token_dim=16)
    stages = [M3(use(name)).index(CORPUS) for name in (folder, small)]
    run = stages[1].score(QUERIES, ALL)
    expected = theirs(small, QUERIES["q2"], colbert_dim=16)["colbert+sparse+dense"]
    assert [run["q2"][passage] for passage in CORPUS] == pytest.approx(expected, abs=1e-4)
    tokens, dense = len(stages[0].tokens) / len(CORPUS), 4 * 64
    words = 6 * sum(map(len, stages[0].words)) / len(CORPUS)
    assert [stage.bytes_per_passage for stage in stages] == pytest.approx(
        [dense + words + 2 * size * tokens for size in (64, 16)])


def test_a_name_on_the_hub_is_loaded_without_its_onnx_form(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "remote")
    (tmp_path / "remote/onnx").mkdir()
    (tmp_path / "remote/onnx/model.onnx_data").write_bytes(b"large")
    with hub({"models": {"BAAI/bge-m3": tmp_path / "remote"}}) as endpoint:
        program = f"""
from embedding_finetune.contrib.bge_m3 import M3
from embedding_finetune.models.encoder_config import EncoderConfig
use = EncoderConfig("reference", "BAAI/bge-m3", "BAAI/bge-m3", "cls", "ask: ", "", 24, 40)
print(M3(use).index({{"p0": {CORPUS["p0"]!r}}}).score({{"q1": {QUERIES["q1"]!r}}}, {{"q1": ["p0"]}})["q1"]["p0"])
"""
        done = subprocess.run([sys.executable, "-c", program], env=hub_environment(endpoint, tmp_path / "home"),
                              capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(theirs(folder, QUERIES["q1"])["colbert+sparse+dense"][0], abs=1e-4)
    assert not any("onnx" in request for request in endpoint.requests if "resolve" in request)


class Evil:
    def __reduce__(self):
        return open, ("was_here", "w")


DAMAGES = {
    "none": (lambda path: path.unlink(), "has no colbert_linear.pt: it is no BGE-M3, choose .* late_reference"),
    "code": (lambda path: torch.save({"weight": Evil()}, path), "something else than weights"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[:500]), "is damaged"),
    "a pointer of git-lfs": (lambda path: path.write_text("version https://git-lfs"), "is damaged"),
    "another thing": (lambda path: torch.save([1, 2], path), "something else than weights"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_m3_is_refused(folder, tmp_path, monkeypatch, name):
    damage, message = DAMAGES[name]
    monkeypatch.chdir(tmp_path)
    broken = shutil.copytree(folder, tmp_path / "broken")
    damage(broken / "colbert_linear.pt")
    with pytest.raises(UserError, match=message):
        M3(use(broken))
    assert not (tmp_path / "was_here").exists()


def test_layers_of_another_model_are_refused_and_broken_weights_said(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    torch.save(torch.nn.Linear(32, 1).state_dict(), other / "sparse_linear.pt")
    assert model_content(str(other)) != model_content(str(folder))
    with pytest.raises(UserError, match="cannot load stand-in .*size mismatch"):
        M3(use(other)).index(CORPUS)
    layer = torch.nn.Linear(64, 64).state_dict()
    torch.save(layer | {"bias": layer["bias"] * float("nan")}, folder / "colbert_linear.pt")
    with pytest.raises(UserError, match="not finite"):
        M3(use(folder)).index(CORPUS).score(QUERIES, ALL)
