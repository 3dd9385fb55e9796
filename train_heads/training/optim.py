"""Optimiser and learning rate."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from clipspm.train_heads.config import TrainConfig


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Return Adam (decay added to the gradient) or AdamW (decoupled decay)."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    parameters = list(parameters)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)  # one pass over the weights, not ten
    return kind(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=fused)


def lr_at(step: int, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of ``step`` (from 0): linear warm-up, then constant or half a cosine."""
    rising = round(config.warmup * steps)
    if step < rising:
        return config.lr * (step + 1) / rising
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
