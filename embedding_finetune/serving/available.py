"""Systems that can be searched, and the default one."""

from argparse import SUPPRESS, ArgumentParser

from embedding_finetune.artifacts.manifest import file_stamps, read_record, write_record
from embedding_finetune.artifacts.provenance import stale_reason
from embedding_finetune.deprecation import RenamedOption
from embedding_finetune.files import UserError, read_json
from embedding_finetune.hints import missing_hint
from embedding_finetune.settings import Settings


def labels(settings: Settings) -> list[str]:
    """Labels that can be searched: retrievers whose models exist, and fused and reranked systems with a result."""
    from embedding_finetune.recipes import all_recipes
    from embedding_finetune.retrieval.known_systems import all_systems
    recipes, measured = all_recipes(settings), {path.stem for path in settings.paths.results.glob("*.json")}

    def is_available(system):
        if not system.is_single:
            return system.label in measured
        return system.label not in recipes or (settings.paths.model(system.label) / "config.json").is_file()

    return [system.label for system in all_systems(settings) if is_available(system)]


def default_label(settings: Settings) -> str:
    """The recommended system, or the best fine-tuned model on dev queries as long as there is no comparison.

    It is stored until an input of it changes. Raises UserError when there is neither.
    """
    path = settings.paths.index("default.json")
    files = [*settings.paths.results.glob("*.json"), *settings.paths.output.glob("*/model.safetensors")]
    inputs = {"files": file_stamps(sorted(files)), "settings": settings.as_dict()}
    record = read_record(path, having=inputs)
    if record and stale_reason(record["inputs"], inputs) is None:
        return record["label"]
    from embedding_finetune.evaluation.results import best_fine_tuned, left_out_line, load_results
    results, left_out = load_results(settings)
    recommended = (read_json(settings.paths.results / "recommendation.json") or {}).get("system")
    best = next((result for result in results if result["label"] == recommended), best_fine_tuned(results))
    if best is None:
        reason = left_out_line(left_out) or "none has been evaluated"
        raise UserError(f"no fine-tuned model has a current result ({reason}): evaluate one, or choose a system by "
                        f"--system {', '.join(labels(settings))}{missing_hint(settings)}")
    write_record(path, inputs, label=best["label"])
    return best["label"]


def add_system_option(parser: ArgumentParser, text: str) -> None:
    """Add --system LABEL to a command line; `--model`, its old name, prints a notice."""
    parser.add_argument("--system", metavar="LABEL", help=text)
    parser.add_argument("--model", metavar="LABEL", dest="system", action=RenamedOption, help=SUPPRESS)
