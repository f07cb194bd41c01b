"""Recipes: the fine-tuning runs, each an entry of RECIPE_FILE (profiles/recipes.toml).

An entry gives the training data and the settings that differ from the profile. Its name is the label of the model, of
its training file and of its results. A new fine-tuning run needs a new entry and nothing else.
"""

import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from embedding_finetune.deprecation import rename_recipe
from embedding_finetune.files import UserError
from embedding_finetune.labels import LABEL_RULE, is_valid_label, repeated_label
from embedding_finetune.settings import Settings


@dataclass(frozen=True)
class Recipe:
    """A recipe. In the file, `extends` inherits all keys of another entry except its training file."""

    label: str
    description: str = ""
    file: str = ""  # name of the training file for FlagEmbedding; by default training_LABEL.json
    negatives: str = "random"  # "random" or "mined"
    num_negatives: int = 10  # negatives per query
    train_fraction: float = 1.0  # of the training queries; seeded, and a larger sample contains every smaller one
    same_steps: bool = False  # as many steps as with all queries, hence more epochs over the sample
    candidates: list = field(default_factory=lambda: ["model"])  # of mined negatives: "model", "bm25", or both
    miner: str = "reference"  # label of the model, or of another recipe, that searches and filters
    filter: str = "relative_margin 0.95"  # which candidates are kept (see data.negatives.Filter)
    mining_top_k: int = 100  # candidates per query from each source
    teacher: str = ""  # for distillation: label of a model or reranker, or the name of a cross-encoder
    teacher_temperature: float = 0.02  # divisor of the teacher's scores: about 0.02 for cosines, 1 for logits
    merge: str = ""  # label whose weights are averaged with its base model's; nothing is trained
    merge_weight: float = 0.0  # weight of that model in the average; 0: selected on dev queries (see training.merging)
    kind: str = "bi_encoder"  # "bi_encoder" (embedding model) or "cross_encoder" (reranker)
    settings: dict = field(default_factory=dict)  # NAME = value of the settings that differ from the profile
    new_head: dict = field(default_factory=dict)  # further settings of a cross-encoder trained without RERANKER_MODEL
    repeats: str = ""  # label of the recipe that this one repeats with another seed

    @property
    def data(self) -> dict[str, Any]:
        """What the training file depends on besides the collection and the models: a dict.

        A merged model has no training file; the dict describes the merge.
        """
        if self.merge:
            return {"merge": self.merge, "merge_weight": self.merge_weight}
        names = ["negatives", "num_negatives"]
        names += ["train_fraction"] if self.train_fraction < 1 else []
        names += ["candidates", "miner", "filter", "mining_top_k"] if self.negatives == "mined" else []
        names += ["teacher", "teacher_temperature"] if self.teacher else []
        return {name: getattr(self, name) for name in names}


KEYS: dict[str, Any] = {spec.name: spec.type for spec in fields(Recipe) if spec.name not in ("label", "repeats")}


def all_recipes(settings: Settings) -> dict[str, Recipe]:
    """Label -> Recipe in the order of the file; with SEEDS above 1 each is followed by its repetitions.

    Raises UserError naming the first invalid entry.
    """
    path = settings.recipe_file
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the recipes in {path} ({error}); see profiles/recipes.toml") from None
    taken = dict.fromkeys(settings.retrievers.split(), "RETRIEVERS") | {
        model.partition("=")[0]: "EXTRA_MODELS" for model in settings.extra_models.split()}
    for label in (*entries, *taken):
        repeated = repeated_label(label, entries)
        _demand(not repeated, path, repeated, f"with another seed its label is {label!r}, which "
                                              f"{taken.get(label, 'another recipe')} uses as well: rename one of them")
    recipes = {recipe.label: recipe for label in entries
               for recipe in _with_repetitions(settings, _recipe(path, entries, label))}
    files = {}
    for label, recipe in recipes.items():
        _demand(label not in taken, path, label, f"{taken.get(label)} uses this label as well: rename one of them")
        _demand(recipe.merge or files.setdefault(recipe.file, recipe.data) == recipe.data, path, label,
                f"another recipe writes different rows to {recipe.file}")
        merged = recipes.get(recipe.merge)
        _demand(not recipe.merge or merged and not merged.merge and merged.kind == "bi_encoder", path, label,
                "merge must be the label of a recipe that is trained")
        recipes[label] = _with_epochs(settings, recipe)
    return recipes


def _demand(holds, path, label, reason):
    if not holds:
        raise UserError(f"{path}, recipe {label!r}: {reason}")


def _with_repetitions(settings, recipe):
    """A recipe with the settings of a new head, if it gets one, and its repetitions with other seeds."""
    if not settings.reranker_model:
        recipe = replace(recipe, settings=recipe.settings | recipe.new_head)
    yield recipe
    for seed in range(settings.seed + 1, settings.seed + settings.seeds):
        yield replace(recipe, label=f"{recipe.label}_seed{seed}", repeats=recipe.label,
                      settings=recipe.settings | {"SEED": seed}, merge=recipe.merge and f"{recipe.merge}_seed{seed}")


def _with_epochs(settings, recipe):
    """A recipe with more epochs if it takes as many steps as with all queries; its settings are checked."""
    try:
        epochs = settings.with_overrides(recipe.settings).epochs
    except UserError as error:
        _demand(False, settings.recipe_file, recipe.label, error)
    if not recipe.same_steps:
        return recipe
    return replace(recipe, settings=recipe.settings | {"EPOCHS": epochs / recipe.train_fraction})


def find_recipe(settings: Settings, label: str) -> Recipe:
    """The recipe of a label; raises UserError listing the known labels when there is none."""
    recipes = all_recipes(settings)
    if label not in recipes:
        raise UserError(f"there is no recipe {label!r} in {settings.recipe_file}: it has {', '.join(recipes)}; SEEDS=2 "
                        "adds a repetition of each with the next seed")
    return recipes[label]


def trained_labels(settings: Settings) -> list[str]:
    """The labels that `make run` trains, in order: neg10, neg50 and RECIPES, with their repetitions."""
    wanted = dict.fromkeys(["neg10", "neg50", *settings.recipes.split()])
    recipes = all_recipes(settings)
    return [label for name in wanted if find_recipe(settings, name)
            for label, recipe in recipes.items() if name in (label, recipe.repeats)]


def _recipe(path, entries, label, seen=()):
    """The entry of a label with the keys it inherits, checked; `seen` are the labels that led to it by `extends`."""
    demand = partial(_demand, path=path, label=label)
    demand(isinstance(entries[label], dict), reason="must be a table")
    entry = rename_recipe(entries[label], f"{path.name}, recipe {label!r}")
    extends = entry.pop("extends", None)
    demand(is_valid_label(label), reason=LABEL_RULE)
    demand(extends is None or isinstance(extends, str) and extends in entries and extends not in (label, *seen),
           reason=f"extends {extends!r}: there is no such recipe, or it extends itself")
    for name, value in entry.items():
        demand(name in KEYS, reason=f"unknown key {name!r}; known are extends, {', '.join(KEYS)}")
        kind = (int, float) if KEYS[name] is float else KEYS[name]
        demand(isinstance(value, kind) and isinstance(value, bool) == (kind is bool),
               reason=f"{name} = {value!r} has the wrong type")
    demand("merge" not in entry or entry.keys() <= {"description", "merge", "merge_weight"} and extends is None,
           reason="a merged model is not trained: it takes description, merge and merge_weight alone")
    if extends is not None:
        parent = _recipe(path, entries, extends, (*seen, label))
        inherited = {name: getattr(parent, name) for name in KEYS if name != "file"}
        entry = inherited | entry | {name: getattr(parent, name) | entry.get(name, {})
                                     for name in ("settings", "new_head")}
    values: dict[str, Any] = {"file": f"training_{label}.json"} | entry
    recipe = Recipe(label=label, **values)
    for reason, holds in _rules(recipe).items():
        demand(holds, reason=reason)
    return recipe


def _rules(recipe):
    """What must hold for the values of a recipe: what to say otherwise -> whether it holds."""
    return {
        "kind must be bi_encoder or cross_encoder": recipe.kind in ("bi_encoder", "cross_encoder"),
        'new_head goes with kind = "cross_encoder"': recipe.kind == "cross_encoder" or not recipe.new_head,
        "negatives must be random or mined": recipe.negatives in ("random", "mined"),
        "num_negatives and mining_top_k must be 1 or more": min(recipe.num_negatives, recipe.mining_top_k) >= 1,
        "candidates must list model, bm25 or both": recipe.candidates in (
            ["model"], ["bm25"], ["model", "bm25"], ["bm25", "model"]),
        "filter must be like `relative_margin 0.95`, `absolute_margin 0.05`, `rank_range 10 60`, or none":
            _is_filter(recipe.filter),
        "train_fraction and merge_weight must lie between 0 and 1":
            0 < recipe.train_fraction <= 1 and 0 <= recipe.merge_weight <= 1,
        "teacher_temperature must be more than 0": recipe.teacher_temperature > 0,
        "file must be a name like training_LABEL.json": re.fullmatch(r"training_[\w-]+\.json", recipe.file)}


def _is_filter(text):
    kind, *values = text.split() or [""]
    try:
        values = [float(value) for value in values]
    except ValueError:
        return False
    return (kind, len(values)) in (("none", 0), ("absolute_margin", 1)) or (
        kind == "relative_margin" and len(values) == 1 and 0 < values[0] <= 1) or (
        kind == "rank_range" and len(values) == 2 and 1 <= values[0] <= values[1])
