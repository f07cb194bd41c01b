"""HTTP search server: a JSON API, and a page to search, compare two systems and give relevance feedback.

    python -m embedding_finetune serve [--port 8000] [--host 127.0.0.1] [--system LABEL]

    GET  /search?q=&k=&system=&min_score=
                                  top passages of a query
    GET  /systems, /examples      systems that can be searched, some test queries
    GET  /marks?q=                feedback on a query
    POST /marks                   mark a hit as right or wrong
    GET  /healthz, /openapi.json  health check, OpenAPI description
    GET  /                        search page

Waiting queries are answered in batches by one thread. An index is opened on first use and reloaded when its files
change; the old one answers until the new one is ready. The server listens on this machine only, unless --host is given.
Before you open it to others, put a proxy in front of it that authenticates clients and limits their time
(docs/deploy.md).
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import AliasChoices, BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from embedding_finetune.files import CommandLine, UserError, iter_jsonl, read_jsonl, write_jsonl
from embedding_finetune.serving.available import add_system_option, default_label
from embedding_finetune.serving.calibration import at_least, judge_score
from embedding_finetune.serving.registry import AnswerError, IndexRegistry, OverloadedError, QueryBatcher
from embedding_finetune.settings import Settings

PAGE = Path(__file__).with_name("server.html")
LONGEST, DEEPEST = 2000, 100  # maximum characters of a query, and passages of an answer
LOOK = 2.0  # seconds between checks for changed files
EXAMPLES = 3  # test queries that the page suggests
PATIENCE = 10  # seconds in which a terminated server answers the requests that it has
LARGEST = 16_384  # maximum bytes of the headers of a request, and of its body
CONNECTIONS = 1024
ERRORS: dict[int | str, Any] = {404: {"description": "no such system"},
                                503: {"description": "overloaded: see Retry-After"}}
LOOPBACK = ["127.0.0.1", "localhost", "::1", "[::1]"]

log = logging.getLogger(__name__)
Text = Annotated[str, Query(pattern=r"\S", max_length=LONGEST, description="the query")]
Label = Annotated[str, Field(max_length=200,
                            description="a label of /systems; default: the recommended system")]


class Hit(BaseModel):
    """A passage."""

    rank: int
    score: float
    id: str
    text: str
    source: object = Field(None, description="origin of the passage, if known")


class Answer(BaseModel):
    """The answer to a query."""

    system: str
    query: str
    usual: bool | None = Field(description="whether the score of the first hit is usual for a correct answer; null: "
                                           "there are too few dev queries to tell")
    note: str = Field(description="the same as a sentence, or why there are no hits")
    hits: list[Hit]


class Feedback(BaseModel):
    """A mark of a hit."""

    query: str = Field(pattern=r"\S", max_length=LONGEST)
    id: str = Field(max_length=LONGEST, description="id of one of the top 100 passages of this query")
    system: Label = Field("", validation_alias=AliasChoices("system", "model"))  # the old name
    right: bool | None = Field(description="null removes the mark")


def read_feedback(path: Path) -> list[dict]:
    """Read the feedback rows; none if the file is missing or empty. Raises UserError when it is broken."""
    return read_jsonl(path, required=("query", "pos")) if path.exists() and path.stat().st_size else []


def save_feedback(path: Path, query: str, text: str, right: bool | None) -> dict:
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


def application(settings: Settings, registry: IndexRegistry, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """Create the application over an IndexRegistry; it refuses requests whose host name is not in `hosts`."""
    @asynccontextmanager
    async def lifespan(_):
        watching = asyncio.create_task(_watch(registry))
        yield
        watching.cancel()

    app = FastAPI(title="embedding_finetune", description="Search with a fine-tuned model", docs_url=None,
                  redoc_url=None, lifespan=lifespan, exception_handlers=ERROR_HANDLERS,
                  max_body_size=LARGEST)
    batcher = QueryBatcher()
    app.include_router(_search_routes(registry, batcher))
    app.include_router(_feedback_routes(registry, batcher, settings.paths.feedback))
    app.get("/", include_in_schema=False)(_page)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    return app


async def _watch(registry):
    while True:
        await asyncio.sleep(LOOK)
        await asyncio.to_thread(registry.refresh)


def _page():
    return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"X-Frame-Options": "DENY"})


async def _failed(request, error):
    log.error("%s %s failed: %s", request.method, request.url.path, error)
    return JSONResponse({"detail": "internal error; see the log"}, 500)


def _refusal(status, headers=None):
    async def answer(_, error):
        return JSONResponse({"detail": str(error)}, status, headers)

    return answer


async def _invalid(_, error):  # does not echo the input, which may be large or not text
    detail = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return JSONResponse({"detail": detail}, 422)


ERROR_HANDLERS: dict[int | type[Exception], Any] = {
    OverloadedError: _refusal(503, {"Retry-After": "1"}), UserError: _refusal(404),
    AnswerError: _failed, RequestValidationError: _invalid}


def _search_routes(registry, batcher):
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz():
        return {"status": "ok", "system": registry.default, "waiting": batcher.waiting.qsize()}

    @routes.get("/systems")
    @routes.get("/models", deprecated=True)  # its old name
    def systems():
        return [{"label": label, "default": label == registry.default, "open": label in registry.open}
                for label in registry.labels]

    @routes.get("/examples")
    def examples():
        path = registry.settings.paths.data / "eval_dataset.json"
        return [row["query"] for row in islice(iter_jsonl(path), EXAMPLES)] if path.is_file() else []

    @routes.get("/search", responses=ERRORS, response_model=Answer)
    async def search(q: Text, k: Annotated[int, Query(ge=1, le=DEEPEST)] = 10, system: Label = "",
                     min_score: Annotated[float | None, Query(allow_inf_nan=False)] = None,
                     model: Annotated[str, Query(deprecated=True, description="old name of system")] = ""):
        index = registry.get(system or model)
        found = await batcher.ask(index, q, k)
        usual, note = judge_score(found, index.manifest["dev"])
        hits, nothing_left = at_least(found, min_score)
        return JSONResponse({"system": index.manifest["label"], "query": q, "usual": usual,
                             "note": nothing_left or note, "hits": hits})

    return routes


def _feedback_routes(registry, batcher, path):
    routes, marking = APIRouter(), asyncio.Lock()

    @routes.get("/marks")
    def marks(q: Text):
        return next((row for row in read_feedback(path) if row["query"] == q), {"query": q, "pos": [], "neg": []})

    @routes.post("/marks", responses=ERRORS)
    async def put_mark(feedback: Feedback, request: Request):
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host"):
            raise HTTPException(403, "feedback is accepted only from the page of this server")
        hits = await batcher.ask(registry.get(feedback.system), feedback.query, DEEPEST)
        text = next((hit["text"] for hit in hits if hit["id"] == feedback.id), None)
        if text is None:
            raise HTTPException(404, f"this id is not among the top {DEEPEST} passages of this query")
        async with marking:
            return await asyncio.to_thread(save_feedback, path, feedback.query, text, feedback.right)

    return routes


def port(text: str) -> int:
    """The value of --port. Raises ValueError when it is not a port."""
    if not 0 <= int(text) <= 65535:
        raise ValueError
    return int(text)


def main() -> None:
    """Run the `serve` command. Raises UserError when the default index cannot be opened."""
    parser = CommandLine("serve", "Serve search over HTTP: a JSON API, and a search page at /.")
    parser.add_argument("--port", type=port, default=8000, metavar="PORT", help="default: 8000; 0: a free one")
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen on; any but the default opens the server to other machines")
    add_system_option(parser, "system that answers by default")
    options = parser.parse_args()
    logging.basicConfig(format="%(levelname)s:     %(message)s")
    logging.getLogger("embedding_finetune").setLevel(logging.INFO)
    settings = Settings.load()
    registry = IndexRegistry(settings, options.system or default_label(settings))
    hosts = LOOPBACK if options.host in LOOPBACK else ["*"]  # refuses other host names (DNS rebinding)
    config = uvicorn.Config(
        application(settings, registry, hosts), host=options.host, port=options.port, http="h11", ws="none",
        access_log=False, limit_concurrency=CONNECTIONS, h11_max_incomplete_event_size=LARGEST,
        timeout_graceful_shutdown=PATIENCE)
    uvicorn.Server(config).run()  # unlike uvicorn.run, passes Ctrl-C on
