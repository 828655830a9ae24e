"""`/v1/videos`: orders for films in the form of OpenAI's video API, so that programs written for that can use this.

Create, retrieve, list, delete and download work with the official client (`base_url="http://host:8000/v1"`); the API
key is the server's token. A film is one shot, in the preset's own size.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Coroutine
from tempfile import TemporaryDirectory
from typing import Any, Literal

import av
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from shotstream.engine.messages import MAX_PICTURE
from shotstream.engine.video import ShotSampler, write_sheet
from shotstream.presets import Preset
from shotstream.server.library import Gate
from shotstream.server.security import Security
from shotstream.server.video_jobs import Job, TooManyJobs, VideoJobs

DEFAULT_SECONDS = "4"
POLL_MS = 500

Variant = Literal["video", "thumbnail", "spritesheet"]


class NewVideo(BaseModel):
    """An order."""

    model_config = ConfigDict(extra="ignore")

    prompt: str = Field(min_length=1, max_length=4000)
    model: str | None = Field(None, max_length=64)
    seconds: str = Field(DEFAULT_SECONDS, pattern=r"^[0-9]{1,3}$")
    size: str | None = Field(None, max_length=16)
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Not in OpenAI's form: the same seed and prompt give the same film."""
    input_reference: str = Field("", max_length=MAX_PICTURE)
    """A picture in base64, or as an uploaded file, that the film remembers."""


class VideoError(BaseModel):
    code: str
    message: str


class Video(BaseModel):
    """A job."""

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    prompt: str
    model: str
    seconds: str
    size: str
    created_at: int
    completed_at: int | None
    expires_at: int | None
    error: VideoError | None


class VideoList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class Refusal(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refused(BaseModel):
    error: Refusal


def _refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Refused} for code in codes}


_REQUEST_BODY = {
    "required": True,
    "content": {kind: {"schema": NewVideo.model_json_schema()} for kind in ("multipart/form-data", "application/json")},
}


class OpenAIRoute(APIRoute):
    """Errors in the form that OpenAI's clients read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def explained(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                return _refusal(400, _first(error.errors()))
            except HTTPException as error:
                return _refusal(error.status_code, str(error.detail), error.headers)

        return explained


def _refusal(status: int, message: str, headers: Any = None) -> JSONResponse:
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
    body = Refused(error=Refusal(message=message, type=kind, param=None, code=None))
    return JSONResponse(body.model_dump(), status, headers)


def _first(errors: Any) -> str:
    where = ".".join(str(part) for part in errors[0]["loc"] if part not in ("query", "path", "body"))
    return f"{where}: {errors[0]['msg']}" if where else str(errors[0]["msg"])


def videos_router(jobs: VideoJobs, preset: Preset, security: Security) -> APIRouter:
    """All routes. Args: jobs is started once the server runs."""
    router = APIRouter(
        prefix="/v1/videos", route_class=OpenAIRoute, tags=["videos"], dependencies=[Depends(Gate(security).director)]
    )
    _add_orders(router, jobs, preset)
    _add_films(router, jobs, preset)
    return router


def _add_orders(router: APIRouter, jobs: VideoJobs, preset: Preset) -> None:
    @router.post("", responses=_refusals(400, 401, 403, 429), openapi_extra={"requestBody": _REQUEST_BODY})
    async def create_video(request: Request) -> Video:
        """Order a film. It is made while the live stories leave the engine time."""
        order = _checked(await _read(request), preset, jobs.limits.max_seconds)
        try:
            job = await asyncio.to_thread(
                jobs.create,
                prompt=order.prompt,
                seconds=int(order.seconds),
                seed=order.seed,
                picture=order.input_reference,
            )
        except TooManyJobs as error:
            raise HTTPException(429, str(error)) from error
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        except OSError as error:
            raise HTTPException(429, f"the job cannot be kept ({error.strerror}): free some space") from error
        return _video(job, preset)

    @router.get("", responses=_refusals(400, 401, 403))
    async def list_videos(
        after: str = Query("", max_length=64, description="Those behind this one"),
        limit: int = Query(20, ge=0, le=100),
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """The jobs, newest first unless asked otherwise."""
        found = await asyncio.to_thread(jobs.all)
        found = found if order == "asc" else found[::-1]
        ids = [job.id for job in found]
        rest = found[ids.index(after) + 1 :] if after in ids else found
        data = [_video(job, preset) for job in rest[:limit]]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=first, last_id=last, has_more=len(rest) > limit)

    @router.get("/{video_id}", responses=_refusals(401, 403, 404))
    async def retrieve_video(video_id: str, response: Response) -> Video:
        """How a job is doing."""
        response.headers["openai-poll-after-ms"] = str(POLL_MS)
        return _video(_job(jobs, video_id), preset)

    @router.delete("/{video_id}", responses=_refusals(401, 403, 404))
    async def delete_video(video_id: str) -> DeletedVideo:
        """Forget a job and its film; one that is being made is given up."""
        if not await asyncio.to_thread(jobs.delete, video_id):
            raise HTTPException(404, f"there is no video {video_id!r}")
        return DeletedVideo(id=video_id)


def _add_films(router: APIRouter, jobs: VideoJobs, preset: Preset) -> None:
    @router.get(
        "/{video_id}/content",
        response_class=FileResponse,
        responses={**_refusals(400, 401, 403, 404), 200: {"content": {"video/mp4": {}, "image/webp": {}}}},
    )
    async def download_content(video_id: str, variant: Variant = "video") -> Response:
        """The film as mp4; thumbnail and spritesheet: as a WebP picture."""
        job = _job(jobs, video_id)
        film = jobs.film(job)
        if job.status != "completed" or not film.is_file():
            raise HTTPException(404, f"video {video_id} cannot be downloaded: it is {job.status.replace('_', ' ')}")
        if variant == "video":
            return FileResponse(film, media_type="video/mp4", filename=f"{video_id}.mp4")
        picture = await asyncio.to_thread(_picture, str(film), job, preset.fps, variant)
        return Response(picture, media_type="image/webp")


def _job(jobs: VideoJobs, id: str) -> Job:
    job = jobs.get(id)
    if job is None:
        raise HTTPException(404, f"there is no video {id!r}")
    return job


async def _read(request: Request) -> NewVideo:
    """An order as JSON or as a form. Raises HTTPException 400."""
    try:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            fields = json.loads(await request.body())
        else:
            async with request.form(max_files=1, max_fields=16) as form:
                fields = {name: await _field(value) for name, value in form.items()}
        return NewVideo.model_validate(fields)
    except ValidationError as error:
        raise HTTPException(400, _first(error.errors())) from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is neither a form nor JSON that can be read") from error


async def _field(value: UploadFile | str) -> str:
    return value if isinstance(value, str) else base64.b64encode(await value.read()).decode("ascii")


def _checked(order: NewVideo, preset: Preset, max_seconds: int) -> NewVideo:
    size, model = f"{preset.width}x{preset.height}", preset.name
    if order.model not in (None, model):
        raise HTTPException(400, f"model: this server has {model!r}, got {order.model!r}")
    if order.size not in (None, size):
        raise HTTPException(400, f"size: this server makes {size}, got {order.size!r}")
    if not 1 <= int(order.seconds) <= max_seconds:
        raise HTTPException(400, f"seconds: from 1 to {max_seconds}, got {order.seconds}")
    if not order.prompt.strip():
        raise HTTPException(400, "prompt: say what is to be seen")
    return order


def _video(job: Job, preset: Preset) -> Video:
    return Video(
        id=job.id,
        status=job.status,
        progress=job.progress,
        prompt=job.prompt,
        model=preset.name,
        seconds=str(job.seconds),
        size=f"{preset.width}x{preset.height}",
        created_at=job.created_at,
        completed_at=job.completed_at if job.status == "completed" else None,
        expires_at=job.expires_at,
        error=VideoError(code=job.error_code, message=job.error) if job.status == "failed" else None,
    )


def _picture(film: str, job: Job, fps: int, variant: Variant) -> bytes:
    """The first picture, or a row of them under the prompt, as WebP."""
    row = ShotSampler(job.prompt, num_frames=job.seconds * fps)
    with av.open(film) as container:
        for frame in container.decode(video=0):
            row.add(frame.to_ndarray(format="rgb24")[None])
            if variant == "thumbnail":
                return _webp(Image.fromarray(row.pictures[0]))
    with TemporaryDirectory(prefix="shotstream-") as folder:
        write_sheet([row], f"{folder}/sheet.png")
        return _webp(Image.open(f"{folder}/sheet.png"))


def _webp(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85)
    return file.getvalue()
