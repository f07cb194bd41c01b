"""Labels that can be searched, and the default label."""

from embedding_finetune.artifacts.manifest import file_stamps, read_checksummed, write_checksummed
from embedding_finetune.files import UserError


def labels(settings):
    """Labels that can be searched: retrievers, off-the-shelf, fine-tuned and compiled models, evaluated fusions."""
    from embedding_finetune.models.encoder_config import compiled_labels, pretrained
    from embedding_finetune.recipes import all_recipes
    from embedding_finetune.retrieval.base import RETRIEVERS
    tuned = [label for label, recipe in all_recipes(settings).items()
             if recipe.kind == "bi_encoder" and (settings.paths.model(label) / "config.json").is_file()]
    fused = [path.stem for path in sorted(settings.paths.results.glob("hybrid_*.json"))]
    return list(dict.fromkeys([*RETRIEVERS, *pretrained(settings), *tuned, *compiled_labels(settings), *fused]))


def check_label(settings, label):
    """Raise UserError unless the label can be searched."""
    if label not in labels(settings):
        raise UserError(f"there is no model {label[:100]!r} to search with; available: {', '.join(labels(settings))}")


def default_label(settings):
    """The best fine-tuned model on dev queries (see evaluation.results).

    The answer is cached until results, models or settings change. Raises UserError when there is no such model.
    """
    memo = settings.paths.index("default.json")
    files = [*settings.paths.results.glob("*.json"), *settings.paths.output.glob("*/model.safetensors")]
    today = {"files": file_stamps(sorted(files)), "settings": settings.as_dict()}
    found = read_checksummed(memo)
    if isinstance(found, dict) and {name: found.get(name) for name in today} == today:
        return found["label"]
    from embedding_finetune.evaluation.results import best_fine_tuned, load_results
    results, left_out = load_results(settings)
    best = best_fine_tuned(results)
    if best is None:
        raise UserError("no fine-tuned model has a current result "
                        f"({'; '.join(left_out) or 'none has been evaluated'}): evaluate one, or choose a model by "
                        f"--model {', '.join(labels(settings))}")
    write_checksummed(memo, today | {"label": best["label"]})
    return best["label"]
