"""The web server: a page, a socket, and a few routes for people and machines who look after it.

The page and the socket answer at once; the engine loads and warms up in a thread of its own, and viewers are told.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from fastapi import Cookie, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.websockets import WebSocketDisconnect, WebSocketState

from shotstream.engine.archive import ArchiveError
from shotstream.engine.fake import FAKE
from shotstream.engine.loading import load_unknown_words, reserve_heap
from shotstream.engine.stream import Engine
from shotstream.engine.worker import Encode, warm_up
from shotstream.engine.writer import (
    Composer,
    NoticingWriter,
    OpenAIConfig,
    OpenAIWriter,
    PassthroughWriter,
    TemplateWriter,
    Writer,
)
from shotstream.engine.writer import WriterName as WriterName
from shotstream.presets import Preset
from shotstream.server.audience import Viewer
from shotstream.server.cards import Failure
from shotstream.server.library import library_router
from shotstream.server.media import ChunkEncoder
from shotstream.server.protocol import (
    PROTOCOL_VERSION,
    SOCKET_PATH,
    Ack,
    Error,
    Join,
    PresetInfo,
    ProtocolError,
    Status,
    parse,
    to_json,
)
from shotstream.server.security import COOKIE, Access, Bucket, Guard, Security, SecurityConfig
from shotstream.server.session import Show
from shotstream.server.store import Store, StoreConfig
from shotstream.server.studio import Broadcast, Studio
from shotstream.server.suggestions import suggestions
from shotstream.server.video_jobs import VideoJobs
from shotstream.server.videos import videos_router
from shotstream.story import CHUNKS_PER_SHOT

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
JOIN_S = 10.0
"""How long a connection may take to send its first message."""
MAX_VIOLATIONS = 100
"""Messages that could not be used, after which a connection is closed."""
POLICY_VIOLATION = 1008
TRY_AGAIN_LATER = 1013
_STORY_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What to serve, and to whom."""

    preset: Preset
    security: SecurityConfig = field(default_factory=SecurityConfig)
    writer: WriterName = "template"
    openai: OpenAIConfig | None = None
    """For the writer `openai`."""
    data: StoreConfig | None = None
    """Where stories are kept; none: in a folder that goes when the server does."""
    slots: int | None = None
    """How many stories may be live; none: as many as the engine turns out to be fast enough for."""

    def __post_init__(self) -> None:
        if self.writer == "openai" and self.openai is None:
            raise ValueError("the writer openai needs an endpoint and a model: --writer-url and --writer-model")


def create_app(
    config: ServeConfig, load_engine: Callable[[], Engine], *, reached: Callable[[str], None] = lambda point: None
) -> FastAPI:
    """The whole server as an ASGI application. Raises ValueError where the data folder cannot be used.

    Args: load_engine is called once, in a thread, after the server has begun to answer. What it raises as ValueError or
        OSError is shown to viewers. reached is told named points of the work, for tests that end the process there.
    """
    security = Security(config.security)
    encoder = ChunkEncoder(config.preset.width, config.preset.height, config.preset.fps)
    door = Door(security)
    jobs = VideoJobs()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with _store(config, reached) as store:
            door.studio = studio = Studio(
                _broadcast(config.preset, encoder), store, writer_name=config.writer, reached=reached
            )
            opening = asyncio.create_task(_open(studio, config, load_engine))
            jobs.start(studio)
            yield
            opening.cancel()
            door.close_all()
            await asyncio.to_thread(jobs.close)
            await studio.close()

    unusable: dict[int | str, dict[str, Any]] = {422: {"model": Failure}}
    app = FastAPI(title="shotstream", lifespan=lifespan, docs_url=None, redoc_url=None, responses=unusable)
    app.add_middleware(Guard, security=security)
    app.add_exception_handler(RequestValidationError, _explain)
    _add_care(app, door)
    _add_doors(app, door)
    app.include_router(library_router(door))
    app.include_router(videos_router(jobs, config.preset, security))
    app.add_api_websocket_route(SOCKET_PATH, door.serve)
    if STATIC.is_dir():
        app.mount("/", StaticFiles(directory=STATIC, html=True), name="page")
    return app


def _explain(_: Request, error: Exception) -> Response:
    """What is wrong with a request, without repeating it: not everything that was sent can be sent back."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"detail": f"{where}: {first['msg']}" if where else first["msg"]}, 422)


@contextmanager
def _store(config: ServeConfig, reached: Callable[[str], None]) -> Iterator[Store]:
    if config.data is not None:
        store = Store(config.data, config.preset, reached=reached)
        store.settle()
        yield store
        return
    with TemporaryDirectory(prefix="shotstream-") as folder:
        yield Store(StoreConfig(folder=Path(folder)), config.preset, reached=reached)


def _broadcast(preset: Preset, encoder: ChunkEncoder) -> Broadcast:
    def new_encoder() -> Encode:
        mine = ChunkEncoder(preset.width, preset.height, preset.fps)
        return lambda frames: mine.encode(frames)

    # A lone latent frame decodes to one picture, every other one to four.
    frames = 4 * preset.slab.chunk_frames
    info = PresetInfo(
        name=preset.name,
        width=preset.width,
        height=preset.height,
        fps=preset.fps,
        mime=encoder.mime_type,
        first_chunk_frames=frames - 3,
        chunk_frames=frames,
        chunks_per_shot=CHUNKS_PER_SHOT,
        memory_frames=preset.slab.context_frames,
        suggestions=suggestions(preset),
    )
    return Broadcast(
        preset=info,
        init_segment=encoder.init_segment,
        slate=encoder.slate,
        slate_frames=encoder.slate_frames,
        new_encoder=new_encoder,
    )


async def _open(studio: Studio, config: ServeConfig, load_engine: Callable[[], Engine]) -> None:
    """Load, warm up, and let the stories begin."""
    try:
        engine = await asyncio.to_thread(load_engine)
        studio.set_status(Status(state="warming"))
        pace = await asyncio.to_thread(warm_up, engine, studio.broadcast.new_encoder())
        reserve_heap()
    except (ValueError, OSError, RuntimeError) as error:
        log.error("the engine could not be started: %s", error)
        studio.fail(f"the engine could not be started: {error}")
        return
    except Exception as error:
        # The last frame of this task: without it people would wait for an engine that never comes.
        log.exception("the engine could not be started")
        studio.fail(f"the engine could not be started: {type(error).__name__}: {error}")
        return
    studio.open(engine, _writer(config, engine), pace, config.slots)
    log.info("ready: %.0f frames/s, %d live", pace.frames_per_second, studio.slots)


def _writer(config: ServeConfig, engine: Engine) -> Writer:
    unknown = load_unknown_words(config.preset, None if config.preset.name == FAKE.name else engine.text)
    writer = _plain_writer(config, engine)
    return NoticingWriter(writer, unknown.of) if unknown else writer


def _plain_writer(config: ServeConfig, engine: Engine) -> Writer:
    composer = Composer(check=engine.check_caption, style=config.preset.caption_style)
    match config.writer:
        case "passthrough":
            return PassthroughWriter(composer)
        case "template":
            return TemplateWriter(composer)
        case "openai":
            assert config.openai is not None
            return OpenAIWriter(composer, config.openai, words=max(12, config.preset.text.length // 2))


# ---------------------------------------------------------------------------------------------------------------------
# The socket


class Door:
    """Lets viewers in and carries their messages."""

    def __init__(self, security: Security) -> None:
        self.security = security
        self.studio: Studio | None = None
        self._numbers = itertools.count(1)
        self._connections: dict[asyncio.Task[None], Access] = {}

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    @property
    def is_full(self) -> bool:
        """Whether as many watch as may."""
        return self.num_connections >= self.security.config.max_viewers

    @contextmanager
    def attended(self, task: asyncio.Task[None], access: Access) -> Iterator[None]:
        """Count somebody who watches otherwise than by a socket; the task is cancelled when they have to leave."""
        self._connections[task] = access
        try:
            yield
        finally:
            del self._connections[task]

    def close_link(self, id: str) -> None:
        """End the connections that came by a watch link."""
        for task, access in list(self._connections.items()):
            if access.link == id:
                task.cancel()

    def close_all(self) -> None:
        for task in list(self._connections):
            task.cancel()

    async def serve(self, socket: WebSocket) -> None:
        """One connection from its first message to its end."""
        await socket.accept()
        studio = self.studio
        assert studio is not None
        if self.is_full:
            await _refuse(socket, Error(code="unavailable", message="too many people watch already", fatal=True))
            return
        try:
            joined = await self._join(socket, studio)
        except (WebSocketDisconnect, RuntimeError):
            return
        if joined is None:
            return
        join, access, show = joined
        viewer = Viewer(f"v{next(self._numbers)}", access.role, lambda message: _send(socket, message))
        await self._attend(socket, viewer, show, join, access)

    async def _join(self, socket: WebSocket, studio: Studio) -> tuple[Join, Access, Show] | None:
        try:
            join = parse(await asyncio.wait_for(_receive(socket), JOIN_S))
        except (ProtocolError, TimeoutError) as error:
            reason = str(error) or "the first message did not come"
            await _refuse(socket, Error(code="bad_message", message=reason, fatal=True))
            return None
        if not isinstance(join, Join) or join.protocol != PROTOCOL_VERSION:
            reason = f"the first message is `join` for protocol {PROTOCOL_VERSION}: reload the page"
            await _refuse(socket, Error(code="bad_message", message=reason, fatal=True))
            return None
        client = socket.client.host if socket.client else ""
        access = self.security.access(token=join.token, cookie=socket.cookies.get(COOKIE, ""))
        if access is None:
            if not self.security.logins.take(client):
                await asyncio.sleep(1.0)
            await _send(socket, studio.unauthorized())
            await _close(socket, POLICY_VIOLATION)
            return None
        try:
            return join, access, self._show(studio, join.story, access)
        except (ValueError, ArchiveError) as error:
            await _refuse(socket, Error(code="unavailable", message=str(error), fatal=True))
            return None

    def _show(self, studio: Studio, name: str, access: Access) -> Show:
        if not _STORY_NAME.fullmatch(name):
            raise ValueError("a story's name has letters, digits, - and _")
        if access.role == "watcher" and name not in studio.shows:
            raise ValueError("that story has not begun")
        return studio.show(name)

    async def _attend(self, socket: WebSocket, viewer: Viewer, show: Show, join: Join, access: Access) -> None:
        loop = asyncio.get_running_loop()
        sending, receiving = loop.create_task(viewer.run()), loop.create_task(self._listen(socket, viewer, show))
        together = loop.create_task(_first_of(sending, receiving))
        self._connections[together] = access
        show.join(viewer, join.resume_from)
        try:
            await together
        except asyncio.CancelledError:  # the link was revoked, or the server ends
            await _close(socket, POLICY_VIOLATION if access.link else 1001)
        finally:
            show.leave(viewer)
            del self._connections[together]
            for task in (together, sending, receiving):
                task.cancel()
            await _close(socket, 1000)

    async def _listen(self, socket: WebSocket, viewer: Viewer, show: Show) -> None:
        config = self.security.config
        messages = Bucket(config.messages_per_s, 4 * config.messages_per_s)
        commands = Bucket(config.commands_per_s, 3 * config.commands_per_s)
        violations = 0
        while violations < MAX_VIOLATIONS:
            try:
                text = await _receive(socket)
                error = None if messages.take() else Error(code="rate_limited", message="too many messages")
                error = error or _handle(text, viewer, show, commands)
            except ProtocolError as problem:
                error = Error(code="bad_message", message=str(problem), id=problem.id)
            if error is not None:
                violations += 1
                viewer.tell(to_json(error))
        viewer.tell(to_json(Error(code="rate_limited", message="too many messages that cannot be used", fatal=True)))
        await asyncio.sleep(0.2)


def _handle(text: str, viewer: Viewer, show: Show, commands: Bucket) -> Error | None:
    """Do what a message says. Returns what is wrong with it."""
    message = parse(text)
    if isinstance(message, Ack):
        viewer.acknowledge(message.sequence)
        return None
    if isinstance(message, Join):
        return Error(code="bad_message", message="this connection has joined already")
    if viewer.role != "director":
        return Error(code="read_only", message="this link is for watching", id=message.id)
    if not commands.take():
        return Error(code="rate_limited", message="too many commands: wait a little", id=message.id)
    try:
        show.command(message)
    except ValueError as problem:
        return Error(code="duplicate", message=str(problem), id=message.id)
    except ArchiveError as problem:
        return Error(code="unavailable", message=str(problem), id=message.id)
    return None


async def _first_of(*tasks: asyncio.Task[None]) -> None:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        with suppress(WebSocketDisconnect, RuntimeError, OSError):  # the connection was lost
            task.result()


async def _receive(socket: WebSocket) -> str:
    """A text message. Raises WebSocketDisconnect at the end, ProtocolError for anything else."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    text: str | None = message.get("text")
    if text is None:
        raise ProtocolError("messages to the server are JSON text")
    return text


async def _send(socket: WebSocket, message: str | bytes) -> None:
    if isinstance(message, str):
        await socket.send_text(message)
    else:
        await socket.send_bytes(message)


async def _refuse(socket: WebSocket, error: Error) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):
        await _send(socket, to_json(error))
    await _close(socket, TRY_AGAIN_LATER if error.code == "unavailable" else POLICY_VIOLATION)


async def _close(socket: WebSocket, code: int) -> None:
    if socket.application_state is WebSocketState.CONNECTED and socket.client_state is WebSocketState.CONNECTED:
        with suppress(WebSocketDisconnect, RuntimeError, OSError):
            await socket.close(code)


# ---------------------------------------------------------------------------------------------------------------------
# Routes


class Health(BaseModel):
    """Whether the server can be used."""

    state: str
    detail: str = ""


class Login(BaseModel):
    """A director's token, in exchange for a cookie."""

    token: str = Field(max_length=256)


class Link(BaseModel):
    """A watch link."""

    id: str


class NewLink(Link):
    """A watch link that was just made; its token is shown this once."""

    token: str
    fragment: str
    """To be put behind the page's address."""


def _add_care(app: FastAPI, door: Door) -> None:
    """Health, readiness, metrics."""

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health(state="ok")

    @app.get("/readyz", responses={503: {"model": Health}})
    async def readyz() -> JSONResponse:
        """Whether stories can begin."""
        studio = door.studio
        status = studio.status if studio else Status(state="loading")
        health = Health(state="ready" if status.state == "idle" else status.state, detail=status.detail)
        return JSONResponse(health.model_dump(), 200 if status.state == "idle" else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: {}})
    async def metrics(request: Request) -> PlainTextResponse:
        """Prometheus text. A server that others can reach wants `Authorization: Bearer <token>`."""
        _, _, token = request.headers.get("authorization", "").partition(" ")
        if door.security.access(token=token, cookie=request.cookies.get(COOKIE, "")) is None:
            raise HTTPException(401, "give the token as `Authorization: Bearer`")
        return PlainTextResponse(_metrics(door), media_type="text/plain; version=0.0.4")


def _add_doors(app: FastAPI, door: Door) -> None:
    """Logging in, and watch links."""
    security = door.security

    def director(shotstream: Annotated[str, Cookie(max_length=256)] = "") -> None:
        access = security.access(cookie=shotstream)
        if access is None or access.role != "director":
            raise HTTPException(401, "log in with the server's token first")

    guarded = [Depends(director)]
    refused: dict[int | str, dict[str, Any]] = {401: {"description": "Not logged in"}}

    @app.post("/api/login", status_code=204, responses={401: {}, 429: {}})
    async def login(body: Login, request: Request) -> Response:
        """Exchange the token for an HttpOnly cookie."""
        if not security.logins.take(request.client.host if request.client else ""):
            raise HTTPException(429, "too many attempts: wait a minute")
        access = security.access(token=body.token)
        if access is None or access.role != "director":
            raise HTTPException(401, "that is not the token of this server")
        response = Response(status_code=204)
        response.set_cookie(
            COOKIE, security.cookie_value(), httponly=True, samesite="strict", secure=security.config.tls
        )
        return response

    @app.post("/api/logout", status_code=204)
    async def logout() -> Response:
        """Forget the cookie."""
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=security.config.tls)
        return response

    @app.get("/api/watch-links", dependencies=guarded, responses=refused)
    async def list_links() -> list[Link]:
        """All watch links, without their tokens."""
        return [Link(id=id) for id in security.links()]

    @app.post("/api/watch-links", status_code=201, dependencies=guarded, responses={**refused, 409: {}})
    async def new_link() -> NewLink:
        """A link for watching."""
        try:
            id, token = security.new_link()
        except ValueError as error:
            raise HTTPException(409, str(error)) from error
        return NewLink(id=id, token=token, fragment=f"#token={token}")

    @app.delete("/api/watch-links/{id}", status_code=204, dependencies=guarded, responses={**refused, 404: {}})
    async def revoke_link(id: str) -> Response:
        """Revoke a watch link; who came by it is disconnected."""
        if not security.revoke(id):
            raise HTTPException(404, "there is no such link")
        door.close_link(id)
        return Response(status_code=204)


_STARTED = time.time()


def _metrics(door: Door) -> str:
    studio = door.studio
    assert studio is not None
    shows, counters = list(studio.shows.values()), studio.counters
    live = [show.worker for show in shows if show.worker is not None and show.is_live]
    lines: list[str] = []

    def metric(name: str, kind: Literal["gauge", "counter"], help: str, *samples: tuple[str, float]) -> None:
        lines.extend((f"# HELP shotstream_{name} {help}", f"# TYPE shotstream_{name} {kind}"))
        lines.extend(f"shotstream_{name}{labels} {value:.15g}" for labels, value in samples)

    metric("start_time_seconds", "gauge", "When the process started.", ("", _STARTED))
    metric("ready", "gauge", "Whether stories can begin.", ("", studio.status.state == "idle"))
    metric("slots", "gauge", "How many stories may be live.", ("", studio.slots))
    metric("live_stories", "gauge", "Stories that are running.", ("", len(live)))
    metric("queued_stories", "gauge", "Stories that wait for a slot.", ("", len(studio.queue)))
    metric("viewers", "gauge", "Open connections.", ("", door.num_connections))
    metric("joins_refused_total", "counter", "Connections without a valid token.", ("", counters.refused))
    metric("chunks_total", "counter", "Chunks sent.", ("", counters.chunks))
    metric("late_chunks_total", "counter", "Chunks that came too late.", ("", counters.late_chunks))
    gaps = counters.gaps + sum(viewer.gaps for show in shows for viewer in show.viewers)
    metric("gaps_total", "counter", "Chunks left out for slow viewers.", ("", gaps))
    outcomes = [
        (f'{{command="{kind}",outcome="{outcome}"}}', float(n)) for (kind, outcome), n in counters.commands.items()
    ]
    metric("commands_total", "counter", "Commands by what became of them.", *outcomes)
    quantiles = [
        (f'{{quantile="{q}"}}', max((worker.chunk_s(q) for worker in live), default=float("nan"))) for q in (0.5, 0.95)
    ]
    metric("chunk_seconds", "gauge", "Work for a chunk, slowest live story.", *quantiles)
    return "\n".join(lines) + "\n"
