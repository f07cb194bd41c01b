"""Pooling, prompts and lengths that a model's own files state.

The sentence-transformers files are `modules.json`, `1_Pooling/config.json`, `config_sentence_transformers.json`
(prompts), `2_Dense/` (layers after pooling), and `sentence_bert_config.json` or `tokenizer_config.json` (lengths).
Importing sentence-transformers to read these few values would add seconds to commands that need no model.
"""

import re
from typing import Any

from embedding_finetune.files import UserError
from embedding_finetune.hub import check_hub, published_lengths, read_model_file

POOLING_FILES = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last_token",
                 "last_token": "last_token"}  # names in sentence-transformers -> names here
KEYS = {"pooling": str, "query_prompt": str, "passage_prompt": str, "query_max_len": int, "passage_max_len": int,
        "normalize": bool}  # arguments of EncoderConfig that such files, or an entry of MODEL_FILE, may give


def from_files(name: str, trusted: bool) -> dict[str, Any]:
    """Arguments of EncoderConfig from a model's sentence-transformers files; {} if it has none.

    Raises UserError when they are broken or require something that is not supported here.
    """
    check_hub(name)
    try:
        modules = _modules(name)
        found = _from_modules(name, modules) | _prompts(name) | published_lengths(name, trusted) if modules else {}
    except (AttributeError, LookupError, TypeError):
        found = {"pooling": None}
    wrong = [key for key, value in found.items() if type(value) is not KEYS.get(key, str)]
    if wrong:
        raise UserError(f"{name} has broken sentence-transformers files (modules.json and those it refers to, "
                        f"{wrong[0]}): repair or remove them")
    return found


def _modules(name):
    """(kind, folder) of each module in a model's `modules.json`, without Dropout, which only matters in training."""
    modules = [(module["type"], module.get("path", "")) for module in read_model_file(name, "modules.json")]
    foreign = [kind for kind, path in modules if not kind.startswith("sentence_transformers.") or " " in path]
    modules = [(kind.rpartition(".")[2], path) for kind, path in modules if not kind.endswith(".Dropout")]
    kinds = [kind for kind, _ in modules]
    if foreign or kinds and not re.fullmatch("Transformer( Pooling( Dense)*)?( Normalize)?", " ".join(kinds)):
        raise UserError(f"{name} consists of {', '.join(foreign or kinds)}; supported are Transformer, Pooling, Dense "
                        "and Normalize of sentence-transformers, in this order: choose another model")
    return modules


def _from_modules(name, modules):
    """Pooling, Dense layers and normalisation."""
    found, dense = {"normalize": modules[-1][0] == "Normalize"}, []
    for kind, path in modules:
        if kind == "Pooling":
            found["pooling"] = _pooling(name, read_model_file(name, f"{path}/config.json"))
        elif kind == "Dense":
            _check_dense(name, path, read_model_file(name, f"{path}/config.json"))
            dense.append(path)
    return found | ({"dense": " ".join(dense)} if dense else {})


def _pooling(name, config):
    modes = config.get("pooling_mode") or [  # newer sentence-transformers; older ones:
        key.removeprefix("pooling_mode_") for key, used in config.items() if key.startswith("pooling_mode_") and used]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLING_FILES or not config.get("include_prompt", True):
        raise UserError(f"{name} uses the pooling {' and '.join(modes) or 'nothing'}, or excludes the prompt, which is "
                        "not supported here: choose another model")
    return POOLING_FILES[modes[0]]


def _check_dense(name, path, config):
    activation = config.get("activation_function") or "torch.nn.modules.activation.Tanh"
    used = {config.get("module_input_name"), config.get("module_output_name")}
    if not activation.startswith("torch.nn.modules.") or used - {None, "sentence_embedding"}:
        raise UserError(f"{name} has a layer {path} with the activation {activation}, or not applied to its sentence "
                        "embedding, which is not supported here: choose another model")


def _prompts(name):
    config = read_model_file(name, "config_sentence_transformers.json")
    prompts, default, found = config.get("prompts") or {}, config.get("default_prompt_name"), {}
    for key, names in (("query_prompt", ("query",)), ("passage_prompt", ("document", "passage", "corpus"))):
        given = [prompts[other] for other in (*names, default) if prompts.get(other) is not None]
        found |= {key: given[0]} if given else {}
    return found
