"""Search over HTTP: a JSON endpoint, and a page to search, to compare two models and to mark hits.

    python -m embedding_finetune serve [--port 8000] [--host 127.0.0.1] [--model LABEL]

    GET  /search?q=&k=&model=    the best passages of a query    GET  /models        what can be searched with
    GET  /marks?q=               what is marked for a query      GET  /healthz       whether it answers
    POST /marks                  mark a hit as right or wrong    GET  /openapi.json  all of this for machines
    GET  /                       the page

Queries that wait are answered together, by one thread. A model is opened when it is first asked for, and opened anew
when its files have changed: beside the old one, which answers until the new one is ready. It listens to this machine
alone unless --host says otherwise; whoever opens it to others puts a proxy with authentication before it.
"""

import asyncio
import logging
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from embedding_finetune.files import CommandLine, UserError, one_line, read_jsonl, write_jsonl
from embedding_finetune.serving.abstention import is_answerable, threshold_line
from embedding_finetune.serving.available import default_label
from embedding_finetune.serving.registry import IndexRegistry, Overloaded, QueryBatcher
from embedding_finetune.settings import Settings

PAGE = Path(__file__).with_name("server.html")
FEEDBACK_FILE = "marks.jsonl"  # in DATA_DIR, in the form that DATASET reads
LONGEST, DEEPEST = 2000, 100  # characters of a query, passages of an answer
LOOK = 2.0  # seconds between two looks whether the files of an open index have changed
PATIENCE = 10.0  # seconds for a request to come in whole, and for an answer to be taken
LARGEST = 16_384  # bytes of a request's head, and of its body
CONNECTIONS = 1024
LOOPBACK = ["127.0.0.1", "localhost", "::1", "[::1]"]

log = logging.getLogger(__name__)
Text = Annotated[str, Query(pattern=r"\S", max_length=LONGEST, description="the query")]
Label = Annotated[str, Field(max_length=200, description="a label of /models; by default the model that dev chose")]


class Hit(BaseModel):
    rank: int
    score: float
    id: str
    text: str
    source: object = Field(None, description="where the passage comes from, if that is known")
    above_threshold: bool | None = None


class Answer(BaseModel):
    model: str
    query: str
    likely: bool = Field(description="false: no passage is likely to answer this")
    threshold: str = Field(description="from which score on an answer is likely, and how often that was right on dev")
    hits: list[Hit]


class Feedback(BaseModel):
    query: str = Field(pattern=r"\S", max_length=LONGEST)
    id: str = Field(max_length=LONGEST, description="of a passage among the first 100 of this query")
    model: Label = ""
    right: bool | None = Field(description="null takes a mark away")


def read_feedback(path):
    """The rows of marks; none where there is no file yet, or an empty one. Raises UserError when it is broken."""
    return read_jsonl(path, required=("query", "pos")) if path.exists() and path.stat().st_size else []


def save_feedback(path, query, text, right):
    """Write into the JSONL at `path` that a passage's text answers a query, does not (False), or neither (None).

    A row has query, pos, neg. Raises UserError when the file is broken. Returns the query's row.
    """
    rows = read_feedback(path)
    row = next((row for row in rows if row["query"] == query), None)
    if row is None:
        rows.append(row := {"query": query, "pos": []})
    for side, holds in (("pos", right is True), ("neg", right is False)):
        row[side] = [other for other in row.get(side, []) if other != text] + [text] * holds
    write_jsonl(path, [row for row in rows if row["pos"] or row.get("neg")])
    return row


def application(settings, shelf):
    """The FastAPI application over a Shelf."""
    @asynccontextmanager
    async def lifespan(_):
        async def watch():
            while True:
                await asyncio.sleep(LOOK)
                await asyncio.to_thread(shelf.refresh)
        watching = asyncio.create_task(watch())
        yield
        watching.cancel()

    app = FastAPI(title="embedding_finetune", description="Search with a fine-tuned model", docs_url=None,
                  redoc_url=None, lifespan=lifespan)
    answers, marking, path = QueryBatcher(), asyncio.Lock(), settings.data_dir / FEEDBACK_FILE
    says = {404: {"description": "no such model"}, 503: {"description": "busy: come again after Retry-After"}}

    @app.exception_handler(Overloaded)
    async def busy(_, error):
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})

    @app.exception_handler(UserError)
    async def cannot(_, error):
        return JSONResponse({"detail": str(error)}, 404)

    @app.exception_handler(RequestValidationError)
    async def invalid(_, error):  # without what was sent, which may be large, or no text at all
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return JSONResponse({"detail": said}, 422)

    @app.get("/", include_in_schema=False)
    def page():
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"X-Frame-Options": "DENY"})

    @app.get("/healthz")
    async def healthz():
        return {"status": "ok", "model": shelf.default, "waiting": answers.waiting.qsize()}

    @app.get("/models")
    def models():
        return [{"label": label, "default": label == shelf.default, "open": label in shelf.open}
                for label in shelf.labels]

    @app.get("/search", responses=says)
    async def search(q: Text, k: Annotated[int, Query(ge=1, le=DEEPEST)] = 10, model: Label = "") -> Answer:
        index = shelf.get(model)
        hits = await answers.ask(index, q, k)
        return JSONResponse({"model": index.manifest["label"], "query": q, "likely": is_answerable(hits),
                             "threshold": threshold_line(index.manifest["abstention"]), "hits": hits})

    @app.get("/marks")
    async def marks(q: Text):
        rows = await asyncio.to_thread(read_feedback, path)
        return next((row for row in rows if row["query"] == q), {"query": q, "pos": [], "neg": []})

    @app.post("/marks", responses=says)
    async def put_mark(given: Feedback, request: Request):
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host"):
            raise HTTPException(403, "only this server's own page may mark")
        hits = await answers.ask(shelf.get(given.model), given.query, DEEPEST)
        text = next((hit["text"] for hit in hits if hit["id"] == given.id), None)
        if text is None:
            raise HTTPException(404, f"the first {DEEPEST} passages of this query do not have this id")
        async with marking:
            return await asyncio.to_thread(save_feedback, path, given.query, text, given.right)

    return app


class Guarded:
    """An application that gets no large body, and whose failures end in 500 and one line of the log."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        size, began = 0, False

        async def counted():
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > LARGEST:
                raise HTTPException(413, f"a body has at most {LARGEST} bytes")
            return message

        async def noted(message):
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except Exception as error:
            log.error("%s %s failed: %s", scope["method"], scope["path"][:100], one_line(error))
            if not began:
                await JSONResponse({"detail": "this failed; the log says why"}, 500)(scope, receive, send)


class Impatient(H11Protocol):
    """HTTP that closes a connection whose request does not come in whole, or whose answer is not taken, within
    PATIENCE."""

    timer = stuck = None

    def connection_made(self, transport):
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # pause_writing tells of anything that the client has not taken
        self._wait()

    def handle_events(self):
        super().handle_events()
        if self.cycle and not (self.cycle.more_body or self.cycle.response_complete):  # it is being answered
            self.timer.cancel()

    def on_response_complete(self):
        self._wait()
        super().on_response_complete()  # which looks whether the next request is there already

    def pause_writing(self):
        super().pause_writing()
        self.stuck = self.loop.call_later(PATIENCE, self.transport.abort)

    def resume_writing(self):
        super().resume_writing()
        self.stuck.cancel()

    def connection_lost(self, exc):
        self.timer.cancel()
        if self.stuck:
            self.stuck.cancel()
        super().connection_lost(exc)

    def _wait(self):
        if self.timer:
            self.timer.cancel()
        self.timer = self.loop.call_later(PATIENCE, self._refuse)

    def _refuse(self):
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()


def main():
    """Raises UserError when there is nothing to answer with."""
    parser = CommandLine("serve", "Search over HTTP.")
    parser.add_argument("--port", type=int, default=8000, choices=range(65536), metavar="PORT")
    parser.add_argument("--host", default="127.0.0.1", help="another than the default opens it to other machines")
    parser.add_argument("--model", metavar="LABEL", help="who answers by default")
    options = parser.parse_args()
    logging.basicConfig(format="%(levelname)s:     %(message)s")
    logging.getLogger("embedding_finetune").setLevel(logging.INFO)
    settings = Settings.load()
    app = application(settings, IndexRegistry(settings, options.model or default_label(settings)))
    if options.host in LOOPBACK:  # another name that leads here is the trick of another site (DNS rebinding)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK, www_redirect=False)
    uvicorn.run(Guarded(app), host=options.host, port=options.port, http=Impatient, ws="none", access_log=False,
                limit_concurrency=CONNECTIONS, h11_max_incomplete_event_size=LARGEST)
