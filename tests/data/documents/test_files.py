import os
import random

import pytest

from embedding_finetune.data.documents import files
from embedding_finetune.data.documents.files import UnreadableError, read_document


def read(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    lines, guessed = read_document(path)
    return [line for line in lines if line[2].strip()], guessed


def headings(folder, name, content):
    return [line for line in read(folder, name, content)[0] if line[1]]


def test_markdown_has_headings_where_commonmark_has_them(tmp_path):
    text = """---
title: settings of a generator
---
# Guide to *the* `kettle`

Under
lined
=====
```sh
# a comment
```
> # quoted
## Linux and [more](x.md)
####
    # indented code
"""
    assert headings(tmp_path, "a.md", text) == [
        (4, 1, "Guide to the kettle"), (6, 1, "Under lined"), (13, 2, "Linux and more")]
    lines, _ = read(tmp_path, "a.md", text)
    assert lines[0][0] == 4 and (10, 0, "# a comment") in lines and not any("generator" in text for _, _, text in lines)


def test_plain_text_has_underlined_and_numbered_headings(tmp_path):
    text = """=====
Title
=====
text
2.1 Setup
It has 2.1 litres.
Sub
---
a | b
Chapter 3
Chapter 3 is about tea, which is hot.
1. buy milk
"""
    assert headings(tmp_path, "a.txt", text) == [
        (2, 1, "Title"), (5, 2, "2.1 Setup"), (7, 2, "Sub"), (10, 1, "Chapter 3")]
    assert not any(set(text) <= set("=-") for _, _, text in read(tmp_path, "a.txt", text)[0])


def test_chinese_headings(tmp_path):
    text = "第一章 概述\n第二节 安装\n三、准备材料\n（四）备份数据\n第五章讲的是网络。\n4.2.1 升级\n"
    assert headings(tmp_path, "说明 书.txt", text) == [
        (1, 1, "第一章 概述"), (2, 2, "第二节 安装"), (3, 3, "三、准备材料"), (4, 4, "（四）备份数据"), (6, 3, "4.2.1 升级")]


HTML = """<html><head><title>Page</title><style>x {}</style><script>var secret</script></head>
<body><nav>Home</nav><h2>Set <b>up</b>
it</h2><p>One<br>two <a href="x">th</a>ree</p><!-- hidden -->
<table><tr><td>a</td><td>b</td></tr></table><pre>code
  block</pre><ul><li>outer<ul><li>inner</li></ul></li></ul><footer>imprint</footer></body></html>"""


def test_html_is_its_blocks_without_what_is_on_every_page(tmp_path):
    lines, _ = read(tmp_path, "a.html", HTML)
    assert lines == [(1, 1, "Page"), (2, 2, "Set up it"), (3, 0, "One two three"), (4, 0, "a"), (4, 0, "b"),
                     (4, 0, "code\n  block"), (5, 0, "outer"), (5, 0, "inner")]
    assert read(tmp_path, "b.html", "<title>no</title><div>menu<main><h1>Yes</h1>text</main></div>")[0] == [
        (1, 1, "Yes"), (1, 0, "text")]
    assert read(tmp_path, "c.html", "<p>never closed <b>at all")[0] == [(1, 0, "never closed at all")]
    assert read(tmp_path, "d.html", "<div>" * 5000 + "deep")[0] == [(1, 0, "deep")]


FORM = "<title>M</title><body><div>Sheet 1</div><form><h1>Pump</h1><p>Lift the cover.</p><button>Go</button></form>"


@pytest.mark.parametrize("page, texts, share", [
    (FORM, ["Sheet 1", "Pump", "Lift the cover."], ""),
    ("<main> </main><div>Lift the cover.</div>", ["Lift the cover."], ""),
    ("<main>One</main><main>Two</main>", ["One", "Two"], ""),
    ("<main>Lift it. <aside>Mind the steam.</aside></main>", ["Lift it.", "Mind the steam."], ""),
    ("<nav>Home</nav><p>text</p><aside>abcd</aside>", ["text"], " (67% of the text)"),
    ("<div>menu</div><main>text</main>", ["text"], " (50% of the text)"),
    ("<aside>Lift the cover.</aside>", ["Lift the cover."], ""),
])
def test_what_holds_the_text_of_a_page_is_read(tmp_path, page, texts, share):
    lines, notes = read(tmp_path, "a.html", page)
    assert [text for _, level, text in lines if text != "M"] == texts
    assert notes == ({"read without navigation and side texts": share} if share else {})


def test_images_within_the_text_are_left_out(tmp_path):
    image = "data:image/png;base64," + "iVBORw0KGgo/+A" * 200_000
    text = f"# Door\n\nPress the lip in. ![a door]({image} \"title\")\n\n[image1]: <{image}>\n\nMeta data: none, yet.\n"
    for name in ("a.md", "a.txt"):
        lines, notes = read(tmp_path, name, text)
        assert "base64" not in str(lines) and len(str(lines)) < 300 and "Meta data: none, yet." in str(lines)
        assert list(notes) == ["read without the images within the text (data: URIs)"]
    lines, _ = read(tmp_path, "b.html", f"<p>Press <img src='{image}'> it.")
    assert [text for _, _, text in lines] == ["Press it."]


def pdf_of(path, pages, bookmarks):
    """A PDF with a line of Helvetica a page."""
    import pypdf
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject
    writer, name = pypdf.PdfWriter(), NameObject
    font = DictionaryObject({name("/Type"): name("/Font"), name("/Subtype"): name("/Type1"),
                             name("/BaseFont"): name("/Helvetica")})
    for text in pages:
        page, stream = writer.add_blank_page(300, 300), DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[name("/Contents")] = writer._add_object(stream)
        page[name("/Resources")] = DictionaryObject({name("/Font"): DictionaryObject({name("/F1"): font})})
    parent = None
    for title, page in bookmarks:
        parent = writer.add_outline_item(title=title, page_number=page, parent=parent)
    writer.write(path)


def test_pdf_is_its_pages_and_bookmarks(tmp_path):
    pdf_of(tmp_path / "a.pdf", ["first page", "second page"], [("Book", 0), ("Chapter", 1)])
    lines, _ = read_document(tmp_path / "a.pdf")
    assert lines == [(1, 1, "Book"), (1, 0, "first page"), (2, 2, "Chapter"), (2, 0, "second page")]
    whole = (tmp_path / "a.pdf").read_bytes()
    for content in (b"", b"%PDF-1.4", whole[:len(whole) // 2], b"no PDF at all", bytes(range(256)) * 9):
        (tmp_path / "b.pdf").write_bytes(content)
        try:
            assert read_document(tmp_path / "b.pdf")[1] == {}
        except UnreadableError as error:
            assert str(error).startswith("PDF that cannot be read") and "\n" not in str(error)


def test_encodings(tmp_path):
    chinese = "网络配置需要管理员权限。请在控制面板中打开网络设置，选择静态地址，填写网关和域名服务器的地址。\n" * 3
    for encoding, guessed in (("utf-8", ""), ("utf-8-sig", ""), ("gb18030", "read as gb18030"),
                              ("utf-16", "read as utf_16")):
        lines, said = read(tmp_path, "a.txt", chinese.encode(encoding))
        assert [text for _, _, text in lines] == chinese.splitlines() and "".join(said) == guessed
    assert read(tmp_path, "a.txt", "one\r\n\r\ntwo\rthree\u2028four")[0] == [
        (1, 0, "one"), (3, 0, "two"), (4, 0, "three\u2028four")]


def test_what_is_no_document_is_said(tmp_path, monkeypatch):
    (tmp_path / "dead.md").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("dead.md", "pipe.txt"):
        with pytest.raises(UnreadableError, match="not a regular file"):
            read_document(tmp_path / name)
    for content in (bytes(range(256)) * 9, b"text with a \0 in it"):
        with pytest.raises(UnreadableError, match="not text"):
            read(tmp_path, "a.txt", content)
    monkeypatch.setattr(files, "LARGEST", 2**20)
    with pytest.raises(UnreadableError, match="larger than 1 MB"):
        read(tmp_path, "b.txt", b"x" * (2**20 + 1))


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.pdf"])
def test_random_bytes_never_break_it(tmp_path, name):
    generator = random.Random(name)
    pieces = "# |\n|<h1>|</p>|<pre>|```|---\n|=|第一章|&#x0;|\ud800|<![CDATA[|- |[|](".split("|")
    for _ in range(40):
        text = "".join(generator.choice(pieces) for _ in range(generator.randrange(200)))
        content = text.encode("utf-8", "surrogatepass") + generator.randbytes(generator.randrange(3))
        (tmp_path / name).write_bytes(content)
        try:
            lines, _ = read_document(tmp_path / name)
            assert all(isinstance(text, str) and 0 <= level <= 6 and place > 0 for place, level, text in lines)
        except UnreadableError:
            pass
