"""Who may use the engine: live stories in turn, and other work while none of them wants it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class Turn:
    """The lock of one engine. `with turn:` is for live stories; `spare` for work that can wait."""

    def __init__(self) -> None:
        self._engine, self._count = threading.Lock(), threading.Lock()
        self._wanting = 0

    @property
    def wanted(self) -> bool:
        """Whether a live story has the engine, or waits for it."""
        return self._wanting > 0

    def __enter__(self) -> None:
        with self._count:
            self._wanting += 1
        self._engine.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.release()
        with self._count:
            self._wanting -= 1

    @contextmanager
    def spare(self) -> Iterator[bool]:
        """Gives whether the engine is free, and holds it then. Whoever holds it looks at `wanted` now and then."""
        mine = not self.wanted and self._engine.acquire(blocking=False)
        try:
            yield mine
        finally:
            if mine:
                self._engine.release()
