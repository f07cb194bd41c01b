import dataclasses
import json
import shutil

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from tiny import tiny_pairs, tiny_texts, tiny_xlmr
from transformers import AutoModel, AutoTokenizer

from embedding_finetune.files import UserError, write_json
from embedding_finetune.hub import model_content
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import (
    NOT_IDENTITY,
    EncoderConfig,
    base_encoder_config,
    load_encoder_config,
    model_path,
    pretrained,
)
from embedding_finetune.models.modeling import DenseLayers
from embedding_finetune.models.own_config import from_files
from embedding_finetune.settings import ROOT, Settings
from embedding_finetune.training.export import export

OTHER = {"BASE_POOLING": "cls", "QUERY_PROMPT": "Other: ", "PASSAGE_PROMPT": "Else: ", "QUERY_MAX_LEN": "9",
         "PASSAGE_MAX_LEN": "11", "REFERENCE_POOLING": "cls", "REFERENCE_MAX_LEN": "13"}


@pytest.fixture
def model(tiny_settings, tmp_path):
    """A raw model's folder that the test may change."""
    return shutil.copytree(tiny_settings["BASE_MODEL"], tmp_path / "model")


def say(folder, pooling=None, lengths=None, prompts=None, kinds=("Transformer", "Pooling", "Normalize"), dense=None,
        own=None):
    """Put sentence-transformers' files beside a model; `own` is a class of its own in the Transformer's place."""
    kinds = ("Transformer", "Pooling", "Dense") if dense else kinds
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    write_json(folder / "modules.json", [
        {"idx": number, "name": str(number), "path": paths.get(kind, f"{number}_{kind}"),
         "type": own or f"sentence_transformers.models.{kind}"} for number, kind in enumerate(kinds)])
    write_json(folder / "2_Dense" / "config.json", dense or {})
    write_json(folder / "1_Pooling" / "config.json", pooling or {"pooling_mode_mean_tokens": True})
    write_json(folder / "sentence_bert_config.json", lengths or {"max_seq_length": 77, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts or {}})


@pytest.mark.parametrize("pooling, normalize, lengths", [("mean", True, (24, 40)), ("last_token", False, (32, 32))])
def test_a_fine_tuned_model_is_used_as_it_was_trained_whatever_the_settings_say(settings, monkeypatch, pooling,
                                                                               normalize, lengths):
    trained = EncoderConfig("", "", settings.base_model, pooling, "Find: ", "Text: ", *lengths, normalize)
    folder = settings.output_dir / "neg10"
    export(AutoModel.from_pretrained(settings.base_model), AutoTokenizer.from_pretrained(settings.base_model), folder,
           trained)
    for name, value in OTHER.items():
        monkeypatch.setenv(name, value)
    config = load_encoder_config(Settings.load(), "neg10")
    assert config == dataclasses.replace(trained, label="neg10", title=str(folder), name=str(folder),
                                         training_data_note=config.training_data_note)
    assert config.training_data_note == "unknown; fine-tuned on this data set's training part"
    assert config.overrides == ""


def test_a_label_without_a_finished_model_is_refused(settings):
    with pytest.raises(UserError, match="neg10 holds no finished model: run `bash finetune_hard.sh neg10` first"):
        load_encoder_config(settings, "neg10")
    (settings.output_dir / "neg10.partial").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no finished model"):
        load_encoder_config(settings, "neg10")
    folder = settings.output_dir / "neg10"  # a damaged record is not taken for a missing one
    write_json(folder / "config.json", {})
    (folder / "training.json").write_text('{"settings": {"BASE_MODEL')
    with pytest.raises(UserError, match="training.json is damaged, but holds the configuration of neg10"):
        load_encoder_config(settings, "neg10")


def test_auto_reads_a_pretrained_model_from_its_own_files(settings, model):
    say(model, prompts={"query": "query: ", "document": "passage: "},
        lengths={"max_seq_length": 77, "query_length": 33, "do_lower_case": False})
    settings = dataclasses.replace(settings, reference_model=str(model), reference_pooling="auto",
                                   reference_prompt="auto", reference_max_len=0)
    assert load_encoder_config(settings, "reference") == EncoderConfig(
        "reference", str(model), str(model), "mean", "query: ", "passage: ", 33, 77, normalize=True)
    say(model, kinds=("Transformer", "Pooling"))
    bare = load_encoder_config(settings, "reference")
    assert (bare.normalize, bare.query_prompt, bare.passage_prompt, bare.query_max_len) == (False, "", "", 77)


def test_a_setting_comes_before_the_models_files_and_differs_says_so(settings, model):
    say(model, prompts={"query": "query: "})
    settings = dataclasses.replace(settings, reference_model=str(model), reference_pooling="cls",
                                   reference_prompt="find: ", reference_max_len=20)
    config = load_encoder_config(settings, "reference")
    assert (config.pooling, config.query_prompt) == ("cls", "find: ")
    assert (config.query_max_len, config.passage_max_len) == (20, 20)
    assert config.overrides == ("pooling is 'cls', but its own files say 'mean'; query_prompt is 'find: ', but its own "
                           "files say 'query: '")
    own = dataclasses.replace(settings, reference_pooling="mean", reference_prompt="query: ")
    assert load_encoder_config(own, "reference").overrides == ""
    raw = load_encoder_config(dataclasses.replace(settings, base_model=str(model), base_pooling="last_token"), "raw")
    assert raw.overrides == "pooling is 'last_token', but its own files say 'mean'" and raw.query_max_len == 48


def test_a_raw_model_does_not_say_how_to_pool(settings):
    assert from_files(settings.base_model, False) == {}
    with pytest.raises(UserError, match=f"{settings.base_model} does not define its pooling: set BASE_POOLING"):
        base_encoder_config(dataclasses.replace(settings, base_pooling="auto"))
    assert base_encoder_config(settings).pooling == "cls" and base_encoder_config(settings).overrides == ""


def test_what_a_model_does_not_say_has_a_default(settings, model):
    """Without prompts none is put before a text; without lengths as many tokens as there are positions, 512 at most."""
    settings = dataclasses.replace(settings, reference_model=str(model), reference_prompt="auto")
    encoder_config = load_encoder_config(settings, "reference")
    assert (encoder_config.query_prompt, encoder_config.passage_prompt) == ("", "")
    assert (encoder_config.query_max_len, encoder_config.passage_max_len) == (512, 512)
    config = json.loads((model / "config.json").read_text())
    for positions, expected in ((100, 100), (8192, 512)):
        write_json(model / "config.json", config | {"max_position_embeddings": positions})
        assert load_encoder_config(settings, "reference").query_max_len == expected


def test_a_length_may_stand_in_the_tokenizers_file(settings, model):
    """Where sentence-transformers 6 keeps it; it cannot be more than there are positions, and may be no limit."""
    say(model, lengths={"max_seq_length": None})
    settings = dataclasses.replace(settings, reference_model=str(model), reference_pooling="auto")
    config = json.loads((model / "tokenizer_config.json").read_text())
    for written, expected in ((40, 40), (10_000, 512), (10**30, 512), (None, 512)):
        write_json(model / "tokenizer_config.json", config | {"model_max_length": written})
        encoder_config = load_encoder_config(settings, "reference")
        assert (encoder_config.query_max_len, encoder_config.passage_max_len) == (expected, expected)
    say(model, lengths={"max_seq_length": 77, "document_length": 66})
    config = load_encoder_config(settings, "reference")
    assert (config.query_max_len, config.passage_max_len) == (77, 66)


@pytest.mark.parametrize("change, message", [
    ({"kinds": ("CLIPModel",)}, "consists of CLIPModel; supported are Transformer, Pooling, Dense and Normalize"),
    ({"kinds": ("Transformer", "Pooling", "LSTM")}, "consists of Transformer, Pooling, LSTM;"),
    ({"kinds": ("Transformer", "Pooling", "Normalize", "Dense")}, "consists of .*, Normalize, Dense; .* in this order"),
    ({"own": "custom_st.Transformer"}, "consists of custom_st.Transformer, "),
    ({"dense": {"activation_function": "os.getcwd"}}, "has a layer 2_Dense with the activation os.getcwd"),
    ({"dense": {"module_output_name": "token_embeddings"}},
     "has a layer 2_Dense .* not applied to its sentence embedding"),
    ({"pooling": {"pooling_mode_max_tokens": True}},
     "uses the pooling max_tokens, or excludes the prompt, which is not"),
    ({"pooling": {"pooling_mode_cls_token": 1, "pooling_mode_mean_tokens": 1}},
     "uses the pooling cls_token and mean_tokens"),
    ({"pooling": {"pooling_mode": "weightedmean"}}, "uses the pooling weightedmean"),
    ({"pooling": {"pooling_mode": ["mean", "max"]}}, "uses the pooling mean and max"),
    ({"pooling": {"pooling_mode": "mean", "include_prompt": False}}, "uses the pooling mean, or excludes the prompt"),
    ({"pooling": {"word_embedding_dimension": 64}}, "uses the pooling nothing"),
    ({"lengths": {"max_seq_length": 77, "do_lower_case": True}}, "lower-cases its input outside its tokenizer"),
])
def test_a_use_that_is_not_supported_is_refused_in_one_line(settings, model, change, message):
    say(model, **change)
    settings = dataclasses.replace(settings, reference_model=str(model), reference_pooling="auto")
    with pytest.raises(UserError, match=message) as caught:
        load_encoder_config(settings, "reference")
    assert str(model) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change, expected", [
    *(({"pooling": pooling}, {"pooling": expected}) for pooling, expected in (
        ({"pooling_mode": "mean"}, "mean"), ({"pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last_token"), ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last_token"))),
    *(({"prompts": prompts}, {"query_prompt": query, "passage_prompt": passage}) for prompts, query, passage in (
        ({"query": "q: ", "document": "d: "}, "q: ", "d: "), ({"query": "q: ", "passage": "p: "}, "q: ", "p: "),
        ({"document": "d: ", "passage": "p: "}, None, "d: "), ({"query": "", "document": ""}, "", ""),
        ({"query": None, "other": "x"}, None, None), ({}, None, None), ({"corpus": "c: "}, None, "c: ")))])
def test_files_of_new_and_old_versions_are_understood(model, change, expected):
    say(model, **change)
    found = from_files(str(model), False)
    assert {key: found.get(key) for key in expected} == expected


def test_dense_layers_are_part_of_a_models_use_and_content(settings, tmp_path):
    modules = [Transformer(settings.base_model), Pooling(64, "mean"), Dense(64, 16), Dense(16, 8)]
    theirs = SentenceTransformer(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "saved"))
    settings = dataclasses.replace(settings, reference_model=str(tmp_path / "saved"))
    config = load_encoder_config(settings, "reference")
    assert config.dense == "2_Dense 3_Dense" and not config.normalize
    texts, before = tiny_texts(tiny_pairs(5)), model_content(config.name)
    assert Encoder(config).encode_passages(texts) == pytest.approx(theirs.encode(texts), abs=1e-5)
    Dense(16, 8).save(str(tmp_path / "saved" / "3_Dense"))
    assert model_content(config.name) != before
    Dense(24, 8).save(str(tmp_path / "saved" / "2_Dense"))
    with pytest.raises(UserError, match="has a Dense layer for 24 dimensions, but vectors of 64"):
        Encoder(config).encode_passages(texts)
    (tmp_path / "saved" / "2_Dense" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot load .*saved"):
        Encoder(config).encode_passages(texts)


@pytest.mark.parametrize("file, content", [
    ("modules.json", ["a"]), ("modules.json", {"a": 1}), ("modules.json", 5), ("modules.json", [{"type": None}]),
    ("sentence_bert_config.json", [1]), ("sentence_bert_config.json", {"max_seq_length": "long"}),
    ("config_sentence_transformers.json", {"prompts": ["a"]}),
    ("config_sentence_transformers.json", {"prompts": {"query": 5}}), ("1_Pooling/config.json", [1]),
    ("2_Dense/config.json", {"activation_function": 3}), ("2_Dense/config.json", [1]),
])
def test_files_of_another_shape_are_one_line(model, file, content):
    say(model, kinds=("Transformer", "Pooling", "Dense"))
    write_json(model / file, content)
    with pytest.raises(UserError, match="has broken sentence-transformers files .*: repair or remove them"):
        from_files(str(model), False)


def test_the_demo_uses_one_model_in_two_ways():
    """all-MiniLM-L6-v2: its own files say mean, 256 tokens, length 1, no prompts; as raw model it is used otherwise."""
    settings = Settings.load("demo")
    raw, reference = load_encoder_config(settings, "raw"), load_encoder_config(settings, "reference")
    assert raw.name == reference.name and raw.title == reference.title == "bundled"
    assert raw.training_data_note == reference.training_data_note
    assert (raw.pooling, raw.query_prompt[:9], raw.query_max_len, raw.passage_max_len) == ("cls", "Represent", 48, 96)
    assert raw.overrides == "pooling is 'cls', but its own files say 'mean'"
    assert (reference.pooling, reference.query_prompt, reference.query_max_len) == ("mean", "", 256)
    assert reference.normalize and reference.overrides == "" and "MS MARCO" in raw.training_data_note
    assert model_content(raw.name)["model.safetensors"] == (  # as published: the package is a little-known one
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")
    assert pretrained(Settings.load("msmarco"))["reference"] == ("BAAI/bge-m3", {
        "pooling": "cls", "query_prompt": "", "query_max_len": 512, "passage_max_len": 512}, {})


def entries(path, text, monkeypatch):
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("MODEL_FILE", str(path))


def test_an_entry_of_the_model_file_says_what_the_models_files_do_not(settings, model, tmp_path, monkeypatch):
    say(model, prompts={"query": "old: "})
    monkeypatch.setenv("EXTRA_MODELS", f"x={model} y={model},last_token")
    entries(tmp_path / "models.toml", f'["{model}"]\npassage_prompt = "passage: "\nquery_prompt = "询问："\n'
            "query_max_len = 24\nnormalize = false\n", monkeypatch)
    x, y = (load_encoder_config(Settings.load(), label) for label in "xy")
    assert (x.pooling, x.query_prompt, x.passage_prompt, x.query_max_len, x.passage_max_len, x.normalize) == (
        "mean", "询问：", "passage: ", 24, 77, False)
    assert x.note == f"passage_prompt, query_prompt, query_max_len, normalize from {tmp_path / 'models.toml'}"
    assert x.overrides == "query_prompt is '询问：', but its own files say 'old: '"
    assert y.pooling == "last_token" and y.query_prompt == "询问："
    monkeypatch.setenv("BASE_MODEL", str(model))
    monkeypatch.setenv("QUERY_PROMPT", "mine: ")
    differs = load_encoder_config(Settings.load(), "raw").overrides
    assert f"query_prompt is 'mine: ', but {tmp_path / 'models.toml'} says '询问：'" in differs


@pytest.mark.parametrize("text, message", [
    ("[x]\npooling = 'max'", "entry 'x': pooling = 'max' is invalid; an entry is a table of pooling, .*cls, mean"),
    ("[x]\nquery_prompt = 3", "entry 'x': query_prompt = 3 is invalid"),
    ("[x]\nquery_max_len = true", "entry 'x': query_max_len = True is invalid"),
    ("[x]\nprompt = 'q: '", "entry 'x': prompt = 'q: ' is invalid"),
    ("x = 'q: '", "entry 'x': it = 'q: ' is invalid"), ("[x", "cannot read the model configurations in .*models.toml"),
])
def test_a_broken_model_file_is_named(settings, tmp_path, monkeypatch, text, message):
    entries(tmp_path / "models.toml", text, monkeypatch)
    with pytest.raises(UserError, match=message) as caught:
        load_encoder_config(Settings.load(), "raw")
    assert "\n" not in str(caught.value)


def test_what_the_profile_says_of_its_own_model_is_not_meant_for_another(settings, model, monkeypatch):
    """Demo asks its base with CLS pooling and an instruction: another model that says how it is used, is used so."""
    monkeypatch.setenv("BASE_MODEL", str(model))
    raw = base_encoder_config(Settings.load())
    assert (raw.pooling, raw.query_prompt[:9], raw.note) == ("cls", "Represent", "")  # it says nothing itself
    say(model)
    config = base_encoder_config(Settings.load())
    assert (config.pooling, config.query_prompt, config.overrides) == ("mean", "", "")
    assert config.note.startswith("pooling, query_prompt of the profile ignored: meant for another model; no prompts: ")
    monkeypatch.setenv("BASE_POOLING", "cls")
    config = base_encoder_config(Settings.load())
    assert config.pooling == "cls" and "its own files say 'mean'" in config.overrides
    monkeypatch.delenv("BASE_POOLING")
    monkeypatch.setenv("BASE_MODEL", "bundled")
    demo = Settings.load()
    assert base_encoder_config(demo).pooling == "cls"
    assert base_encoder_config(demo.with_overrides({"BASE_MODEL": str(model)})).pooling == "mean"
    assert base_encoder_config(demo.with_overrides({"BASE_MODEL": str(model), "BASE_POOLING": "cls"})).pooling == "cls"


def test_prompts_that_nobody_gives_are_a_note(settings, model):
    say(model)
    settings = dataclasses.replace(settings, reference_model=str(model), reference_pooling="auto",
                                   reference_prompt="auto")
    assert load_encoder_config(settings, "reference").note == (
        "no prompts: if its authors use prompts for queries or passages, add them to profiles/models.toml")
    assert load_encoder_config(dataclasses.replace(settings, reference_prompt="find: "), "reference").note == ""
    say(model, prompts={"query": "", "document": ""})
    assert load_encoder_config(settings, "reference").note == ""


def test_extra_models_have_their_own_use(monkeypatch, tmp_path):
    other = tiny_xlmr(tmp_path / "xlmr", tiny_texts(tiny_pairs(20)))
    monkeypatch.setenv("EXTRA_MODELS", f"mean=bundled cls=bundled,cls x={other},last_token")
    settings = Settings.load("demo")
    reference = load_encoder_config(settings, "reference")
    mean = load_encoder_config(settings, "mean")
    assert mean == dataclasses.replace(reference, label="mean", note=mean.note)
    asked = dataclasses.replace(settings, reference_prompt="ask: ", reference_max_len=9)
    assert load_encoder_config(asked, "mean") == mean != load_encoder_config(asked, "reference")
    cls = load_encoder_config(settings, "cls")
    assert (cls.pooling, cls.query_max_len) == ("cls", reference.query_max_len)
    assert "mean" in load_encoder_config(settings, "cls").overrides
    x = load_encoder_config(settings, "x")
    assert (x.name, x.pooling, x.query_max_len, x.training_data_note) == (str(other), "last_token", 512, "unknown")
    assert list(pretrained(settings)) == ["raw", "reference", "mean", "cls", "x"]


def test_a_folder_without_a_model_is_refused(settings, tmp_path):
    for name in (str(tmp_path), "./no/such/folder", "output/no/such", "~/no-such-model"):
        with pytest.raises(UserError, match="is not a model folder"):
            base_encoder_config(dataclasses.replace(settings, base_model=name))
    assert model_path("BAAI/bge-m3") == "BAAI/bge-m3"
    assert model_path("bundled") != "bundled" and (ROOT / model_path("bundled") / "config.json").is_file()


def test_a_pinned_model_is_used_as_the_model_that_it_is(settings, tmp_path, monkeypatch):
    """Its entry in MODEL_FILE, what it has seen and TRUST_REMOTE_CODE are named without the revision, or with it."""
    monkeypatch.setattr("embedding_finetune.models.encoder_config.from_files",
                        lambda name, trusted: {"query_max_len": 9, "passage_max_len": 9})
    entries(tmp_path / "models.toml", '["BAAI/bge-m3"]\npooling = "mean"\n', monkeypatch)
    monkeypatch.setenv("EXTRA_MODELS", "x=BAAI/bge-m3@v1")
    for trusted in ("BAAI/bge-m3", "BAAI/bge-m3@v1"):
        monkeypatch.setenv("TRUST_REMOTE_CODE", trusted)
        config = load_encoder_config(Settings.load(), "x")
        assert config.name == config.title == "BAAI/bge-m3@v1"
        assert (config.pooling, config.trusted) == ("mean", True)
        assert "MS MARCO" in config.training_data_note
    monkeypatch.setenv("TRUST_REMOTE_CODE", "BAAI/bge-m3@v2")
    assert not load_encoder_config(Settings.load(), "x").trusted
    assert model_path("BAAI/bge-m3@refs/pr/1") == "BAAI/bge-m3@refs/pr/1"


def test_the_dense_layers_of_a_pinned_model_are_of_its_revision(monkeypatch):
    asked, layer = [], Dense(4, 4)
    monkeypatch.setattr(Dense, "load", lambda name, **options: asked.append((name, options)) or layer)
    DenseLayers.load("some/model@v1", "2_Dense")
    DenseLayers.load("some/model", "2_Dense")
    assert asked == [("some/model", {"subfolder": "2_Dense", "revision": "v1"}),
                     ("some/model", {"subfolder": "2_Dense"})]


def test_what_a_model_is_called_and_what_is_said_of_it_is_no_part_of_its_identity():
    config = EncoderConfig("a", "a", "/a", "cls", "q: ", "p: ", 8, 16)
    other = EncoderConfig("b", "b", "/b", "cls", "q: ", "p: ", 8, 16, training_data_note="texts", overrides="pooling",
                          note="of a file")
    assert config.identity == other.identity
    for change in ({"pooling": "mean"}, {"query_prompt": ""}, {"passage_prompt": ""}, {"query_max_len": 9},
                   {"passage_max_len": 9}, {"normalize": False}, {"dense": "2_Dense"}, {"trusted": True}):
        assert dataclasses.replace(config, **change).identity != config.identity
    assert config.identity.keys() | set(NOT_IDENTITY) == {field.name for field in dataclasses.fields(config)}
