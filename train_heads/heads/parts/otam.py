"""Ordered temporal alignment (OTAM, arXiv 1906.11415 section 3.2) of two frame sequences, and its gradient.

Write ``A = exp(-cum / smoothing)`` and ``w = exp(-dist / smoothing)``. The soft minima of the recurrence turn
into sums, and every path from the left pad to the right pad moves one column per step except inside the first
real column and the right pad. So ``A`` is computed one column at a time, for all rows at once::

    A[l, 1]   = w[l, 1] * (2 + A[l-1, 1])                 (row 0: w[0, 1])
    A[l, m]   = w[l, m] * (A[l-1, m-1] + A[l, m-1])       (row 0: w[0, m] * A[0, m-1])
    Z         = 2 * sum of A[l, M] over l < L  +  A[L, M]
    distance  = -smoothing * log Z

The gradient with respect to ``dist[l, m]`` is the share of paths through that cell, ``A * B / Z`` with ``B``
the same recurrence run backwards.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

#: largest exponent for which plain float32 sums of path weights neither underflow nor overflow
_SAFE_EXPONENT = 60.0
_LOG2 = math.log(2.0)


def full(x: Tensor) -> Tensor:
    """Convert ``x`` to float32 unless it is wider."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def frame_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return ``1 - x.y / (|x||y| + 0.01)`` for all frames of ``x`` [..., T1, D] and of ``y`` [..., T2, D].

    Shape [..., T1, T2], values in [0, 2], in float32 or wider even under autocast. Leading axes broadcast.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = full(x), full(y)
        norms = torch.linalg.vector_norm(x, dim=-1).unsqueeze(-1) * torch.linalg.vector_norm(
            y, dim=-1
        ).unsqueeze(-2)
        return 1 - x @ y.transpose(-1, -2) / (norms + 0.01)


def otam_distance(
    dist: Tensor, *, bidirectional: bool = True, smoothing: float = 0.5, bound: float | None = None
) -> Tensor:
    """Return the soft alignment distance of each ``dist`` [..., T1, T2], shape [...]; may be negative.

    Rows are the query's frames, columns the prototype's; ``bidirectional`` adds the distance of the
    transposed problem (not halved). ``smoothing`` is lambda of the soft minimum. ``bound``: if ``0 <= dist <=
    bound`` is known, short sequences use plain sums; otherwise everything stays in the log domain. Half
    precision is computed in float32. Raises ValueError for an empty sequence or a lambda that is not
    positive.
    """
    if dist.dim() < 2 or 0 in dist.shape[-2:]:
        raise ValueError(f"dist: found shape {tuple(dist.shape)}; needed [..., T1, T2] with T1, T2 >= 1")
    if not smoothing > 0:
        raise ValueError(f"smoothing: found {smoothing}; needed a positive number")
    t1, t2 = dist.shape[-2:]
    plain = bound is not None and bound * max(t1, t2) / smoothing <= _SAFE_EXPONENT
    cells = full(dist).movedim((-1, -2), (0, 1)).reshape(t2, t1, -1)
    out: Tensor = _Otam.apply(cells, smoothing, bidirectional, plain)
    return out.view(dist.shape[:-2])


class _Otam(torch.autograd.Function):
    """``cells`` [T2, T1, N] (column, row, problem; problems contiguous) -> distances [N]."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, cells: Tensor, smoothing: float, bidirectional: bool, plain: bool
    ) -> Tensor:
        # weights of the cells: w itself, or log w
        w = (cells / -smoothing).exp_() if plain else cells / -smoothing
        columns = _columns if plain else _log_columns
        views = [w, w.transpose(0, 1)] if bidirectional else [w]
        paths = [columns(v) for v in views]
        totals = [_total(a[-1]) if plain else _log_total(a[-1]) for a in paths]
        ctx.save_for_backward(w, *paths, *totals)  # type: ignore[attr-defined]
        ctx.options = smoothing, bidirectional, plain  # type: ignore[attr-defined]
        out = torch.stack(totals)
        return (out.log_() if plain else out).sum(0).mul_(-smoothing)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        _, bidirectional, plain = ctx.options  # type: ignore[attr-defined]
        w, *saved = ctx.saved_tensors  # type: ignore[attr-defined]
        half = len(saved) // 2
        marginals = _marginals if plain else _log_marginals
        out = marginals(w, saved[0], saved[half])
        if bidirectional:
            out = out + marginals(w.transpose(0, 1), saved[1], saved[half + 1]).transpose(0, 1)
        return out * grad, None, None, None


def _columns(w: Tensor) -> Tensor:
    """Return the sums of path weights that end in each cell, [M, L, N]."""
    a = torch.empty_like(w, memory_format=torch.contiguous_format)
    # first column: A[l] = w[l] * (2 + A[l-1]) unrolled, with p the running product of w
    p = w[0].cumprod(0)
    entry = torch.full_like(p, 2.0)
    entry[0] = 1.0
    entry[1:] /= p[:-1]
    torch.mul(p, entry.cumsum(0), out=a[0])
    for m in range(1, w.shape[0]):
        prev, now = a[m - 1], a[m]
        now[0] = prev[0]
        torch.add(prev[1:], prev[:-1], out=now[1:])
        now.mul_(w[m])
    return a


def _total(last: Tensor) -> Tensor:
    return 2 * last.sum(0) - last[-1]


def _marginals(w: Tensor, a: Tensor, total: Tensor) -> Tensor:
    """Return the share of the paths through each cell, [M, L, N]."""
    b = torch.empty_like(a)
    b[-1] = 2.0
    b[-1, -1] = 1.0
    for m in range(w.shape[0] - 2, -1, -1):
        step = w[m + 1] * b[m + 1]
        b[m] = step
        b[m, :-1] += step[1:]
    p = w[0].cumprod(0)
    b[0] = (b[0] * p).flip(0).cumsum(0).flip(0) / p
    return b.mul_(a).div_(total)


def _log_columns(w: Tensor) -> Tensor:
    a = torch.empty_like(w, memory_format=torch.contiguous_format)
    a[0, 0] = w[0, 0]
    two = torch.full_like(w[0, 0], _LOG2)
    for row in range(1, w.shape[1]):
        a[0, row] = w[0, row] + torch.logaddexp(two, a[0, row - 1])
    for m in range(1, w.shape[0]):
        prev, now = a[m - 1], a[m]
        now[0] = prev[0]
        now[1:] = torch.logaddexp(prev[1:], prev[:-1])
        now += w[m]
    return a


def _log_total(last: Tensor) -> Tensor:
    weighted = last + _LOG2
    weighted[-1] = last[-1]
    return weighted.logsumexp(0)


def _log_marginals(w: Tensor, a: Tensor, total: Tensor) -> Tensor:
    b = torch.empty_like(a)
    b[-1] = _LOG2
    b[-1, -1] = 0.0
    for m in range(w.shape[0] - 2, -1, -1):
        step = w[m + 1] + b[m + 1]
        b[m, -1] = step[-1]
        b[m, :-1] = torch.logaddexp(step[:-1], step[1:])
    for row in range(w.shape[1] - 2, -1, -1):
        b[0, row] = torch.logaddexp(b[0, row], w[0, row + 1] + b[0, row + 1])
    return b.add_(a).sub_(total).exp_()
