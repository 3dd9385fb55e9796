"""A task for engines whose items can fail, or take their worker down."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from clipspm.errors import ClipspmError


@dataclass(frozen=True)
class Grumpy:
    """A task that fails, or dies, at some items."""

    @contextmanager
    def open(self, device: str | None) -> Iterator[Callable[[Iterable[int]], Iterator[int]]]:
        yield self._work

    def _work(self, items: Iterable[int]) -> Iterator[int]:
        for item in items:
            if item == 13:
                raise ClipspmError("thirteen")
            if item == 99:
                os._exit(3)
            yield item * item
