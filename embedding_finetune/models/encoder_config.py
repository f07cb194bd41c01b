"""How a model is used: pooling, normalisation, prompts and lengths, read from the model itself wherever it says so.

The files that sentence-transformers keeps beside a model's weights say it: `modules.json`, `1_Pooling/config.json`,
`config_sentence_transformers.json` (prompts), `2_Dense/` (layers after the pooling), `sentence_bert_config.json` or the
tokenizer's (lengths). A model that was fine-tuned here carries them all, so that it is asked as it was taught, whatever
the settings say by then. For other models a setting other than `auto` comes first, then MODEL_FILE
(profiles/models.toml), then the model's own files; the use says where they disagree, and what none of them says.
"""

import re
import tomllib
from dataclasses import asdict, dataclass, field

from embedding_finetune.artifacts.manifest import COMPILED_RECORD, read_checksummed
from embedding_finetune.files import UserError, read_json
from embedding_finetune.hub import check_hub, load, model_path, positions_of, read_model_file
from embedding_finetune.recipes import all_recipes
from embedding_finetune.settings import MODEL_SETTINGS, POOLINGS, display_value, split_revision

# What models have seen in training, where it is published: who met MS MARCO before is no stranger to it.
TRAINING_DATA_NOTES = {
    "bert-base-uncased": "pre-trained on Wikipedia and BookCorpus, never for retrieval (Devlin et al. 2019)",
    "BAAI/bge-m3": "trained for retrieval on MS MARCO's training part among others (Chen et al. 2024, "
                   "arXiv 2402.03216)",
    "bundled": "trained on 1.17 billion pairs, among them MS MARCO's training part and docstrings (its model card)",
}
POOLING_FILES = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last_token",
                 "last_token": "last_token"}  # as sentence-transformers writes them -> ours
KEYS = {"pooling": str, "query_prompt": str, "passage_prompt": str, "query_max_len": int, "passage_max_len": int,
        "normalize": bool}  # of an entry of MODEL_FILE
# Names of an EncoderConfig, and notes about it; the last two were written by earlier versions.
NOT_IDENTITY = ("label", "title", "name", "training_data_note", "overrides", "note", "seen", "differs")


@dataclass(frozen=True)
class EncoderConfig:
    """A model and how it is used: the same weights with another pooling or prompt are another retriever.

    `identity` and the content of the model (hub.model_content) tell one retriever from another.
    """

    label: str
    title: str              # as the settings name it
    name: str = field(repr=False)  # hub name or folder, of no interest to a reader
    pooling: str            # "cls", "mean" or "last_token"
    query_prompt: str       # put before each query, "" for none
    passage_prompt: str     # put before each passage, "" for none
    query_max_len: int      # tokens, prompt included
    passage_max_len: int    # tokens, prompt included
    normalize: bool = True  # vectors are scaled to length 1
    dense: str = ""         # folders of the Dense layers after its pooling, separated by spaces
    trusted: bool = False   # its own program code is run, if it has any
    training_data_note: str = "unknown"   # in training, where it is published
    overrides: str = ""       # where a setting goes against MODEL_FILE or the model's own files
    note: str = ""          # what MODEL_FILE says, and what nobody says

    @property
    def identity(self):
        """The fields that vectors depend on, as `identity_of` has them."""
        return identity_of(asdict(self))


def identity_of(used):
    """The part of a ModelUse's fields (name -> value) that vectors depend on; records keep more, for people."""
    return {name: value for name, value in used.items() if name not in NOT_IDENTITY}


def load_encoder_config(settings, label):
    """The ModelUse of a label: `raw`, `reference`, a label of EXTRA_MODELS, or a recipe whose model is finished.

    Raises UserError when the model cannot be had, or when neither a setting nor the model says how to pool.
    """
    models = pretrained(settings)
    if label in models:
        title, *wanted = models[label]
        return _encoder_config(settings, label, title, model_path(title), wanted, seen_by(title), title)
    folder = settings.output_dir / label
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no finished model: run `bash finetune_hard.sh {label}` first")
    record = read_checksummed(folder / "training.json", having={"settings": dict})
    if record is None and (folder / "training.json").exists():
        raise UserError(f"{folder / 'training.json'} is damaged, and says how {label} is used: bring it back, or train "
                        "it anew with OVERWRITE=1")
    record = record or {}
    base = record.get("settings", {}).get("BASE_MODEL", settings.base_model)
    seen = f"{seen_by(base)}; fine-tuned on this data set's training part"
    made_of = (read_json(folder / COMPILED_RECORD) or {}).get("made_of", {})
    seen = made_of.get("use", {}).get("seen", seen)  # that of the model it was compiled from
    return _encoder_config(settings, label, display_value(folder), str(folder), ({}, {}), seen, base)


def seen_by(title):
    """What a model has seen in training, by its name in the settings."""
    return TRAINING_DATA_NOTES.get(split_revision(title)[0], "unknown")


def embedding_dim(encoder_config):
    """Numbers in one vector of a model: those of its last Dense layer, or of its encoder. Raises UserError when its
    files cannot be had."""
    layers = encoder_config.dense.split()
    if layers:
        return read_model_file(encoder_config.name, f"{layers[-1]}/config.json")["out_features"]
    return load("AutoConfig", encoder_config.name, encoder_config.trusted).hidden_size


def pretrained(settings):
    """Label -> (model, what settings say of its use, what the profile says of another model's use) of the models that
    need no training here; both are arguments of ModelUse."""
    values = settings.as_dict()

    def said(model):
        given = {key: (name, values[name]) for key, name in MODEL_SETTINGS[model].items() if values[name] not in ("auto", 0)}
        return [{key: pair[1] for key, pair in given.items() if (pair in settings.of_others) == others}
                for others in (False, True)]

    raw, others = said("BASE_MODEL")
    raw |= {"query_max_len": settings.query_max_len, "passage_max_len": settings.passage_max_len}
    extra = (model.split("=", 1) for model in settings.extra_models.split())
    return {
        "raw": (settings.base_model, raw, others), "reference": (settings.reference_model, *said("REFERENCE_MODEL")),
        **{label: (name.split(",")[0], {"pooling": name.split(",")[1]} if "," in name else {}, {})
           for label, name in extra},
    }


def model_labels(settings):
    """The labels of all models: ready-made ones, those of recipes, whether they are trained or not, and compiled ones.
    """
    return [*pretrained(settings), *all_recipes(settings), *compiled_labels(settings)]


def compiled_labels(settings):
    """The labels of the compiled models in OUTPUT_DIR (see smaller)."""
    return sorted(path.parent.name for path in settings.output_dir.glob(f"*/{COMPILED_RECORD}") if "." not in path.parent.name)


def from_registry(settings):
    """Model -> how it is used, from MODEL_FILE. Raises UserError naming the entry that cannot be read."""
    path = settings.model_file
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read how models are used in {path} ({error}); see profiles/models.toml") from None
    for name, entry in entries.items():
        for key, value in entry.items() if isinstance(entry, dict) else [("", entry)]:
            if key not in KEYS or type(value) is not KEYS[key] or (key == "pooling" and value not in POOLINGS):
                raise UserError(f"{path}, entry {name!r}: {key or 'it'} = {value!r} is impossible; an entry is a table "
                                f"of {', '.join(KEYS)}, with pooling one of {', '.join(POOLINGS)}")
    return entries


def base_encoder_config(settings):
    """How BASE_MODEL is trained and used: the use that a fine-tuned model will carry."""
    return load_encoder_config(settings, "raw")


def _encoder_config(settings, label, title, name, wanted, seen, base):
    trusted = settings.trusts(title, name, base)
    (given, of_others), said, entries = wanted, from_files(name, trusted), from_registry(settings)
    entry = entries.get(title, entries.get(split_revision(title)[0], {}))
    own, file = said | entry, display_value(settings.model_file)
    told = ({} if own else of_others) | own | given
    default = {"query_prompt": "", "passage_prompt": ""}
    if not {"query_max_len", "passage_max_len"} <= told.keys():
        default |= dict.fromkeys(("query_max_len", "passage_max_len"), min(512, positions_of(name, trusted)))
    used = default | told
    if "pooling" not in used:
        raise UserError(f"{title} does not say how it pools: set BASE_POOLING, REFERENCE_POOLING, the pooling in "
                        f"EXTRA_MODELS or an entry of {file} to cls, mean or last_token")
    differs = [f"{key} is {used[key]!r}, where {source} {words[key]!r}"
               for key in ("pooling", "query_prompt", "passage_prompt")
               for source, words in (("its own files say", said), (f"{file} says", entry))
               if words.get(key, used[key]) != used[key]]
    notes = [f"{', '.join(entry)} from {file}"] * bool(entry)
    notes += [f"{', '.join(of_others)} of the profile left out: meant for another model"] * bool(own and of_others)
    notes += [f"no prompts: if its authors put any before queries or passages, give them in {file}"] * (
        told.keys().isdisjoint(("query_prompt", "passage_prompt")))
    return EncoderConfig(label, title, name, training_data_note=seen, overrides="; ".join(differs), note="; ".join(notes), trusted=trusted,
                    **used)


def from_files(name, trusted):
    """What a model's sentence-transformers files say of its use, as arguments of ModelUse; {} where it has none.

    Raises UserError when they ask for something that is not done here, or are broken.
    """
    check_hub(name)
    try:
        said = _from_files(name, trusted)
    except (AttributeError, LookupError, TypeError):
        said = {"pooling": None}
    wrong = [key for key, value in said.items() if type(value) is not KEYS.get(key, str)]
    if wrong:
        raise UserError(f"{name} has broken files of sentence-transformers (modules.json and those beside it, "
                        f"{wrong[0]}): mend or remove them")
    return said


def _from_files(name, trusted):
    modules = _modules(name)
    if not modules:
        return {}
    dense = [path for kind, path in modules if kind == "Dense"]
    for path in dense:
        _check_dense(name, path, read_model_file(name, f"{path}/config.json"))
    said = {"normalize": modules[-1][0] == "Normalize"} | ({"dense": " ".join(dense)} if dense else {})
    for kind, path in modules:
        said |= {"pooling": _pooling(name, read_model_file(name, f"{path}/config.json"))} if kind == "Pooling" else {}
    config = read_model_file(name, "config_sentence_transformers.json")
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    for key, names in (("query_prompt", ("query",)), ("passage_prompt", ("document", "passage", "corpus"))):
        found = [prompts[other] for other in (*names, default) if prompts.get(other) is not None]
        said |= {key: found[0]} if found else {}
    lengths = read_model_file(name, "sentence_bert_config.json")
    if lengths.get("do_lower_case"):
        raise UserError(f"{name} lower-cases its input beside its tokenizer, which is not supported here")
    longest = lengths.get("max_seq_length") or _tokenizer_length(name, trusted)
    for key, own in (("query_max_len", "query_length"), ("passage_max_len", "document_length")):
        length = lengths.get(own) or longest
        said |= {key: length} if length else {}
    return said


def _modules(name):
    """(kind, folder) of a model's modules as sentence-transformers lists them, without those that only train."""
    modules = read_model_file(name, "modules.json")
    modules = [(module["type"], module.get("path", "")) for module in modules]
    foreign = [kind for kind, path in modules if not kind.startswith("sentence_transformers.") or " " in path]
    modules = [(kind.rpartition(".")[2], path) for kind, path in modules]
    kinds = [kind for kind, _ in modules if kind != "Dropout"]
    if foreign or kinds and not re.fullmatch("Transformer( Pooling( Dense)*)?( Normalize)?", " ".join(kinds)):
        raise UserError(f"{name} is made of {', '.join(foreign or kinds)}; supported here are Transformer, Pooling, "
                        "Dense and Normalize of sentence-transformers, in this order: choose another model")
    return [module for module in modules if module[0] != "Dropout"]


def _check_dense(name, path, config):
    activation = config.get("activation_function") or "torch.nn.modules.activation.Tanh"
    if not activation.startswith("torch.nn.modules.") or {config.get("module_input_name"), config.get(
            "module_output_name")} - {None, "sentence_embedding"}:
        raise UserError(f"{name} has a layer {path} with the activation {activation}, or beside its vectors, which is "
                        "not supported here: choose another model")


def _tokenizer_length(name, trusted):
    """The length that the tokenizer's own file says, where sentence-transformers keeps it since version 6; or None."""
    length = read_model_file(name, "tokenizer_config.json").get("model_max_length") or 0
    return min(length, positions_of(name, trusted)) if 0 < length < 10**6 else None  # without a limit some write 10**30


def _pooling(name, config):
    modes = config.get("pooling_mode") or [  # newer versions of sentence-transformers, and older ones
        key.removeprefix("pooling_mode_") for key, used in config.items() if key.startswith("pooling_mode_") and used]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLING_FILES or not config.get("include_prompt", True):
        raise UserError(f"{name} pools by {' and '.join(modes) or 'nothing'}, or without the prompt, which is not "
                        "supported here: choose another model")
    return POOLING_FILES[modes[0]]
