"""What a model was trained from: written when its training starts, and held against today's settings and files."""

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
    compiled_labels,
    load_encoder_config,
    pretrained,
)
from embedding_finetune.recipes import all_recipes, find_recipe
from embedding_finetune.settings import TABLE, TRAINING, display_value
from embedding_finetune.training.training_data import training_path

RECORD = "training.json"


def training_record(settings, recipe):
    """What identifies a training: the settings that change which weights are kept, the recipe, the content of the model
    that it begins with and how that is used, its data's content; or the models of a merge."""
    tuned = settings.with_overrides(recipe.settings)
    record = {"label": recipe.label, "recipe": recipe.data, "settings": tuned.as_dict(TRAINING) | {"SEED": tuned.seed},
              "use": base_encoder_config(tuned).identity, "data": data_identity(settings)}
    if recipe.merge:
        return record | {"made_of": merged_from(settings, recipe)}
    rows = read_rows([training_path(settings, recipe)], teacher=bool(recipe.teacher))
    return record | {"training_file": rows_identity(rows),
                     "begins_with": model_content(initial_model(tuned, recipe)[0])}


def merged_from(settings, recipe):
    """What identifies a merged model, for its record: both models, and where it is chosen the sets that choose."""
    tuned = load_encoder_config(settings, recipe.merge)
    record, content = read_record(Path(tuned.name)) or {}, model_content(base_encoder_config(settings).name)
    base = record.get("settings", {}).get("BASE_MODEL")
    if record["begins_with"] != content if "begins_with" in record else base != settings.base_model:
        raise UserError(f"{recipe.merge} was made of {base}, and BASE_MODEL is {settings.base_model}: set it back")
    chosen_on = {} if recipe.merge_weight else {"eval_sets": settings.out_of_domain_sets, "dev_corpus": settings.dev_corpus_size}
    return {"base": content, "tuned": model_content(tuned.name), **chosen_on}


def initial_model(tuned, recipe):
    """(folder or hub name, whether its own program code is trusted) of the model that a training begins with: RERANKER
    for a reranker where it is set, else BASE_MODEL. `tuned` are the settings with the recipe's."""
    if recipe.kind == "cross_encoder" and tuned.reranker_model:
        name = model_path(tuned.reranker_model)
        return name, tuned.trusts(tuned.reranker_model, name)
    config = base_encoder_config(tuned)
    return config.name, config.trusted


def read_record(folder):
    """The record of a model's folder, or None; a setting that came later had its default."""
    record = read_checksummed(folder / RECORD, having={})
    default = {name: row.default for name, row in TABLE.items() if row.metadata["changes"] == TRAINING
               and row.default is not MISSING}
    return record and record | {"settings": default | rename_settings(record.get("settings", {})),
                                "recipe": rename_recipe(record.get("recipe", {}))}


def same_training(record, today):
    """Whether two records are of the same training; what one of an earlier version lacks counts as equal.

    BASE_MODEL is but a name, and counts only where a record lacks the content of the model.
    """
    if record is None:
        return False
    then = today | record | {"use": today["use"] | record.get("use", {})}
    if {"begins_with", "made_of"} & record.keys():
        then["settings"] = then["settings"] | {"BASE_MODEL": today["settings"]["BASE_MODEL"]}
    return then == today


def is_current(settings, recipe):
    """Whether the finished model was trained from today's training file with today's recipe and settings."""
    with contextlib.suppress(UserError):  # a training file that is missing or broken is about to be made anew
        return same_training(read_record(settings.output_dir / recipe.label), training_record(settings, recipe))
    return False


def check_trained(settings, label):
    """Raise UserError unless the model of this label can be evaluated: finished, and not trained on another
    split.

    Where a recipe was trained with other settings than today's, that is printed: the model is used as it was trained.
    A compiled model must be of the weights that the model it was made of has today.
    """
    if label in pretrained(settings):
        return
    if label in compiled_labels(settings):
        return _check_compiled(settings, label)
    recipe, folder = find_recipe(settings, label), settings.output_dir / label
    recorded = read_record(folder)
    if recorded is None:
        raise UserError(f"{display_value(folder)} holds no finished model: run `bash {training_script(label)}` first")
    if recorded.get("data") != data_identity(settings):
        raise UserError(f"{display_value(folder)} was trained on another split, which may hold today's test queries: "
                        f"run `OVERWRITE=1 bash {training_script(label)}`")
    then, now = recorded["settings"] | recorded.get("recipe", {}), settings.with_overrides(recipe.settings).as_dict(TRAINING)
    changed = ", ".join(f"{name}={then.get(name)} (now {value})" for name, value in (now | recipe.data).items()
                        if then.get(name) != value)
    if changed:
        print(f"{label} was trained with {changed}: it is used as it was trained")


def _check_compiled(settings, label):
    folder = settings.output_dir / label
    made_of = (read_json(folder / COMPILED_RECORD) or {}).get("made_of")
    if not made_of:
        raise UserError(f"{display_value(folder / COMPILED_RECORD)} is damaged: move the folder away, and make it anew with "
                        "`python -m embedding_finetune export`")
    source = made_of["use"]["label"]
    check_trained(settings, source)
    if model_content(load_encoder_config(settings, source).name) != made_of["content"]:
        raise UserError(f"{label} was made of other weights than {source} has: run `OVERWRITE=1 python -m "
                        f"embedding_finetune.contrib.onnx_openvino {source} {made_of['form']}`")


def training_script(label):
    """What trains the model of a label."""
    return f"finetune_{label}.sh" if label in ("neg10", "neg50", "reranker") else f"finetune_hard.sh {label}"


def trained_recipes(settings):
    """The labels of recipes that have a finished model, in the order of the file."""
    return [label for label in all_recipes(settings) if read_record(settings.output_dir / label)]
