"""Hierarchical Synergistic Motion Refinement (arXiv 2512.19036): motion features and their consistency."""

import torch
from torch import Tensor, nn


class MotionFeatures(nn.Module):
    """Motion of a video from how filtered frames differ from their neighbours, [..., T, D] -> [..., D].

    ``Phi`` is two convolutions over time (kernel 3, zero padding 1) with nothing between them, and
    ``m = mean over the T-1 steps of 0.5*((Phi(v)[1:] - v[:-1]) + (Phi(v)[:-1] - v[1:]))``. All of it is
    linear in ``v``, so the mean over time comes first: nine weighted sums of frames, not T filtered frames.
    ``conv1`` and ``conv2`` hold each filter as one matrix [D, 3*D], taps before channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Linear(3 * dim, dim)
        self.conv2 = nn.Linear(3 * dim, dim)

    def forward(self, v: Tensor) -> Tensor:
        """Return the motion of ``v`` [..., T, D], T >= 2: [..., D]."""
        ends, middle, inner = _mean_weights(v.shape[-2], v)
        sums = torch.cat([inner, ends.unsqueeze(0)]) @ v
        # [..., 9, D] -> for each tap of conv2, its three taps of conv1
        hidden = nn.functional.linear(sums[..., :9, :].unflatten(-2, (3, 3)).flatten(-2), self.conv1.weight)
        hidden = hidden + middle.sum(-1, keepdim=True) * self.conv1.bias
        filtered: Tensor = self.conv2(hidden.flatten(-2))
        return filtered - sums[..., 9, :]


class MovingFrames(nn.Module):
    """Frames minus their clip's mean, through one learned filter over time that all channels share.

    The filter has ``taps`` weights (0: no filter), is symmetric, so that it favours no direction of time, is
    zero-padded, and starts as the identity; the mean is subtracted again after it. It can separate jitter
    between frames from motion that lasts. Not in the paper.
    """

    #: a filter of few weights has to move faster than the matrices that share its learning rate
    STRIDE = 10.0

    def __init__(self, taps: int) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.zeros(taps // 2 + 1)) if taps else None

    def forward(self, frames: Tensor) -> Tensor:
        """Return the moving frames, [..., T, D] -> [..., T, D]."""
        moving = centered(frames)
        if self.taps is None:
            return moving
        kernel = self.STRIDE * self.taps + torch.eye(len(self.taps), device=frames.device)[0]
        time = torch.arange(frames.shape[-2], device=frames.device)
        apart = (time - time.unsqueeze(1)).abs()  # between the frame read and the frame written, [T, T]
        weights = kernel[apart.clamp(max=len(kernel) - 1)] * (apart < len(kernel))
        return centered(weights.to(frames.dtype) @ moving)


def centered(frames: Tensor) -> Tensor:
    """Subtract each clip's mean frame, [..., T, D]."""
    return frames - frames.mean(dim=-2, keepdim=True)


def _mean_weights(frames: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each frame's weights in the mean over the T-1 steps.

    Of the frames themselves [T], for each tap of conv2 [3, T], and for each pair of taps of both convolutions
    [9, T].
    """
    ends = like.new_full((frames,), 1 / (frames - 1))
    ends[0] = ends[-1] = 0.5 / (frames - 1)
    middle = _shifted(ends)
    return ends, middle, torch.cat([_shifted(row) for row in middle])


def _shifted(weights: Tensor) -> Tensor:
    """Return [3, T]: weights of h_u in ``sum_t weights_t * h_{t+k-1}``, k = 0, 1, 2, with h zero outside."""
    padded = nn.functional.pad(weights, (1, 1))
    frames = weights.shape[0]
    return torch.stack([padded[2 - k : 2 - k + frames] for k in range(3)])


def motion_consistency(deep: Tensor, token: Tensor, supports: int) -> Tensor:
    """Return ``L_motion`` [E] of deep motion and fused tokens [E, S+Q, D], supports first.

    It is the mean squared distance over queries, plus that over supports.
    """
    gap = (deep - token).square().sum(-1)
    return gap[:, :supports].mean(1) + gap[:, supports:].mean(1)
