"""The server as its clients meet it: answers, limits, attacks, models swapped under load, and the page in a browser."""

import asyncio
import http.client
import json
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
from faults import served
from tiny import build

from embedding_finetune.data.cleaning import read_pairs
from embedding_finetune.data.collection import read_data
from embedding_finetune.files import UserError, read_jsonl, write_json
from embedding_finetune.serving import registry
from embedding_finetune.serving import server as module
from embedding_finetune.serving.calibration import judge_score
from embedding_finetune.serving.index import open_index
from embedding_finetune.settings import ROOT, Settings

CHANGES = "server.PATIENCE, server.LOOK, registry.WAITING = 1, 0.2, 8"  # ends and looks at the files sooner
NASTY = '<img src=x onerror="window.hacked=1"></div><script>window.hacked = 1</script> &amp; \u202e'


class Server(served.Server):
    """The server in a process of its own over a tiny experiment, and one client of it."""

    def ask(self, path, body=None, method=None, **headers):
        """(status, JSON or text, headers) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method or ("GET" if body is None else "POST"), path, body,
                           {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers["content-type"].startswith("application/json")
        return answer.status, json.loads(content) if is_json else content.decode(), answer.headers

    def search(self, query, **more):
        """The answer to a query, after as many 503s as it takes."""
        for _ in range(300):
            status, answer, headers = self.ask("/search?" + urlencode({"q": query, **more}))
            if status != 503:
                assert status == 200, answer
                return answer
            assert headers["Retry-After"] == "1"
            time.sleep(0.1)
        raise AssertionError("always busy")

    def mark(self, **given):
        return self.ask("/marks", json.dumps(given), Content_Type="application/json")

    def raw(self, data, timeout=5.0):
        """The first bytes of what comes back for these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            return connection.recv(2000)


@pytest.fixture(scope="module")
def experiment(tiny_settings, tmp_path_factory):
    """The settings of a tiny experiment of its own, one of its passages nasty, in the environment of this module."""
    folder = tmp_path_factory.mktemp("serve")
    rows = read_jsonl(tiny_settings["DATASET"])
    rows[0]["pos"][0] += " " + NASTY
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(tiny_settings["BASE_MODEL"], folder / "model")
    changed = {"DATASET": str(folder / "pairs.jsonl"), "DATA_DIR": str(folder / "data"),
               "OUTPUT_DIR": str(folder / "output"), "REFERENCE_MODEL": str(folder / "model")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (tiny_settings | changed).items():
            patch.setenv(name, value)
        settings = Settings.load()
        build(settings)
        yield settings


@pytest.fixture(scope="module")
def server(experiment):
    running = Server(experiment.data_dir / "log", CHANGES)
    running.start()
    yield running
    assert running.end(signal.SIGTERM, 20)
    assert not running.failures(), running.log.read_text()


def test_it_answers_as_the_index_does(server, experiment):
    query = next(iter(read_data(experiment).queries.values()))
    [hits] = open_index(experiment, "reference").answer([query], 3)
    answer = server.search(query, k=3)
    assert answer["system"] == "reference" and answer["query"] == query
    assert [hit["id"] for hit in answer["hits"]] == [hit["id"] for hit in hits]
    assert (answer["usual"], answer["note"]) == judge_score(hits, open_index(experiment, "reference").manifest["dev"])
    lowest = answer["hits"][1]["score"]
    assert server.search(query, k=3, min_score=lowest)["hits"] == answer["hits"][:2]
    assert "no passage has a score" in server.search(query, k=3, min_score=99)["note"]
    assert server.search(query, system="bm25")["system"] == "bm25"  # opened when it is first asked for
    assert server.search(query, model="bm25") == server.search(query, system="bm25", model="raw")  # its old name
    systems = {system["label"]: system for system in server.ask("/systems")[1]}
    assert systems["reference"]["default"] and systems["bm25"]["open"] and not systems["raw"]["open"]
    assert server.ask("/models")[1] == server.ask("/systems")[1]
    assert server.ask("/healthz")[1] == {"status": "ok", "system": "reference", "waiting": 0}
    described = server.ask("/openapi.json")[1]
    assert {"/search", "/healthz", "/marks", "/models", "/systems", "/examples"} == set(described["paths"])
    search, models = (described["paths"][path]["get"] for path in ("/search", "/models"))
    assert [one["name"] for one in search["parameters"]] == ["q", "k", "system", "min_score", "model"]
    assert [one["name"] for one in search["parameters"] if one.get("deprecated")] == ["model"] and models["deprecated"]


@pytest.mark.parametrize("path, status, said", [
    ("/search", 422, "query.q: Field required"), ("/search?q=%20", 422, "query.q"),
    ("/search?q=" + "x" * 2001, 422, "at most 2000 characters"), ("/search?q=x&k=0", 422, "query.k"),
    ("/search?q=x&k=101", 422, "less than or equal to 100"), ("/search?q=x&k=many", 422, "query.k"),
    ("/search?q=x&min_score=much", 422, "query.min_score"), ("/search?q=x&min_score=nan", 422, "query.min_score"),
    ("/search?q=x&system=nope", 404, "there is no system 'nope' to search with: choose one of bm25, raw, reference"),
    ("/search?q=x&model=nope", 404, "there is no system 'nope'"), ("/search?q=x&system=" + "x" * 201, 422, "200 char"),
    ("/search?q=x&system=..%2F..", 404, "there is no system"), ("/else", 404, "Not Found")])
def test_malformed_queries_get_a_line(server, path, status, said):
    found = server.ask(path)
    assert found[0] == status and said in found[1]["detail"] and len(found[1]["detail"]) < 300


def test_bytes_that_are_no_text_are_answered(server):
    assert server.ask("/search?q=%ff%00%ed%a0%80")[0] == 200


HEAD = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("data, status", [
    (bytes(range(256)) * 10, 400), (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400),  # DNS rebinding
    (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, 400), (b"DELETE /search HTTP/1.1\r\n" + HEAD + b"\r\n", 405),
    (b"POST /marks HTTP/1.1\r\n" + HEAD + b"Content-Length: 200000\r\n\r\n" + b"x" * 200_000, 413),
    (b"POST /marks HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
     + (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 9, 413)])
def test_attacks_get_a_clean_refusal(server, data, status):
    assert server.raw(data).startswith(b"HTTP/1.1 %d " % status)
    assert server.ask("/healthz")[0] == 200


def test_clients_that_hang_disturb_no_others(server):
    """Nor the end of the server: they hang until the fixture terminates it."""
    server.hanging = [served.greedy_client(server.port, (b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n") * 2000)]
    for data in (b"", b"GET /healthz HTTP/1.1\r\nHost: 127", b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\nGET /sea",
                 b"POST /marks HTTP/1.1\r\n" + HEAD + b"Content-Length: 50\r\n\r\n{"):
        server.hanging.append(socket.create_connection(("127.0.0.1", server.port)))
        server.hanging[-1].sendall(data)
    assert server.ask("/healthz")[0] == 200 and server.search("otter")["system"] == "reference"


def test_what_is_no_mark_is_refused(server, experiment):
    good = {"query": "otter", "id": server.search("otter")["hits"][0]["id"], "system": "reference", "right": True}
    post = lambda body, **headers: server.ask("/marks", body, **headers)[0]  # noqa: E731
    as_json = {"Content_Type": "application/json"}
    assert post(json.dumps(good)) == post(json.dumps(good), Content_Type="text/plain") == 422  # a form of another site
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        assert post(json.dumps(good), Origin=origin, **as_json) == 403
    for body in ("{", "[]", "NaN", '{"query": "\\ud800", "id": "x", "right": true}', '{"query": NaN, "id": 1}',
                 json.dumps(good | {"right": "perhaps"}), json.dumps(good | {"query": "x" * 2001})):
        assert post(body, **as_json) == 422, body
    assert post("[" * 10_000, **as_json) == post(b"\xff", **as_json) == 400
    assert server.mark(**good | {"id": "nope"})[0] == 404
    for name in ("system", "model"):  # the second is its old name
        status, answer, _ = server.mark(query="otter", id=good["id"], right=True, **{name: "nope"})
        assert status == 404 and "there is no system 'nope'" in answer["detail"]
    assert server.mark(**good | {"system": "x" * 201})[0] == 422
    assert not (experiment.data_dir / "marks.jsonl").exists()


def test_a_full_queue_is_a_503_and_who_waits_is_answered(server):
    found = Counter()

    def client(number):
        status, answer, headers = server.ask("/search?" + urlencode({"q": f"otter {number} " * 60, "k": 100}))
        found[status] += 1
        assert status == 200 or status == 503 and headers["Retry-After"] == "1" and "8 queries" in answer["detail"]

    threads = [threading.Thread(target=client, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[200] >= 8 and found[200] + found[503] == 60
    assert server.ask("/healthz")[1]["waiting"] == 0


def test_a_model_is_swapped_without_losing_a_request(server, experiment):
    config = ROOT / experiment.reference_model / "config.json"
    before, found, done = server.search("otter", k=3)["hits"], [], threading.Event()

    def client():
        while not done.is_set():
            found.append(server.search("otter", k=3)["hits"][0]["score"])
            time.sleep(0.01)

    threads = [threading.Thread(target=client) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        content = config.read_text()
        write_json(config, json.loads(content) | {"layer_norm_eps": 0.5})  # the same weights, another model
        deadline = time.monotonic() + 60
        while server.search("otter", k=3)["hits"][0]["score"] == before[0]["score"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        config.rename(config.with_suffix(".gone"))  # no model at all: the old index goes on
        time.sleep(1)
    finally:
        config.with_suffix(".gone").rename(config)
        done.set()
        for thread in threads:
            thread.join()
    expected = open_index(experiment, "reference").answer(["otter"], 1)[0][0]["score"]
    assert set(found) == {before[0]["score"], found[-1]} and found[-1] == pytest.approx(expected, abs=1e-5)
    assert len(server.said("cannot be opened")) == 1


class Files:
    """Files that are a number: what the registry asks of them and of indexes; `log` has those that were opened."""

    def __init__(self, monkeypatch):
        self.now, self.log, self.refused = 1, [], None
        self.begun, self.may = threading.Event(), threading.Event()
        self.may.set()
        monkeypatch.setattr(registry, "labels", self.labels)
        monkeypatch.setattr(registry, "file_stamps", lambda _: self.now)
        monkeypatch.setattr(registry, "is_current", lambda _, manifest: manifest["sources"] == self.now)
        monkeypatch.setattr(registry, "open_index", self.opened)
        self.registry = registry.IndexRegistry(None, "x")

    def labels(self, _):
        if self.refused == "labels":
            raise UserError("cannot read the recipes")
        return ["x"]

    def opened(self, *_):
        found = SimpleNamespace(manifest={"sources": self.now})
        self.begun.set()
        assert self.may.wait(10)
        if self.refused == "open":
            raise UserError("the disk is full")
        self.log.append(found.manifest["sources"])
        return found

    def looked(self, now, times=1):
        """The numbers that have been opened after so many looks at the files, which are `now`."""
        self.now = now
        for _ in range(times):
            self.registry.refresh()
            self.registry.loader.submit(int).result()
        return self.log


@pytest.fixture
def files(monkeypatch):
    return Files(monkeypatch)


def test_what_changes_while_it_is_opened_is_opened_again(files):
    files.now = 2
    files.may.clear()
    files.begun.clear()
    files.registry.refresh()
    assert files.begun.wait(10)
    files.now = 3
    files.registry.refresh()  # while 2 is being opened
    files.may.set()
    assert files.looked(3, 2)[-1] == 3 and files.registry.get("").manifest["sources"] == 3
    assert files.looked(2, 2)[-1] == 2  # back to what was there before
    opened = files.looked(3, 2).copy()
    assert opened[-1] == 3 and files.looked(3, 3) == opened


def test_a_look_that_fails_is_said_once_and_not_the_last(files, caplog):
    files.refused = "labels"
    assert files.looked(2, 3) == [1]
    assert caplog.text.count("cannot check whether files have changed: cannot read the recipes") == 1
    files.refused = None
    assert files.looked(2) == [1, 2]


def test_what_cannot_be_opened_is_tried_again_when_it_changes_and_later(files, monkeypatch, caplog):
    tried = lambda: caplog.text.count("x cannot be opened: the disk is full")  # noqa: E731
    files.refused = "open"
    assert files.looked(2, 3) == [1] and tried() == 1
    assert files.registry.get("").manifest["sources"] == 1  # the old one goes on
    files.looked(3, 3)
    assert tried() == 2
    monkeypatch.setattr(registry, "RECHECK_SECONDS", 0.0)
    files.looked(3)
    assert tried() == 3
    files.refused = None
    assert files.looked(3) == [1, 3]


def test_marks_are_rows_that_dataset_reads(tmp_path, settings):
    path = tmp_path / "marks.jsonl"
    module.save_feedback(path, "a query", "right answer", True)
    module.save_feedback(path, "a query", "wrong answer", False)
    module.save_feedback(path, "another", "wrong answer", False)
    row = module.save_feedback(path, "a query", "doubtful", True)
    assert row == {"query": "a query", "pos": ["right answer", "doubtful"], "neg": ["wrong answer"]}
    assert module.save_feedback(path, "a query", "doubtful", False)["neg"] == ["wrong answer", "doubtful"]
    assert module.save_feedback(path, "a query", "doubtful", None) == {"query": "a query", "pos": ["right answer"],
                                                             "neg": ["wrong answer"]}
    collection, _ = read_pairs(settings.__class__(**(vars(settings) | {"dataset": str(path)})))
    assert set(collection.corpus.values()) == {"right answer", "wrong answer"}
    assert list(collection.queries.values()) == ["a query"]  # what has only wrong answers teaches nothing
    assert sorted(*(judged.values() for judged in collection.qrels.values())) == [0, 1]
    path.write_text('{"query": "a')
    with pytest.raises(UserError, match="marks.jsonl, line 1: not valid JSON"):
        module.save_feedback(path, "a query", "right answer", True)
    assert path.read_text() == '{"query": "a'  # what the user had stays


def test_a_failing_index_ends_in_one_line(experiment):
    class Broken:
        manifest = {}

        def answer(self, queries, k):
            raise ValueError("it\nbroke")

    with pytest.raises(registry.AnswerError, match="^it broke$"):
        asyncio.run(registry.QueryBatcher().ask(Broken(), "x", 1))


def test_no_answer_depends_on_what_is_asked_at_the_same_time():
    """Queries with different k, and one that fails, wait together; each gets what it gets alone."""
    asked, first, go_on = [], threading.Event(), threading.Event()

    class Shallow:
        """As an approximate index may: it finds other passages when it is asked for more of them."""

        def answer(self, queries, k):
            asked.append((queries, k))
            first.set()
            assert go_on.wait(10)
            if "no token" in queries:
                raise ValueError("the query has no token")
            return [[f"{query}, hit {rank} of {k}" for rank in range(k)] for query in queries]

    async def ask_all(given):
        answers, index = registry.QueryBatcher(), Shallow()
        waiting = [asyncio.create_task(answers.ask(index, "first", 1))]
        await asyncio.to_thread(first.wait, 10)
        waiting += [asyncio.create_task(answers.ask(index, *one)) for one in given]
        await asyncio.sleep(0)  # until each has been put into the queue
        go_on.set()
        return (await asyncio.gather(*waiting, return_exceptions=True))[1:]

    found = asyncio.run(ask_all([("a", 2), ("b", 5), ("c", 2), ("no token", 5)]))
    assert found[:3] == [[f"{query}, hit {rank} of {k}" for rank in range(k)]
                         for query, k in (("a", 2), ("b", 5), ("c", 2))]
    assert isinstance(found[3], registry.AnswerError) and str(found[3]) == "the query has no token"
    assert (["a", "c"], 2) in asked  # together


# In a browser ---------------------------------------------------------------------------------------------------------

def url(server):
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture
def page(browser, server):
    """The page in a browser; fails at the end if the browser had something to complain about or asked another host."""
    server.search("x", system="bm25")  # which is open from now on
    complaints, context = [], browser.new_context()
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda message: None if "status of 503" in message.text else complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((url(server), "data:")) else
            complaints.append(request.url))
    page.goto(url(server))
    page.locator("#system option").first.wait_for(state="attached")
    yield page
    context.close()
    assert complaints == []


def status_is(page, text, timeout=10_000):
    page.locator("#status", has_text=text).wait_for(timeout=timeout)


def test_search_compare_and_mark_by_keyboard_alone(page, server, experiment):
    press, collection = page.keyboard.press, read_data(experiment)
    query, text = list(collection.queries.values())[20], page.evaluate
    focused = lambda: text("document.activeElement.closest('.hit')?.querySelector('.rank').textContent")  # noqa: E731
    page.keyboard.type(query)  # the query has the focus
    press("Tab"), press("Tab")
    page.keyboard.type("bm25")
    press("/")  # no key while a list is open for typing
    press("Tab"), press("Tab"), press("Enter")
    status_is(page, "10 passages of reference, 10 passages of bm25")
    assert page.get_by_role("region").count() == 2
    press("/")
    press("ArrowDown"), press("ArrowDown"), press("ArrowRight")
    assert focused() == "2"
    second = page.get_by_role("region", name="Passages of bm25").get_by_role("listitem").nth(1)
    passage = second.locator(".text").inner_text()
    press("w")
    status_is(page, "Passage 2 of bm25: wrong")
    press("ArrowUp"), press("r")
    status_is(page, "Passage 1 of bm25: right")
    [row] = read_jsonl(experiment.data_dir / "marks.jsonl")
    assert row["query"] == query and row["neg"] == [passage] and len(row["pos"]) == 1
    press("ArrowDown"), press("r")
    status_is(page, "Passage 2 of bm25: right")
    press("r")
    status_is(page, "Passage 2 of bm25: mark removed")
    [row] = read_jsonl(experiment.data_dir / "marks.jsonl")
    assert row["neg"] == [] and len(row["pos"]) == 1
    page.reload()  # the query is in the address, the marks are in the file
    status_is(page, "10 passages of bm25")
    assert page.locator(".hit.yes").count() >= 1
    first = page.get_by_role("region", name="Passages of bm25").get_by_role("listitem").first
    button = first.get_by_role("button", name="right: passage 1 of bm25")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    status_is(page, "mark removed")
    assert button.get_attribute("aria-pressed") == "false"
    assert (experiment.data_dir / "marks.jsonl").read_text() == ""


def test_every_control_has_a_name_and_results_are_announced(page):
    for role, name in (("searchbox", "Query"), ("combobox", "System"), ("combobox", "Compare with"),
                       ("combobox", "Passages"), ("button", "Search")):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name
    assert page.get_by_role("status").count() == 1 and page.get_by_role("search").count() == 1
    page.fill("#q", "otter")
    page.press("#q", "Enter")
    status_is(page, "passages of reference")
    assert page.locator("#columns button:not([aria-label])").count() == 0


def test_an_empty_page_suggests_test_queries(page, experiment):
    queries = list(read_data(experiment).split("test").queries.values())[:3]
    page.get_by_role("button", name=queries[2]).wait_for()
    assert page.locator("#columns button").all_inner_texts() == queries
    page.get_by_role("button", name=queries[1]).click()
    status_is(page, "10 passages of reference")
    assert page.input_value("#q") == queries[1]


def test_only_sources_on_the_web_are_links(page):
    sources = ["https://example.org/a?b=c", "javascript:alert(1)", "manual.md, line 3", {"page": 3}]
    answer = {"system": "bm25", "query": "x", "usual": None, "note": "", "hits": [
        {"rank": rank, "score": 1, "id": f"p{rank}", "text": "text", "source": source}
        for rank, source in enumerate(sources, start=1)]}
    page.route("**/search?*", lambda route: route.fulfill(json=answer))
    page.fill("#q", "x")
    page.press("#q", "Enter")
    status_is(page, "4 passages of bm25")
    assert page.locator(".hit a").evaluate_all("links => links.map(link => link.href)") == sources[:1]
    for place, shown in enumerate(["javascript:alert(1)", "manual.md, line 3", '{"page":3}'], start=1):
        assert shown in page.locator(".hit header").nth(place).inner_text()


def test_markup_in_passages_is_shown_as_text(page, experiment):
    page.select_option("#system", "bm25")
    page.fill("#q", "onerror window hacked script")
    page.press("#q", "Enter")
    status_is(page, "of bm25")
    assert NASTY in page.locator(".hit .text").first.text_content()
    assert page.evaluate("window.hacked") is None and page.locator(".hit img, .hit script").count() == 0


def test_an_empty_answer_is_said_and_a_closed_model_is_waited_for(page):
    page.select_option("#system", "raw")
    page.fill("#q", "willow")
    page.press("#q", "Enter")
    status_is(page, "passages of raw", timeout=60_000)
    page.select_option("#system", "bm25")
    page.fill("#q", "zzzz")
    page.press("#q", "Enter")
    status_is(page, "0 passages of bm25")
    assert page.get_by_text("no passage was found").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1300])
def test_it_fits_and_can_be_read(browser, server, scheme, width):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(url(server) + "/#" + urlencode({"q": "otter", "system": "reference", "with": "bm25"}))
    status_is(page, "of bm25")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    lightness = page.evaluate("""() => ['color', 'backgroundColor'].map(name =>
        getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0) / 3)""")
    assert (lightness[0] < 60 and lightness[1] > 200) == (scheme == "light")
    context.close()
