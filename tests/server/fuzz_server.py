"""A quick server with hardly any rate limit, for tests that send it nonsense: `python fuzz_server.py --port 8000`."""

from __future__ import annotations

import argparse
from dataclasses import replace

import uvicorn

from shotstream.engine.fake import FAKE, FakeConfig, FakeEngine
from shotstream.server.app import ServeConfig, create_app
from shotstream.server.protocol import MAX_SOCKET_BYTES
from shotstream.server.security import SecurityConfig

PRESET = replace(FAKE, height=96, width=160)
SLOTS = 2
RATE = 100_000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    security = SecurityConfig(commands_per_s=RATE, messages_per_s=RATE, requests_per_s=RATE)
    config = ServeConfig(preset=PRESET, security=security, slots=SLOTS)
    app = create_app(config, lambda: FakeEngine(FakeConfig(chunk_ms=40, open_ms=5, preset=PRESET)))
    uvicorn.run(app, host="127.0.0.1", port=port, ws_max_size=MAX_SOCKET_BYTES, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
