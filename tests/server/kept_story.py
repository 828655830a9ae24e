"""A kept story to export: directed in a folder of its own, encoded as it would be for a page."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shotstream.engine import messages as m
from shotstream.engine.direction import DirectorConfig, Viewers, Written
from shotstream.engine.stream import Engine
from shotstream.engine.worker import Worker
from shotstream.engine.writer import Composer, TemplateWriter
from shotstream.server.media import ChunkEncoder
from shotstream.server.store import Store, StoreConfig

_ids = itertools.count()


class KeptStory:
    """One story of a store, and a director for it."""

    def __init__(self, engine: Engine, folder: Path, name: str = "main") -> None:
        preset = engine.preset
        self.store = Store(StoreConfig(folder=folder), preset)
        self.archive = self.store.story(name)
        self.events: list[m.Event] = []
        self._woken = threading.Event()
        encoder = ChunkEncoder(preset.width, preset.height, preset.fps)
        self.worker = Worker(
            engine,
            TemplateWriter(Composer(check=engine.check_caption)),
            encoder.encode,
            config=DirectorConfig(fps=160, expected_chunk_s=0.02, expected_open_s=0.02),
            wake=self._woken.set,
            archive=self.archive,
        )
        self.worker.submit(Viewers(count=1))
        self.worker.start()

    def direct(self, cls: type[Any], *, replaces: bool = False, **rest: Any) -> str:
        """Give a command; returns its id."""
        id = f"c{next(_ids)}"
        self.worker.submit(cls(id=id, **rest))
        if issubclass(cls, (m.Start, m.Cut, m.Steer)) or (cls is m.Branch and rest.get("text")):
            self.worker.submit(Written(id=id, caption=rest["text"], replaces=replaces))
        return id

    def hold(self) -> None:
        """Wait until the shot has run its length, and every command took effect."""
        self.wait(lambda event: isinstance(event, m.Status) and event.state == "holding")
        failed = [event for event in self.events if isinstance(event, m.Ended) and event.outcome != "applied"]
        assert not failed, failed
        self.events.clear()

    def wait(self, test: Callable[[m.Event], bool], seconds: float = 20) -> m.Event:
        end, seen = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            self.worker.poll()
            self.events += [delivery.event for delivery in self.worker.take()]
            for event in self.events[seen:]:
                if test(event):
                    return event
            seen = len(self.events)
            self._woken.wait(0.01)
            self._woken.clear()
        raise AssertionError([type(event).__name__ for event in self.events])

    def done(self, id: str) -> None:
        """Wait until a command has ended."""
        self.wait(lambda event: isinstance(event, m.Ended) and event.id == id)

    def close(self) -> None:
        self.worker.close()
        self.store.close()


def film_a_tree(story: KeptStory, picture: str = "") -> None:
    """Three shots; the second was made twice, and a third was put in place of the last one."""
    story.direct(m.Start, text="a fox", seed=5, num_chunks=3, global_caption="in the snow")
    story.direct(m.Steer, text="he waves", at=m.At(shot=0, chunk=1))
    story.direct(m.Steer, text="a fox sleeps", at=m.At(shot=0, chunk=2), replaces=True)
    story.hold()
    story.direct(m.Memory, action="pin", frame=m.FrameRef(shot=0, frame=4))
    if picture:
        story.direct(m.Memory, action="add", picture=picture, caption="a house")
    story.direct(m.Cut, text="the city", num_chunks=2)
    story.hold()
    story.direct(m.Retake, node=2)
    story.hold()
    story.direct(m.Cut, text="a boat", num_chunks=1)
    story.hold()
    story.direct(m.Branch, node=3, chunk=1, text="a bear", num_chunks=2)
    story.hold()
