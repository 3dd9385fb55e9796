"""Tensors recorded from the reference implementation."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from clipspm.train_heads.heads import CLIPSPM

FILES = ("hmdb51_5way_1shot", "kinetics_5way_5shot")


class Golden:
    """One recorded file: its tensors, its weights and what they were recorded with."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as f:
            self.meta = f.metadata()
            self.tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        self.weights = {
            k.removeprefix("weight/"): v for k, v in self.tensors.items() if k.startswith("weight/")
        }

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def call(self) -> dict[str, Any]:
        return {
            "support": self["support"],
            "support_labels": self["support_labels"],
            "query": self["query"],
            "text": self["text"][self["episode_classes"]],
        }

    def head(self, **overrides: Any) -> CLIPSPM:
        return CLIPSPM.from_reference(self.weights, preset=self.meta["preset"], **overrides)


def assert_recorded(found: Tensor, recorded: Tensor) -> None:
    """Absolute 1e-4 or relative 1e-5, whichever is larger, element by element."""
    gap = (found.detach().reshape(recorded.shape) - recorded).abs()
    allowed = torch.maximum(torch.full_like(recorded, 1e-4), 1e-5 * recorded.abs())
    assert (gap <= allowed).all(), f"largest gap {gap.max()}"
