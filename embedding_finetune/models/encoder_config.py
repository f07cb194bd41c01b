"""Encoder configurations: pooling, normalisation, prompts and lengths of each model.

They are read from the model's sentence-transformers files: `modules.json`, `1_Pooling/config.json`,
`config_sentence_transformers.json` (prompts), `2_Dense/` (layers after pooling), and `sentence_bert_config.json` or
`tokenizer_config.json` (lengths). Importing sentence-transformers to read these few values would add seconds to
commands that need no model. Models fine-tuned here contain all of them, so they are used as they were trained,
whatever the current settings are. For other models, settings other than `auto` take precedence over MODEL_FILE
(profiles/models.toml), which takes precedence over the model's own files. The configuration records conflicts between
these sources and values that none of them gives.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embedding_finetune.artifacts.manifest import COMPILED_RECORD, read_checksummed, read_record
from embedding_finetune.files import UserError
from embedding_finetune.hints import other_profile_hint
from embedding_finetune.hub import (
    MODEL_FILES,
    check_hub,
    load,
    model_content,
    model_path,
    positions_of,
    read_model_file,
)
from embedding_finetune.settings import MODEL_SETTINGS, POOLINGS, Settings, display_value, split_revision

# Published training data of models. A model trained on MS MARCO is not evaluated zero-shot on it.
TRAINING_DATA_NOTES = {
    "bert-base-uncased": "pre-trained on Wikipedia and BookCorpus, never for retrieval (Devlin et al. 2019)",
    "BAAI/bge-m3": "trained for retrieval on MS MARCO's training part among others (Chen et al. 2024, "
                   "arXiv 2402.03216)",
    "bundled": "trained on 1.17 billion pairs, among them MS MARCO's training part and docstrings (its model card)",
}
POOLING_FILES = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last_token",
                 "last_token": "last_token"}  # names in sentence-transformers -> names here
KEYS = {"pooling": str, "query_prompt": str, "passage_prompt": str, "query_max_len": int, "passage_max_len": int,
        "normalize": bool}  # keys of an entry of MODEL_FILE
NOT_IDENTITY = ("label", "title", "name", "training_data_note", "overrides", "note")  # they do not affect vectors


@dataclass(frozen=True)
class EncoderConfig:
    """A model with its pooling, prompts and lengths.

    The same weights with another pooling or prompt are another retriever (see model_identity).
    """

    label: str
    title: str              # name in the settings
    name: str = field(repr=False)  # name on the Hugging Face Hub or folder
    pooling: str            # "cls", "mean" or "last_token"
    query_prompt: str       # prepended to each query, "" for none
    passage_prompt: str     # prepended to each passage, "" for none
    query_max_len: int      # tokens, prompt included
    passage_max_len: int    # tokens, prompt included
    normalize: bool = True  # vectors are scaled to length 1
    dense: str = ""         # folders of the Dense layers after pooling, separated by spaces
    trusted: bool = False   # run the model's own code, if it has any
    training_data_note: str = "unknown"  # published training data
    overrides: str = ""     # settings that conflict with MODEL_FILE or the model's own files
    note: str = ""          # values taken from MODEL_FILE, and missing values

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that affect vectors: name -> value."""
        return {name: value for name, value in asdict(self).items() if name not in NOT_IDENTITY}


def model_identity(config: EncoderConfig) -> dict[str, Any]:
    """What identifies the model of an EncoderConfig in all records: the fields that affect vectors, and its content.

    Raises UserError when the content cannot be determined (see hub.model_content).
    """
    return {"config": config.identity, "revision": model_content(config.name)}


def model_files(settings: Settings, label: str) -> list[Path]:
    """The files on this machine that the model of a label depends on; none for an empty label."""
    if not label:
        return []
    models = pretrained(settings)  # a Hub model has no such folder
    folder = Path(model_path(models[label][0])) if label in models else settings.paths.model(label)
    return [settings.model_file, *(file for file in sorted(folder.rglob("*")) if file.suffix in MODEL_FILES)]


def load_encoder_config(settings: Settings, label: str) -> EncoderConfig:
    """The EncoderConfig of a label: `raw`, `reference`, a label of EXTRA_MODELS, or a recipe with a finished model.

    Raises UserError when the model is not available, or when neither a setting nor the model defines the pooling.
    """
    models = pretrained(settings)
    if label in models:
        title, given, of_others = models[label]
        return _encoder_config(settings, label, title, model_path(title), given, of_others, seen_by(title), title)
    folder = settings.paths.model(label)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no finished model: run `bash finetune_hard.sh {label}` first"
                        f"{other_profile_hint(settings)}")
    record = read_checksummed(folder / "training.json", having={"settings": dict})
    if record is None and (folder / "training.json").exists():
        raise UserError(f"{folder / 'training.json'} is damaged, but holds the configuration of {label}: restore it, "
                        "or train again with OVERWRITE=1")
    base = (record or {}).get("settings", {}).get("BASE_MODEL", settings.base_model)
    seen = (compiled_record(folder) or {}).get("training_data_note",
                                               f"{seen_by(base)}; fine-tuned on this data set's training part")
    return _encoder_config(settings, label, display_value(folder), str(folder), {}, {}, seen, base)


def seen_by(title: str) -> str:
    """Note on the training data of a model, by its name in the settings."""
    return TRAINING_DATA_NOTES.get(split_revision(title)[0], "unknown")


def embedding_dim(encoder_config: EncoderConfig) -> int:
    """Dimension of a model's vectors: that of its last Dense layer or, without one, of its encoder.

    Raises UserError when its files are not available.
    """
    layers = encoder_config.dense.split()
    if layers:
        return read_model_file(encoder_config.name, f"{layers[-1]}/config.json")["out_features"]
    return load("AutoConfig", encoder_config.name, encoder_config.trusted).hidden_size


def pretrained(settings: Settings) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """Models that need no training here: label -> (model, its settings, settings meant for another model).

    Both groups of settings are arguments of EncoderConfig. The last one holds values of the profile that were chosen
    for the profile's own model.
    """
    values = settings.as_dict()

    def configured(model: str) -> tuple[dict[str, Any], dict[str, Any]]:
        own, of_others = {}, {}
        for key, name in MODEL_SETTINGS[model].items():
            if values[name] not in ("auto", 0):
                group = of_others if (name, values[name]) in settings.of_others else own
                group[key] = values[name]
        return own, of_others

    raw, of_others = configured("BASE_MODEL")
    raw |= {"query_max_len": settings.query_max_len, "passage_max_len": settings.passage_max_len}
    models = {"raw": (settings.base_model, raw, of_others),
              "reference": (settings.reference_model, *configured("REFERENCE_MODEL"))}
    for entry in settings.extra_models.split():  # LABEL=MODEL or LABEL=MODEL,POOLING
        label, _, model = entry.partition("=")
        title, *pooling = model.split(",")
        models[label] = title, {"pooling": pooling[0]} if pooling else {}, {}
    return models


def is_compiled(settings: Settings, label: str) -> bool:
    """Whether the folder of a label holds a compiled model (see contrib.onnx_openvino)."""
    return (settings.paths.model(label) / COMPILED_RECORD).exists()


def compiled_record(folder: Path) -> dict[str, Any] | None:
    """The record of a compiled model, or None: its inputs (form, model), and the label and training_data_note of that
    model.
    """
    return read_record(folder / COMPILED_RECORD, having=("model", "form"))


def from_registry(settings: Settings) -> dict[str, dict[str, Any]]:
    """Read MODEL_FILE: model -> arguments of EncoderConfig. Raises UserError naming an invalid entry."""
    path = settings.model_file
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the model configurations in {path} ({error}); see profiles/models.toml") from None
    for name, entry in entries.items():
        for key, value in entry.items() if isinstance(entry, dict) else [("", entry)]:
            if key not in KEYS or type(value) is not KEYS[key] or (key == "pooling" and value not in POOLINGS):
                raise UserError(f"{path}, entry {name!r}: {key or 'it'} = {value!r} is invalid; an entry is a table of "
                                f"{', '.join(KEYS)}, with pooling one of {', '.join(POOLINGS)}")
    return entries


def base_encoder_config(settings: Settings) -> EncoderConfig:
    """The EncoderConfig of BASE_MODEL, which is also that of the models fine-tuned from it."""
    return load_encoder_config(settings, "raw")


def _encoder_config(settings, label, title, name, given, of_others, seen, base):
    trusted, entries, file = settings.trusts(title, name, base), from_registry(settings), settings.model_file
    in_files, file = from_files(name, trusted), display_value(file)
    entry = entries.get(title, entries.get(split_revision(title)[0], {}))
    published = in_files | entry
    found = ({} if published else of_others) | published | given
    used = {"query_prompt": "", "passage_prompt": ""} | found
    if not {"query_max_len", "passage_max_len"} <= found.keys():
        longest = min(512, positions_of(name, trusted))
        used = {"query_max_len": longest, "passage_max_len": longest} | used
    if "pooling" not in used:
        raise UserError(f"{title} does not define its pooling: set BASE_POOLING, REFERENCE_POOLING, the pooling in "
                        f"EXTRA_MODELS or an entry of {file} to cls, mean or last_token")
    overrides = [f"{key} is {used[key]!r}, but {source} {values[key]!r}"
                 for key in ("pooling", "query_prompt", "passage_prompt")
                 for source, values in (("its own files say", in_files), (f"{file} says", entry))
                 if values.get(key, used[key]) != used[key]]
    notes = [f"{', '.join(entry)} from {file}"] if entry else []
    if published and of_others:
        notes.append(f"{', '.join(of_others)} of the profile ignored: meant for another model")
    if found.keys().isdisjoint(("query_prompt", "passage_prompt")):
        notes.append(f"no prompts: if its authors use prompts for queries or passages, add them to {file}")
    return EncoderConfig(label, title, name, training_data_note=seen, overrides="; ".join(overrides),
                         note="; ".join(notes), trusted=trusted, **used)


def from_files(name: str, trusted: bool) -> dict[str, Any]:
    """Arguments of EncoderConfig from a model's sentence-transformers files; {} if it has none.

    Raises UserError when they are broken or require something that is not supported here.
    """
    check_hub(name)
    try:
        modules = _modules(name)
        found = _from_modules(name, modules) | _prompts(name) | _lengths(name, trusted) if modules else {}
    except (AttributeError, LookupError, TypeError):
        found = {"pooling": None}
    wrong = [key for key, value in found.items() if type(value) is not KEYS.get(key, str)]
    if wrong:
        raise UserError(f"{name} has broken sentence-transformers files (modules.json and those it refers to, "
                        f"{wrong[0]}): repair or remove them")
    return found


def _modules(name):
    """(kind, folder) of each module in a model's `modules.json`, without Dropout, which only matters in training."""
    modules = [(module["type"], module.get("path", "")) for module in read_model_file(name, "modules.json")]
    foreign = [kind for kind, path in modules if not kind.startswith("sentence_transformers.") or " " in path]
    modules = [(kind.rpartition(".")[2], path) for kind, path in modules if not kind.endswith(".Dropout")]
    kinds = [kind for kind, _ in modules]
    if foreign or kinds and not re.fullmatch("Transformer( Pooling( Dense)*)?( Normalize)?", " ".join(kinds)):
        raise UserError(f"{name} consists of {', '.join(foreign or kinds)}; supported are Transformer, Pooling, Dense "
                        "and Normalize of sentence-transformers, in this order: choose another model")
    return modules


def _from_modules(name, modules):
    """Pooling, Dense layers and normalisation."""
    found, dense = {"normalize": modules[-1][0] == "Normalize"}, []
    for kind, path in modules:
        if kind == "Pooling":
            found["pooling"] = _pooling(name, read_model_file(name, f"{path}/config.json"))
        elif kind == "Dense":
            _check_dense(name, path, read_model_file(name, f"{path}/config.json"))
            dense.append(path)
    return found | ({"dense": " ".join(dense)} if dense else {})


def _pooling(name, config):
    modes = config.get("pooling_mode") or [  # newer sentence-transformers; older ones:
        key.removeprefix("pooling_mode_") for key, used in config.items() if key.startswith("pooling_mode_") and used]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLING_FILES or not config.get("include_prompt", True):
        raise UserError(f"{name} uses the pooling {' and '.join(modes) or 'nothing'}, or excludes the prompt, which is "
                        "not supported here: choose another model")
    return POOLING_FILES[modes[0]]


def _check_dense(name, path, config):
    activation = config.get("activation_function") or "torch.nn.modules.activation.Tanh"
    used = {config.get("module_input_name"), config.get("module_output_name")}
    if not activation.startswith("torch.nn.modules.") or used - {None, "sentence_embedding"}:
        raise UserError(f"{name} has a layer {path} with the activation {activation}, or not applied to its sentence "
                        "embedding, which is not supported here: choose another model")


def _prompts(name):
    config = read_model_file(name, "config_sentence_transformers.json")
    prompts, default, found = config.get("prompts") or {}, config.get("default_prompt_name"), {}
    for key, names in (("query_prompt", ("query",)), ("passage_prompt", ("document", "passage", "corpus"))):
        given = [prompts[other] for other in (*names, default) if prompts.get(other) is not None]
        found |= {key: given[0]} if given else {}
    return found


def _lengths(name, trusted):
    """Lengths in tokens; since version 6, sentence-transformers keeps them in `tokenizer_config.json`."""
    config = read_model_file(name, "sentence_bert_config.json")
    if config.get("do_lower_case"):
        raise UserError(f"{name} lower-cases its input outside its tokenizer, which is not supported here: "
                        "choose another model")
    longest = config.get("max_seq_length")
    if not longest:
        longest = read_model_file(name, "tokenizer_config.json").get("model_max_length") or 0
        longest = min(longest, positions_of(name, trusted)) if 0 < longest < 10**6 else 0  # 10**30: no limit
    lengths = {"query_max_len": config.get("query_length") or longest,
               "passage_max_len": config.get("document_length") or longest}
    return {key: length for key, length in lengths.items() if length}
