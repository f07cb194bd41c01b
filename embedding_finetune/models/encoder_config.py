"""Encoder configurations: pooling, normalisation, prompts and lengths of each model.

They are read from the model's own files (see own_config). Models fine-tuned here contain all of them, so they are used
as they were trained, whatever the current settings are. For other models, settings other than `auto` take precedence
over MODEL_FILE (profiles/models.toml), which takes precedence over the model's own files. The configuration records
conflicts between these sources and values that none of them gives.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from embedding_finetune.artifacts.manifest import COMPILED_RECORD, read_checksummed, read_record
from embedding_finetune.files import UserError
from embedding_finetune.hints import missing_hint
from embedding_finetune.hub import (
    MODEL_FILES,
    default_length,
    load,
    model_content,
    model_path,
    read_model_file,
)
from embedding_finetune.models.own_config import KEYS, from_files
from embedding_finetune.setting_checks import AUTO
from embedding_finetune.settings import MODEL_SETTINGS, POOLINGS, Settings, display_value, split_revision

# Published training data of models. A model trained on MS MARCO is not evaluated zero-shot on it.
TRAINING_DATA_NOTES = {
    "bert-base-uncased": "pre-trained on Wikipedia and BookCorpus, never for retrieval (Devlin et al. 2019)",
    "BAAI/bge-m3": "trained for retrieval on MS MARCO's training part among others (Chen et al. 2024, "
                   "arXiv 2402.03216)",
    "bundled": "trained on 1.17 billion pairs, among them MS MARCO's training part and docstrings (its model card)",
}
MODEL_NAMES = {"bundled": "all-MiniLM-L6-v2"}  # names of models that the settings call by another one
POOLING_WORDS = {"cls": "CLS", "last_token": "last-token"}
NOT_IDENTITY = ("label", "title", "name", "training_data_note", "overrides", "note", "unpublished")  # not in vectors


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
    unpublished: str = ""   # how its use differs from its own files and MODEL_FILE, such as "CLS pooling, 96 tokens"

    @property
    def model_name(self) -> str:
        """The name of the model, which for `bundled` is that of the model in the package."""
        return MODEL_NAMES.get(self.title, self.title)

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
                        f"{missing_hint(settings)}")
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


def usage(config: EncoderConfig, *fields: str) -> str:
    """How a model is used, in words: "CLS pooling, query prompt 'ask: ', 48/96 tokens", as far as `fields` are named.

    Without `fields` (names of those of EncoderConfig): pooling, prompts that are not empty, and lengths.
    """
    words = {"pooling": f"{POOLING_WORDS.get(config.pooling, config.pooling)} pooling"}
    for side, prompt in (("query", config.query_prompt), ("passage", config.passage_prompt)):
        shown = shorten(prompt, 24, placeholder=" …") if prompt else ""
        words[f"{side}_prompt"] = f"{side} prompt {shown!r}" if prompt else f"no {side} prompt" if fields else ""
    lengths = f"{config.query_max_len}/{config.passage_max_len}".removeprefix(f"{config.passage_max_len}/")
    words |= dict.fromkeys(("query_max_len", "passage_max_len"), f"{lengths} tokens")
    return ", ".join(filter(None, dict.fromkeys(text for name, text in words.items() if name in (fields or words))))


def display_name(config: EncoderConfig) -> str:
    """The model and how it is used, in words, such as "bert-base-uncased (CLS pooling, 512 tokens)"."""
    note = "not as published: " if config.unpublished else ""
    return f"{config.model_name} ({note}{usage(config)})"


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
    lengths = {"query_max_len": settings.query_max_len, "passage_max_len": settings.passage_max_len}
    raw |= {side: length for side, length in lengths.items() if length != AUTO}
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
        longest = default_length(name, trusted)
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
    config = EncoderConfig(label, title, name, training_data_note=seen, overrides="; ".join(overrides),
                           note="; ".join(notes), trusted=trusted, **used)
    differing = [key for key, value in published.items() if used[key] != value]
    return replace(config, unpublished=usage(config, *differing)) if differing else config
