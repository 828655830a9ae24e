"""`shotstream serve` as it is called: the address, a port that is taken, a browser that opens where one can be seen."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from tests.server.conftest import free_port  # type: ignore[import-not-found]

from shotstream.cli import main
from shotstream.server import media, serve


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert "--port" in capsys.readouterr().err


def test_an_encoder_that_is_missing_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(media.av, "codecs_available", frozenset({"mpeg4"}))
    assert main(["serve", "--port", str(free_port()), "--data", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "libx264" in line] == lines, "one line, and what to do"


@pytest.mark.parametrize(("host", "is_warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_who_serves_others_without_tls_is_warned(
    host: str, is_warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve.Server, "run", lambda server: None)
    with caplog.at_level("WARNING"):
        assert (
            main(["serve", "--preset", "fake", "--host", host, "--port", str(free_port()), "--data", str(tmp_path)])
            == 0
        )
    assert ("without TLS" in caplog.text) is is_warned


def test_the_fake_engine_is_named_and_takes_as_long_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "or fake" in capsys.readouterr().out
    engines = []
    monkeypatch.setattr(serve, "create_app", lambda config, load_engine: engines.append(load_engine()))
    monkeypatch.setattr(serve.Server, "run", lambda server: None)
    command = ["serve", "--port", str(free_port()), "--data", str(tmp_path), "--fake-chunk-ms"]
    assert main([*command, "700", "--preset", "fake"]) == 0
    assert engines[0].config.chunk_ms == 700
    assert main([*command, "700"]) == 2, "what a model needs cannot be set"
    assert main([*command, "-1", "--preset", "fake"]) == 2
    assert len(engines) == 1


def test_the_address_is_printed_and_opened_where_there_is_a_display(tmp_path: Path) -> None:
    port, note = free_port(), tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {note}\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "shotstream.cli", "serve", "--preset", "fake", "--open", "--port", str(port)]
    environment = os.environ | {"DISPLAY": ":99", "BROWSER": str(browser), "SHOTSTREAM_DATA": str(tmp_path / "stories")}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == f"http://127.0.0.1:{port}\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as page:
            assert b"<title>shotstream</title>" in page.read()
        end = time.monotonic() + 20
        while not (note.exists() and note.read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        assert note.read_text().strip() == f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quota", "inf"], "--quota must be a number of GiB above 0, got inf"),
        (["--story-quota", "nan"], "--story-quota must be"),
        (["--quota", "0"], "--quota must be"),
        (["--max-viewers", "0"], "--max-viewers must be at least 1, got 0"),
        (["--certfile", "nope.pem", "--keyfile", "nope.key"], "--certfile nope.pem: there is no such file"),
        (["--host", "nosuchhost.invalid"], "there is no host 'nosuchhost.invalid' here"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", str(free_port()), "--data", str(tmp_path), *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_one_line(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen on port {port}: give one from 0 to 65535" in error
    assert error.count("\n") == 1
