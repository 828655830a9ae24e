"""Direct a video while it is being made.

```python
import shotstream

stream = shotstream.load("storyworld").stream(seed=7)
stream.cut("a fox walks along the beach at sunset")
for chunk in stream:
    show(chunk.frames)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shotstream.engine.loading import load as load
    from shotstream.engine.stream import Applied as Applied
    from shotstream.engine.stream import Chunk as Chunk
    from shotstream.engine.stream import Engine as Engine
    from shotstream.engine.stream import Stream as Stream
    from shotstream.story import Shot as Shot
    from shotstream.story import Steer as Steer
    from shotstream.story import Story as Story

_HOMES = {
    "load": "shotstream.engine.loading",
    "Applied": "shotstream.engine.stream",
    "Chunk": "shotstream.engine.stream",
    "Engine": "shotstream.engine.stream",
    "Stream": "shotstream.engine.stream",
    "Shot": "shotstream.story",
    "Steer": "shotstream.story",
    "Story": "shotstream.story",
}

__all__ = ["Applied", "Chunk", "Engine", "Shot", "Steer", "Story", "Stream", "load"]


def __getattr__(name: str) -> object:
    """Import public names when they are first used: `import shotstream` alone stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
