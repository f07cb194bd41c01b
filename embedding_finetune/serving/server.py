"""HTTP search server: a JSON API, and a page to search, compare two systems and give relevance feedback.

    python -m embedding_finetune serve [--port 8000] [--host 127.0.0.1] [--system LABEL]

    GET  /search?q=&k=&system=   top passages of a query         GET  /systems       systems that can be searched
    GET  /marks?q=               feedback on a query             GET  /healthz       health check
    POST /marks                  mark a hit as right or wrong    GET  /openapi.json  OpenAPI description
    GET  /                       search page

Waiting queries are answered in batches by one thread. An index is opened on first use and reloaded when its files
change; the old one answers until the new one is ready. The server listens on this machine only, unless --host is given.
Put a proxy with authentication in front of it before you open it to others.
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
from pydantic import AliasChoices, BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from embedding_finetune.files import CommandLine, UserError, one_line, read_jsonl, write_jsonl
from embedding_finetune.serving.abstention import is_answerable, threshold_line
from embedding_finetune.serving.available import add_system_option, default_label
from embedding_finetune.serving.registry import IndexRegistry, Overloaded, QueryBatcher
from embedding_finetune.settings import Settings

PAGE = Path(__file__).with_name("server.html")
LONGEST, DEEPEST = 2000, 100  # maximum characters of a query, and passages of an answer
LOOK = 2.0  # seconds between checks for changed files
PATIENCE = 10.0  # timeout in seconds for receiving a request, and for sending an answer
LARGEST = 16_384  # maximum bytes of the headers of a request, and of its body
CONNECTIONS = 1024
LOOPBACK = ["127.0.0.1", "localhost", "::1", "[::1]"]

log = logging.getLogger(__name__)
Text = Annotated[str, Query(pattern=r"\S", max_length=LONGEST, description="the query")]
Label = Annotated[str, Field(max_length=200,
                            description="a label of /systems; default: the best fine-tuned model on dev queries")]


class Hit(BaseModel):
    rank: int
    score: float
    id: str
    text: str
    source: object = Field(None, description="origin of the passage, if known")
    above_threshold: bool | None = None


class Answer(BaseModel):
    system: str
    query: str
    likely: bool = Field(description="false: no passage is likely to answer this")
    threshold: str = Field(description="score from which a hit is likely to answer, and its precision on dev queries")
    hits: list[Hit]


class Feedback(BaseModel):
    query: str = Field(pattern=r"\S", max_length=LONGEST)
    id: str = Field(max_length=LONGEST, description="id of one of the top 100 passages of this query")
    system: Label = Field("", validation_alias=AliasChoices("system", "model"))  # the old name
    right: bool | None = Field(description="null removes the mark")


def read_feedback(path):
    """Read the feedback rows; none if the file is missing or empty. Raises UserError when it is broken."""
    return read_jsonl(path, required=("query", "pos")) if path.exists() and path.stat().st_size else []


def save_feedback(path, query, text, right):
    """Record in the JSONL file `path` whether `text` answers a query (True), does not (False), or is unmarked (None).

    A row has query, pos, neg. Returns the row of the query. Raises UserError when the file is broken.
    """
    rows = read_feedback(path)
    row = next((row for row in rows if row["query"] == query), None)
    if row is None:
        rows.append(row := {"query": query, "pos": []})
    for side, marked in (("pos", right is True), ("neg", right is False)):
        row[side] = [other for other in row.get(side, []) if other != text] + ([text] if marked else [])
    write_jsonl(path, [row for row in rows if row["pos"] or row.get("neg")])
    return row


def application(settings, registry):
    """Create the FastAPI application over an IndexRegistry."""
    @asynccontextmanager
    async def lifespan(_):
        async def watch():
            while True:
                await asyncio.sleep(LOOK)
                await asyncio.to_thread(registry.refresh)
        watching = asyncio.create_task(watch())
        yield
        watching.cancel()

    app = FastAPI(title="embedding_finetune", description="Search with a fine-tuned model", docs_url=None,
                  redoc_url=None, lifespan=lifespan)
    answers, marking, path = QueryBatcher(), asyncio.Lock(), settings.paths.feedback
    errors = {404: {"description": "no such system"}, 503: {"description": "overloaded: see Retry-After"}}

    @app.exception_handler(Overloaded)
    async def busy(_, error):
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})

    @app.exception_handler(UserError)
    async def cannot(_, error):
        return JSONResponse({"detail": str(error)}, 404)

    @app.exception_handler(RequestValidationError)
    async def invalid(_, error):  # does not echo the input, which may be large or not text
        detail = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return JSONResponse({"detail": detail}, 422)

    @app.get("/", include_in_schema=False)
    def page():
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"X-Frame-Options": "DENY"})

    @app.get("/healthz")
    async def healthz():
        return {"status": "ok", "system": registry.default, "waiting": answers.waiting.qsize()}

    @app.get("/systems")
    @app.get("/models", deprecated=True)  # its old name
    def systems():
        return [{"label": label, "default": label == registry.default, "open": label in registry.open}
                for label in registry.labels]

    @app.get("/search", responses=errors)
    async def search(q: Text, k: Annotated[int, Query(ge=1, le=DEEPEST)] = 10, system: Label = "",
                     model: Annotated[str, Query(deprecated=True, description="old name of system")] = "") -> Answer:
        index = registry.get(system or model)
        hits = await answers.ask(index, q, k)
        return JSONResponse({"system": index.manifest["label"], "query": q, "likely": is_answerable(hits),
                             "threshold": threshold_line(index.manifest["abstention"]), "hits": hits})

    @app.get("/marks")
    async def marks(q: Text):
        rows = await asyncio.to_thread(read_feedback, path)
        return next((row for row in rows if row["query"] == q), {"query": q, "pos": [], "neg": []})

    @app.post("/marks", responses=errors)
    async def put_mark(feedback: Feedback, request: Request):
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host"):
            raise HTTPException(403, "feedback is accepted only from the page of this server")
        hits = await answers.ask(registry.get(feedback.system), feedback.query, DEEPEST)
        text = next((hit["text"] for hit in hits if hit["id"] == feedback.id), None)
        if text is None:
            raise HTTPException(404, f"this id is not among the top {DEEPEST} passages of this query")
        async with marking:
            return await asyncio.to_thread(save_feedback, path, feedback.query, text, feedback.right)

    return app


class Guarded:
    """ASGI wrapper that refuses large bodies, and turns failures into status 500 and one line in the log."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        size, started = 0, False

        async def counted():
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > LARGEST:
                raise HTTPException(413, f"the body is larger than {LARGEST} bytes")
            return message

        async def noted(message):
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except Exception as error:
            log.error("%s %s failed: %s", scope["method"], scope["path"][:100], one_line(error))
            if not started:
                await JSONResponse({"detail": "internal error; see the log"}, 500)(scope, receive, send)


class Impatient(H11Protocol):
    """HTTP protocol that closes a connection when its request is incomplete, or its answer unread, after PATIENCE."""

    timer = stuck = None

    def connection_made(self, transport):
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that pause_writing is called for any unsent byte
        self._wait()

    def handle_events(self):
        super().handle_events()
        # A complete request is being answered: its time limit no longer applies.
        if self.cycle and not (self.cycle.more_body or self.cycle.response_complete):
            self.timer.cancel()

    def on_response_complete(self):
        self._wait()
        super().on_response_complete()  # this handles a pipelined request, so it comes last

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
    """Run the `serve` command. Raises UserError when the default index cannot be opened."""
    parser = CommandLine("serve", "Search over HTTP.")
    parser.add_argument("--port", type=int, default=8000, choices=range(65536), metavar="PORT")
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen on; any but the default opens the server to other machines")
    add_system_option(parser, "system that answers by default")
    options = parser.parse_args()
    logging.basicConfig(format="%(levelname)s:     %(message)s")
    logging.getLogger("embedding_finetune").setLevel(logging.INFO)
    settings = Settings.load()
    app = application(settings, IndexRegistry(settings, options.system or default_label(settings)))
    if options.host in LOOPBACK:  # refuses other host names (DNS rebinding)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK, www_redirect=False)
    uvicorn.run(Guarded(app), host=options.host, port=options.port, http=Impatient, ws="none", access_log=False,
                limit_concurrency=CONNECTIONS, h11_max_incomplete_event_size=LARGEST)
