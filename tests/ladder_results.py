"""Results of a ladder's systems, saved without a model: what the tests of the two ladders have in common."""

from embedding_finetune.data.collection import Collection, write_data
from embedding_finetune.evaluation import results
from embedding_finetune.evaluation.results import save_result
from embedding_finetune.retrieval.system import System


def write_collection_of(settings, train=300):
    """Write a set's data: training queries, two for dev and four for test; query qN is answered by pN alone."""
    names = [(part, f"{part}{number}") for part, count in {"train": train, "dev": 2, "test": 4}.items()
             for number in range(count)]
    collection = Collection({f"q-{name}": name for _, name in names}, {f"p-{name}": name for _, name in names},
                            {f"q-{name}": {f"p-{name}": 1} for _, name in names},
                            {f"q-{name}": part for part, name in names})
    write_data(settings, collection, {})
    return collection


def measured(settings, collection, system, right, **more):
    """Save a result whose first hit is right for these test queries and, of dev, for the first."""
    def ranking(query, good):
        return {"p" + query[1:]: 2.0} if good else {"p-train0": 2.0, "p" + query[1:]: 1.0}

    if isinstance(system, str):
        system = System(system.removeprefix("hybrid_"), fused=system.startswith("hybrid_"))
    save_result(settings, collection, system, {
        "test": {f"q-test{number}": ranking(f"q-test{number}", number in right) for number in range(4)},
        "dev": {f"q-dev{number}": ranking(f"q-dev{number}", number == 0) for number in range(2)}},
        model="", inputs=results.inputs_of(settings, system), **{"parameters": {}} | more)
