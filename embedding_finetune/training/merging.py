"""A fine-tuned model averaged with its base, weight by weight: a remedy where fine-tuning has cost something elsewhere.

(1 - share) * base + share * fine-tuned: Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR 2022;
for embedding models Xiao et al., "LM-Cocktail", 2023, arXiv 2311.13534. Nothing is trained, and the model is no larger.
"""

import torch
import transformers

from embedding_finetune.data.collection import read_data
from embedding_finetune.data.out_of_domain import out_of_domain_sets
from embedding_finetune.files import UserError
from embedding_finetune.hub import load
from embedding_finetune.models.encoder_config import base_encoder_config, load_encoder_config
from embedding_finetune.models.modeling import load_encoder
from embedding_finetune.settings import SELECTION_METRIC
from embedding_finetune.training.dev_evaluator import DevEvaluator
from embedding_finetune.training.export import export
from embedding_finetune.training.loss import ContrastiveModel

WEIGHTS = tuple(step / 10 for step in range(1, 11))  # of the fine-tuned model, which are tried; 1.0 is that model alone


def average(base, tuned, share):
    """The state dict (1 - share) * `base` + share * `tuned`, in float32. Raises UserError when they do not fit."""
    if {name: weight.shape for name, weight in base.items()} != {name: weight.shape for name, weight in tuned.items()}:
        raise UserError("the fine-tuned model and BASE_MODEL have other weights: merge it with the base it was made of")
    return {name: torch.lerp(base[name], weight, share) if weight.is_floating_point() else weight
            for name, weight in tuned.items()}


def best_weight(looks):
    """The share to take; `looks` has share -> metrics, one a dev set.

    The highest mean, of equals the smallest share: the data set's own dev queries count as much as those of each other
    set.
    """
    return max(looks, key=lambda share: (round(sum(looks[share]), 9), -share))


def merge(settings, recipe, output):
    """Write the merged model of a recipe into the folder `output`; returns the share of the fine-tuned model in it.

    Where the recipe leaves the share open, MRR@10 of dev queries among DEV_CORPUS_SIZE passages beside their own
    chooses it: those of the data set, and of each of OUT_OF_DOMAIN_SETS that has any. Test queries choose nothing.
    """
    config, of_base = load_encoder_config(settings, recipe.merge), base_encoder_config(settings)
    tokenizer, looks = load("AutoTokenizer", config.name, config.trusted), {}
    transformers.logging.disable_progress_bar()
    transformers.set_seed(settings.seed)  # a layer that the base's file lacks is drawn at random
    (base, base_dense), (model, dense) = (load_encoder(one.name, one.dense, one.trusted) for one in (of_base, config))
    looking = ContrastiveModel(model, dense=dense, pooling=config.pooling, normalize=config.normalize)
    base = ContrastiveModel(base, dense=base_dense).state_dict()
    tuned = {name: weight.clone() for name, weight in looking.state_dict().items()}
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if not recipe.merge_weight:
        sets = {"own dev": read_data(settings), **out_of_domain_sets(settings)}
        dev = {name: DevEvaluator(found.split("dev"), settings.dev_corpus_size, tokenizer, config, settings.seed, device)
               for name, found in sets.items() if "dev" in found.splits.values()}
        looking.to(device)
        for share in WEIGHTS:
            looking.load_state_dict(average(base, tuned, share))
            looks[share] = [one.evaluate(looking)[SELECTION_METRIC] for one in dev.values()]
            seen = ", ".join(f"{name} {value:.4f}" for name, value in zip(dev, looks[share]))
            print(f"{share} of {recipe.merge}: {SELECTION_METRIC} {seen}", flush=True)
    share = recipe.merge_weight or best_weight(looks)
    looking.load_state_dict(average(base, tuned, share))
    card = {"merged from": f"{round(1 - share, 6):g} base + {share:g} {recipe.merge}"}
    export(looking.encoder.cpu(), tokenizer, output, config, dense=looking.dense.cpu(), card=card)
    return share
