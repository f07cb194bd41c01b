"""Weight averaging of a fine-tuned model with its base model, to recover out-of-domain performance.

(1 - alpha) * base + alpha * fine-tuned: Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR 2022;
for embedding models Xiao et al., "LM-Cocktail", 2023, arXiv 2311.13534. It needs no training, and the size of the model
does not change.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers

from embedding_finetune.data.collection import read_data
from embedding_finetune.data.out_of_domain import out_of_domain_sets
from embedding_finetune.files import UserError
from embedding_finetune.hub import load
from embedding_finetune.models.encoder_config import base_encoder_config, load_encoder_config
from embedding_finetune.models.modeling import load_encoder
from embedding_finetune.recipes import Recipe
from embedding_finetune.settings import SELECTION_METRIC, Settings
from embedding_finetune.training.dev_evaluator import DevEvaluator
from embedding_finetune.training.export import export
from embedding_finetune.training.loss import ContrastiveModel

WEIGHTS = tuple(step / 10 for step in range(1, 11))  # candidate weights of the fine-tuned model; 1.0: only that one


def average(base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], alpha: float) -> dict:
    """The state dict (1 - alpha) * `base` + alpha * `tuned`, in float32. Raises UserError if their shapes differ."""
    if {name: weight.shape for name, weight in base.items()} != {name: weight.shape for name, weight in tuned.items()}:
        raise UserError("the parameters of the fine-tuned model and BASE_MODEL differ: set BASE_MODEL to the model "
                        "that was fine-tuned")
    return {name: torch.lerp(base[name], weight, alpha) if weight.is_floating_point() else weight
            for name, weight in tuned.items()}


def best_weight(metrics: Mapping[float, Sequence[float]]) -> float:
    """The weight with the highest mean metric; `metrics` is weight -> values, one per dev set.

    All dev sets count equally. Ties go to the smallest weight.
    """
    return max(metrics, key=lambda weight: (round(sum(metrics[weight]), 9), -weight))


def merge(settings: Settings, recipe: Recipe, output: Path) -> float:
    """Write the merged model of a recipe into the folder `output`; returns the weight of the fine-tuned model.

    Without `merge_weight` in the recipe, the weight is selected by MRR@10 on dev queries: those of the dataset and of
    each of OUT_OF_DOMAIN_SETS that has dev queries, each over its positives and DEV_CORPUS_SIZE other passages. Test
    queries are not used.
    """
    config, base_config = load_encoder_config(settings, recipe.merge), base_encoder_config(settings)
    tokenizer, metrics = load("AutoTokenizer", config.name, config.trusted), {}
    transformers.logging.disable_progress_bar()
    transformers.set_seed(0)  # layers missing from the base's weights are initialized at random
    models = []
    for one in (base_config, config):
        encoder, dense = load_encoder(one.name, one.dense, one.trusted)
        models.append(ContrastiveModel(encoder, dense=dense, pooling=one.pooling, normalize=one.normalize))
    base, merged = models[0].state_dict(), models[1]
    tuned = {name: weight.clone() for name, weight in merged.state_dict().items()}
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if not recipe.merge_weight:
        sets = {"own dev": read_data(settings), **out_of_domain_sets(settings)}
        dev = {name: DevEvaluator(found.split("dev"), settings, tokenizer, config, device)
               for name, found in sets.items() if "dev" in found.splits.values()}
        merged.to(device)
        for weight in WEIGHTS:
            merged.load_state_dict(average(base, tuned, weight))
            metrics[weight] = [one.evaluate(merged)[SELECTION_METRIC] for one in dev.values()]
            values = ", ".join(f"{name} {value:.4f}" for name, value in zip(dev, metrics[weight]))
            print(f"weight {weight} of {recipe.merge}: {SELECTION_METRIC} {values}", flush=True)
    weight = recipe.merge_weight or best_weight(metrics)
    merged.load_state_dict(average(base, tuned, weight))
    card = {"merged from": f"{round(1 - weight, 6):g} base + {weight:g} {recipe.merge}"}
    export(merged.encoder.cpu(), tokenizer, output, config, dense=merged.dense.cpu(), card=card)
    return weight
