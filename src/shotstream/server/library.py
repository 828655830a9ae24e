"""REST for kept stories: the library, their takes, what was sent of them, exports, and a live mp4.

Directors log in with the cookie of the page or send `Authorization: Bearer <token>`. Who may only watch gets
`/stories/{name}/live.mp4`, with the token of a watch link; players take it as the password of the address.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Protocol

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.background import BackgroundTask

from shotstream.engine.archive import ArchiveError
from shotstream.engine.direction import Scene
from shotstream.engine.messages import MAX_COUNT, Hide
from shotstream.server.archive import StoredTake, StoryArchive, StoryInfo
from shotstream.server.cards import (
    COMMAND_BODY,
    STORY_BODY,
    ChunkCard,
    CommandCard,
    Copy,
    Hidden,
    PlayCard,
    StoryCard,
    TakeCard,
    Title,
    chunk_cards,
    command_card,
    play_card,
    refusals,
    take_cards,
    waiting_card,
)
from shotstream.server.export import MIME_TYPES, Format, NothingMade, cut_list, export, init_segment
from shotstream.server.live_mp4 import LiveFilm
from shotstream.server.performer import INTERRUPTED, Performer
from shotstream.server.protocol import Ack, Join, ProtocolError, parse
from shotstream.server.security import COOKIE, Access, Bucket, Security
from shotstream.server.session import Show
from shotstream.server.store import Store
from shotstream.server.studio import Studio
from shotstream.story import Story, parse_story

MAX_EXPORTS = 2
"""At a time; others wait."""
MAX_WAITING_EXPORTS = 8
ENGINE_LOADS = "the engine is still loading: try again in a moment"

StoryName = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Letters, digits, - and _")]
Node = Annotated[int, Path(ge=1, le=MAX_COUNT, description="Number of a take in its story")]
ChunkIndex = Annotated[int, Path(ge=0, le=MAX_COUNT, description="Chunk of the take, from 0")]
Takes = Annotated[
    list[Annotated[int, Field(ge=1, le=MAX_COUNT)]] | None,
    Query(max_length=1000, description="The cut list: takes in the order in which they are shown. None: the live path"),
]


class Gate:
    """Who may do what, by cookie, Bearer token, or (for watching) the password of an address."""

    def __init__(self, security: Security) -> None:
        self._security = security

    def director(self, request: Request) -> Access:
        """For a `Depends`. Raises HTTPException 401, 403 or 429."""
        access = self._access(request, basic=False)
        if access.role != "director":
            raise HTTPException(403, "this link is for watching")
        return access

    def watcher(self, request: Request) -> Access:
        """The same, and who has a watch link."""
        return self._access(request, basic=True)

    def _access(self, request: Request, *, basic: bool) -> Access:
        token = _token(request.headers.get("authorization", ""), basic=basic)
        access = self._security.access(token=token, cookie=request.cookies.get(COOKIE, ""))
        if access is not None:
            return access
        if token and not self._security.logins.take(request.client.host if request.client else ""):
            raise HTTPException(429, "too many attempts: wait a minute")
        scheme = "Basic" if basic else "Bearer"
        raise HTTPException(
            401, "log in with the server's token first", {"www-authenticate": f"{scheme} realm=stories"}
        )


def _token(header: str, *, basic: bool) -> str:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


class StoriesRoute(APIRoute):
    """What an archive cannot do is the request's conflict with it, said in its own words."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def explained(request: Request) -> Response:
            try:
                return await handler(request)
            except (ArchiveError, NothingMade) as error:
                raise HTTPException(409, str(error)) from error

        return explained


class Door(Protocol):
    """What the routes need of the server."""

    security: Security
    studio: Studio | None
    """While it runs."""

    @property
    def is_full(self) -> bool: ...

    def attended(self, task: asyncio.Task[None], access: Access) -> AbstractContextManager[None]: ...


class Library:
    """What the routes do."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self._commands = Bucket(door.security.config.commands_per_s, 3 * door.security.config.commands_per_s)
        self._exports = asyncio.Semaphore(MAX_EXPORTS)
        self._waiting = 0

    @property
    def studio(self) -> Studio:
        studio = self.door.studio
        assert studio is not None, "requests are answered only while the server runs"
        return studio

    async def archive(self, name: str) -> StoryArchive:
        """A kept story for reading, whatever preset it was made with. Raises HTTPException 404."""
        archive = await asyncio.to_thread(_reading, self.studio.store, name)
        if not archive.exists:
            raise HTTPException(404, f"there is no story {name!r}")
        return archive

    async def take(self, archive: StoryArchive, node: int) -> StoredTake:
        """Raises HTTPException 404."""
        try:
            return await asyncio.to_thread(archive.take, node)
        except ValueError as error:
            raise HTTPException(404, str(error)) from error

    def show(self, name: str) -> Show:
        """The story, opened as it is for people. Raises HTTPException 409."""
        try:
            return self.studio.show(name)
        except ValueError as error:
            raise HTTPException(409, str(error)) from error

    async def card(self, name: str) -> StoryCard:
        archive = await self.archive(name)
        return self._as_card(await asyncio.to_thread(archive.info), await asyncio.to_thread(_thumbnail, archive))

    async def cards(self) -> list[StoryCard]:
        store = self.studio.store

        def read() -> list[tuple[StoryInfo, str]]:
            return [(info, _thumbnail(_reading(store, info.name))) for info in store.stories()]

        return [self._as_card(info, thumbnail) for info, thumbnail in await asyncio.to_thread(read)]

    def _as_card(self, info: StoryInfo, thumbnail: str) -> StoryCard:
        show = self.studio.shows.get(info.name)
        return StoryCard(
            name=info.name,
            title=info.title,
            url=f"/#story={info.name}",
            preset=info.preset,
            width=info.width,
            height=info.height,
            fps=info.fps,
            created=info.created,
            changed=info.changed,
            seconds=info.num_frames / info.fps,
            bytes=info.bytes,
            num_takes=info.num_takes,
            head=info.head,
            live=show is not None and show.is_live,
            viewers=len(show.viewers) if show is not None else 0,
            thumbnail=thumbnail,
        )

    async def delete(self, name: str) -> None:
        """Raises HTTPException 409 while somebody watches it."""
        studio, show = self.studio, self.studio.shows.get(name)
        if show is not None:
            if show.viewers:
                count = f"{len(show.viewers)} pages or players" if len(show.viewers) > 1 else "a page or a player"
                words = f"people watch this story, {count} in all: it can be deleted when they show something else"
                raise HTTPException(409, words)
            del studio.shows[name]
            await show.close()
        if name in studio.shows:
            raise HTTPException(409, "somebody has just opened this story")
        await asyncio.to_thread(studio.store.delete, name)

    async def command(self, name: str, text: str) -> CommandCard:
        """Do what a command says. Raises HTTPException 409, 422 or 429."""
        try:
            command = parse(text)
        except ProtocolError as error:
            raise HTTPException(422, str(error)) from error
        if isinstance(command, (Ack, Join)):
            raise HTTPException(422, f"{command.kind} is for sockets")
        if not self._commands.take():
            raise HTTPException(429, "too many commands: wait a little")
        show = self.show(name)
        try:
            ended = show.command(command)
        except ValueError as error:
            raise HTTPException(409, str(error)) from error
        if ended is not None:
            card = waiting_card(command)
            return card.model_copy(update={"outcome": ended.outcome, "reason": ended.reason})
        found = [one for one in await asyncio.to_thread(show.archive.commands) if one.id == command.id]
        return command_card(found[0]) if found else waiting_card(command)

    async def commands(self, name: str) -> list[CommandCard]:
        """All that were accepted, and those that wait for a free slot. Raises HTTPException 404."""
        show = self.studio.shows.get(name)
        waiting = [waiting_card(command) for command in (show.waiting if show else ())]
        if waiting and not await asyncio.to_thread(lambda: _reading(self.studio.store, name).exists):
            return waiting
        archive = await self.archive(name)
        kept = [command_card(command) for command in await asyncio.to_thread(archive.commands)]
        known = {card.id for card in kept}
        return kept + [card for card in waiting if card.id not in known]

    async def play(self, name: str, body: bytes) -> PlayCard:
        """Begin to play a story file live. Raises HTTPException 409 or 422."""
        preset = self.studio.broadcast.preset
        try:
            story, performer = await asyncio.to_thread(self._rehearse, body)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        show = self.show(name)
        try:
            show.play(performer)
        except ValueError as error:
            raise HTTPException(409, str(error)) from error
        return play_card(story, performer.shots, preset)

    def _rehearse(self, body: bytes) -> tuple[Story, Performer]:
        """Read a story file. Raises ValueError, in words for people, if it cannot be played."""
        try:
            story = parse_story(body.decode("utf-8"), default_name="a story file")
        except UnicodeDecodeError as error:
            raise ValueError("the story file is not text in UTF-8") from error
        preset, writer = self.studio.broadcast.preset, self.studio.writer
        performer = Performer(story, first_frames=preset.first_chunk_frames, chunk_frames=preset.chunk_frames)
        if writer is not None:
            for shot in performer.shots:
                writer.fit(Scene(global_caption=story.global_caption, caption=shot.caption))
        return story, performer

    async def hide(self, name: str, node: int, hidden: bool) -> None:
        """Raises HTTPException 404 or 409."""
        archive = await self.archive(name)
        await self.take(archive, node)
        show = self.show(name)
        if show.worker is None:
            raise HTTPException(409, ENGINE_LOADS)
        command = Hide(id=f"rest-{secrets.token_hex(8)}", node=node, hidden=hidden)
        show.command(command)
        ended = next(one for one in reversed(await asyncio.to_thread(archive.commands)) if one.id == command.id)
        if ended.outcome == "failed":
            raise HTTPException(409, ended.reason)

    async def write(
        self, name: str, format: Format, nodes: list[int] | None, file_name: str, *, whole: bool = False
    ) -> FileResponse:
        """An export as a file that is removed once it was sent; see `cut_list`.

        Raises: HTTPException 404, 409, 422 or 429.
        """
        archive = await self.archive(name)
        folder = TemporaryDirectory(prefix="shotstream-")
        path = FilePath(folder.name) / f"film.{format}"
        try:
            async with self._turn():
                clips = await asyncio.to_thread(cut_list, archive, nodes, whole=whole)
                await asyncio.to_thread(export, archive, clips, format, path)
        except NothingMade:
            raise
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        except OSError as error:
            raise HTTPException(409, f"there is no room for the export ({error.strerror}): free some space") from error
        return FileResponse(
            path, media_type=MIME_TYPES[format], filename=file_name, background=BackgroundTask(folder.cleanup)
        )

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Exports share the machine with what is live."""
        if self._waiting >= MAX_WAITING_EXPORTS:
            raise HTTPException(429, "too many exports are waiting: try again in a moment")
        self._waiting += 1
        try:
            async with self._exports:
                yield
        finally:
            self._waiting -= 1


def library_router(door: Door) -> APIRouter:
    """All routes."""
    library, gate = Library(door), Gate(door.security)
    router = APIRouter(route_class=StoriesRoute)
    _add_stories(router, library, gate)
    _add_performances(router, library, gate)
    _add_takes(router, library, gate)
    _add_chunks(router, library, gate)
    _add_films(router, library, gate)
    return router


def _add_stories(router: APIRouter, library: Library, gate: Gate) -> None:
    guarded: dict[str, Any] = {"dependencies": [Depends(gate.director)], "tags": ["stories"]}

    @router.get("/api/stories", responses=refusals(401, 403, 409), **guarded)
    async def list_stories() -> list[StoryCard]:
        """Every story of which something is kept, the one that changed last first."""
        return await library.cards()

    @router.get("/api/stories/{name}", responses=refusals(401, 403, 404, 409), **guarded)
    async def get_story(name: StoryName) -> StoryCard:
        """One story."""
        return await library.card(name)

    @router.patch("/api/stories/{name}", responses=refusals(401, 403, 404, 409), **guarded)
    async def rename_story(name: StoryName, body: Title) -> StoryCard:
        """Change what people see; its address stays."""
        await library.archive(name)
        await asyncio.to_thread(library.studio.store.rename, name, body.title)
        return await library.card(name)

    @router.post("/api/stories/{name}/duplicate", status_code=201, responses=refusals(401, 403, 404, 409), **guarded)
    async def duplicate_story(name: StoryName, body: Copy) -> StoryCard:
        """Copy a story, its whole tree included."""
        await library.archive(name)
        store = library.studio.store
        kept = {info.name for info in await asyncio.to_thread(store.stories)}
        copy = body.name or _free_name(name, kept | library.studio.shows.keys())
        if copy in library.studio.shows:
            raise HTTPException(409, f"the story {copy!r} is open already: take another name")
        await asyncio.to_thread(store.duplicate, name, copy)
        return await library.card(copy)

    @router.delete("/api/stories/{name}", status_code=204, responses=refusals(401, 403, 404, 409), **guarded)
    async def delete_story(name: StoryName) -> Response:
        """Remove a story that nobody watches, with all its takes. It cannot be brought back."""
        await library.archive(name)
        await library.delete(name)
        return Response(status_code=204)

    @router.get("/api/stories/{name}/commands", responses=refusals(401, 403, 404, 409), **guarded)
    async def list_commands(name: StoryName) -> list[CommandCard]:
        """Every command that was accepted, in order, and what became of it."""
        return await library.commands(name)

    @router.post(
        "/api/stories/{name}/commands",
        status_code=202,
        responses=refusals(401, 403, 409, 429),
        openapi_extra={"requestBody": COMMAND_BODY},
        **guarded,
    )
    async def give_command(name: StoryName, request: Request) -> CommandCard:
        """Direct a story as over the socket: start, cut, steer, branch, retake, undo, and so on.

        What becomes of it is listed under `commands`. Without anybody who watches a story pauses after a while.
        """
        return await library.command(name, (await request.body()).decode("utf-8", "replace"))


def _add_performances(router: APIRouter, library: Library, gate: Gate) -> None:
    guarded: dict[str, Any] = {"dependencies": [Depends(gate.director)], "tags": ["stories"]}

    @router.post(
        "/api/stories/{name}/play",
        status_code=202,
        responses=refusals(401, 403, 409, 413),
        openapi_extra={"requestBody": STORY_BODY},
        **guarded,
    )
    async def play_story(name: StoryName, request: Request) -> PlayCard:
        """Play a story file live: its shots follow one another, steered as it says, with its seed and global caption.

        Its commands are listed under `commands`, those that are near as `pending`; `performance` events say how far it
        is. A director's own cut, steer, extend, branch, retake, undo or stop takes over: what is left of it is dropped.
        """
        return await library.play(name, await request.body())

    @router.delete("/api/stories/{name}/play", status_code=204, responses=refusals(401, 403, 404, 409), **guarded)
    async def interrupt_play(name: StoryName) -> Response:
        """Take over: drop what is left of the story file that is played. The running shot goes on."""
        await library.archive(name)
        if not library.show(name).interrupt(INTERRUPTED):
            raise HTTPException(409, "no story file is being played here")
        return Response(status_code=204)


def _add_takes(router: APIRouter, library: Library, gate: Gate) -> None:
    guarded: dict[str, Any] = {"dependencies": [Depends(gate.director)], "tags": ["takes"]}

    @router.get("/api/stories/{name}/takes", responses=refusals(401, 403, 404, 409), **guarded)
    async def list_takes(name: StoryName, hidden: bool = True) -> list[TakeCard]:
        """The story's tree, in the order in which it was made. hidden: whether hidden takes are listed."""
        archive = await library.archive(name)
        cards = await asyncio.to_thread(take_cards, archive)
        return [card for card in cards if hidden or not card.hidden]

    @router.get("/api/stories/{name}/takes/{node}", responses=refusals(401, 403, 404, 409), **guarded)
    async def get_take(name: StoryName, node: Node) -> TakeCard:
        """One take."""
        archive = await library.archive(name)
        await library.take(archive, node)
        return next(card for card in await asyncio.to_thread(take_cards, archive) if card.node == node)

    @router.patch("/api/stories/{name}/takes/{node}", responses=refusals(401, 403, 404, 409), **guarded)
    async def hide_take(name: StoryName, node: Node, body: Hidden) -> TakeCard:
        """Leave a take, and all that follow it, out of the tree, or show them again. What is remembered stays."""
        await library.hide(name, node, body.hidden)
        return await get_take(name, node)

    @router.get(
        "/api/stories/{name}/takes/{node}/film.mp4",
        response_class=FileResponse,
        responses={**refusals(401, 403, 404, 409, 429), 200: {"content": {"video/mp4": {}}}},
        **guarded,
    )
    async def get_take_film(name: StoryName, node: Node) -> FileResponse:
        """All of a take, for watching it beside another."""
        await library.take(await library.archive(name), node)
        return await library.write(name, "mp4", [node], f"{name}-take-{node}.mp4", whole=True)


def _add_chunks(router: APIRouter, library: Library, gate: Gate) -> None:
    guarded: dict[str, Any] = {"dependencies": [Depends(gate.director)], "tags": ["chunks"]}
    path = "/api/stories/{name}/takes/{node}/chunks"
    found = refusals(401, 403, 404, 409)

    @router.get(path, responses=found, **guarded)
    async def list_chunks(name: StoryName, node: Node, sha256: bool = False) -> list[ChunkCard]:
        """The chunks of a take. sha256: with the hash of what was sent of each."""
        archive = await library.archive(name)
        await library.take(archive, node)
        return await asyncio.to_thread(chunk_cards, archive, node, sha256)

    @router.get(
        path + "/{chunk}",
        responses={**found, 200: {"content": {"video/mp4": {}}}},
        response_class=Response,
        **guarded,
    )
    async def get_chunk(name: StoryName, node: Node, chunk: ChunkIndex) -> Response:
        """What was sent of a chunk: one fragment of an mp4, to be played behind `init.mp4`."""
        archive = await library.archive(name)
        return Response(await _part(archive.media, node, chunk), media_type="video/mp4")

    @router.get(
        "/api/stories/{name}/init.mp4",
        responses={**found, 200: {"content": {"video/mp4": {}}}},
        response_class=Response,
        **guarded,
    )
    async def get_init(name: StoryName) -> Response:
        """The beginning of an mp4, to which a story's chunks can be added."""
        info = await asyncio.to_thread((await library.archive(name)).info)
        init = await asyncio.to_thread(init_segment, info.width, info.height, info.fps)
        return Response(init, media_type="video/mp4")

    @router.get(
        path + "/{chunk}/latent.npy",
        responses={**found, 200: {"content": {"application/octet-stream": {}}}},
        response_class=Response,
        **guarded,
    )
    async def get_latent(name: StoryName, node: Node, chunk: ChunkIndex) -> Response:
        """A chunk's latents, float32 [frames, channels, height, width], as a NumPy file."""
        archive = await library.archive(name)
        file = io.BytesIO()
        np.save(file, await _part(archive.latent, node, chunk))
        return Response(file.getvalue(), media_type="application/octet-stream")


def _add_films(router: APIRouter, library: Library, gate: Gate) -> None:
    numbers, watcher = itertools.count(1), Depends(gate.watcher)

    @router.get(
        "/api/stories/{name}/export.{format}",
        response_class=FileResponse,
        responses={
            **refusals(401, 403, 404, 409, 429),
            200: {"content": {mime: {} for mime in sorted(set(MIME_TYPES.values()))}},
        },
        dependencies=[Depends(gate.director)],
        tags=["films"],
    )
    async def export_story(name: StoryName, format: Format, takes: Takes = None) -> FileResponse:
        """A film: mp4, contact sheet (png), story file (yaml), OpenTimelineIO (otio), captions (vtt), or all (zip)."""
        return await library.write(name, format, takes, f"{name}.{format}")

    @router.get(
        "/stories/{name}/live.mp4",
        response_class=Response,
        responses={**refusals(401, 404, 409, 429), 200: {"content": {"video/mp4": {}}}},
        tags=["films"],
    )
    async def watch_live(name: StoryName, access: Access = watcher) -> Response:
        """The live story for players such as ffplay, VLC and OBS: an mp4 without end."""
        if name not in library.studio.shows:
            if access.role == "watcher":
                raise HTTPException(404, "that story has not begun")
            await library.archive(name)
        if library.door.is_full:
            raise HTTPException(429, "too many people watch already")
        show, viewer = library.show(name), f"m{next(numbers)}"
        return LiveFilm(show, library.studio.broadcast, viewer, lambda task: library.door.attended(task, access))


async def _part(read: Callable[[int, int], Any], node: int, chunk: int) -> Any:
    try:
        return await asyncio.to_thread(read, node, chunk)
    except ValueError as error:
        raise HTTPException(404, str(error)) from error


def _reading(store: Store, name: str) -> StoryArchive:
    return StoryArchive(store, name, lambda point: None)


def _thumbnail(archive: StoryArchive) -> str:
    head = archive.info().head
    return archive.take(head).take.thumbnail if head is not None else ""


def _free_name(name: str, taken: set[str]) -> str:
    return next(copy for n in itertools.count(2) if (copy := f"{name[:56]}-{n}") not in taken)
