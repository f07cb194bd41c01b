"""What belongs to an experiment on disk, by label: models, runs, results, indexes, training files, stored vectors."""

import re
from collections.abc import Iterable
from pathlib import Path

from embedding_finetune.files import UserError, read_json
from embedding_finetune.hub import model_content
from embedding_finetune.labels import COMPILED_FORMATS
from embedding_finetune.models.encoder_config import pretrained
from embedding_finetune.pipeline import NOTEBOOK_OF
from embedding_finetune.recipes import all_recipes
from embedding_finetune.retrieval.known_systems import all_systems
from embedding_finetune.settings import Settings
from embedding_finetune.training.training_data import export_path, training_path


def files_of(settings: Settings, label: str) -> list[Path]:
    """The existing files and folders of a model, a recipe or a retriever; files that others use as well are not listed.

    They include those of its compiled forms, and of each system that it is a part of.
    """
    paths, found = settings.paths, []
    for name in (label, *(f"{label}-{form}" for form in COMPILED_FORMATS)):
        found += [paths.model(name), paths.unfinished(name), paths.unfinished(name, "flagembedding"),
                  paths.preflight(name), paths.published(name)]
    found += [path for path in paths.output.glob(f"{label}.*") if re.fullmatch(r"\d{8}-\d{6}", path.suffix[1:])]
    for system in all_systems(settings):
        if label in (system.retriever, system.reranker_model):
            found += [paths.run(system.label), paths.run(system.label, "dev"), paths.result(system.label),
                      paths.index(system.label)]
    if label in NOTEBOOK_OF:
        found.append(paths.notebooks / NOTEBOOK_OF[label])
    return [path for path in (*found, *_training_files(settings, label), *_vectors(settings, label)) if path.exists()]


def _training_files(settings: Settings, label: str) -> list[Path]:
    recipes = all_recipes(settings)
    recipe = recipes.get(label)
    if recipe is None or recipe.merge or [other.file for other in recipes.values()].count(recipe.file) > 1:
        return []
    rows = training_path(settings, recipe)
    return [rows, rows.with_suffix(".made.json"), export_path(settings, recipe)]


def _vectors(settings: Settings, label: str) -> list[Path]:
    """Folders of the stored vectors of a fine-tuned model; models that were not trained here may share theirs."""
    folder = settings.paths.model(label)
    if label in pretrained(settings) or not (folder / "config.json").is_file():
        return []
    try:
        content = model_content(str(folder))
    except UserError:  # it was changed since, so its vectors cannot be recognized
        return []
    return [path.parent for path in settings.paths.cache.glob("*/identity.json")
            if (record := read_json(path)) and content in (record.get("model"), record.get("inputs", {}).get("model"))]


def size(paths: Iterable[Path]) -> int:
    """Bytes of files and folders; a file with several hard links counts once."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    stats = {(found.st_dev, found.st_ino): found.st_size for found in map(Path.stat, files)}
    return sum(stats.values())
