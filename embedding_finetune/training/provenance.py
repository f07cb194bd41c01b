"""Records of what a model was trained from, written when training starts and compared with the current settings."""

import contextlib
from dataclasses import MISSING
from pathlib import Path

from embedding_finetune.artifacts.manifest import COMPILED_RECORD, read_checksummed
from embedding_finetune.data.collection import data_identity
from embedding_finetune.data.row_store import read_rows, rows_identity
from embedding_finetune.deprecation import rename_recipe, rename_settings
from embedding_finetune.files import UserError, read_json
from embedding_finetune.hub import model_content, model_path
from embedding_finetune.models.encoder_config import (
    base_encoder_config,
    compiled_models,
    load_encoder_config,
    pretrained,
)
from embedding_finetune.recipes import all_recipes, find_recipe
from embedding_finetune.settings import TABLE, TRAINING, display_value
from embedding_finetune.training.training_data import training_path

RECORD = "training.json"


def training_record(settings, recipe):
    """Identity of a training: recipe, the settings that affect the weights, the base model's content and encoder
    configuration, and the data's content; for a merge, the merged models."""
    tuned = settings.with_overrides(recipe.settings)
    record = {"label": recipe.label, "recipe": recipe.data, "settings": tuned.as_dict(TRAINING) | {"SEED": tuned.seed},
              "use": base_encoder_config(tuned).identity, "data": data_identity(settings)}
    if recipe.merge:
        return record | {"made_of": merged_from(settings, recipe)}
    rows = read_rows([training_path(settings, recipe)], teacher=bool(recipe.teacher))
    return record | {"training_file": rows_identity(rows),
                     "begins_with": model_content(initial_model(tuned, recipe)[0])}


def merged_from(settings, recipe):
    """Identity of a merged model: both models and, if the weight is selected on dev queries, the dev sets."""
    tuned = load_encoder_config(settings, recipe.merge)
    record, content = read_record(Path(tuned.name)) or {}, model_content(base_encoder_config(settings).name)
    base = record.get("settings", {}).get("BASE_MODEL")
    if record["begins_with"] != content if "begins_with" in record else base != settings.base_model:
        raise UserError(f"{recipe.merge} was fine-tuned from {base}, but BASE_MODEL is {settings.base_model}: set "
                        "BASE_MODEL to the former")
    selected_on = {}
    if not recipe.merge_weight:
        selected_on = {"eval_sets": settings.out_of_domain_sets, "dev_corpus": settings.dev_corpus_size}
    return {"base": content, "tuned": model_content(tuned.name), **selected_on}


def initial_model(tuned, recipe):
    """(folder or Hugging Face Hub name, whether its own code is trusted) of the model that training starts from.

    This is RERANKER_MODEL for a reranker, if set, else BASE_MODEL. `tuned` are settings with the recipe's overrides.
    """
    if recipe.kind == "cross_encoder" and tuned.reranker_model:
        name = model_path(tuned.reranker_model)
        return name, tuned.trusts(tuned.reranker_model, name)
    config = base_encoder_config(tuned)
    return config.name, config.trusted


def read_record(folder):
    """The record of a model's folder, or None. Settings that the record lacks get their defaults."""
    record = read_checksummed(folder / RECORD, having={})
    default = {name: row.default for name, row in TABLE.items() if row.metadata["changes"] == TRAINING
               and row.default is not MISSING}
    return record and record | {"settings": default | rename_settings(record.get("settings", {})),
                                "recipe": rename_recipe(record.get("recipe", {}))}


def same_training(record, today):
    """Whether two records describe the same training. Keys missing from an earlier version's record count as equal.

    BASE_MODEL is only a name. It is compared only if the record lacks the content of the model.
    """
    if record is None:
        return False
    then = today | record | {"use": today["use"] | record.get("use", {})}
    if {"begins_with", "made_of"} & record.keys():
        then["settings"] = then["settings"] | {"BASE_MODEL": today["settings"]["BASE_MODEL"]}
    return then == today


def is_current(settings, recipe):
    """Whether the finished model was trained with the current training file, recipe and settings."""
    with contextlib.suppress(UserError):  # a missing or broken training file will be made again
        return same_training(read_record(settings.paths.model(recipe.label)), training_record(settings, recipe))
    return False


def check_trained(settings, label):
    """Raise UserError unless the model of this label can be evaluated: finished, and trained on the current split.

    If the recipe or settings have changed since, the changes are printed, and the model is used as it was trained. A
    compiled model must match the current weights of the model it was exported from.
    """
    if label in pretrained(settings):
        return
    if label in compiled_models(settings):
        return _check_compiled(settings, label)
    recipe, folder = find_recipe(settings, label), settings.paths.model(label)
    recorded = read_record(folder)
    if recorded is None:
        raise UserError(f"{display_value(folder)} holds no finished model: run `bash {training_script(label)}` first")
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
    made_of = (read_json(folder / COMPILED_RECORD) or {}).get("made_of")
    if not made_of:
        raise UserError(f"{display_value(folder / COMPILED_RECORD)} is damaged: move the folder away, and export the "
                        "model again with `python -m embedding_finetune export`")
    source = made_of["use"]["label"]
    check_trained(settings, source)
    if model_content(load_encoder_config(settings, source).name) != made_of["content"]:
        raise UserError(f"{label} was exported from other weights than {source} has now: run `OVERWRITE=1 python -m "
                        f"embedding_finetune export {source} {made_of['form']}`")


def training_script(label):
    """The script that trains the model of a label, with its arguments."""
    return f"finetune_{label}.sh" if label in ("neg10", "neg50", "reranker") else f"finetune_hard.sh {label}"


def trained_recipes(settings):
    """Labels of the recipes that have a finished model, in the order of RECIPE_FILE."""
    return [label for label in all_recipes(settings) if read_record(settings.paths.model(label))]
