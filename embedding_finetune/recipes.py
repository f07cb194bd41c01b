"""Recipes: the fine-tuning runs, each an entry of RECIPE_FILE (profiles/recipes.toml).

An entry gives the training data and the settings that differ from the profile. Its name is the label of the model, of
its training file and of its results. A new fine-tuning run needs a new entry and nothing else.
"""

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field

from embedding_finetune.deprecation import rename_recipe
from embedding_finetune.files import UserError
from embedding_finetune.labels import LABEL_RULE, is_valid_label, repeated_label


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
    def data(self):
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


KEYS = {spec.name: spec.type for spec in dataclasses.fields(Recipe) if spec.name not in ("label", "repeats")}


def all_recipes(settings):
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
        if repeated := repeated_label(label, entries):
            raise UserError(f"{path}, recipe {repeated!r}: with another seed its label is {label!r}, which "
                            f"{taken.get(label, 'another recipe')} uses as well: rename one of them")
    recipes = {}
    for label in entries:
        recipe = recipes[label] = _recipe(path, entries, label)
        if recipe.new_head and not settings.reranker_model:
            recipe = recipes[label] = dataclasses.replace(recipe, settings=recipe.settings | recipe.new_head)
        for seed in range(settings.seed + 1, settings.seed + settings.seeds):
            new_label, changed = f"{label}_seed{seed}", recipe.settings | {"SEED": seed}
            merge = recipe.merge and f"{recipe.merge}_seed{seed}"
            recipes[new_label] = dataclasses.replace(recipe, label=new_label, repeats=label, settings=changed,
                                                     merge=merge)
    files = {}
    for label, recipe in recipes.items():
        if label in taken:
            raise UserError(f"{path}, recipe {label!r}: {taken[label]} uses this label as well: rename one of them")
        if not recipe.merge and files.setdefault(recipe.file, recipe.data) != recipe.data:
            raise UserError(f"{path}, recipe {label!r}: another recipe writes different rows to {recipe.file}")
        if recipe.merge and (recipe.merge not in recipes or recipes[recipe.merge].merge
                             or recipes[recipe.merge].kind != "bi_encoder"):
            raise UserError(f"{path}, recipe {label!r}: merge must be the label of a recipe that is trained")
        try:
            epochs = settings.with_overrides(recipe.settings).epochs
        except UserError as error:
            raise UserError(f"{path}, recipe {label!r}: {error}") from None
        if recipe.same_steps:
            changed = recipe.settings | {"EPOCHS": epochs / recipe.train_fraction}
            recipes[label] = dataclasses.replace(recipe, settings=changed)
    return recipes


def find_recipe(settings, label):
    """The recipe of a label; raises UserError listing the known labels when there is none."""
    recipes = all_recipes(settings)
    if label not in recipes:
        raise UserError(f"there is no recipe {label!r} in {settings.recipe_file}: it has {', '.join(recipes)}; SEEDS=2 "
                        "adds a repetition of each with the next seed")
    return recipes[label]


def trained_labels(settings):
    """The labels that `make run` trains, in order: neg10, neg50 and RECIPES, with their repetitions."""
    wanted = dict.fromkeys(["neg10", "neg50", *settings.recipes.split()])
    recipes = all_recipes(settings)
    return [label for name in wanted if find_recipe(settings, name)
            for label, recipe in recipes.items() if name in (label, recipe.repeats)]


def _recipe(path, entries, label, seen=()):
    """The entry of a label with the keys it inherits, checked; `seen` are the labels that led to it by `extends`."""

    def demand(holds, reason):
        if not holds:
            raise UserError(f"{path}, recipe {label!r}: {reason}")

    demand(isinstance(entries[label], dict), "must be a table")
    entry = rename_recipe(entries[label], f"{path.name}, recipe {label!r}")
    extends = entry.pop("extends", None)
    demand(is_valid_label(label), LABEL_RULE)
    demand(extends is None or isinstance(extends, str) and extends in entries and extends not in (label, *seen),
           f"extends {extends!r}: there is no such recipe, or it extends itself")
    for name, value in entry.items():
        demand(name in KEYS, f"unknown key {name!r}; known are extends, {', '.join(KEYS)}")
        kind = (int, float) if KEYS[name] is float else KEYS[name]
        demand(isinstance(value, kind) and isinstance(value, bool) == (kind is bool),
               f"{name} = {value!r} has the wrong type")
    demand("merge" not in entry or entry.keys() <= {"description", "merge", "merge_weight"} and extends is None,
           "a merged model is not trained: it takes description, merge and merge_weight alone")
    if extends is not None:
        parent = _recipe(path, entries, extends, (*seen, label))
        inherited = {name: getattr(parent, name) for name in KEYS if name != "file"}
        entry = inherited | entry | {name: getattr(parent, name) | entry.get(name, {})
                                     for name in ("settings", "new_head")}
    recipe = Recipe(label=label, **{"file": f"training_{label}.json"} | entry)
    demand(recipe.kind in ("bi_encoder", "cross_encoder"), "kind must be bi_encoder or cross_encoder")
    demand(recipe.kind == "cross_encoder" or not recipe.new_head, "new_head goes with kind = \"cross_encoder\"")
    demand(recipe.negatives in ("random", "mined"), "negatives must be random or mined")
    demand(recipe.num_negatives >= 1 and recipe.mining_top_k >= 1, "num_negatives and mining_top_k must be 1 or more")
    demand(recipe.candidates in (["model"], ["bm25"], ["model", "bm25"], ["bm25", "model"]),
           "candidates must list model, bm25 or both")
    demand(_is_filter(recipe.filter),
           "filter must be like `relative_margin 0.95`, `absolute_margin 0.05`, `rank_range 10 60`, or none")
    demand(0 < recipe.train_fraction <= 1 and 0 <= recipe.merge_weight <= 1,
           "train_fraction and merge_weight must lie between 0 and 1")
    demand(recipe.teacher_temperature > 0, "teacher_temperature must be more than 0")
    demand(re.fullmatch(r"training_[\w-]+\.json", recipe.file), "file must be a name like training_LABEL.json")
    return recipe


def _is_filter(text):
    kind, *values = text.split() or [""]
    try:
        values = [float(value) for value in values]
    except ValueError:
        return False
    return (kind, len(values)) in (("none", 0), ("absolute_margin", 1)) or (
        kind == "relative_margin" and len(values) == 1 and 0 < values[0] <= 1) or (
        kind == "rank_range" and len(values) == 2 and 1 <= values[0] <= values[1])
