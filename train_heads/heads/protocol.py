"""How queries are scored: each as if it were alone in its episode, or all of them together."""

from typing import Literal

Protocol = Literal["inductive", "transductive"]
PROTOCOLS: tuple[Protocol, ...] = ("inductive", "transductive")
