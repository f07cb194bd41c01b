"""The systems and rerankers that the settings, the recipes and the compiled models allow, by label."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from embedding_finetune import contrib
from embedding_finetune.files import UserError
from embedding_finetune.labels import COMPILED_FORMATS
from embedding_finetune.models.encoder_config import is_compiled, pretrained
from embedding_finetune.recipes import all_recipes
from embedding_finetune.retrieval.base import RETRIEVERS
from embedding_finetune.retrieval.rerank import Reranker
from embedding_finetune.retrieval.system import CROSS_ENCODER, EMBEDDING_RERANKERS, System
from embedding_finetune.settings import Settings


def find_system(settings: Settings, label: str) -> System:
    """The System of a label, whether its models are trained or not.

    Raises UserError when the settings, the recipes and the compiled models allow no such system, or two of them.
    """
    found = [system for system in all_systems(settings) if system.label == label]
    if len(found) > 1:
        one, other = (f"{system.reranker_model} on {system.encoder}" for system in found[:2])
        raise UserError(f"{label!r} can be read as {one} or {other}: rename one of these models")
    if not found:
        raise UserError(f"there is no system {label[:100]!r}: it must be LABEL, hybrid_LABEL, KIND_MODEL_on_LABEL or "
                        f"hybrid_KIND_MODEL_on_LABEL, where LABEL is one of {', '.join(_retrievers(settings))} and "
                        f"KIND_MODEL a reranker such as {', '.join(list(rerankers(settings))[:2])}")
    return found[0]


def rerankers(settings: Settings) -> dict[str, tuple[str, str]]:
    """Label -> (kind, label of its model) of all rerankers, whether their models are trained or not.

    A label is KIND_MODEL, or that of a system, KIND_MODEL_on_LABEL.
    """
    systems = [system for system in all_systems(settings) if system.reranker and not system.fused]
    labels = {system.reranker_name: system for system in systems} | {system.label: system for system in systems}
    return {label: (system.reranker, system.reranker_model) for label, system in labels.items()}


def make_reranker(settings: Settings, kind: str, model: str) -> Reranker:
    """Create the reranker of a kind with the model of a label, still without a corpus.

    `kind` is late (late interaction), m3 (the three scores of BGE-M3) or rerank (cross-encoder). Raises UserError when
    the model is not available.
    """
    if kind == "m3":
        return contrib.load("bge_m3").M3.of(settings, model)
    if kind == CROSS_ENCODER:  # these modules load PyTorch, which takes seconds
        from embedding_finetune.retrieval.cross_encoder import CrossEncoder
        return CrossEncoder.of(settings, model)
    from embedding_finetune.retrieval.late_interaction import LateInteraction
    return LateInteraction.of(settings, model)


def needs_token_embeddings(settings: Settings, label: str) -> bool:
    """Whether a reranker in the settings uses the token vectors of the model `label`.

    Its evaluation then stores them in the same pass that computes the vectors of the passages.
    """
    systems = [find_system(settings, reranker) for reranker in settings.rerankers.split()]
    return ("late", label) in [(system.reranker, system.reranker_model) for system in systems]


def _rerankers(settings: Settings, retrievers: Iterable[System]) -> list[tuple[str, str]]:
    """(kind, label of its model) of all rerankers."""
    models = [system.encoder for system in retrievers if system.has_model]
    cross_encoders = [label for label, recipe in all_recipes(settings).items() if recipe.kind == "cross_encoder"]
    return [*((kind, label) for kind in EMBEDDING_RERANKERS for label in models),
            *((CROSS_ENCODER, label) for label in cross_encoders)]


def _retrievers(settings: Settings) -> dict[str, System]:
    """Label -> System of all retrievers; compiled models only if they have been exported."""
    recipes = [label for label, recipe in all_recipes(settings).items() if recipe.kind == "bi_encoder"]
    models = [*pretrained(settings), *recipes]
    forms = [form.partition("-") for form in COMPILED_FORMATS]
    compiled = (System(model, runtime, precision or "fp32") for model in models for runtime, _, precision in forms)
    found = [*map(System, (*RETRIEVERS, *models)),
             *(system for system in compiled if is_compiled(settings, system.label))]
    return {system.label: system for system in found}


def all_systems(settings: Settings) -> Iterator[System]:
    """Yield all systems: each retriever; each model also fused, and with each reranker, alone and fused."""
    retrievers = _retrievers(settings).values()
    stages = _rerankers(settings, retrievers)
    for first in retrievers:
        yield first
        if first.has_model:
            yield replace(first, fused=True)
            for kind, model in stages:
                yield replace(first, reranker=kind, reranker_model=model)
                yield replace(first, reranker=kind, reranker_model=model, fused=True)
