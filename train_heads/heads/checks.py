"""Checks of a head's arguments: a ValueError names the argument, the value found and the value needed."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.protocol import PROTOCOLS

if TYPE_CHECKING:
    from clipspm.train_heads.heads.base import Head


def check_episode(episode: Episode, head: "Head") -> None:
    """Raise ValueError for an argument that ``head`` cannot score.

    Shapes first, without touching the device; then every value check in one pass and one synchronisation,
    before any E is added or any dtype changed.
    """
    if episode.protocol not in PROTOCOLS:
        raise ValueError(f"protocol: found {episode.protocol!r}; needed one of {', '.join(PROTOCOLS)}")
    _check_shapes(episode, head)
    _check_values(episode, head.shallow_layer)


def _refuse(name: str, found: object, needed: str) -> None:
    raise ValueError(f"{name}: found {found}; needed {needed}")


def _check_shapes(ep: Episode, head: "Head") -> None:
    dim, shallow_layer = head.dim, head.shallow_layer
    shape = tuple(ep.support.shape)
    if len(shape) not in (3, 4) or shape[-1] != dim or 0 in shape:
        _refuse("support", f"shape {shape}", f"[E, S, T, {dim}] or [S, T, {dim}], none of them 0")
    *lead, s, t, _ = shape
    if t < head.min_frames:
        _refuse("support", f"{t} frames per video", f"{head.min_frames} or more")

    def expect(name: str, x: Tensor | None, *wanted: int | str) -> None:
        found = tuple(x.shape) if x is not None else None
        full_shape = [*lead, *wanted]
        matches = found is not None and len(found) == len(full_shape)
        if not matches or any(
            (f != w) if isinstance(w, int) else f == 0 for f, w in zip(found or (), full_shape, strict=True)
        ):
            text = ", ".join(map(str, full_shape))
            _refuse(
                name, f"shape {found}" if x is not None else None, f"[{text}] as support is {list(shape)}"
            )

    expect("support_labels", ep.support_labels, s)
    expect("query", ep.query, "Q", t, dim)
    expect("text", ep.text, "C", dim)
    q = ep.query.shape[-3]
    if ep.query_labels is not None:
        expect("query_labels", ep.query_labels, q)
    if shallow_layer is not None:
        wanted = head.shallow_dim if head.shallow_dim is not None else "D'"
        expect(f"support_shallow (layer {shallow_layer!r})", ep.support_shallow, s, t, wanted)
        expect(f"query_shallow (layer {shallow_layer!r})", ep.query_shallow, q, t, wanted)
    if ep.base is not None:
        expect("base.support", ep.base.support, s)
        expect("base.query", ep.base.query, q)
        if ep.base.text.dim() != 2 or ep.base.text.shape[1] != dim or not len(ep.base.text):
            _refuse("base.text", f"shape {tuple(ep.base.text.shape)}", f"[B, {dim}]")
    for name in ("support_labels", "query_labels"):
        labels = getattr(ep, name)
        if labels is not None and (labels.is_floating_point() or labels.dtype == torch.bool):
            _refuse(name, f"dtype {labels.dtype}", "an integer dtype")


def _check_values(ep: Episode, shallow_layer: str | None) -> None:
    features: dict[str, Tensor | None] = {"support": ep.support, "query": ep.query, "text": ep.text}
    labels: dict[str, tuple[Tensor | None, int, str]] = {
        "support_labels": (ep.support_labels, ep.ways, "text"),
        "query_labels": (ep.query_labels, ep.ways, "text"),
    }
    if shallow_layer is not None:
        features |= {"support_shallow": ep.support_shallow, "query_shallow": ep.query_shallow}
    if ep.base is not None:
        rows = len(ep.base.text)
        features["base.text"] = ep.base.text
        labels["base.support"] = ep.base.support, rows, "base.text"
        labels["base.query"] = ep.base.query, rows, "base.text"

    # a sum is finite only if every term is (and sums of features stay far from float32's end)
    finite = {n: torch.isfinite(x.sum(dtype=torch.float32)) for n, x in features.items() if x is not None}
    within = {n: ((x >= 0) & (x < k)).all() for n, (x, k, _) in labels.items() if x is not None}
    members = ep.support_labels.unsqueeze(-1) == torch.arange(ep.ways, device=ep.support_labels.device)
    present = members.any(-2)
    flags = torch.stack([*finite.values(), *within.values(), present.all()]).tolist()
    if all(flags):
        return

    verdict = dict(zip([*finite, *within, "present"], flags, strict=True))
    for name, x in features.items():
        if x is not None and not verdict[name] and not (good := torch.isfinite(x)).all():
            first = (~good).nonzero()[0].tolist()
            _refuse(
                name,
                f"{int((~good).sum())} values that are NaN or infinite, the first at {first}",
                "finite values",
            )
    for name, (x, k, rows_of) in labels.items():
        if x is not None and not verdict[name]:
            wrong = x[(x < 0) | (x >= k)][0].item()
            _refuse(name, f"label {wrong}", f"0..{k - 1}, a row of {rows_of}")
    if not verdict["present"]:
        missing = (~present).nonzero()[0].tolist()
        where = f" of episode {missing[0]}" if len(missing) == 2 else ""
        _refuse(
            "support_labels",
            f"no support of class {missing[-1]}{where}",
            f"one or more for each of the {ep.ways} classes",
        )
