"""All kept stories of one data folder.

```
folder/lock             held by the one server that uses it
folder/stories.db       SQLite, write-ahead log: what is small, and where the rest lies
folder/takes/3/12.take  the bytes of take 12 of story 3: latents, media, pictures; only ever added to
```

`Store.story(name)` gives one story to a live session or an exporter. No SQL outside this module, `database.py`,
`archive.py` and `reader.py`. A story of which nothing was kept yet leaves no trace.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shotstream.engine.archive import ArchiveError
from shotstream.presets import Preset
from shotstream.server.archive import StoryArchive, StoryInfo
from shotstream.server.database import Database, Durable, explained
from shotstream.server.takefile import append_up_to, sync_folders

log = logging.getLogger(__name__)

COPIED = "it was pending when the story was copied"
DATA_VARIABLE = "SHOTSTREAM_DATA"
GIB = 2**30
_DRAFT = ".copy-"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreConfig:
    """Where stories are kept, how safely, and how much of them."""

    folder: Path
    durable: Durable = "process"
    """process: everything announced survives the end of the process at any moment. power: also that of the machine;
    every chunk then waits for the disk."""
    max_story_bytes: int = 16 * GIB
    """A minute of storyworld takes about 15 MB."""
    max_bytes: int = 256 * GIB
    """Of all stories together."""

    def __post_init__(self) -> None:
        if min(self.max_story_bytes, self.max_bytes) < 1:
            raise ValueError(f"quotas must be positive, got {self.max_story_bytes} and {self.max_bytes} bytes")


def default_folder() -> Path:
    """SHOTSTREAM_DATA, or where this system keeps such things."""
    if given := os.environ.get(DATA_VARIABLE):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "shotstream"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "shotstream"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "shotstream"


class Store:
    """The kept stories of one folder, which nobody else may use meanwhile.

    Every method may be called from any thread.
    """

    def __init__(
        self, config: StoreConfig, preset: Preset, *, reached: Callable[[str], None] = lambda point: None
    ) -> None:
        """Args: preset is what new stories are made with; reached is told named points of the work, for tests.

        Raises: ArchiveError, in words for people, for a folder that cannot be used.
        """
        self.config, self.folder, self._preset, self._reached = config, config.folder, preset, reached
        self.database = Database(config.folder, durable=config.durable, reached=reached)
        for draft in (config.folder / "takes").glob(_DRAFT + "*"):  # a crash left it
            shutil.rmtree(draft, ignore_errors=True)
        self._archives: dict[str, StoryArchive] = {}
        self._lock = threading.Lock()

    def settle(self) -> None:
        """End what the last server left pending, in every story: to be called before any of them is opened."""
        rows = self.database.rows(
            "SELECT DISTINCT name FROM story JOIN command ON command.story = story.id WHERE outcome IS NULL"
        )
        for row in rows:
            try:
                StoryArchive(self, row["name"], self._reached).end_what_was_pending()
            except ArchiveError as error:  # a full disk, say: it is done when the story is opened
                log.error("%s", error)

    def close(self) -> None:
        """Let others use the folder."""
        for archive in self._archives.values():
            archive.close()
        self.database.close()

    def story(self, name: str) -> StoryArchive:
        """The story of this name; `exists` says whether anything is kept of it.

        Raises: ArchiveError if it was made with another preset.
        """
        with self._lock:
            if name not in self._archives:
                self._check_preset(name)
                self._archives[name] = StoryArchive(self, name, self._reached)
            return self._archives[name]

    def _check_preset(self, name: str) -> None:
        row = self.database.row("SELECT preset, width, height FROM story WHERE name = ?", name)
        mine = (self._preset.name, self._preset.width, self._preset.height)
        if row is not None and tuple(row) != mine:
            theirs = "{} {}x{}".format(*row)
            raise ArchiveError(
                f"story {name!r} was made with {theirs}, this server makes {mine[0]} {mine[1]}x{mine[2]}: "
                "take another name, or serve with --preset " + str(row["preset"])
            )

    def stories(self) -> tuple[StoryInfo, ...]:
        """Every story of which something is kept, the one that changed last first; also those of other presets."""
        names = self.database.rows("SELECT name FROM story ORDER BY changed DESC")
        return tuple(StoryArchive(self, row["name"], self._reached).info() for row in names)

    def rename(self, name: str, title: str) -> None:
        """Change what people see; its address stays. Raises ArchiveError if there is no such story."""
        self._exists(name)
        with self.database.transaction():
            self.database.run("UPDATE story SET title = ?, changed = ? WHERE name = ?", title, time.time(), name)

    def delete(self, name: str) -> None:
        """Remove a story that is not live, with all its files. Raises ArchiveError if there is no such story."""
        number = self._exists(name)
        with self._lock:
            archive = self._archives.pop(name, None)
        if archive is not None:
            archive.close()
        with self.database.transaction():
            self.database.run("DELETE FROM story WHERE id = ?", number)
        with explained(self.folder):
            shutil.rmtree(self._takes(number), ignore_errors=False) if self._takes(number).exists() else None

    def duplicate(self, name: str, copy: str) -> None:
        """Copy a story and its files under another name. Raises ArchiveError if that is taken, or there is no room."""
        number = self._exists(name)
        self._check_copy(number, copy)
        draft = self.folder / "takes" / f"{_DRAFT}{secrets.token_hex(8)}"
        try:
            with explained(self.folder):
                draft.mkdir(parents=True)
                for _ in range(2):  # the second time what was made during the first
                    self._copy_bytes(number, draft)
            with self.database.transaction(), explained(self.folder):
                self._check_copy(self._exists(name), copy)
                new = self._copy_rows(number, copy)
                self._copy_bytes(number, draft)  # and what little was made since then
                shutil.rmtree(self._takes(new), ignore_errors=True)  # of a copy that a crash cut short
                draft.rename(self._takes(new))
                if self.config.durable == "power":
                    sync_folders(self._takes(new))
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        StoryArchive(self, copy, self._reached).end_what_was_pending(COPIED)
        with self._lock:
            self._archives.pop(copy, None)

    def _check_copy(self, number: int, copy: str) -> None:
        if self.database.row("SELECT 1 FROM story WHERE name = ?", copy) is not None:
            raise ArchiveError(f"there is a story {copy!r} already: take another name")
        self.check_room(0, self._row_bytes(number))

    def _copy_bytes(self, number: int, folder: Path) -> None:
        """Bring copies of a story's files up to what is committed; that much of a file never changes any more."""
        rows = self.database.rows(
            "SELECT file, max(stop) AS stop FROM ("
            "SELECT file, max(latent_at + latent_bytes, media_at + media_bytes) AS stop FROM chunk WHERE story = ?1"
            " UNION ALL SELECT file, at + bytes FROM picture WHERE story = ?1) GROUP BY file",
            number,
        )
        for row in rows:
            name = f"{row['file']}.take"
            is_lasting = self.config.durable == "power"
            append_up_to(self._takes(number) / name, folder / name, row["stop"], is_lasting=is_lasting)

    def _copy_rows(self, number: int, copy: str) -> int:
        run = self.database.run
        columns = "preset, width, height, fps, created, seq, sequence, epoch, clock, head, running, bytes"
        run(
            f"INSERT INTO story (name, title, changed, {columns})"
            f" SELECT ?, title, ?, {columns} FROM story WHERE id = ?",
            *(copy, time.time(), number),
        )
        row = self.database.row("SELECT id FROM story WHERE name = ?", copy)
        assert row is not None
        for table in ("take", "chunk", "picture", "remembered", "edit", "command", "event"):
            names = [r["name"] for r in self.database.rows(f"PRAGMA table_info({table})")]
            rest = ", ".join(one for one in names if one not in ("story", "number"))
            order = " ORDER BY number" if "number" in names else ""  # numbers are given anew
            run(
                f"INSERT INTO {table} (story, {rest}) SELECT ?, {rest} FROM {table} WHERE story = ?{order}",
                *(row["id"], number),
            )
        return int(row["id"])

    def _exists(self, name: str) -> int:
        row = self.database.row("SELECT id FROM story WHERE name = ?", name)
        if row is None:
            raise ArchiveError(f"there is no story {name!r}")
        return int(row["id"])

    def _row_bytes(self, number: int) -> int:
        row = self.database.row("SELECT bytes FROM story WHERE id = ?", number)
        return int(row["bytes"]) if row is not None else 0

    def _takes(self, number: int) -> Path:
        return self.folder / "takes" / str(number)

    # --------------------------------------------------------------------------------------------------- for archives

    def new_story(self, name: str, seq: int) -> int:
        """Inside a transaction: a story that did not exist. Returns its number."""
        now, preset = time.time(), self._preset
        return self.database.insert(
            "story",
            name=name,
            title=name,
            preset=preset.name,
            width=preset.width,
            height=preset.height,
            fps=preset.fps,
            created=now,
            changed=now,
            seq=seq,
        )

    def check_room(self, story: int, more: int) -> None:
        """Raises ArchiveError where a quota would be passed."""
        row = self.database.row("SELECT sum(bytes) AS everything, sum(bytes * (id = ?)) AS mine FROM story", story)
        assert row is not None
        config = self.config
        if (row["mine"] or 0) + more > config.max_story_bytes:
            raise ArchiveError(
                f"this story has reached its {_size(config.max_story_bytes)}: start another one, or serve with a "
                "larger --story-quota"
            )
        if (row["everything"] or 0) + more > config.max_bytes:
            raise ArchiveError(
                f"the stories in {self.folder} have reached {_size(config.max_bytes)}: delete some, or serve with a "
                "larger --quota; then resume"
            )


def _size(number: int) -> str:
    return f"{number / GIB:.3g} GiB" if number >= GIB // 10 else f"{number / 2**20:.3g} MiB"
