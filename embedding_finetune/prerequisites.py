"""Whether everything that a run needs is there: checked in seconds, before its first step.

A model or test set that is missing would otherwise be noticed when it is evaluated, after all trainings.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from huggingface_hub import is_offline_mode

from embedding_finetune.data.cleaning import check_source
from embedding_finetune.data.out_of_domain import check_set
from embedding_finetune.files import UserError
from embedding_finetune.hub import check_hub, model_path, model_size
from embedding_finetune.models.encoder_config import base_encoder_config, display_name, load_encoder_config, pretrained
from embedding_finetune.recipes import find_recipe, trained_labels
from embedding_finetune.retrieval.known_systems import find_system
from embedding_finetune.setting_checks import names_in
from embedding_finetune.settings import Settings
from embedding_finetune.training.preflight import CHECKPOINTS

OPTIONAL = "EXTRA_MODELS", "OUT_OF_DOMAIN_SETS", "RERANKERS"
SETTING = {"raw": "BASE_MODEL", "reference": "REFERENCE_MODEL"}  # label -> setting; all others are in EXTRA_MODELS


def check_prerequisites(settings: Settings) -> None:
    """Print a line per dataset, model and test set, and on disk space. Raises UserError naming all that is missing."""
    missing = []
    for name, check in _checks(settings):
        try:
            print(f"checked {name}: {check()}", flush=True)
        except UserError as error:
            print(f"missing {name}", flush=True)
            text = str(error) if str(error).startswith(name) else f"{name}: {error}"
            setting = name.partition("=")[0]
            missing.append(f'{text} ({setting}="" leaves it out)' if setting in OPTIONAL else text)
    if missing:
        raise UserError(f"{'; '.join(missing)}; nothing was started")
    print(f"checked disk space: {_check_disk(settings)}", flush=True)


def _checks(settings: Settings) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield (setting and value, check), where the check returns what was found or raises UserError."""
    sources = {"DATASET": settings.dataset, "CORPUS": settings.corpus, "DOCUMENT_QUERIES": settings.document_queries}
    for setting, name in sources.items():
        if name:
            yield f"{setting}={name}", partial(check_source, setting, name)
    for name in names_in(settings.out_of_domain_sets, "OUT_OF_DOMAIN_SETS"):
        yield f"OUT_OF_DOMAIN_SETS={name}", partial(check_set, name)
    for label, (title, *_) in pretrained(settings).items():
        yield f"{SETTING.get(label, f'EXTRA_MODELS={label}')}={title}", partial(_check_model, settings, label)
    for label in trained_labels(settings):
        own = find_recipe(settings, label).settings.get("BASE_MODEL")
        if own:
            yield f"BASE_MODEL={own} of {label}", partial(_check_base, settings, label)
    if settings.reranker_model and "cross_encoder" in (find_recipe(settings, each).kind for each in
                                                       trained_labels(settings)):
        yield f"RERANKER_MODEL={settings.reranker_model}", partial(_check_reranker, settings)
    for label in settings.rerankers.split():
        yield f"RERANKERS={label}", partial(_check_system, settings, label)


def _check_model(settings: Settings, label: str) -> str:
    config = load_encoder_config(settings, label)
    return f"{display_name(config)}, {_check_weights(config.name)}"


def _check_base(settings: Settings, label: str) -> str:
    return _check_weights(base_encoder_config(settings.with_overrides(find_recipe(settings, label).settings)).name)


def _check_weights(name: str) -> str:
    """A phrase on the weights of a model; raises UserError when there are none, and none can be downloaded."""
    weights = model_size(name)["weights"]
    if weights is None and (Path(name).is_dir() or is_offline_mode()):
        raise UserError(f"{name} has no weights on this machine: give another model, or download it once")
    return f"{weights / 1e6:,.0f} MB of weights" if weights else "to be downloaded"


def _check_reranker(settings: Settings) -> str:
    name = model_path(settings.reranker_model)
    check_hub(name)
    return _check_weights(name)


def _check_system(settings: Settings, label: str) -> str:
    system = find_system(settings, label)
    return f"{system.reranker_name} on {system.encoder}"


def _check_disk(settings: Settings) -> str:
    """A phrase on the disk space of all trainings; raises UserError when it does not suffice.

    A finished model takes as much as its weights, each checkpoint three times as much (see training.preflight). The
    vectors of the passages are not counted.
    """
    labels = [label for label in trained_labels(settings) if not settings.paths.model(label).exists()]
    weights = model_size(base_encoder_config(settings).name)["weights"] or 0
    needed = (len(labels) + 3 * CHECKPOINTS * bool(labels)) * weights
    folder = next(path for path in (settings.paths.output, *settings.paths.output.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{len(labels)} trainings take about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    if needed > free:
        raise UserError(f"{text}: free some, or choose another OUTPUT_DIR")
    return text
