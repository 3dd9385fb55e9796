"""Check a head's arguments: a ValueError names the argument, the value found and the value needed."""

from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import Tensor

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.episode import BaseClasses, Episode
from clipspm.train_heads.heads.protocol import PROTOCOLS


def check_episode(
    episode: Episode,
    query_labels: Tensor | None,
    base: BaseClasses | None,
    *,
    dims: Mapping[str, int],
    min_frames: int = 1,
) -> None:
    """Raise ValueError for arguments that a head cannot score.

    ``dims``: the layers that the head reads, and their widths. Shapes are checked first, without touching the
    device; then all values in one pass with one synchronisation.
    """
    if episode.protocol not in PROTOCOLS:
        raise ValueError(f"protocol: found {episode.protocol!r}; needed one of {', '.join(PROTOCOLS)}")
    _check_shapes(episode, query_labels, base, dims, min_frames)
    _check_values(episode, query_labels, base, dims)


def _refuse(name: str, found: object, needed: str) -> NoReturn:
    raise ValueError(f"{name}: found {found}; needed {needed}")


def _check_shapes(
    ep: Episode,
    query_labels: Tensor | None,
    base: BaseClasses | None,
    dims: Mapping[str, int],
    min_frames: int,
) -> None:
    dim = dims[FINAL]
    for name, given in (("support", ep.support), ("query", ep.query)):
        if missing := [layer for layer in dims if layer not in given]:
            _refuse(name, f"layers {', '.join(given)}", f"layer {missing[0]!r} too")
    shape = tuple(ep.support[FINAL].shape)
    if len(shape) not in (3, 4) or shape[-1] != dim or 0 in shape:
        _refuse("support", f"shape {shape}", f"[E, S, T, {dim}] or [S, T, {dim}], none of them 0")
    *lead, s, t, _ = shape
    if t < min_frames:
        _refuse("support", f"{t} frames per video", f"{min_frames} or more")

    def expect(name: str, x: Tensor, *wanted: int | str) -> None:
        found, whole = tuple(x.shape), [*lead, *wanted]
        if len(found) != len(whole) or any(
            (f != w) if isinstance(w, int) else f == 0 for f, w in zip(found, whole, strict=True)
        ):
            _refuse(name, f"shape {found}", f"[{', '.join(map(str, whole))}] as support is {list(shape)}")

    expect("support_labels", ep.support_labels, s)
    expect("query", ep.query[FINAL], "Q", t, dim)
    expect("text", ep.text, "C", dim)
    q = ep.query[FINAL].shape[-3]
    for layer, width in dims.items():
        expect(_named("support", layer), ep.support[layer], s, t, width)
        expect(_named("query", layer), ep.query[layer], q, t, width)
    labels = {"support_labels": ep.support_labels}
    if query_labels is not None:
        expect("query_labels", query_labels, q)
        labels["query_labels"] = query_labels
    if base is not None:
        expect("base.support", base.support, s)
        expect("base.query", base.query, q)
        if base.text.dim() != 2 or base.text.shape[1] != dim or not len(base.text):
            _refuse("base.text", f"shape {tuple(base.text.shape)}", f"[B, {dim}]")
    for name, found in labels.items():
        if found.is_floating_point() or found.dtype == torch.bool:
            _refuse(name, f"dtype {found.dtype}", "an integer dtype")


def _named(what: str, layer: str) -> str:
    return what if layer == FINAL else f"{what}[{layer!r}]"


def _check_values(
    ep: Episode, query_labels: Tensor | None, base: BaseClasses | None, dims: Mapping[str, int]
) -> None:
    features = {_named("support", layer): ep.support[layer] for layer in dims}
    features |= {_named("query", layer): ep.query[layer] for layer in dims}
    features["text"] = ep.text
    labels = {"support_labels": (ep.support_labels, ep.ways, "text")}
    if query_labels is not None:
        labels["query_labels"] = query_labels, ep.ways, "text"
    if base is not None:
        features["base.text"] = base.text
        labels["base.support"] = base.support, len(base.text), "base.text"
        labels["base.query"] = base.query, len(base.text), "base.text"

    # a sum is finite only if every term is (and sums of features stay far below float32's limit)
    finite = [torch.isfinite(x.sum(dtype=torch.float32)) for x in features.values()]
    within = [((x >= 0) & (x < k)).all() for x, k, _ in labels.values()]
    members = ep.support_labels.unsqueeze(-1) == torch.arange(ep.ways, device=ep.support_labels.device)
    present = members.any(-2)
    flags = torch.stack([*finite, *within, present.all()]).tolist()
    if all(flags):
        return

    verdict = dict(zip([*features, *labels], flags, strict=False))
    for name, x in features.items():
        if not verdict[name] and not (good := torch.isfinite(x)).all():
            count, first = int((~good).sum()), (~good).nonzero()[0].tolist()
            _refuse(name, f"{count} values that are NaN or infinite, the first at {first}", "finite values")
    for name, (x, k, rows_of) in labels.items():
        if not verdict[name]:
            _refuse(name, f"label {x[(x < 0) | (x >= k)][0].item()}", f"0..{k - 1}, a row of {rows_of}")
    if not flags[-1]:
        missing = (~present).nonzero()[0].tolist()
        where = f" of episode {missing[0]}" if len(missing) == 2 else ""
        _refuse(
            "support_labels",
            f"no support of class {missing[-1]}{where}",
            f"one or more for each of the {ep.ways} classes",
        )
