"""The card of a finished model: what was measured enters it; that its code runs is tested with the export."""

from tiny_training import use

from embedding_finetune.training.model_card import model_card, write_metrics


def test_metrics_enter_the_card_and_replace_older_ones(tmp_path):
    card, before = tmp_path / "README.md", model_card("mine", use(), "bert", {"EPOCHS": 1}, [])
    card.write_text(before)
    for value in (0.25, 0.75):
        write_metrics(tmp_path, {"recall@1": value, "mrr@10": 0.5})
    table = "| metric | value |\n| --- | --- |\n| recall@1 | 0.7500 |\n| mrr@10 | 0.5000 |"
    assert card.read_text() == before.replace("Not evaluated yet.", table) != before
    card.write_text("# mine\n\nRewritten.\n")
    write_metrics(tmp_path, {"recall@1": 0.75, "mrr@10": 0.5})
    assert card.read_text() == f"# mine\n\nRewritten.\n## Metrics\n\n{table}\n"
    write_metrics(tmp_path, {"recall@1": 0.75, "mrr@10": 0.5}, "No proof.")
    assert card.read_text() == f"# mine\n\nRewritten.\n## Metrics\n\n{table}\n\nNo proof.\n"
