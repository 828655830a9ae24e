"""The data folder: its lock, its SQLite database, and what to say when either cannot be used.

The database holds what is small and must be all or nothing; pictures, latents and media lie beside it in one
append-only file per take (`takefile.py`). A transaction is committed only after its bytes are in the file.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from shotstream.engine.archive import ArchiveError

Durable = Literal["process", "power"]
"""What a story survives: the end of the process at any moment, or also that of the machine."""

VERSION = 2
_NAME = "stories.db"
_LOCK = "lock"

_TABLES = """
CREATE TABLE story (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, title TEXT NOT NULL, preset TEXT NOT NULL,
  width INTEGER NOT NULL, height INTEGER NOT NULL, fps INTEGER NOT NULL, created REAL NOT NULL, changed REAL NOT NULL,
  seq INTEGER NOT NULL DEFAULT 0, sequence INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0,
  clock INTEGER NOT NULL DEFAULT 0, head INTEGER, running INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0,
  performance TEXT NOT NULL DEFAULT ''
);
CREATE TABLE take (
  story INTEGER NOT NULL REFERENCES story ON DELETE CASCADE, node INTEGER NOT NULL, parent INTEGER,
  parent_frames INTEGER, origin INTEGER, shot INTEGER NOT NULL, take INTEGER NOT NULL, text TEXT NOT NULL,
  caption TEXT NOT NULL, start INTEGER NOT NULL, num_chunks INTEGER NOT NULL, made_chunks INTEGER NOT NULL DEFAULT 0,
  num_frames INTEGER NOT NULL DEFAULT 0, hidden INTEGER NOT NULL DEFAULT 0, seed INTEGER NOT NULL,
  global_caption TEXT NOT NULL, thumbnail TEXT NOT NULL, created REAL NOT NULL, plan TEXT NOT NULL DEFAULT '[]',
  PRIMARY KEY (story, node)
) WITHOUT ROWID;
CREATE TABLE chunk (
  story INTEGER NOT NULL REFERENCES story ON DELETE CASCADE, node INTEGER NOT NULL, chunk INTEGER NOT NULL,
  sequence INTEGER NOT NULL, epoch INTEGER NOT NULL, start INTEGER NOT NULL, num_frames INTEGER NOT NULL,
  caption TEXT NOT NULL, shot_caption TEXT NOT NULL, steers TEXT NOT NULL, applied TEXT NOT NULL, file INTEGER NOT NULL,
  latent_at INTEGER NOT NULL, latent_bytes INTEGER NOT NULL, latent_crc INTEGER NOT NULL, latent_shape TEXT NOT NULL,
  media_at INTEGER NOT NULL, media_bytes INTEGER NOT NULL, media_crc INTEGER NOT NULL,
  PRIMARY KEY (story, node, chunk)
) WITHOUT ROWID;
CREATE INDEX chunk_in_file ON chunk (story, file);
CREATE TABLE picture (
  story INTEGER NOT NULL REFERENCES story ON DELETE CASCADE, sha BLOB NOT NULL, file INTEGER NOT NULL,
  at INTEGER NOT NULL, bytes INTEGER NOT NULL, crc INTEGER NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL,
  PRIMARY KEY (story, sha)
) WITHOUT ROWID;
CREATE INDEX picture_in_file ON picture (story, file);
CREATE TABLE remembered (
  story INTEGER NOT NULL REFERENCES story ON DELETE CASCADE, node INTEGER NOT NULL, kind TEXT NOT NULL,
  position INTEGER NOT NULL, shot INTEGER NOT NULL, frame INTEGER NOT NULL, caption TEXT NOT NULL, reason TEXT NOT NULL,
  picture BLOB NOT NULL, PRIMARY KEY (story, node, kind, position)
) WITHOUT ROWID;
CREATE TABLE edit (
  number INTEGER PRIMARY KEY, story INTEGER NOT NULL REFERENCES story ON DELETE CASCADE, command TEXT NOT NULL,
  node INTEGER, chunk INTEGER NOT NULL, action TEXT NOT NULL, shot INTEGER NOT NULL, frame INTEGER NOT NULL,
  caption TEXT NOT NULL, reason TEXT NOT NULL, picture BLOB
);
CREATE INDEX edit_of_take ON edit (story, node);
CREATE TABLE command (
  number INTEGER PRIMARY KEY, story INTEGER NOT NULL REFERENCES story ON DELETE CASCADE, id TEXT NOT NULL,
  kind TEXT NOT NULL, text TEXT NOT NULL, body TEXT NOT NULL, accepted REAL NOT NULL, outcome TEXT, shot INTEGER,
  chunk INTEGER, first_frame INTEGER, caption TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
  UNIQUE (story, id)
);
CREATE INDEX command_pending ON command (story) WHERE outcome IS NULL;
CREATE TABLE event (
  story INTEGER NOT NULL REFERENCES story ON DELETE CASCADE, seq INTEGER NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY (story, seq)
) WITHOUT ROWID;
"""

_CHANGES = {
    1: """
ALTER TABLE story ADD COLUMN performance TEXT NOT NULL DEFAULT '';
ALTER TABLE take ADD COLUMN plan TEXT NOT NULL DEFAULT '[]';
"""
}
"""What leads from a version to the next."""


class Database:
    """One connection to a folder's database, shared by all threads; nobody else may open the folder meanwhile."""

    def __init__(
        self, folder: Path, *, durable: Durable = "process", reached: Callable[[str], None] = lambda point: None
    ) -> None:
        """Raises: ArchiveError, in words for people, for a folder that cannot be used."""
        self.folder, self.durable, self._reached = folder, durable, reached
        self._lock = threading.RLock()
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._folder_lock = _lock_folder(folder)
        try:
            with explained(folder):
                self._connection = self._connect(folder / _NAME)
        except BaseException:
            os.close(self._folder_lock)
            raise

    def _connect(self, path: Path) -> sqlite3.Connection:
        if not path.exists() or not path.stat().st_size:
            _check_new(self.folder)
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self.durable == 'power' else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -256")  # KiB, full soon: the system keeps the file at hand anyway
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":  # better said now than in the middle of a story
            raise sqlite3.DatabaseError(" ".join(str(found).split()))
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise ArchiveError(
                f"{path} has format {version}, this shotstream reads {VERSION}: use another --data folder or version"
            )
        steps = [_CHANGES[number] for number in range(version, VERSION)] if version else [_TABLES]
        if version < VERSION:
            connection.executescript(f"BEGIN; {''.join(steps)} PRAGMA user_version = {VERSION}; COMMIT;")
        return connection

    def close(self) -> None:
        """Let others open the folder."""
        with self._lock:
            self._connection.close()
            if self._folder_lock >= 0:
                os.close(self._folder_lock)
                self._folder_lock = -1

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Raises ArchiveError where it cannot be written."""
        with self._lock, explained(self.folder):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._reached("before-commit")
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._reached("after-commit")

    def run(self, sql: str, *values: Any) -> int:
        """Write inside a transaction; returns the number of rows it concerned."""
        return self._connection.execute(sql, values).rowcount

    def insert(self, table: str, **values: Any) -> int:
        """Write a row inside a transaction; returns its rowid."""
        marks = ", ".join("?" * len(values))
        cursor = self._connection.execute(
            f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values())
        )
        return cursor.lastrowid or 0

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock, explained(self.folder):
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> sqlite3.Row | None:
        found = self.rows(sql, *values)
        return found[0] if found else None


def _check_new(folder: Path) -> None:
    """A database may be begun only where nothing is left that one knew of: its first takes would be written over."""
    if next((folder / "takes").glob("*/*.take"), None) is not None:
        raise ArchiveError(
            f"{folder} holds takes, but no {_NAME} that knows them: put a copy of it back, or give another folder with "
            "--data"
        )


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the system says about files and databases into what people can do about it."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise ArchiveError(_database_words(folder, error)) from error
    except OSError as error:
        raise ArchiveError(_system_words(folder, error)) from error


def _database_words(folder: Path, error: sqlite3.DatabaseError) -> str:
    text = str(error)
    if "full" in text:
        return _full(folder)
    if "readonly" in text or "unable to open" in text:
        return f"{folder} cannot be written to: change its permissions, or give another folder with --data"
    if "locked" in text:
        return f"the database in {folder} is in use by another program: close it"
    if "disk I/O error" in text:
        return f"{folder} cannot be read or written ({text}): check the disk, and that the folder still exists"
    return (
        f"the database {folder / _NAME} is damaged ({text}): move it away and put a copy in its place, or give another "
        "folder with --data; the files of the takes beside it are untouched"
    )


def _system_words(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(folder)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.filename or folder} cannot be written to: change its permissions, or give another --data folder"
    return f"{error.filename or folder} cannot be used ({error.strerror or error}): give another folder with --data"


def _full(folder: Path) -> str:
    return f"the disk of {folder} is full: delete stories or other files there, then resume"


def _lock_folder(folder: Path) -> int:
    """Held until the process ends, however it ends."""
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise ArchiveError(
            f"another server uses {folder}: stop it, or give this one a folder of its own with --data"
        ) from error
    return handle
