"""Records of what a model was trained from, written when training starts and compared with the current settings."""

import contextlib
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Any

from embedding_finetune.artifacts.manifest import COMPILED_RECORD, read_checksummed
from embedding_finetune.artifacts.provenance import stale_reason
from embedding_finetune.data.collection import data_identity
from embedding_finetune.data.row_store import read_rows, rows_identity
from embedding_finetune.files import UserError
from embedding_finetune.hints import missing_hint
from embedding_finetune.hub import model_content, model_path
from embedding_finetune.models.encoder_config import (
    base_encoder_config,
    compiled_record,
    is_compiled,
    load_encoder_config,
    model_identity,
    pretrained,
)
from embedding_finetune.recipes import Recipe, find_recipe
from embedding_finetune.settings import TABLE, TRAINING, Settings, display_value
from embedding_finetune.training.training_data import training_path

RECORD = "training.json"


def training_record(settings: Settings, recipe: Recipe) -> dict[str, Any]:
    """Inputs of a training (see artifacts.provenance), and the label of the recipe.

    They are recipe, data, training file, the model that training starts from, and the settings that affect the weights.
    A merge has the merged model in place of the training file.
    """
    tuned = settings.with_overrides(recipe.settings)
    config = base_encoder_config(tuned)
    values: dict[str, Any] = tuned.as_dict(TRAINING, "SEED")
    record = {"label": recipe.label, "recipe": recipe.data, "settings": values, "data": data_identity(settings)}
    if not recipe.merge:
        rows = read_rows(training_path(settings, recipe), teacher=bool(recipe.teacher))
        initial = replace(config, name=initial_model(tuned, recipe)[0])
        return record | {"training_file": rows_identity(rows), "base model": model_identity(initial)}
    if not recipe.merge_weight:
        values["OUT_OF_DOMAIN_SETS"] = settings.out_of_domain_sets  # the weight is selected on their dev queries
    base = model_identity(config)
    return record | {"base model": base, "merged model": _merged_model(settings, recipe, base)}


def _merged_model(settings, recipe, base):
    """Identity of the model that a recipe averages with its base; raises UserError if it has another base."""
    config = load_encoder_config(settings, recipe.merge)
    record = read_record(Path(config.name)) or {}
    name, revision = record.get("settings", {}).get("BASE_MODEL"), record.get("base model", {}).get("revision")
    if revision != base["revision"] if revision else name != settings.base_model:
        raise UserError(f"{recipe.merge} was fine-tuned from {name}, but BASE_MODEL is {settings.base_model}: set "
                        "BASE_MODEL to the former")
    return model_identity(config)


def initial_model(tuned: Settings, recipe: Recipe) -> tuple[str, bool]:
    """(folder or Hugging Face Hub name, whether its own code is trusted) of the model that training starts from.

    This is RERANKER_MODEL for a reranker, if set, else BASE_MODEL. `tuned` are settings with the recipe's overrides.
    """
    if recipe.kind == "cross_encoder" and not has_new_head(tuned, recipe):
        name = model_path(tuned.reranker_model)
        return name, tuned.trusts(tuned.reranker_model, name)
    config = base_encoder_config(tuned)
    return config.name, config.trusted


def has_new_head(tuned: Settings, recipe: Recipe) -> bool:
    """Whether a training adds a randomly initialized head to BASE_MODEL, which makes it a reranker."""
    return recipe.kind == "cross_encoder" and not tuned.reranker_model


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a model's folder, or None. Settings that the record lacks get their defaults."""
    record = read_checksummed(folder / RECORD, {"settings": dict, "recipe": dict, "base model": dict})
    if record is None:
        return None
    default = {name: row.default for name, row in TABLE.items() if row.metadata["changes"] == TRAINING
               and row.default is not MISSING}
    return record | {"settings": default | record["settings"]}


def same_training(record: dict[str, Any] | None, today: dict[str, Any]) -> bool:
    """Whether two records describe the same training, see artifacts.provenance.

    BASE_MODEL is only a name. It is compared only if the record lacks the content of the model. The resolved lengths of
    a training follow from the rest, and are compared only if both records have them.
    """
    if record and "lengths" in record:
        today = {"lengths": record["lengths"]} | today
    if record and "revision" in record["base model"]:
        today = today | {"settings": today["settings"] | {"BASE_MODEL": record["settings"].get("BASE_MODEL")}}
    return stale_reason(record, today) is None


def is_current(settings: Settings, recipe: Recipe) -> bool:
    """Whether the finished model was trained with the current training file, recipe and settings."""
    with contextlib.suppress(UserError):  # a missing or broken training file will be made again
        return same_training(read_record(settings.paths.model(recipe.label)), training_record(settings, recipe))
    return False


def check_trained(settings: Settings, label: str) -> None:
    """Raise UserError unless the model of this label can be evaluated: finished, and trained on the current split.

    If the recipe or settings have changed since, the changes are printed, and the model is used as it was trained. A
    compiled model must match the current weights of the model it was exported from.
    """
    if is_compiled(settings, label):
        _check_compiled(settings, label)
    elif label not in pretrained(settings):
        _check_finetuned(settings, label)


def _check_finetuned(settings, label):
    recipe, folder = find_recipe(settings, label), settings.paths.model(label)
    recorded = read_record(folder)
    if recorded is None:
        raise UserError(f"{display_value(folder)} holds no finished model: run `bash {training_script(label)}` first"
                        f"{missing_hint(settings)}")
    if recorded.get("data") != data_identity(settings):
        raise UserError(f"{display_value(folder)} was trained on another split, which may hold today's test queries: "
                        f"run `OVERWRITE=1 bash {training_script(label)}`")
    then = recorded["settings"] | recorded.get("recipe", {})
    now = settings.with_overrides(recipe.settings).as_dict(TRAINING)
    changed = ", ".join(f"{name}={then.get(name)} (now {value})" for name, value in (now | recipe.data).items()
                        if then.get(name) != value)
    if changed:
        print(f"{label} was trained with {changed}: it is used as it was trained")


def _check_compiled(settings, label):
    folder = settings.paths.model(label)
    record = compiled_record(folder)
    if record is None:
        raise UserError(f"{display_value(folder / COMPILED_RECORD)} is damaged: move the folder away, and export the "
                        "model again with `python -m embedding_finetune export`")
    source, inputs = record["label"], record["inputs"]
    check_trained(settings, source)
    if model_content(load_encoder_config(settings, source).name) != inputs["model"]["revision"]:
        raise UserError(f"{label} was exported from other weights than {source} has now: run `OVERWRITE=1 python -m "
                        f"embedding_finetune export {source} {inputs['form']}`")


def training_script(label: str) -> str:
    """The script that trains the model of a label, with its arguments."""
    return f"finetune_{label}.sh" if label in ("neg10", "neg50", "reranker") else f"finetune_hard.sh {label}"
