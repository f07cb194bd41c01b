"""Publishing: a model folder for the Hugging Face Hub, with a card of its results, baselines and training settings.

    python -m embedding_finetune publish LABEL [--to NAMESPACE/NAME] [--upload]

The folder is OUTPUT_DIR/publish/LABEL; read and edit its card before you publish it. Only --upload sends it to a
repository, which is private until you change that on its page. HF_TOKEN (or an earlier `hf auth login`) identifies you.
The folder contains no training texts and no paths of this machine, which is checked.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, constants, get_token

from embedding_finetune.artifacts.manifest import MANIFEST, MODEL_CARD, verify_manifest
from embedding_finetune.artifacts.provenance import stale_reason
from embedding_finetune.artifacts.staging import lock, staged_dir
from embedding_finetune.data.cleaning import MSMARCO
from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.results import compare, left_out_line, load_results
from embedding_finetune.evaluation.tables import comparison_table, pairs_table
from embedding_finetune.files import CommandLine, UserError, may_overwrite, one_line, read_json, write_json
from embedding_finetune.hints import missing_hint
from embedding_finetune.hub import HUB_ERRORS
from embedding_finetune.models.encoder_config import compiled_record
from embedding_finetune.settings import ROOT, Settings, display_value, path_of, split_revision
from embedding_finetune.training.model_card import METRICS_HEADING
from embedding_finetune.training.provenance import RECORD as TRAINED

KEPT_BACK = (MODEL_CARD, MANIFEST, TRAINED, "training_log.jsonl")  # the card is rewritten, the records are local
FACTS = "results.json"
BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"  # the model behind the value `bundled`
DATA_NOTES = {
    "msmarco": "the dev pairs of MS MARCO, which are for non-commercial research",
    "docstrings": "docstrings of Python packages (first paragraph and the rest), each under the licence of its package",
    "": "a dataset that is not published here; ask its owner for its licence",
}
SECTIONS = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")


def prepare(settings: Settings, label: str, to: str | None = None) -> Path:
    """Build OUTPUT_DIR/publish/LABEL, unless it exists and is current; returns the folder.

    Raises UserError when the label has no model, when a result of the comparison is outdated, when the folder is
    outdated or a file other than the card has changed (OVERWRITE=1 rebuilds it), or when a file contains a local path.
    """
    with lock(settings.paths.published("")):
        return _prepared(settings, label, to)


def _prepared(settings, label, to):
    source, folder = settings.paths.model(label), settings.paths.published(label)
    if not (source / "config.json").is_file():
        raise UserError(f"{display_value(source)} holds no finished model: give the label of one that was trained here"
                        f"{missing_hint(settings)}")
    rows, left_out = compare(settings, read_data(settings))
    row = next((row for row in rows if row["label"] == label), None)
    if row is None:
        reason = load_results(settings)[1].get(label)
        raise UserError(left_out_line({label: reason}) if reason else f"{label} has no results: evaluate it first")
    if left_out:  # the card would omit them without a note
        raise UserError(f"{left_out[0]}, or move the results out of {display_value(settings.paths.results)}")
    known = ("label", "queries", "corpus", "metrics", "dev", "ci95", "against", "system", "inputs", "parameters",
             "finished")
    facts = {name: row.get(name) for name in known} | {"published_as": to}
    if folder.exists() and not may_overwrite():
        if changed := verify_manifest(folder):
            raise UserError(f"{display_value(folder / changed)} has changed since it was made; OVERWRITE=1 rebuilds "
                            "the folder")
        if reason := stale_reason(read_json(folder / FACTS), facts):
            raise UserError(f"{display_value(folder)} was made for other results or another name ({reason}); "
                            "OVERWRITE=1 rebuilds it")
        print(f"{display_value(folder)} is current: kept (OVERWRITE=1 rebuilds it)")
        return folder
    with staged_dir(folder, replace=True) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True, ignore=lambda _, names: [
            name for name in names if name in KEPT_BACK or name.startswith(".")])
        for path in partial.rglob("*.json"):
            value = read_json(path)
            if isinstance(value, dict) and value.keys() & {"_name_or_path", "name_or_path"}:
                write_json(path, {key: value[key] for key in value if not key.endswith("name_or_path")})
        write_json(partial / FACTS, facts)
        (partial / MODEL_CARD).write_text(card(settings, label, to, rows, row), encoding="utf-8")
        check_private(settings, partial)
    if not settings.model_license:
        print("licence unknown, as stated in the card: set it, for example MODEL_LICENSE=apache-2.0 (the choice is "
              "yours, within the licences of base model and data)")
    return folder


def card(settings: Settings, label: str, to: str | None, rows: list[dict[str, Any]], row: dict[str, Any]) -> str:
    """Text of README.md: the model's own card up to its metrics, then results, comparisons and training settings."""
    source = settings.paths.model(label)
    # A compiled model has no training record: use that of the model it was made from.
    trained_label = (compiled_record(source) or {}).get("label", label)
    record = read_json(settings.paths.model(trained_label) / TRAINED) or {}
    made = {name: public(value) for name, value in (record.get("settings", {}) | record.get("recipe", {})).items()}
    base, data = made.get("BASE_MODEL", "?"), row["dataset"]
    base = {"bundled": BUNDLED}.get(base, base)
    base_on_hub, hub_data = split_revision(base)[0], MSMARCO if data == "msmarco" else None
    if data not in DATA_NOTES and public(data) == data:
        hub_data = split_revision(data.partition(":")[0])[0]
    known = hub_data or (data if data in DATA_NOTES else "not published")
    metrics = [EvalResult(task_type="information-retrieval", dataset_type=known, dataset_name=known,
                          dataset_split="test", metric_type=name, metric_name=name, metric_value=round(value, 4))
               for name, value in row["metrics"].items()]
    head = ModelCardData(
        language=settings.model_language.split() or None, license=settings.model_license or "unknown",
        library_name="sentence-transformers", pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "dense-retrieval"],
        base_model=base_on_hub if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base_on_hub) else None,
        datasets=[hub_data] if hub_data else None, model_name=to or label, eval_results=metrics)
    own = ModelCard((source / MODEL_CARD).read_text(encoding="utf-8")).text.partition(METRICS_HEADING)[0].lstrip()
    own = re.sub(r"\bPATH\b", lambda _: repr(to or label), own)
    note = DATA_NOTES.get(data) or (f"{hub_data}; its licence is on its page" if hub_data else DATA_NOTES[""])
    return f"---\n{head.to_yaml()}\n---\n\n{own}" + SECTIONS.format(
        queries=row["queries"], passages=row["corpus"], table=comparison_table(rows).to_markdown(disable_numparse=True),
        pairs=pairs_table(rows, of=label).to_markdown(index=False, disable_numparse=True), base=base, data=note,
        models="; ".join(f"{other['label']} is {other.get('description') or public(other['model'])}" for other in rows),
        licence=settings.model_license or "unknown (not stated by its owner)", facts=FACTS,
        settings="\n".join(["| setting | value |", "| --- | --- |", *(f"| {name} | {made[name]} |" for name in made)]))


def public(value: object) -> str:
    """The value of a setting, or `a local folder` if it is a path."""
    text = str(value)
    slashes = split_revision(text)[0].count("/")
    local = text.startswith(("/", "~", ".")) or slashes > 1 or (slashes and path_of(text).exists())
    return "a local folder" if local or Path(text).suffix and path_of(text).is_file() else text


def check_private(settings: Settings, folder: Path) -> None:
    """Raise UserError when a file in `folder`, except weights, contains a path of this machine."""
    paths = {str(Path.home()), str(ROOT), *(str(value) for value in vars(settings).values())}
    paths = [re.escape(path) for path in paths if path.startswith("/") and len(path) > 1]
    names = re.compile(rf"({'|'.join(paths)})(?=[/\"'\s:,)]|$)".encode())
    for path in sorted(folder.rglob("*")):
        found = path.is_file() and path.suffix not in (".safetensors", ".bin") and names.search(path.read_bytes())
        if found:
            raise UserError(f"{path.relative_to(folder)} contains {found[0].decode()}, a path of this machine: fix "
                            "that file of the model, then run the same command again")


def upload(folder: Path, to: str) -> str:
    """Upload the folder to the repository `to`, created as private if it is new; returns the URL of the commit.

    Raises UserError when the upload fails.
    """
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        api.create_repo(to, private=True, exist_ok=True)
        return api.upload_folder(repo_id=to, folder_path=folder, commit_message="Model, card and results",
                                 ignore_patterns=[MANIFEST]).commit_url
    except (*HUB_ERRORS, RuntimeError) as error:
        raise UserError(f"the Hugging Face Hub at {constants.ENDPOINT} does not accept {to} ({one_line(error)}); the "
                        f"folder {folder} is complete: run the same command to try again") from None


def main() -> None:
    """Run the `publish` command."""
    parser = CommandLine("publish", "Prepare a model's folder for the Hugging Face Hub, with a card of its results.")
    parser.add_argument("label", metavar="LABEL", help="label of a model that was trained and evaluated here")
    parser.add_argument("--to", metavar="NAMESPACE/NAME", help="repository named in the card")
    parser.add_argument("--upload", action="store_true", help="upload the folder to that repository")
    options, settings = parser.parse_args(), Settings.load()
    if options.to and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", options.to, re.ASCII):
        raise UserError(f"--to {options.to} is not a valid repository name: give NAMESPACE/NAME")
    if options.upload and not (options.to and settings.model_license and get_token()):
        missing = {"--to NAMESPACE/NAME": options.to,
                   "MODEL_LICENSE (or MODEL_LICENSE=unknown)": settings.model_license, "HF_TOKEN": get_token()}
        raise UserError(f"--upload needs {', '.join(name for name, value in missing.items() if not value)}")
    folder = prepare(settings, options.label, options.to)
    print(f"{display_value(folder)}: read {display_value(folder / 'README.md')} before you publish it")
    if options.upload:
        print(f"uploaded: {upload(folder, options.to)}")
