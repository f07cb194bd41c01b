"""Recipes: the fine-tunings that there are, each an entry of RECIPE_FILE (profiles/recipes.toml).

An entry says what a model is trained on, and in which settings it differs; its name is the label of the model, of its
training file and of its results. A new entry is all that a new fine-tuning needs.
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
    """One entry. `extends` (in the file) takes over all of another entry but its training file."""

    label: str
    description: str = ""
    file: str = ""  # the training file's name for FlagEmbedding (see training.rows); by default training_LABEL.json
    negatives: str = "random"  # random ones, or mined ones
    num_negatives: int = 10  # of negatives a query
    train_fraction: float = 1.0  # of the training queries, seeded; a larger share has all of a smaller one's
    same_steps: bool = False  # as many steps as with all queries: the share is passed through more often
    candidates: list = field(default_factory=lambda: ["model"])  # of mined ones: "model", "bm25", or both in turns
    miner: str = "reference"  # the model that searches and filters: a label of a model or of another recipe
    filter: str = "relative_margin 0.95"  # which candidates are kept, see data.negatives.Filter
    mining_top_k: int = 100  # candidates a query of each source
    teacher: str = ""  # whose scores are learnt, too: a label, a second stage's, or the name of a reranker
    teacher_temperature: float = 0.02  # its scores are divided by it: about 0.02 for cosines, 1 for a reranker's logits
    merge: str = ""  # the label whose weights are averaged with its base's, in the place of a training
    merge_weight: float = 0.0  # of that model in the average; 0 chooses it on dev queries, see training.merge
    kind: str = "bi_encoder"  # an embedding model; or a cross_encoder, a reranker
    settings: dict = field(default_factory=dict)  # NAME = value of the settings in which this fine-tuning differs
    new_head: dict = field(default_factory=dict)  # and of those of a reranker that begins without RERANKER
    repeats: str = ""  # the label of the recipe that this one repeats with another seed

    @property
    def data(self):
        """What the training file depends on, beside the collection and the models: a dict. Without one: the merge."""
        if self.merge:
            return {"merge": self.merge, "merge_weight": self.merge_weight}
        parts = ["negatives", "num_negatives", *["train_fraction"] * (self.train_fraction < 1),
                 *["candidates", "miner", "filter", "mining_top_k"] * (self.negatives == "mined"),
                 *["teacher", "teacher_temperature"] * bool(self.teacher)]
        return {name: getattr(self, name) for name in parts}


KEYS = {spec.name: spec.type for spec in dataclasses.fields(Recipe) if spec.name not in ("label", "repeats")}


def all_recipes(settings):
    """Label -> Recipe, in the order of the file; with SEEDS above 1 each is followed by its repetitions.

    Raises UserError naming the entry that cannot be used.
    """
    path = settings.recipe_file
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the recipes in {path} ({error}); see profiles/recipes.toml") from None
    others = dict.fromkeys(settings.retrievers.split(), "RETRIEVERS") | {
        model.partition("=")[0]: "EXTRA_MODELS" for model in settings.extra_models.split()}
    for label in (*entries, *others):
        if repeated := repeated_label(label, entries):
            raise UserError(f"{path}, recipe {repeated!r}: with another seed it is called {label!r}, which "
                            f"{others.get(label, 'another recipe')} has as a label of its own: rename one of them")
    recipes = {}
    for label in entries:
        recipe = recipes[label] = _recipe(path, entries, label)
        if recipe.new_head and not settings.reranker_model:
            recipe = recipes[label] = dataclasses.replace(recipe, settings=recipe.settings | recipe.new_head)
        for seed in range(settings.seed + 1, settings.seed + settings.seeds):
            again, other = f"{label}_seed{seed}", recipe.settings | {"SEED": seed}
            merge = recipe.merge and f"{recipe.merge}_seed{seed}"
            recipes[again] = dataclasses.replace(recipe, label=again, repeats=label, settings=other, merge=merge)
    files = {}
    for label, recipe in recipes.items():
        if label in others:
            raise UserError(f"{path}, recipe {label!r}: {others[label]} has this label, too")
        if not recipe.merge and files.setdefault(recipe.file, recipe.data) != recipe.data:
            raise UserError(f"{path}, recipe {label!r}: another recipe writes other rows to {recipe.file}")
        if recipe.merge and (recipe.merge not in recipes or recipes[recipe.merge].merge
                             or recipes[recipe.merge].kind != "bi_encoder"):
            raise UserError(f"{path}, recipe {label!r}: merge must be the label of a recipe that is trained")
        try:
            epochs = settings.with_overrides(recipe.settings).epochs
        except UserError as error:
            raise UserError(f"{path}, recipe {label!r}: {error}") from None
        if recipe.same_steps:
            recipes[label] = dataclasses.replace(recipe, settings=recipe.settings | {"EPOCHS": epochs / recipe.train_fraction})
    return recipes


def find_recipe(settings, label):
    """The recipe of a label. Raises UserError listing the known ones when there is none."""
    recipes = all_recipes(settings)
    if label not in recipes:
        raise UserError(f"there is no recipe {label!r} in {settings.recipe_file}: it has {', '.join(recipes)}; SEEDS=2 "
                        "adds a repetition of each with the next seed")
    return recipes[label]


def trained_labels(settings):
    """The labels that `make run` trains, in order: neg10, neg50 and RECIPES, each with its repetitions."""
    wanted = dict.fromkeys(["neg10", "neg50", *settings.recipes.split()])
    recipes = all_recipes(settings)
    return [label for name in wanted if find_recipe(settings, name)
            for label, recipe in recipes.items() if name in (label, recipe.repeats)]


def _recipe(path, entries, label, seen=()):
    """The entry with what it takes over from others, checked."""

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
    demand(_is_filter(recipe.filter), "filter must be like `relative_margin 0.95`, `absolute_margin 0.05`, `rank_range 10 60`, or none")
    demand(0 < recipe.train_fraction <= 1 and 0 <= recipe.merge_weight <= 1, "train_fraction and merge_weight must lie between 0 and 1")
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
