"""Commands around an experiment: its settings, `.env` for new data, and what it takes on disk."""

import glob
import os
import re
import shlex
import shutil
from pathlib import Path

from embedding_finetune.artifacts.staging import lock
from embedding_finetune.data.cleaning import first_row
from embedding_finetune.experiment_files import files_of, size
from embedding_finetune.files import CommandLine, UserError, atomic_write, may_overwrite
from embedding_finetune.hints import missing_file
from embedding_finetune.models.encoder_config import pretrained
from embedding_finetune.profiles import ROOT
from embedding_finetune.recipes import all_recipes
from embedding_finetune.retrieval.base import RETRIEVERS
from embedding_finetune.setting_checks import AUTO
from embedding_finetune.settings import LEVELS, TABLE, Settings, display_value
from embedding_finetune.settings_view import has_gpu, versions


def settings() -> None:
    """Print all settings by what a change of them invalidates, and the versions of what results depend on."""
    CommandLine("settings", "Show all settings, their values and where these come from.").parse_args()
    found = Settings.load()
    sources = dict(found.sources)
    print(f"profile {found.profile}")
    for level, title in LEVELS.items():
        print(f"\n{title}")
        for name, value in found.as_dict(level).items():
            print(f"  {name:24} {value!s:30} {sources.get(name, 'default'):20} {TABLE[name].metadata['why']}")
    print("\nthis machine", *(f"  {name:24} {value}" for name, value in versions().items()), sep="\n")


def init() -> None:
    """Write `.env` for a dataset. Raises UserError when the dataset cannot be read, or when `.env` exists."""
    parser = CommandLine("init", "Inspect a dataset and write the settings of its experiment to .env.")
    parser.add_argument("dataset", metavar="DATASET", help="a file, a folder, or a dataset of the Hugging Face Hub")
    parser.add_argument("--profile", help="default: msmarco with a GPU, else laptop")
    options = parser.parse_args()
    path, env_file = Path(options.dataset).expanduser(), ROOT / ".env"
    if env_file.exists() and not may_overwrite():
        raise UserError(".env exists: OVERWRITE=1 replaces it")
    files = path.exists() or glob.has_magic(str(path))
    if not files and (missing := missing_file(options.dataset)):
        raise UserError(missing)
    dataset = str(display_value(Path(os.path.abspath(path)))) if files else options.dataset
    name = re.split(r"[.*?\[]", path.name)[0] or path.absolute().parent.name if files else path.name
    given = {"DATASET": dataset, "DATA_DIR": f"ft_data/{name}", "OUTPUT_DIR": f"output/{name}",
             "QUERY_MAX_LEN": AUTO, "PASSAGE_MAX_LEN": AUTO}
    given |= {name: os.environ[name] for name in TABLE if name.endswith(("_COLUMN", "SPLIT")) and name in os.environ}
    profile = options.profile or ("msmarco" if has_gpu() else "laptop")
    row = first_row(Settings.load(profile, given))
    lines = [f"# Settings of the experiment with {dataset}; `python -m embedding_finetune settings` lists all others.",
             *(f"{key}={shlex.quote(value)}" for key, value in ({"PROFILE": profile} | given).items())]
    with atomic_write(env_file) as file:
        file.write("\n".join(lines) + "\n")
    passage = (row.positives or row.negatives)[0]
    print(f"first query: {row.query!r}; first passage: {passage[:200]!r}" if row.query else "documents")
    print("written to .env:", *lines[1:], "next: make run", sep="\n")


def clean() -> None:
    """Show what an experiment takes on disk, or remove parts of it, or all that belongs to a label.

    Raises UserError for an unknown name, and for a training that is running.
    """
    parser = CommandLine("clean", "Show the size of each part of the experiment, or remove parts of it.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a label and all that belongs to it, a part, or `all`")
    options, settings = parser.parse_args(), Settings.load()
    parts = {path.name: [path] for path in sorted(settings.paths.output.glob("*"))}
    parts |= {f"data/{path.name}": [path] for path in sorted(settings.paths.data.glob("*"))
              if not path.is_relative_to(settings.paths.output)}
    by_label = {label: files for label in (*RETRIEVERS, *pretrained(settings), *all_recipes(settings))
                if (files := files_of(settings, label))}
    for name in options.names:
        if name not in (*parts, *by_label, "all"):
            raise UserError(f"there is no {name!r} in {display_value(settings.paths.output)} or "
                            f"{display_value(settings.paths.data)}: choose from {', '.join(parts) or 'nothing'}")
    if not options.names:
        print(*(f"{name:30} {size(files) / 1e6:10.1f} MB" for name, files in parts.items()), sep="\n")
        print("\nof these, with all that belongs to a label (`clean LABEL` removes it):")
        print(*(f"{label:30} {size(files) / 1e6:10.1f} MB" for label, files in by_label.items()), sep="\n")
    for name in parts if "all" in options.names else options.names:
        files = by_label.get(name, parts.get(name, []))
        taken = size(files)
        for path in files:
            _remove(path)
        print(f"removed {name:30} {taken / 1e6:10.1f} MB")


def _remove(path: Path) -> None:
    if path.suffix == ".partial" and path.is_dir():
        with lock(path, wait=False):
            shutil.rmtree(path)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
