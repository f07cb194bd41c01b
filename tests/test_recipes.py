import dataclasses
import textwrap

import pytest

from embedding_finetune.files import UserError
from embedding_finetune.labels import RESERVED
from embedding_finetune.models.encoder_config import pretrained
from embedding_finetune.pipeline import plan
from embedding_finetune.recipes import Recipe, all_recipes, find_recipe, trained_labels
from embedding_finetune.retrieval.base import RETRIEVERS
from embedding_finetune.settings import ROOT, Settings


def with_recipes(tmp_path, text, **settings):
    """The demo's settings, with recipes of this text."""
    path = tmp_path / "own.toml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return dataclasses.replace(Settings.load("demo"), recipe_file=path, **settings)


def test_the_recipes_that_come_with_the_repository():
    recipes = all_recipes(Settings.load("demo"))
    curve = ["neg10_eighth", "neg10_quarter", "neg10_half", "neg10_half_long"]
    assert list(recipes) == ["neg10", "neg50", *curve, "neg10_merged", "hard", "tokens", "both",
                             "matryoshka", "hard_kd", "hard_round2", "hard_kd_round2", "reranker"]
    random = {"negatives": "random", "num_negatives": 10}
    mined = {"negatives": "mined", "num_negatives": 10, "candidates": ["model"], "miner": "reference",
             "filter": "relative_margin 0.95", "mining_top_k": 100}
    distilled = mined | {"teacher": "reference", "teacher_temperature": 0.02}
    expected = {"neg10": random, "neg50": random | {"num_negatives": 50}, "hard": mined, "hard_kd": distilled,
                "hard_kd_round2": distilled | {"miner": "hard_kd"},
                "neg10_merged": {"merge": "neg10", "merge_weight": 0}}
    expected |= {label: random | {"train_fraction": part} for label, part in zip(curve, (0.125, 0.25, 0.5, 0.5))}
    assert {label: recipes[label].data for label in expected} == expected
    assert (recipes["neg10"].file, recipes["hard"].file) == ("training_neg_10.json", "training_hard.json")
    assert len({recipe.description for recipe in recipes.values()}) == 15
    assert len({recipe.file for recipe in recipes.values()}) == 12  # tokens and both take the rows of hard


def test_a_new_entry_is_found_and_run_without_an_edit_elsewhere(tmp_path):
    settings = with_recipes(tmp_path, """
        [neg10]
        [neg50]
        [mine]
        description = "my own"
        negatives = "mined"
        candidates = ["bm25", "model"]
        filter = "rank_range 10 60"
        teacher_temperature = 1
        settings = { BATCH_SIZE = 128, LEARNING_RATE = 2e-5 }
        """, recipes="mine")
    recipe = find_recipe(settings, "mine")
    assert recipe == Recipe("mine", "my own", "training_mine.json", "mined", candidates=["bm25", "model"],
                            filter="rank_range 10 60", teacher_temperature=1,
                            settings={"BATCH_SIZE": 128, "LEARNING_RATE": 2e-5})
    assert trained_labels(settings) == ["neg10", "neg50", "mine"]
    steps = plan(settings)
    assert ("finetune_hard.sh", "mine") in steps and ("evaluate", "mine") in steps


def test_a_new_head_has_settings_of_its_own(tmp_path):
    text = """
        [reranker]
        kind = "cross_encoder"
        settings = { LEARNING_RATE = 2e-5, SEED = 3 }
        new_head = { LEARNING_RATE = 1e-4, EPOCHS = 4 }
        [other]
        extends = "reranker"
        new_head = { EPOCHS = 2 }
        """
    new, given = with_recipes(tmp_path, text), with_recipes(tmp_path, text, reranker_model="BAAI/bge-reranker-v2-m3")
    assert find_recipe(new, "reranker").settings == {"LEARNING_RATE": 1e-4, "SEED": 3, "EPOCHS": 4}
    assert find_recipe(new, "other").settings == {"LEARNING_RATE": 1e-4, "SEED": 3, "EPOCHS": 2}
    assert find_recipe(given, "other").settings == {"LEARNING_RATE": 2e-5, "SEED": 3}
    with pytest.raises(UserError, match="new_head goes with kind"):
        find_recipe(with_recipes(tmp_path, "[model]\nnew_head = { EPOCHS = 4 }"), "model")


def test_extends_takes_over_all_but_the_training_file(tmp_path):
    settings = with_recipes(tmp_path, """
        [first]
        description = "first"
        negatives = "mined"
        mining_top_k = 7
        file = "training_one.json"
        settings = { EPOCHS = 2, BATCH_SIZE = 8 }
        [second]
        extends = "first"
        description = "second"
        settings = { EPOCHS = 3 }
        [third]
        extends = "second"
        mining_top_k = 9
        """)
    second, third = find_recipe(settings, "second"), find_recipe(settings, "third")
    assert (second.description, second.file, second.mining_top_k) == ("second", "training_second.json", 7)
    assert second.settings == third.settings == {"EPOCHS": 3, "BATCH_SIZE": 8}
    assert (third.negatives, third.mining_top_k, third.file) == ("mined", 9, "training_third.json")


def test_seeds_add_repetitions_that_share_the_training_file(tmp_path):
    settings = with_recipes(tmp_path, "[neg10]\nsettings = { EPOCHS = 2 }\n[neg50]\n[more]", seeds=3, seed=5)
    recipes = all_recipes(settings)
    ends = "", "_seed6", "_seed7"
    assert list(recipes) == [f"{label}{end}" for label in ("neg10", "neg50", "more") for end in ends]
    first, again = recipes["neg10"], recipes["neg10_seed7"]
    assert again == dataclasses.replace(first, label="neg10_seed7", repeats="neg10", settings={"EPOCHS": 2, "SEED": 7})
    assert again.file == first.file and again.data == first.data and first.repeats == ""
    assert settings.with_overrides(again.settings).seed == 7
    assert trained_labels(settings) == list(recipes)[:6]
    assert trained_labels(dataclasses.replace(settings, recipes="more", seeds=1)) == ["neg10", "neg50", "more"]


def test_a_train_fraction_in_the_same_steps_takes_more_epochs(tmp_path):
    settings = with_recipes(tmp_path, """
        [neg10]
        settings = { EPOCHS = 3 }
        [part]
        extends = "neg10"
        train_fraction = 0.25
        [long]
        extends = "part"
        same_steps = true
        [whole]
        same_steps = true
        """, epochs=2.0, seeds=2)
    recipes = all_recipes(settings)
    epochs = {label: settings.with_overrides(recipe.settings).epochs for label, recipe in recipes.items()}
    assert epochs == {"neg10": 3, "neg10_seed43": 3, "part": 3, "part_seed43": 3, "long": 12, "long_seed43": 12,
                      "whole": 2, "whole_seed43": 2}
    assert recipes["long"].data == recipes["part"].data  # the same rows


def test_the_repetition_of_a_merged_model_is_of_the_repetition_of_its_source(tmp_path):
    recipes = all_recipes(with_recipes(tmp_path, "[neg10]\n[both]\nmerge = 'neg10'\nmerge_weight = 0.5", seeds=2))
    assert recipes["both_seed43"].data == {"merge": "neg10_seed43", "merge_weight": 0.5}


def test_an_unknown_label_is_refused_with_the_known_ones(tmp_path):
    settings = with_recipes(tmp_path, "[neg10]\n[neg50]")
    with pytest.raises(UserError, match="there is no recipe 'neg11' in .*own.toml: it has neg10, neg50"):
        find_recipe(settings, "neg11")
    with pytest.raises(UserError, match="there is no recipe 'hard'"):
        trained_labels(dataclasses.replace(settings, recipes="hard"))


@pytest.mark.parametrize("text, message", [
    ("[a]\ncolour = 1", "recipe 'a': unknown key 'colour'; known are extends, description, "),
    ("[a]\nlabel = 'b'", "recipe 'a': unknown key 'label'"),
    ("[a]\nnum_negatives = '10'", "recipe 'a': num_negatives = '10' has the wrong type"),
    ("[a]\nnum_negatives = true", "recipe 'a': num_negatives = True has the wrong type"),
    ("[a]\ncandidates = 'bm25'", "recipe 'a': candidates = 'bm25' has the wrong type"),
    ("[a]\ntrain_fraction = 0", "recipe 'a': train_fraction and merge_weight must lie between 0 and 1"),
    ("[a]\ntrain_fraction = 1.5", "recipe 'a': train_fraction and merge_weight must lie between 0 and 1"),
    ("[a]\ntrain_fraction = true", "recipe 'a': train_fraction = True has the wrong type"),
    ("[a]\nsame_steps = 1", "recipe 'a': same_steps = 1 has the wrong type"),
    ("[a]\n[b]\nmerge = 'a'\nmerge_weight = 1.1", "recipe 'b': train_fraction and merge_weight must lie between"),
    ("[b]\nmerge = 'a'", "recipe 'b': merge must be the label of a recipe that is trained"),
    ("[b]\nmerge = 'b'", "recipe 'b': merge must be the label of a recipe that is trained"),
    ("[a]\n[b]\nmerge = 'a'\n[c]\nmerge = 'b'", "recipe 'c': merge must be the label of a recipe that is trained"),
    ("[a]\n[b]\nmerge = 'a'\nnum_negatives = 3",
     "recipe 'b': a merged model is not trained: it takes description, merge and"),
    ("[a]\n[b]\nextends = 'a'\nmerge = 'a'", "recipe 'b': a merged model is not trained"),
    ("[a]\nsettings = 3", "recipe 'a': settings = 3 has the wrong type"),
    ("a = 3", "recipe 'a': must be a table"),
    ("[a]\nextends = 'a'", "recipe 'a': extends 'a': there is no such recipe, or it extends itself"),
    ("[a]\nextends = 'b'", "recipe 'a': extends 'b': there is no such recipe"),
    ("[a]\nextends = ['b']", "recipe 'a': extends .'b'.: there is no such recipe"),
    ("[a]\nextends = 'b'\n[b]\nextends = 'c'\n[c]\nextends = 'a'",
     "recipe 'c': extends 'a': there is no such recipe, or it extends itself"),
    ("[a]\nextends = 'b'\n[b]\nnum_negatives = 0", "recipe 'b': num_negatives and mining_top_k must be 1 or more"),
    ("[reference]", "recipe 'reference': a label has letters"),
    ("['a b']", "recipe 'a b': a label has letters"),
    ("['../a']", "recipe '../a': a label has letters"),
    *((f"[{label}]", f"recipe '{label}': a label has letters") for label in (
        "cache", "data", "index", "notebooks", "publish", "report", "results", "runs", "comparison", "bge_m3", "Cache",
        "hybrid_neg10", "late_neg10", "m3_neg10", "rerank_neg10", "neg10-onnx", "neg10-openvino-int8")),
    ("[a]\n[a_seed2]", "recipe 'a': with another seed its label is 'a_seed2', which another recipe uses as well"),
    ("[other]", "recipe 'other': with another seed its label is 'other_seed2', which EXTRA_MODELS uses as well"),
    ("[overlap]", "recipe 'overlap': RETRIEVERS uses this label as well"),
    ("[extra]", "recipe 'extra': EXTRA_MODELS uses this label as well"),
    ("[a]\nnegatives = 'hard'", "recipe 'a': negatives must be random or mined"),
    ("[a]\ncandidates = ['dense']", "recipe 'a': candidates must list model, bm25 or both"),
    ("[a]\nteacher_temperature = 0", "recipe 'a': teacher_temperature must be more than 0"),
    ("[a]\nfile = '../a.json'", "recipe 'a': file must be a name like training_LABEL.json"),
    ("[a]\nfile = 'dataset.json'", "recipe 'a': file must be a name like training_LABEL.json"),
    *((f"[a]\nfilter = '{text}'", "recipe 'a': filter must be like `relative_margin 0.95`") for text in (
        "", "relative_margin", "relative_margin 1.5", "relative_margin 0", "absolute_margin x", "rank_range 3",
        "rank_range 9 3", "rank_range 0 3", "none 1", "top 3")),
    ("[a]\n[b]\nnum_negatives = 5\nfile = 'training_a.json'",
     "recipe 'b': another recipe writes different rows to training_a.json"),
    ("[a]\nsettings = { MAX_QUERIES = 10 }", "recipe 'a': a recipe cannot change MAX_QUERIES, only "),
    ("[a]\nsettings = { OUTPUT_DIR = 'x' }", "recipe 'a': a recipe cannot change OUTPUT_DIR"),
    ("[a]\nsettings = { EPOCHS = 'many' }", "recipe 'a': EPOCHS='many' is not a number"),
    ("[a]\nsettings = { BATCH_SIZE = 0 }", "recipe 'a': BATCH_SIZE=0 is impossible"),
    ("[a\n", "cannot read the recipes in .*own.toml .*line 1"),
    ("[a]\n[a]", "cannot read the recipes in .*own.toml .*line 2"),
])
def test_a_broken_recipe_is_named_by_file_and_label(tmp_path, text, message):
    settings = with_recipes(tmp_path, text, extra_models="extra=bundled other_seed2=bundled",
                            retrievers="bm25 overlap")
    with pytest.raises(UserError, match=message) as caught:
        all_recipes(settings)
    assert "own.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_beside_models_in_the_output_folder_is_reserved():
    """Notebooks that are executed for a label are kept as eval_LABEL.ipynb, beside those of these names."""
    assert {path.stem.removeprefix("eval_") for path in ROOT.glob("eval_*.ipynb")} < {*RESERVED}
    assert {*RETRIEVERS, *pretrained(Settings.load("demo"))} < {*RESERVED}


def test_names_that_only_look_like_reserved_ones_are_taken_and_each_kind_of_filter(tmp_path):
    labels = "hybrid trained_on_faq reranker_long latest neg10-2 onnx a_seed2".split()
    filters = ("none", "relative_margin 0.95", "relative_margin 1", "absolute_margin 0.05", "rank_range 1 1",
               "rank_range 10 60")
    entries = {label: filters[number % len(filters)] for number, label in enumerate(labels)}
    recipes = all_recipes(with_recipes(tmp_path, "\n".join(f"[{label}]\nfilter = '{text}'"
                                                           for label, text in entries.items())))
    assert {label: recipe.filter for label, recipe in recipes.items()} == entries


def test_a_missing_file_of_recipes_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the recipes in .*none.toml"):
        all_recipes(dataclasses.replace(Settings.load("demo"), recipe_file=tmp_path / "none.toml"))
