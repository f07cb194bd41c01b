"""The settings of an experiment: type, default, check, description, and what a change invalidates.

    python -m embedding_finetune settings    shows all settings, their values and where these come from

The profile `profiles/PROFILE.env` sets values without a default and overrides others. The file `.env` takes precedence
over the profile, environment variables over both, and a recipe's settings (see recipes) over all. The records that say
whether an output is current, and the tables in the notebooks are derived from this table.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedding_finetune.deprecation import run_renamed
from embedding_finetune.files import UserError, run_command_line
from embedding_finetune.paths import Paths
from embedding_finetune.profiles import ROOT, from_env_file, from_environment, from_profile
from embedding_finetune.setting_checks import (
    AUTO,
    DIMENSION_LIST,
    EXTRA_MODEL_LIST,
    LANGUAGE,
    LENGTH,
    POSITIVE,
    RERANKER_LABELS,
    RETRIEVERS,
    at_least,
    one_of,
    within,
)
from embedding_finetune.settings_view import SettingsView

DATA, TRAINING, EVALUATION, NOTHING = "data", "training", "evaluation", "nothing"  # what a change invalidates
LEVELS = {DATA: "data: a change builds all again", TRAINING: "training: a change trains again",
          EVALUATION: "evaluation: a change evaluates again", NOTHING: "others: a change keeps what has been made"}
POOLINGS = ("cls", "mean", "last_token")
YES_OR_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
SELECTION_METRIC = "mrr@10"  # on dev queries: selects checkpoints, fusion weights and models


def setting(why: str, changes: str, default: Any = dataclasses.MISSING, check: tuple | None = None,
            recipe: bool = False) -> Any:
    """A row of the table: `why` describes it, `changes` is what a change invalidates, `check` is (predicate, demand).

    A recipe may change the settings of a training, and those with `recipe`.
    """
    return dataclasses.field(default=default, metadata={
        "why": why, "changes": changes, "check": check, "recipe": recipe or changes == TRAINING})


MODEL_SETTINGS = {  # argument of EncoderConfig -> setting, which holds for the model it was given with and no other
    "BASE_MODEL": {"pooling": "BASE_POOLING", "query_prompt": "QUERY_PROMPT", "passage_prompt": "PASSAGE_PROMPT"},
    "REFERENCE_MODEL": {"pooling": "REFERENCE_POOLING", "query_prompt": "REFERENCE_PROMPT",
                        "query_max_len": "REFERENCE_MAX_LEN", "passage_max_len": "REFERENCE_MAX_LEN"}}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of `profiles/PROFILE.env`; the environment variable NAME overrides the setting NAME."""

    profile: str
    sources: tuple = dataclasses.field(default=(), compare=False, repr=False)  # (NAME, source) of non-default values
    of_others: tuple = ()  # (NAME, value): the profile's settings for a model that was replaced by another

    dataset: str = setting("the pairs: msmarco, docstrings, a file, a folder, or a Hugging Face dataset", DATA)
    query_column: str = setting("query column of DATASET; auto: guessed if unambiguous", DATA, "auto")
    positive_column: str = setting("column of relevant passages, one or a list; auto as above", DATA, "auto")
    negative_column: str = setting("column of irrelevant passages; auto as above, none: not read", DATA, "auto")
    id_column: str = setting("column of query ids; auto and none as above", DATA, "auto")
    label_column: str = setting("column of grades, 0: irrelevant; NAME>=0.5: a threshold; auto as above", DATA, "auto")
    split_column: str = setting("column that assigns rows to train, dev and test; auto and none as above", DATA, "auto")
    split: str = setting("split of a Hub dataset that has several", DATA, "")
    max_bad_rows: float = setting("fraction of broken rows above which the build stops", NOTHING, 0.05,
                                  (lambda share: 0 <= share <= 1, "must lie between 0 and 1"))
    corpus: str = setting("more passages, without queries: a file, a folder, or a Hub dataset", DATA, "")
    corpus_text_column: str = setting("text column of CORPUS; auto: guessed if unambiguous", DATA, "auto")
    corpus_title_column: str = setting("title column, put before the text; auto as above, none: not read", DATA, "auto")
    corpus_id_column: str = setting("column of passage ids; auto and none as above", DATA, "auto")
    corpus_split: str = setting("split of a Hub dataset that has several", DATA, "")
    chunk_tokens: int = setting("maximum tokens per passage of a document; 0: PASSAGE_MAX_LEN", DATA, 0,
                                (lambda tokens: tokens == 0 or tokens >= 16, "must be 0, or 16 or more"))
    chunk_overlap: int = setting("tokens shared by consecutive passages of a section", DATA, 0, at_least(0))
    document_queries: str = setting("file of human-written queries, with answers, for a folder of documents", DATA, "")
    data_dir: Path = setting("folder of the data files", NOTHING)
    output_dir: Path = setting("folder of models, runs and results", NOTHING)
    max_queries: int = setting("size of a seeded sample of the queries; 0: all", DATA, 0, at_least(0))
    test_fraction: float = setting("fraction of the queries in the test split", DATA, 0.2, within(0, 1))
    dev_fraction: float = setting("fraction of the other queries in the dev split", DATA, 0.05, within(0, 1))
    group_near_duplicates: bool = setting("keep near-duplicate passages in the same split", DATA, True)
    leaking_rows: str = setting("training pairs with dev or test texts", DATA, "drop", one_of("drop", "keep", "stop"))
    training_export: bool = setting("also write training files for FlagEmbedding, with the text of each negative",
                                    NOTHING, True)
    seed: int = setting("seed of all random draws", DATA, 42, (range(2**32).__contains__, "must be 0 to 2**32 - 1"),
                        recipe=True)

    base_model: str = setting("model to fine-tune: a Hub model, a folder, or `bundled` (all-MiniLM-L6-v2)", TRAINING)
    base_pooling: str = setting("pooling of BASE_MODEL; auto: from the model's files", TRAINING, "auto",
                                one_of("auto", *POOLINGS))
    query_prompt: str = setting("prefix of each query; auto: from the model's files", TRAINING, "auto")
    passage_prompt: str = setting("prefix of each passage; auto as above", TRAINING, "auto")
    reranker_model: str = setting("where cross_encoder recipes start: a Hub model or a folder; empty: BASE_MODEL",
                                  NOTHING, "")
    reference_model: str = setting("off-the-shelf model that fine-tuned models are compared with", EVALUATION)
    reference_pooling: str = setting("pooling of REFERENCE_MODEL, as BASE_POOLING", EVALUATION, "auto",
                                     one_of("auto", *POOLINGS))
    reference_prompt: str = setting("prefix of its queries; auto as above", EVALUATION, "auto")
    reference_max_len: int = setting("maximum tokens per text; 0: from the model's files", EVALUATION, 0, at_least(0))
    extra_models: str = setting("more models to evaluate: label=model or label=model,pooling ..", EVALUATION, "",
                                EXTRA_MODEL_LIST)

    model_file: Path = setting("pooling and prompts of models whose own files do not give them", NOTHING,
                               "profiles/models.toml")
    trust_remote_code: str = setting("models whose own code may be run, separated by spaces", NOTHING, "")

    recipe_file: Path = setting("file of the recipes", NOTHING, "profiles/recipes.toml")
    recipes: str = setting("recipes that `make run` adds to neg10 and neg50, separated by spaces", NOTHING, "")
    seeds: int = setting("trainings per recipe, with SEED and the seeds that follow it", NOTHING, 1, at_least(1))
    retrievers: str = setting("retrievers without a model to evaluate, separated by spaces", EVALUATION, "bm25",
                              RETRIEVERS)
    bm25_language: str = setting("language of stemmer and stop words: a code, none, or auto (from the corpus)",
                                 EVALUATION, "auto", LANGUAGE)  # LANGUAGE is gettext's variable, set on many desktops
    token_dtype: str = setting("data type of stored token vectors", EVALUATION, "float16", one_of("float16", "int8"))
    token_pool_factor: int = setting("token pooling: token vectors of a passage merged into one, on average",
                                     EVALUATION, 1, at_least(1))
    reranker_precision: str = setting("precision of cross-encoders; bf16 is faster on a GPU or a CPU with AMX",
                                      EVALUATION, "fp32", one_of("fp32", "bf16"))
    rerankers: str = setting("rerankers that `make run` evaluates: KIND_MODEL or KIND_MODEL_on_FIRST ..", NOTHING,
                             "late_reference", RERANKER_LABELS)
    out_of_domain_sets: str = setting("out-of-domain test sets: folders in BEIR's layout (quote spaces), or general",
                                      EVALUATION, "")
    index: str = setting("vector index of the search: flat, a faiss factory string, or milvus:URI", NOTHING, "flat")

    trainer: str = setting("embedding_finetune, or flagembedding: FlagEmbedding's own, which cannot resume", TRAINING,
                           "embedding_finetune", one_of("embedding_finetune", "flagembedding"))
    gpus: int = setting("training processes per node, one per GPU; they share their in-batch negatives", TRAINING, 1,
                        at_least(1))
    nnodes: int = setting("machines that train together; run the same command on each", TRAINING, 1, at_least(1))
    rdzv_endpoint: str = setting("HOST:PORT of one of them, where they meet", NOTHING, "",
                                 (lambda text: re.fullmatch(r"([^\s:]+:\d{1,5})?", text), "must be HOST:PORT"))
    ray_address: str = setting("Ray cluster for encoding: local, auto, HOST:PORT, ray://HOST:PORT; empty: none",
                               NOTHING, "")
    max_restarts: int = setting("restarts of all processes after one was killed", NOTHING, 0, at_least(0))
    train_group_size: int = setting("passages per query: 1 positive, the rest negatives, sampled at each step",
                                    TRAINING, check=at_least(2))
    batch_size: int = setting("queries per step and process", TRAINING, check=at_least(1))
    learning_rate: float = setting("peak learning rate, after the warm-up", TRAINING, check=within(0, 1))
    epochs: float = setting("passes over the training queries", TRAINING, check=POSITIVE)
    warmup_ratio: float = setting("fraction of the steps in which the learning rate rises", TRAINING, 0.1,
                                  (lambda share: 0 <= share < 1, "must be at least 0 and below 1"))
    temperature: float = setting("divisor of the cosines in the loss", TRAINING, 0.02, POSITIVE)
    distillation_loss: str = setting("kl: the teacher's probabilities; margin: its score differences to the positive",
                                     TRAINING, "kl", one_of("kl", "margin"))
    precision: str = setting("precision of the training; auto: fp32 on a CPU, bf16 on a GPU, or fp16 without bf16",
                             TRAINING, "auto", one_of("auto", "fp32", "bf16", "fp16"))
    query_max_len: int | str = setting("maximum tokens per query and its prompt; auto: by the data in training, by the "
                                       "model elsewhere", TRAINING, check=LENGTH)
    passage_max_len: int | str = setting("maximum tokens per passage; auto as above", TRAINING, check=LENGTH)
    memory_budget: float = setting("GB of activations per step that automatic lengths allow", TRAINING, 8.0, POSITIVE)
    architecture: str = setting("what is trained: single_vector (dense), multi_vector (late interaction) or both",
                                TRAINING, "single_vector", one_of("single_vector", "multi_vector", "both"))
    token_dim: int = setting("dimensions of a token vector; 0: the model's", TRAINING, 0, at_least(0))
    query_expansion: int = setting("late interaction: pad queries with [MASK] to this many tokens; 0: off", TRAINING, 0,
                                   at_least(0))
    matryoshka_dims: str = setting("Matryoshka dimensions that are also trained, such as 192 96 48", TRAINING, "",
                                   DIMENSION_LIST)
    lora_rank: int = setting("LoRA: rank of the update of each weight matrix; 0: train all weights", TRAINING, 0,
                             (range(1025).__contains__, "must be 0 to 1024"))
    lora_alpha: float = setting("LoRA: the update is scaled by LORA_ALPHA / LORA_RANK", TRAINING, 32.0, POSITIVE)
    grad_cache_chunk: int = setting("GradCache: texts per chunk, which bounds the memory; 0: off", NOTHING, 0,
                                    at_least(0), recipe=True)
    dev_steps: float = setting("steps between dev evaluations; below 1: a fraction of all steps", TRAINING, 0.1,
                               POSITIVE)
    patience: int = setting("dev evaluations without improvement before the end; 0: no limit", TRAINING, 0, at_least(0))
    dev_corpus_size: int = setting("passages in the dev search besides the dev positives", TRAINING, 2000, at_least(0))
    logging_steps: int = setting("steps between log lines", NOTHING, 10, at_least(1), recipe=True)
    encode_batch_size: int = setting("texts per batch in encoding; 0: by device", NOTHING, 0, at_least(0))

    model_license: str = setting("license of a published model, a Hub identifier (apache-2.0) or unknown", NOTHING, "",
                                 (lambda text: re.fullmatch(r"[\w.-]*", text), "must be a Hub license identifier"))
    model_language: str = setting("languages of a published model: codes such as en, separated by spaces", NOTHING, "")

    @classmethod
    def load(cls, profile: str | None = None, given: dict[str, str] | None = None) -> "Settings":
        """Read the settings; `profile=None` means PROFILE of the environment or of `.env`, else `msmarco`.

        `given` (NAME -> text) takes the place of the environment and of `.env`.
        Raises UserError naming the first setting that is unknown, misspelled (in the environment), missing or invalid.
        """
        environment, env_file = (given, {}) if given else (from_environment(TABLE), from_env_file(TABLE))
        named = env_file.pop("PROFILE", None)
        profile = profile or os.environ.get("PROFILE") or named or "msmarco"
        values = from_profile(profile, TABLE)
        names = f"profiles/{profile}.env", os.environ.get("ENV_FILE") or ".env", "environment"
        sources = {key: name for name, some in zip(names, (values, env_file, environment)) for key in some}
        others, values = _meant_for_others(values, env_file | environment), values | env_file | environment
        for name, row in TABLE.items():
            if name not in values and row.default is dataclasses.MISSING:
                raise UserError(f"profiles/{profile}.env lacks {name}: {row.metadata['why']}")
        parsed = {name.lower(): _parse(name, values.get(name, str(row.default))) for name, row in TABLE.items()}
        return cls(profile=profile, of_others=others, sources=tuple(sources.items()), **parsed)

    def with_overrides(self, changes: Mapping[str, object]) -> "Settings":
        """These settings with a recipe's values (NAME -> value); raises UserError as `load` does."""
        allowed = [name for name, row in TABLE.items() if row.metadata["recipe"]]
        for name in changes:
            if name not in allowed:
                raise UserError(f"a recipe cannot change {name}, only {', '.join(allowed)}")
        others = self.of_others + _meant_for_others(self.as_dict(), changes)
        return dataclasses.replace(self, of_others=others, **{name.lower(): _parse(name, str(value))
                                                              for name, value in changes.items()})

    def as_dict(self, *levels: str) -> dict[str, Any]:
        """NAME -> value of all settings, or of those that `levels` names, or whose change invalidates one of them."""
        return {name: display_value(getattr(self, name.lower())) for name, row in TABLE.items()
                if not levels or row.metadata["changes"] in levels or name in levels}

    def rng(self, *key: int) -> np.random.Generator:
        """A random generator seeded with SEED, and with `key` to make draws for different purposes independent."""
        return np.random.default_rng([self.seed, *key])

    @property
    def paths(self) -> Paths:
        """Where the files of the experiment are."""
        return Paths(self.data_dir, self.output_dir)

    def trusts(self, *names: str) -> bool:
        """Whether TRUST_REMOTE_CODE lists a model by one of its `names`, with or without a revision; folders match as
        paths.
        """
        known = {*names, *(split_revision(name)[0] for name in names)}
        return not {*map(path_of, known)}.isdisjoint(map(path_of, self.trust_remote_code.split()))

    def show(self, *names: str) -> SettingsView:
        """View for a notebook: the named settings, with all others, the device and the versions collapsed."""
        return SettingsView(self, names)


TABLE = {row.name.upper(): row for row in dataclasses.fields(Settings) if row.metadata}


def path_of(text: str) -> Path:
    """The path that a setting names; relative paths are relative to the repository."""
    return ROOT / Path(text).expanduser()


def display_value(value: Any) -> Any:
    """A setting's value for records and messages: paths in the repository are relative to it, and the password of a
    URL is replaced by ***.
    """
    if isinstance(value, Path):
        return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)
    return re.sub(r"(://[^/@\s:]*):[^/\s]*@", r"\1:***@", value) if isinstance(value, str) else value


def split_revision(name: str) -> tuple[str, str]:
    """(NAME, REVISION) of NAME@REVISION on the Hugging Face Hub; (name, "") for anything else, such as a folder."""
    found = re.fullmatch(r"([\w-][\w.-]*(?:/[\w.-]+)?)@([\w./-]+)", name)
    return (name, "") if not found or Path(name).exists() or path_of(name).exists() else (found[1], found[2])


def _meant_for_others(given, overrides):
    """(NAME, value) of the settings in `given` that describe a model which `overrides` replaces; both are NAME ->
    value.
    """
    replaced_models = [model for model in MODEL_SETTINGS if model in overrides
                and split_revision(str(overrides[model]))[0] != split_revision(str(given.get(model)))[0]]
    return tuple((name, _parse(name, str(given[name]))) for model in replaced_models
                 for name in sorted({*MODEL_SETTINGS[model].values()}) if name in given and name not in overrides)


def _parse(name: str, text: str) -> Any:
    """The value of a setting; raises UserError when it has the wrong type or fails its check."""
    row = TABLE[name]
    parse, wanted = {Path: (path_of, "a path"), str: (str, "a text"),
                     int: (int, "a whole number"), float: (float, "a number"),
                     int | str: (lambda given: given if given == AUTO else int(given), "a whole number or auto"),
                     bool: (lambda given: YES_OR_NO[given.lower()], "yes or no")}[row.type]
    try:
        value = parse(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError
    except (ValueError, KeyError):
        raise UserError(f"{name}={text!r} is not {wanted}") from None
    holds, demand = row.metadata["check"] or (lambda value: True, "")
    if not holds(value):
        raise UserError(f"{name}={text} is impossible: it {demand}")
    return value


if __name__ == "__main__":  # the old name of the command
    run_command_line(lambda: run_renamed("settings", "settings"))
