import dataclasses
import json
import os
import random
from collections import Counter

import pytest
from tiny import build, tiny_bert

from embedding_finetune.data.cleaning import read_pairs, source_of
from embedding_finetune.data.collection import read_data
from embedding_finetune.data.documents.chunker import pseudo_queries, random_span, split_documents
from embedding_finetune.data.normalize import PSEUDO_QUERY_PREFIX, WORD, normalize, word_tokens
from embedding_finetune.evaluation.evaluate import evaluate_retriever
from embedding_finetune.evaluation.results import PSEUDO_QUERY_CAVEAT
from embedding_finetune.files import UserError
from embedding_finetune.models.encoder_config import model_path
from embedding_finetune.retrieval.system import System
from embedding_finetune.settings import Settings
from embedding_finetune.training.train import finetune

TOPICS = "kettle lantern violin glacier harbour orchard marble falcon engine pepper river copper".split()
DOES = "boils shines sings melts shelters ripens breaks hunts turns burns flows bends".split()


def folder_of(path, **files):
    """A folder of documents; `a__b_md` is the file a/b.md."""
    for name, text in files.items():
        file = path / ".".join(name.replace("__", "/").rsplit("_", 1))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return path


def settings_of(path, **changes):
    return dataclasses.replace(Settings.load("demo"), **{"dataset": str(path), "max_queries": 0} | changes)


def manual(sections=40, seed=1):
    """Markdown with that many headings, each above two paragraphs that do not fit one passage of 48 tokens."""
    generator, text = random.Random(seed), "# Manual\n\nWhat this is about comes here, in one line of words.\n"
    for number in range(sections):
        one, other = generator.sample(TOPICS, 2)
        text += f"\n## The {one} and the {other} {number}\n"
        for paragraph in range(2):
            said = " ".join(f"{generator.choice(TOPICS)} {generator.choice(DOES)}" for _ in range(16))
            text += f"\nIn part {number}.{paragraph} the {said}.\n"
    return text


def test_passages_have_their_titles_and_their_place(tmp_path):
    folder_of(tmp_path, a_txt="no heading", b__guide_md="lead\n\n# Guide\n\nintro\n\n## Install\n### Linux\napt\n\n"
                                                        "install\n## Empty\n\n## Use\nit")
    passages = split_documents(tmp_path, settings_of(tmp_path))
    assert [(passage.source, passage.text) for passage in passages] == [
        ("a.txt, line 1", "no heading"), ("b/guide.md, line 1", "lead"), ("b/guide.md, line 5, Guide", "Guide\nintro"),
        ("b/guide.md, lines 9-12, Guide > Install > Linux", "Guide > Install > Linux\napt\n\ninstall\nEmpty"),
        ("b/guide.md, line 15, Guide > Use", "Guide > Use\nit")]


CHINESE = "系统由采集、存储和查询三个部分组成，安装之前请先备份数据。运行安装程序以后需要重新启动计算机。\n"


@pytest.mark.parametrize("text", [manual(), "第一章 概述\n" + CHINESE * 40, CHINESE.replace("\n", "") * 40, "x" * 3000,
                                  "一" * 3000, "word " * 3000, "# " + "very long title " * 60 + "\n" + CHINESE * 20])
def test_no_passage_is_longer_than_the_model_reads_and_no_text_is_lost(tmp_path, text):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(model_path("bundled"))
    folder_of(tmp_path, a_md=text)
    passages = split_documents(tmp_path, settings_of(tmp_path, chunk_tokens=48))
    lengths = [len(tokenizer(passage.text)["input_ids"]) for passage in passages]
    fits = [length <= 48 for length, passage in zip(lengths, passages) if len("".join(passage.titles)) < 80]
    assert all(fits) and (len(fits) > 20 or "title" in text or "x" * 9 in text)
    found = Counter("".join(passage.body for passage in passages).replace("\n", ""))
    lines = [line for line in text.splitlines() if not line.startswith(("#", "第一章"))]
    assert not Counter("".join(lines).replace(" ", "")) - found


def test_passages_may_be_longer_than_the_tokenizers_file_cuts_and_pads(tmp_path):
    """That of the bundled model says 128 for both."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(model_path("bundled"))
    folder_of(tmp_path, a_txt=manual().replace("#", ""))
    passages = split_documents(tmp_path, settings_of(tmp_path, passage_max_len=256))
    lengths = [len(tokenizer(passage.text)["input_ids"]) for passage in passages]
    assert 200 < max(lengths) <= 256


def test_lines_are_those_of_the_file(tmp_path):
    text = manual()
    folder_of(tmp_path, a_md=text.replace("\n", "\r\n"))
    for passage in split_documents(tmp_path, settings_of(tmp_path, chunk_tokens=48, chunk_overlap=8)):
        first, _, last = passage.source.split(", ")[1].removeprefix("lines ").removeprefix("line ").partition("-")
        there = "\n".join(text.split("\n")[int(first) - 1:int(last or first)])
        assert passage.body in there, passage.source


def test_passages_overlap_as_far_as_asked(tmp_path):
    folder_of(tmp_path, a_txt=" ".join(f"word{number}" for number in range(400)))
    apart, overlapping = (split_documents(tmp_path, settings_of(tmp_path, chunk_tokens=48, chunk_overlap=overlap))
                          for overlap in (0, 12))
    for passages, shared in ((apart, False), (overlapping, True)):
        bodies = [set(passage.body.split()) for passage in passages]
        assert all(bool(one & other) == shared for one, other in zip(bodies, bodies[1:]))
    with pytest.raises(UserError, match="CHUNK_OVERLAP=30 is more than half of the 48 tokens"):
        split_documents(tmp_path, settings_of(tmp_path, chunk_tokens=48, chunk_overlap=30))
    with pytest.raises(UserError, match="CHUNK_TOKENS=97 is more than the 96 tokens that the model reads"):
        split_documents(tmp_path, settings_of(tmp_path, chunk_tokens=97))


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    folder_of(tmp_path, a_md="# T\ntext", a_exe="x", _hidden_md="h", empty_html="<script>x</script>", c_txt="\0")
    (tmp_path / "_hidden.md").rename(tmp_path / ".hidden.md")
    (tmp_path / "中文 名字").mkdir()
    (tmp_path / "中文 名字" / "说明 书.txt").write_bytes(CHINESE.encode("gb18030"))
    (tmp_path / "中文 名字" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.md")
    passages = split_documents(tmp_path, settings_of(tmp_path))
    assert {passage.file for passage in passages} == {"a.md", "中文 名字/说明 书.txt"}
    printed = capsys.readouterr().out
    for line in ("1 left out, hidden: .hidden.md", "1 left out, linked folder: 中文 名字/loop",
                 "1 left out, no text: empty.html", "1 left out, not a regular file: pipe.md",
                 "1 left out, not text: c.txt",
                 "htm, .xhtml, .pdf: a.exe",
                 "1 read as gb18030: 中文 名字/说明 书.txt"):
        assert line in printed


def test_a_folder_without_text_is_refused(tmp_path):
    folder_of(tmp_path, a_exe="x", b_md="\n\n", c_html="<nav>x</nav>")
    with pytest.raises(UserError, match="has no document with text in it; documents are .txt"):
        read_pairs(settings_of(tmp_path))


@pytest.mark.parametrize("text", [" ".join(f"w{number}" for number in range(100)), CHINESE * 3,
                                  "one two, three. four; a b c d"])
def test_a_span_is_a_run_of_whole_words_and_at_most_half(text):
    spans = [random_span(text, random.Random(seed)) for seed in range(200)]
    for some in spans:
        assert some in text and 4 <= len(word_tokens(some)) <= min(32, len(WORD.findall(text)) // 2)
    assert len(set(spans)) > min(20, len(word_tokens(text)) - 6)
    assert random_span("only seven words are in this one", random.Random(1)) == "" == random_span("", random.Random(1))


def test_titles_ask_for_their_section_and_spans_for_what_they_stand_in(tmp_path):
    folder_of(tmp_path, a_md="# Guide\n\n## Install it\n" + CHINESE * 2 + "\n## API\nshort\n",
              b_md="# Guide\n\n## Set up\n" + "many words " * 400, c_md="# Guide\n\n## API\nagain")
    passages = split_documents(tmp_path, settings_of(tmp_path, chunk_tokens=48))
    rows = list(pseudo_queries(passages, seed=1))
    titles = {row.query: len(row.positives) for row in rows if row.id.startswith(f"{PSEUDO_QUERY_PREFIX}title-")}
    assert titles == {"Guide Install it": 4}  # Set up has more passages than a title is for, Guide API is twice there
    for row in rows:
        if row.id.startswith(f"{PSEUDO_QUERY_PREFIX}span-"):
            assert row.positives and all(normalize(row.query) in normalize(text) for text in row.positives)
    assert rows == list(pseudo_queries(passages, seed=1)) != list(pseudo_queries(passages, seed=2))
    assert "Guide Install it" not in [row.query for row in pseudo_queries(passages, 1, {"guide install it"})]


def test_what_two_passages_share_is_answered_by_both(tmp_path):
    folder_of(tmp_path, a_txt=" ".join(f"word{number}" for number in range(2000)))
    passages = split_documents(tmp_path, settings_of(tmp_path, chunk_tokens=48, chunk_overlap=23))
    rows = list(pseudo_queries(passages, seed=1))
    for row in rows:
        assert row.positives == [passage.text for passage in passages if row.query in passage.body]
    assert len(passages) == len(rows) < sum(len(row.positives) for row in rows)


def test_a_new_file_changes_no_other_files_queries(tmp_path):
    folder_of(tmp_path, b_md=manual(5))
    before = {row.query for row in pseudo_queries(split_documents(tmp_path, settings_of(tmp_path)), 1)}
    folder_of(tmp_path, a_md=manual(5, seed=2).replace("Manual", "Other"))
    assert before <= {row.query for row in pseudo_queries(split_documents(tmp_path, settings_of(tmp_path)), 1)}


def test_a_section_is_in_one_part_of_the_split_and_sources_are_written(settings, tmp_path):
    folder_of(tmp_path / "docs", a_md=manual())
    settings = dataclasses.replace(settings, dataset=str(tmp_path / "docs"), base_model="bundled", max_queries=0,
                                   chunk_tokens=48, chunk_overlap=6)
    collection = build(settings, labels=["neg10"])
    assert read_data(settings) == collection and set(collection.source) == set(collection.corpus)
    first, *_ = (settings.data_dir / "corpus.jsonl").read_text().splitlines()
    assert json.loads(first)["source"].startswith("a.md, line")
    part_of, several = {}, 0
    for query, part in collection.splits.items():
        for passage in collection.positives(query):
            section = collection.source[passage].split(", ")[-1]
            assert part_of.setdefault(section, part) == part
        several += len(collection.positives(query)) > 1
    assert several >= 40 and set(part_of.values()) == {"train", "dev", "test"}
    again = dataclasses.replace(settings, data_dir=tmp_path / "again")
    build(again, labels=["neg10"])
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "training_neg_10.json"):
        assert (again.data_dir / name).read_bytes() == (settings.data_dir / name).read_bytes()
    (tmp_path / "docs" / "a.md").write_text(manual(seed=3))
    with pytest.raises(UserError, match="holds the data of other settings"):
        build(settings, labels=())


def queries_of(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def test_written_queries_are_dev_and_test_and_nothing_of_their_answers_is_in_training(settings, tmp_path):
    tea = "# More\n\n## How to brew\n" + "Pour hot water over the leaves. " * 9
    folder_of(tmp_path / "docs", a_md=manual(), b__c_md=tea)
    second = next(line[3:] for line in manual().splitlines() if line.endswith(" 2"))
    written = queries_of(tmp_path / "q.jsonl",
                         {"query": "making tea", "file": "b/c.md", "heading": "how to BREW", "id": 7},
                         {"query": "what is part three", "text": "in part 3.1  the"},
                         {"query": "second section", "heading": second})
    settings = dataclasses.replace(settings, dataset=str(tmp_path / "docs"), base_model="bundled",
                                   max_queries=60, chunk_tokens=48, document_queries=written)
    collection = build(settings, labels=["neg10"])
    test = collection.select_queries([query for query, part in collection.splits.items() if part != "train"])
    assert {*test.splits.values()} == {"dev", "test"}
    assert list(test.queries.values()) == ["making tea", "what is part three", "second section"] and "7" in test.queries
    answers = [[collection.source[passage] for passage in test.positives(query)] for query in test.queries]
    assert all("b/c.md" in source for source in answers[0]) and len(answers[0]) > 1
    assert len(answers[1]) == 1 and all(source.endswith(" 2") for source in answers[2])
    held_out = {source.split(", ")[-1] for some in answers for source in some}
    for query, part in collection.splits.items():
        assert query.startswith(PSEUDO_QUERY_PREFIX) == (part == "train")
        if part == "train":
            sections = {collection.source[passage].split(", ")[-1] for passage in collection.positives(query)}
            assert not sections & held_out
    assert len(collection.queries) <= 60 and len(collection.corpus) == len(read_pairs(settings)[0].corpus) > 80
    assert source_of(settings)["queries_sha256"]


@pytest.mark.parametrize("row, message", [
    ({"query": "x", "heading": "nowhere"}, "line 1: no passage has heading 'nowhere'"),
    ({"query": "x", "file": "a.md", "text": "absent"}, "line 1: no passage has file 'a.md', text 'absent'"),
    ({"query": "x", "file": "d.md"}, "line 1: no passage has file 'd.md'"),
    ({"query": "x"}, "line 1: needs a `query`, and the `file`, `heading` or `text` that answers it"),
    ({"text": "x"}, "line 1: needs a `query`"),
    ({"query": None, "text": "x"}, "line 1: needs a `query`"),
    ({"query": ["x", "y"], "file": "a.md"}, "line 1: needs a `query`, .* as texts"),
    (["x"], "q.jsonl has no row that can be read; line 1: a text, not a JSON object"),
])
def test_a_written_query_without_an_answer_is_named(tmp_path, row, message):
    folder_of(tmp_path / "docs", abcd_md=manual(2), a_md=manual(2))
    with pytest.raises(UserError, match=message):
        read_pairs(settings_of(tmp_path / "docs", document_queries=queries_of(tmp_path / "q.jsonl", row)))


def test_written_queries_may_be_a_table(tmp_path, capsys):
    folder_of(tmp_path / "docs", a_md="# 指南\n\n升级之前请停止服务，然后备份数据。\n\n# Other\n\nsome text of eight words or more")
    table = "query,text,heading,note\n升级之前要做什么,停止服务,,x\nwhat else,,other,y\n"
    (tmp_path / "q.csv").write_text(table, encoding="utf-8-sig")
    collection, _ = read_pairs(settings_of(tmp_path / "docs", document_queries=str(tmp_path / "q.csv")))
    written = {text: collection.positives(query) for query, text in collection.queries.items() if query[0] == "q"}
    assert {text: len(answers) for text, answers in written.items()} == {"升级之前要做什么": 1, "what else": 1}
    assert collection.source[written["升级之前要做什么"][0]] == "a.md, line 3, 指南"
    assert "q.csv: not used: 'note'\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="DOCUMENT_QUERIES=no.csv does not exist or is not a file"):
        read_pairs(settings_of(tmp_path / "docs", document_queries="no.csv"))


def test_queries_for_no_documents_are_refused():
    message = "DOCUMENT_QUERIES=q.jsonl needs a folder of documents, but DATASET=docstrings is not one"
    with pytest.raises(UserError, match=message):
        read_pairs(dataclasses.replace(Settings.load("demo"), document_queries="q.jsonl"))


def test_a_folder_of_chinese_documents_from_text_to_a_measured_model(settings, tmp_path):
    """Build, fine-tune, evaluate: every step as it is, with a tiny BERT."""
    generator, characters = random.Random(1), "采集存储查询安装备份数据程序启动计算机网络设置地址管理权限控制面板服务域名"
    for number in range(30):
        text = f"第一章 说明{number}\n"
        for section in range(4):
            title = "".join(generator.sample(characters, 4))
            said = "。".join("".join(generator.choices(characters, k=12)) for _ in range(4))
            text += f"第{section + 1}节 {title}\n{said}。\n"
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / f"手册 {number}.txt").write_text(text, encoding="utf-8")
    model = tiny_bert(tmp_path / "model", [characters])
    settings = dataclasses.replace(settings, dataset=str(tmp_path / "docs"), max_queries=0, base_model=str(model))
    collection = build(settings, labels=["neg10"])
    kinds = Counter(query.split("-")[1] for query in collection.queries)
    assert kinds["title"] > 100 and kinds["span"] > 100
    finetune(settings, "neg10", one_process=True)
    result = evaluate_retriever(settings, collection, System("neg10"))
    assert result["pseudo_queries"] == result["queries"] > 20
    assert PSEUDO_QUERY_CAVEAT in (settings.output_dir / "neg10" / "README.md").read_text()
