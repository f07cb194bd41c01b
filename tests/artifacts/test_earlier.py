"""A record of an earlier version is read in today's form, or not at all where too much of it is missing."""

import copy

from earlier import RECORDS

from embedding_finetune.artifacts import earlier

ROWS = dict.fromkeys(["rows", "mined_rows", "rows_of_late_teacher"], earlier.translate_training_file_record)
FUNCTIONS = {"dataset": earlier.translate_collection_record, **ROWS, "training": earlier.translate_training_record,
             "merge": earlier.translate_training_record, "compiled": earlier.translate_compiled_record}


def test_every_record_may_lack_any_entry():
    for name, translate in FUNCTIONS.items():
        for gone in RECORDS[name]:
            record = copy.deepcopy(RECORDS[name])
            del record[gone]
            found = translate(record)
            assert found is None or "inputs" in found or translate is earlier.translate_training_record
        assert translate(copy.deepcopy(RECORDS[name]))
    assert earlier.translate_token_vectors_record({}) is None and FUNCTIONS.keys() == RECORDS.keys()


def test_the_models_of_a_mined_file_have_their_names():
    config = {"pooling": "mean", "query_prompt": "", "passage_prompt": "", "query_max_len": 512,
              "passage_max_len": 512, "normalize": True, "dense": "", "trusted": False}
    for name in ("mined_rows", "rows_of_late_teacher"):
        inputs = earlier.translate_training_file_record(copy.deepcopy(RECORDS[name]))["inputs"]
        assert inputs["miner"] == inputs["teacher"] == {"config": config, "revision": "$base"}
        assert inputs["bm25_language"] == "auto" and "models" not in inputs
    record = copy.deepcopy(RECORDS["mined_rows"])  # a cross-encoder has no configuration
    del record["made_of"]["recipe"]["candidates"]
    record["made_of"]["models"] = [[config], "1f", "2e"]
    inputs = earlier.translate_training_file_record(record)["inputs"]
    assert (inputs["miner"]["revision"], inputs["teacher"]) == ("1f", {"config": {}, "revision": "2e"})
    assert "bm25_language" not in inputs
