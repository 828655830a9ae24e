"""`shotstream serve`: from command line options to a running server."""

from __future__ import annotations

import argparse
import logging
import math
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn

from shotstream.engine.archive import ArchiveError
from shotstream.engine.fake import FAKE
from shotstream.engine.loading import share_one_heap
from shotstream.engine.stream import Engine
from shotstream.engine.writer import OpenAIConfig
from shotstream.presets import Preset, get_preset
from shotstream.server.app import ServeConfig, create_app
from shotstream.server.protocol import MAX_SOCKET_BYTES
from shotstream.server.security import SecurityConfig, is_loopback
from shotstream.server.store import GIB, Store, StoreConfig, default_folder

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "SHOTSTREAM_TOKEN"
_MANY_REQUESTS = 256


class Server(uvicorn.Server):
    """Says where it is once it answers."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


def serve(options: argparse.Namespace, load_engine: Callable[[], Engine]) -> None:
    """Serve until interrupted. Raises ValueError for options that do not go together."""
    share_one_heap()
    config = serve_config(options)
    try:
        Store(config.data, config.preset).close() if config.data else None  # before a model is loaded for nothing
    except ArchiveError as error:
        raise ValueError(str(error)) from error
    security = config.security
    if security.is_exposed and not security.tls:
        log.warning("others can reach this server without TLS: what they type and see can be read on the way")
    _check_port(options.host, options.port)
    app = create_app(config, load_engine)
    scheme = "https" if security.tls else "http"
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"{scheme}://{host}:{options.port}"

    def announce() -> None:
        sys.stdout.write(f"{url}\n")
        if security.token and not os.environ.get(TOKEN_VARIABLE) and options.token_file is None:
            sys.stderr.write(f"token of the directors: {security.token}\n")
        sys.stdout.flush()
        if options.open and _has_display():
            # In a thread: some browsers return only when they are closed.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    Server(
        uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            ws_max_size=MAX_SOCKET_BYTES,
            ws_per_message_deflate=False,  # H.264 does not get smaller
            limit_concurrency=options.max_viewers + _MANY_REQUESTS,
            timeout_graceful_shutdown=3,
            ssl_certfile=options.certfile,
            ssl_keyfile=options.keyfile,
            server_header=False,
            log_level="warning",
            access_log=False,
        ),
        announce,
    ).run()


def _check_port(host: str, port: int) -> None:
    """Raise ValueError if nobody can listen there, before anything is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise ValueError(f"there is no host {host!r} here ({error.strerror}): give another --host") from error
        except OSError as error:
            raise ValueError(f"cannot listen on {host}:{port} ({error.strerror}): give another --port") from error
        except OverflowError as error:
            raise ValueError(f"cannot listen on port {port}: give one from 0 to 65535") from error


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def serve_config(options: argparse.Namespace) -> ServeConfig:
    """Check and resolve the command line."""
    if bool(options.certfile) != bool(options.keyfile):
        raise ValueError("TLS needs both --certfile and --keyfile")
    for option, file in (("--certfile", options.certfile), ("--keyfile", options.keyfile)):
        if file and not Path(file).is_file():
            raise ValueError(f"{option} {file}: there is no such file")
    if options.max_viewers < 1:
        raise ValueError(f"--max-viewers must be at least 1, got {options.max_viewers}")
    if options.slots is not None and options.slots < 1:
        raise ValueError(f"--slots must be at least 1, got {options.slots}")
    openai = None
    if options.writer == "openai":
        if not (options.writer_url and options.writer_model):
            raise ValueError("--writer openai needs --writer-url and --writer-model")
        openai = OpenAIConfig(base_url=options.writer_url, model=options.writer_model)
    security = SecurityConfig(
        host=options.host,
        token=_token(options.host, options.token_file),
        allowed_hosts=tuple(options.allow_host),
        allowed_origins=tuple(options.allow_origin),
        tls=options.certfile is not None,
        max_viewers=options.max_viewers,
    )
    return ServeConfig(
        preset=_preset(options.preset),
        security=security,
        writer=options.writer,
        openai=openai,
        data=_store_config(options),
        slots=options.slots,
    )


def _store_config(options: argparse.Namespace) -> StoreConfig:
    return StoreConfig(
        folder=options.data or default_folder(),
        durable=options.durable,
        max_story_bytes=_quota("--story-quota", options.story_quota),
        max_bytes=_quota("--quota", options.quota),
    )


def _quota(option: str, gibibytes: float) -> int:
    if not 0 < gibibytes < math.inf:
        raise ValueError(f"{option} must be a number of GiB above 0, got {gibibytes}")
    return round(gibibytes * GIB)


def _preset(name: str) -> Preset:
    return FAKE if name == FAKE.name else get_preset(name)


def _token(host: str, file: Path | None) -> str:
    """The given one; else a new one where others can connect, and none where they cannot."""
    given = file.read_text(encoding="utf-8").strip() if file else os.environ.get(TOKEN_VARIABLE, "")
    if file is not None and not given:
        raise ValueError(f"{file} holds no token")
    return given or ("" if is_loopback(host) else secrets.token_urlsafe(24))
