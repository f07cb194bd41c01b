"""Records of earlier versions in today's form (see artifacts.manifest), which are read until 2.0.

Each function takes a record, which may lack any entry, and returns None where too much is missing.
"""

from embedding_finetune.deprecation import rename_recipe, rename_settings

DESCRIPTIVE = ("label", "title", "name", "training_data_note", "overrides", "note", "seen", "differs")


def translate_collection_record(record: dict) -> dict | None:
    """dataset.json; settings and sources were in one object, and the first version had only the hashes of the files."""
    source = rename_settings(record.get("made_with", {}))
    settings = {name: source.pop(name) for name in list(source) if name.isupper()}
    return {"inputs": {"settings": settings, "source": source}, "files": record.get("files"),
            "predefined": record.get("parts_given", ())}


def translate_training_file_record(record: dict) -> dict | None:
    """training_LABEL.made.json.

    Its `models` was a list: the configurations of the miner, if there is one, and of the teacher, if it has one; then
    their revisions; then None if the teacher is no reranker, and the language of BM25 if it mines.
    """
    if not (isinstance(record.get("sources"), dict) and isinstance(record.get("made_of"), dict)):
        return None
    inputs = record.pop("made_of")
    recipe = rename_recipe(inputs.get("recipe", {}))
    names = [name for name, has in (("miner", recipe.get("negatives") == "mined"), ("teacher", "teacher" in recipe))
             if has]
    configs, *found = inputs.pop("models", [[]])
    found = [value for value in found if value is not None]
    models = {name: _model(config, revision) for name, config, revision in zip(names, [*configs, {}], found)}
    language = dict(zip(["bm25_language"], found[len(names):]))
    return {"files": None} | record | {"inputs": inputs | {"recipe": recipe} | models | language}


def translate_training_record(record: dict) -> dict | None:
    """training.json, whose models were in `use`, `begins_with` and, of a merge, `made_of`."""
    use, merge = record.pop("use", None), record.pop("made_of", {})
    revision = record.pop("begins_with", merge.get("base"))
    record = {"settings": {}, "recipe": {}, "base model": {}} | record
    if use or revision:
        record["base model"] = ({"config": use} if use else {}) | ({"revision": revision} if revision else {})
    if "tuned" in merge:
        record["merged model"] = {"revision": merge["tuned"]}
    if "eval_sets" in merge:
        record["settings"] = record["settings"] | {"OUT_OF_DOMAIN_SETS": merge["eval_sets"]}
    return record | {"settings": rename_settings(record["settings"]), "recipe": rename_recipe(record["recipe"])}


def translate_compiled_record(record: dict) -> dict | None:
    """compiled.json, in which `use` also had the label and the note of the model."""
    inputs = record.get("made_of", {})
    if not {"use", "content"} <= inputs.keys():
        return None
    use = inputs.pop("use")
    inputs["model"] = _model(use, inputs.pop("content"))
    return record | {"inputs": inputs, "label": use["label"], "training_data_note": use.get("seen", "unknown")}


def translate_token_vectors_record(record: dict) -> dict | None:
    """identity.json of token vectors, which had all entries at the top level."""
    files = {name: record.get(name) for name in ("vectors.raw", "starts.npy")}
    return {"inputs": {}, "files": files} | record if "shape" in record else None


def _model(config, revision):
    return {"config": {name: value for name, value in config.items() if name not in DESCRIPTIVE}, "revision": revision}
