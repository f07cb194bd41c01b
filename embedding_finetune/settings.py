"""Every setting of an experiment, in one table: type, default, check, what it is for, and what a change of it
invalidates.

    python -m embedding_finetune settings    shows the settings in force, and what each is for

A profile, `profiles/PROFILE.env`, gives values where there is no default, or another one; a variable of the
environment wins over the profile, and what a recipe changes (see recipes) wins over both. The flags of the training,
the records that say whether a file or a model is still today's, and what the notebooks show, all follow from this
table.
"""

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from embedding_finetune.deprecation import run_renamed
from embedding_finetune.files import CommandLine, UserError, run_command_line
from embedding_finetune.labels import LABEL_RULE, is_valid_label
from embedding_finetune.profiles import ROOT, from_environment, from_profile
from embedding_finetune.settings_view import SettingsView, versions

DATA, TRAINING, EVALUATION, NOTHING = "data", "training", "evaluation", "nothing"  # what a change invalidates
POOLINGS = ("cls", "mean", "last_token")
SELECTION_METRIC = "mrr@10"  # on dev queries: checkpoints, fusion weights, the fine-tuned model that meets its rivals


def setting(why, changes, default=dataclasses.MISSING, check=None, flag=None):
    """A row of the table. `check` is (predicate, demand); `flag` is the flag of the training that it becomes."""
    return dataclasses.field(default=default, metadata={"why": why, "changes": changes, "check": check, "flag": flag})


def at_least(low):
    return lambda value: value >= low, f"must be {low} or more"


def within(low, high):
    return lambda value: low < value < high, f"must lie between {low} and {high}"


def one_of(*values):
    return lambda value: value in values, f"must be one of {', '.join(values)}"


LANGUAGE = lambda code: re.fullmatch(r"[a-z]{2,4}", code), "must be auto, none or a code such as en or zh"
POSITIVE = lambda value: value > 0, "must be more than 0"
EXTRA_MODEL_LIST = (lambda text: all(re.fullmatch(r"[^,]+(,(cls|mean|last_token))?", model.partition("=")[2])
                          and is_valid_label(model.partition("=")[0]) for model in text.split()),
         f"must list label=model or label=model,pooling, with new labels: {LABEL_RULE}")
RETRIEVERS = (lambda text: "bm25" in text.split() and all(map(is_valid_label, {*text.split()} - {"bm25"})),
              f"must list bm25, and perhaps others with labels of their own: {LABEL_RULE}")
RERANKER_LABELS = (lambda text: re.fullmatch(r"\s*([a-z0-9]+_[\w-]+\s*)*", text, re.ASCII),
          "must list second stages such as late_reference or late_reference_on_neg10")
DIMENSION_LIST = (lambda text: all(re.fullmatch(r"[1-9]\d*", dim) for dim in text.split()), "must list whole numbers above 0")
MODEL_SETTINGS = {  # how a model is used (argument of ModelUse -> setting): said of one model, it is not meant for another
    "BASE_MODEL": {"pooling": "BASE_POOLING", "query_prompt": "QUERY_PROMPT",
                   "passage_prompt": "PASSAGE_PROMPT"},
    "REFERENCE_MODEL": {"pooling": "REFERENCE_POOLING", "query_prompt": "REFERENCE_PROMPT",
                        "query_max_len": "REFERENCE_MAX_LEN", "passage_max_len": "REFERENCE_MAX_LEN"}}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of `profiles/PROFILE.env`, each overridable by the environment variable of its name in capitals."""

    profile: str
    of_others: tuple = ()  # (NAME, value): said by the profile of a model in whose place another one has come

    dataset: str = setting("the pairs: msmarco, docstrings, a file, a folder, or a hub name", DATA)
    query_column: str = setting("of the pairs; auto: guessed where there is no doubt", DATA, "auto")
    positive_column: str = setting("passages that answer, one or a list; auto as above", DATA, "auto")
    negative_column: str = setting("passages that do not; auto as above, none: do not read", DATA, "auto")
    id_column: str = setting("the queries' ids; auto and none as above", DATA, "auto")
    split: str = setting("of a hub name that has several", DATA, "")
    max_bad_rows: float = setting("share of broken rows above which the build stops", NOTHING, 0.05,
                                  (lambda share: 0 <= share <= 1, "must lie between 0 and 1"))
    corpus: str = setting("more passages, without queries: a file, a folder, or a hub name", DATA, "")
    corpus_text_column: str = setting("of CORPUS; auto: guessed where there is no doubt", DATA, "auto")
    corpus_title_column: str = setting("put before the text; auto as above, none: do not read", DATA, "auto")
    corpus_id_column: str = setting("the passages' ids; auto and none as above", DATA, "auto")
    corpus_split: str = setting("of a hub name that has several", DATA, "")
    chunk_tokens: int = setting("the longest passage of a folder's documents; 0: PASSAGE_MAX_LEN", DATA, 0,
                                (lambda tokens: tokens == 0 or tokens >= 16, "must be 0, or 16 or more"))
    chunk_overlap: int = setting("tokens that passages of a section share with the next", DATA, 0, at_least(0))
    document_queries: str = setting("queries for a folder's documents that people wrote, with where the answer is", DATA, "")
    data_dir: Path = setting("where the data files are", NOTHING)
    output_dir: Path = setting("where models, runs and results are", NOTHING)
    max_queries: int = setting("a seeded sample of so many queries; 0 takes all", DATA, 0, at_least(0))
    test_fraction: float = setting("of the queries", DATA, 0.2, within(0, 1))
    dev_fraction: float = setting("of the queries that are left for training", DATA, 0.05, within(0, 1))
    group_near_duplicates: bool = setting("passages that say nearly the same are kept in one part", DATA, True)
    training_export: bool = setting("write training files for FlagEmbedding, too: the text of each negative", NOTHING,
                                    True)
    seed: int = setting("of everything that is drawn", DATA, 42, (range(2**32).__contains__, "must be 0 to 2**32 - 1"))

    base_model: str = setting("what is fine-tuned: a hub name, a folder, or `bundled` (all-MiniLM-L6-v2)", TRAINING)
    base_pooling: str = setting("auto: as the model's own files say", TRAINING, "auto", one_of("auto", *POOLINGS))
    query_prompt: str = setting("put before each query; auto: as the model's files say", TRAINING, "auto")
    passage_prompt: str = setting("put before each passage; auto as above", TRAINING, "auto")
    reranker_model: str = setting("what a recipe of kind reranker begins with: a hub name, a folder; empty: BASE_MODEL",
                            NOTHING, "")
    reference_model: str = setting("the ready-made model that fine-tuning has to beat", EVALUATION)
    reference_pooling: str = setting("as BASE_POOLING", EVALUATION, "auto", one_of("auto", *POOLINGS))
    reference_prompt: str = setting("put before its queries; auto as above", EVALUATION, "auto")
    reference_max_len: int = setting("tokens of a text; 0: as the model's files say", EVALUATION, 0, at_least(0))
    extra_models: str = setting("more models to measure: label=model or label=model,pooling ..", EVALUATION, "", EXTRA_MODEL_LIST)

    model_file: Path = setting("how models are used whose own files do not say it", NOTHING, "profiles/models.toml")
    trust_remote_code: str = setting("models whose own program code is run, separated by spaces", NOTHING, "")

    recipe_file: Path = setting("the fine-tunings that there are", NOTHING, "profiles/recipes.toml")
    recipes: str = setting("recipes that `make run` adds to neg10 and neg50, separated by spaces", NOTHING, "")
    seeds: int = setting("fine-tunings with so many seeds, SEED and the next ones", NOTHING, 1, at_least(1))
    retrievers: str = setting("retrievers without a model that are measured, separated by spaces", EVALUATION, "bm25",
                              RETRIEVERS)
    bm25_language: str = setting("whose stemmer and stop words: a code, none, or auto: the corpus's", EVALUATION,
                                 "auto", LANGUAGE)  # LANGUAGE itself is gettext's, and set on many desktops
    token_dtype: str = setting("what token vectors are kept as", EVALUATION, "float16", one_of("float16", "int8"))
    token_pool_factor: int = setting("token vectors of a passage that become one, on average", EVALUATION, 1, at_least(1))
    reranker_precision: str = setting("of a reranker's scores; bf16 is quick where a GPU, or a processor with AMX, "
                                      "computes in it", EVALUATION, "fp32", one_of("fp32", "bf16"))
    rerankers: str = setting("second looks that `make run` measures: KIND_MODEL or KIND_MODEL_on_FIRST ..",
                                 NOTHING, "late_reference", RERANKER_LABELS)
    out_of_domain_sets: str = setting("more test sets: folders in BEIR's layout, or general (of a package)", EVALUATION, "")
    index: str = setting("where search in use looks for vectors: flat, words of faiss, or milvus:URI", NOTHING, "flat")
    abstention_precision: float = setting("share of right first hits, on dev, from the score on that says \"an answer\"",
                                         NOTHING, 0.8, within(0, 1))

    trainer: str = setting("flagembedding takes FlagEmbedding's own, which cannot be continued", TRAINING,
                           "embedding_finetune", one_of("embedding_finetune", "flagembedding"))
    gpus: int = setting("training processes a node, one a GPU; a query meets the passages of all", TRAINING, 1,
                        at_least(1))
    nnodes: int = setting("machines that train together; each starts the same command", TRAINING, 1, at_least(1))
    rdzv_endpoint: str = setting("HOST:PORT of one of them, where they meet", NOTHING, "",
                                 (lambda text: re.fullmatch(r"([^\s:]+:\d{1,5})?", text), "must be HOST:PORT"))
    ray_address: str = setting("of the Ray cluster that encodes: local, auto, HOST:PORT, ray://HOST:PORT; empty: none",
                               NOTHING, "")
    max_restarts: int = setting("times that all processes start again after one was killed", NOTHING, 0, at_least(0))
    train_group_size: int = setting("1 positive and the rest negatives, sampled anew at each step", TRAINING,
                                    check=at_least(2), flag="train_group_size")
    batch_size: int = setting("queries a step and process", TRAINING, check=at_least(1),
                              flag="per_device_train_batch_size")
    learning_rate: float = setting("the highest, after the warm-up", TRAINING, check=within(0, 1), flag="learning_rate")
    epochs: float = setting("passes through the training queries", TRAINING, check=POSITIVE, flag="num_train_epochs")
    warmup_ratio: float = setting("share of the steps in which the learning rate rises", TRAINING, 0.1,
                                  (lambda share: 0 <= share < 1, "must be at least 0 and below 1"), "warmup_steps")
    temperature: float = setting("cosines are divided by it in the loss", TRAINING, 0.02, POSITIVE, "temperature")
    distillation_loss: str = setting("what a teacher teaches: probabilities (kl), or distances to the positive (margin)",
                                TRAINING, "kl", one_of("kl", "margin"))
    precision: str = setting("of the training; auto: fp32 on a CPU; on a GPU bf16, or fp16 where it has no bf16",
                             TRAINING, "auto", one_of("auto", "fp32", "bf16", "fp16"))
    query_max_len: int = setting("tokens of a query with its prompt", TRAINING, check=at_least(8), flag="query_max_len")
    passage_max_len: int = setting("tokens of a passage", TRAINING, check=at_least(8), flag="passage_max_len")
    architecture: str = setting("what is trained to tell passages apart: one vector (dense), all tokens' (late), both",
                               TRAINING, "single_vector", one_of("single_vector", "multi_vector", "both"), "architecture")
    token_dim: int = setting("of a token's vector; 0: the model's own", TRAINING, 0, at_least(0), "token_dim")
    query_expansion: int = setting("late interaction: a query is filled up to so many tokens with [MASK]; 0: not",
                                   TRAINING, 0, at_least(0), "query_expansion")
    matryoshka_dims: str = setting("first numbers of a vector that are trained as vectors, too, such as 192 96 48",
                                   TRAINING, "", DIMENSION_LIST)
    lora_rank: int = setting("LoRA: so many dimensions a weight matrix are trained; 0 trains all weights", TRAINING,
                             0, (range(1025).__contains__, "must be 0 to 1024"), "lora_rank")
    lora_alpha: float = setting("LoRA: its part counts LORA_ALPHA / LORA_RANK", TRAINING, 32.0, POSITIVE, "lora_alpha")
    grad_cache_chunk: int = setting("GradCache: train in the memory of so many texts; 0 is off", NOTHING,
                                    0, at_least(0), "grad_cache_chunk")
    dev_steps: float = setting("steps between dev evaluations; below 1: a share", TRAINING, 0.1, POSITIVE, "dev_steps")
    patience: int = setting("dev evaluations without a better one after which a training ends; 0: it never does",
                            TRAINING, 0, at_least(0), "patience")
    dev_corpus_size: int = setting("passages of the dev search beside the dev positives", TRAINING, 2000, at_least(0),
                                   "dev_corpus_size")
    logging_steps: int = setting("steps between two lines of the log", NOTHING, 10, at_least(1), "logging_steps")
    encode_batch_size: int = setting("texts a batch in encoding; 0 chooses by device", NOTHING, 0, at_least(0))

    model_license: str = setting("of a published model, as the hub writes it (apache-2.0); unknown is one", NOTHING, "",
                                  (lambda text: re.fullmatch(r"[\w.-]*", text), "must be an identifier of the hub"))
    model_language: str = setting("of a published model: codes such as en, separated by spaces", NOTHING, "")

    @classmethod
    def load(cls, profile=None):
        """Read the settings; `profile=None` means the environment's PROFILE, or `msmarco`.

        Raises UserError naming the first setting that is unknown, misspelt (in the environment), missing or impossible.
        """
        profile = profile or os.environ.get("PROFILE") or "msmarco"
        given, own = from_profile(profile, TABLE), from_environment(TABLE)
        others, given = _meant_for_others(given, own), given | own
        for name, row in TABLE.items():
            if name not in given and row.default is dataclasses.MISSING:
                raise UserError(f"profiles/{profile}.env lacks {name}: {row.metadata['why']}")
        values = {name: given.get(name, str(row.default)) for name, row in TABLE.items()}
        return cls(profile=profile, of_others=others,
                   **{name.lower(): _parse(name, text) for name, text in values.items()})

    def with_overrides(self, changes):
        """These settings with a recipe's in their place, NAME -> value; raises as `load` does."""
        allowed = [name for name, row in TABLE.items()
                   if row.metadata["changes"] == TRAINING or row.metadata["flag"] or name == "SEED"]
        for name in changes:
            if name not in allowed:
                raise UserError(f"a recipe cannot change {name}, only {', '.join(allowed)}")
        others = self.of_others + _meant_for_others(self.as_dict(), changes)
        return dataclasses.replace(self, of_others=others, **{name.lower(): _parse(name, str(value))
                                                              for name, value in changes.items()})

    def as_dict(self, *levels):
        """NAME -> value; only of settings whose change invalidates one of `levels`, if any are named."""
        return {name: display_value(getattr(self, name.lower())) for name, row in TABLE.items()
                if not levels or row.metadata["changes"] in levels}

    def trusts(self, *names):
        """Whether TRUST_REMOTE_CODE lists a model by one of its `names`, with its revision or without; folders may be
        written in any way."""
        known = {*names, *(split_revision(name)[0] for name in names)}
        return not {*map(path_of, known)}.isdisjoint(map(path_of, self.trust_remote_code.split()))

    def show(self, *names):
        """For a notebook: the settings of these names, with all others, the device and the versions folded away."""
        return SettingsView(self, names)


TABLE = {row.name.upper(): row for row in dataclasses.fields(Settings) if row.metadata}


def path_of(text):
    """The path that a setting names: below the repository, unless it says otherwise."""
    return ROOT / Path(text).expanduser()


def display_value(value):
    """A setting's value as it can be written down: folders below the repository without the way to it."""
    return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value) if isinstance(value, Path) else value


def split_revision(name):
    """(NAME, REVISION) of NAME@REVISION, a model or data set of the hub; (name, "") of all else, such as a folder."""
    found = re.fullmatch(r"([\w-][\w.-]*(?:/[\w.-]+)?)@([\w./-]+)", name)
    return (name, "") if not found or Path(name).exists() or path_of(name).exists() else found.groups()


def _meant_for_others(said, instead):
    """Pairs (NAME, value): what `said` has of the use of a model that `instead` (also NAME -> value) replaces."""
    replaced = [model for model in MODEL_SETTINGS if model in instead
                and split_revision(str(instead[model]))[0] != split_revision(str(said.get(model)))[0]]
    return tuple((name, _parse(name, str(said[name]))) for model in replaced
                 for name in sorted({*MODEL_SETTINGS[model].values()}) if name in said and name not in instead)


def _parse(name, text):
    """The value of a setting; raises UserError when it is none, or fails its check."""
    row = TABLE[name]
    parse, wanted = {Path: (path_of, "a path"), str: (str, "a text"),
                     int: (int, "a whole number"), float: (float, "a number"),
                     bool: (_yes_or_no, "yes or no")}[row.type]
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


def _yes_or_no(text):
    return {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}[text.lower()]


def main():
    CommandLine("settings", __doc__).parse_args()
    settings = Settings.load()
    print(f"profile {settings.profile}\n")
    for name, value in settings.as_dict().items():
        print(f"{name:26} {value!s:30} {TABLE[name].metadata['why']}")
    print(*(f"{name:26} {value}" for name, value in versions().items()), sep="\n")


if __name__ == "__main__":
    run_command_line(lambda: run_renamed("settings", "settings"))
