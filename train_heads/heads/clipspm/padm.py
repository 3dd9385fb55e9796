"""Prototype-Anchor Dual Modulation (arXiv 2512.19036): class tokens and an anchor refine the videos.

Shapes: E episodes, S supports, Q queries, C ways, T frames, D width, h attention heads of width d.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipspm.train_heads.heads.clipspm import pieces
from clipspm.train_heads.heads.episode import Episode
from clipspm.train_heads.heads.parts.attention import Block
from clipspm.train_heads.heads.parts.matching import Matcher


@dataclass(frozen=True)
class Refined:
    """PADM's outputs. Inductive ones have an axis Q after E where marked: each query has its own tokens."""

    support: Tensor  #: [E, (Q,) S, T, D]
    class_token: Tensor  #: [E, (Q,) C, T, D]
    query: Tensor  #: [E, Q, T, D]
    anchor: Tensor  #: [E, 1 or Q, T, D]


class PADM(nn.Module):
    """Self-attention over videos at each frame index: over ``[k_1..k_C ; supports]`` and ``[a ; queries]``.

    ``k_c`` is the joint mean of the class's supports and the queries, ``a`` the mean of the ``k_c``.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, episode: Episode, support: Tensor, query: Tensor, known: pieces.Projected | None = None
    ) -> Refined:
        """Refine ``support`` [E, S, T, D] and ``query`` [E, Q, T, D] under the episode's protocol.

        Class tokens and the anchor are sums of videos, so only videos are projected where that is less work
        (:mod:`.pieces`). ``known``: the supports' projections [E, S, T, ...], if they are computed already.
        """
        if pieces.worth_it(self.block, support):
            together = torch.cat([support, query], dim=1)
            if known is None:
                projected = pieces.project(self.block, together)
            else:
                projected = known.cat(pieces.project(self.block, query), dim=1)
            refine = (
                self._transductive_by_pieces
                if episode.protocol == "transductive"
                else self._inductive_by_pieces
            )
            return refine(episode, together, projected)
        if episode.protocol == "transductive":
            return self._transductive(episode, support, query)
        return self._inductive(episode, support, query)

    def _transductive_by_pieces(
        self, episode: Episode, videos: Tensor, projected: pieces.Projected
    ) -> Refined:
        """Refine ``videos`` [E, S+Q, T, D], supports first, given their projections [E, S+Q, T, ...]."""
        e, p, t, dim = videos.shape
        c, s = episode.ways, episode.support_labels.shape[1]
        members = self._sums_of_videos(episode, p - s)
        tokens = (members @ videos.flatten(2)).view(e, -1, t, dim).transpose(1, 2)  # [E, T, C+S+1+Q, D]
        weights = (pieces.inverse_deviation(self.block, tokens) * members.unsqueeze(1)).flatten(0, 1)
        over_time = pieces.Projected(*(x.transpose(1, 2) for x in projected))
        known, mask = pieces.compare(self.block, over_time), pieces.group_mask(c + s, 1 + p - s, like=videos)
        attention = pieces.attend(self.block, known, weights, mask)
        (done,) = self.block(tokens.contiguous(), attention=attention)
        done = done.transpose(1, 2)
        return Refined(done[:, c : c + s], done[:, :c], done[:, c + s + 1 :], done[:, c + s : c + s + 1])

    def _inductive_by_pieces(self, episode: Episode, videos: Tensor, projected: pieces.Projected) -> Refined:
        """Refine each query as an episode of its own, whose pieces are the supports and the query."""
        e, p, t, dim = videos.shape
        c, s = episode.ways, episode.support_labels.shape[1]
        q = p - s
        members = self._sums_of_videos(episode, 1)  # [E, n, S+1], n = C+S+2
        shared = (members[..., :s] @ videos[:, :s].flatten(2)).view(e, -1, t, dim).transpose(1, 2)
        own = members[..., s:].reshape(e, 1, 1, -1, 1) * videos[:, s:].transpose(1, 2).unsqueeze(
            3
        )  # [E, T, Q, n, D]
        tokens = shared.unsqueeze(2) + own
        weights = pieces.inverse_deviation(self.block, tokens) * members.reshape(e, 1, 1, -1, s + 1)
        over_time = pieces.Projected(*(x.transpose(1, 2) for x in projected))
        known, mask = pieces.compare(self.block, over_time), pieces.group_mask(c + s, 2, like=videos)
        # rows of the videos that each query's tokens are made of, [Q, S+1]
        made_of = torch.arange(s, device=videos.device).expand(q, s)
        made_of = torch.cat([made_of, torch.arange(s, p, device=videos.device).unsqueeze(1)], dim=1)
        scores = known.scores[..., made_of.unsqueeze(2), made_of.unsqueeze(1)].transpose(1, 2)
        lift = known.lift[..., made_of].transpose(1, 2)
        share = pieces.share_of(self.block, scores, lift, weights.flatten(0, 1), mask)  # [E*T, Q, h, n, S+1]
        share = share.permute(0, 1, 3, 4, 2)  # [E*T, Q, n, S+1, h]
        of_supports = share[..., :s, :].flatten(3).flatten(1, 2) @ known.values[:, :s].flatten(1, 2)
        of_query = share[..., s, :] @ known.values[:, s:]
        attention = of_supports.view_as(of_query) + of_query + pieces.output_bias(self.block)
        (done,) = self.block(tokens, attention=attention)
        done = done.permute(3, 0, 2, 1, 4)  # [n, E, Q, T, D]
        support, token = done[c : c + s].permute(1, 2, 0, 3, 4), done[:c].permute(1, 2, 0, 3, 4)
        return Refined(support, token, done[c + s + 1], done[c + s])

    @staticmethod
    def _sums_of_videos(episode: Episode, queries: int) -> Tensor:
        """Return the weights [E, n, S+Q] of videos in the tokens ``[k_1..k_C ; supports ; a ; queries]``."""
        member = episode.one_hot.transpose(1, 2)  # [E, C, S]
        e, c, s = member.shape
        size = (episode.shots + queries).unsqueeze(-1)
        tokens = torch.cat([member, member.new_ones(e, c, queries)], dim=2) / size
        videos = torch.eye(s + queries, dtype=member.dtype, device=member.device).expand(e, -1, -1)
        return torch.cat([tokens, videos[:, :s], tokens.mean(1, keepdim=True), videos[:, s:]], dim=1)

    def _transductive(self, episode: Episode, support: Tensor, query: Tensor) -> Refined:
        total = episode.class_sum(support) + query.sum(1, keepdim=True)
        tokens = total / (episode.shots + query.shape[1])[..., None, None]
        left = torch.cat([tokens, support], dim=1).transpose(1, 2)  # [E, T, C+S, D]
        right = torch.cat([tokens.mean(1, keepdim=True), query], dim=1).transpose(1, 2)  # [E, T, 1+Q, D]
        left, right = (x.transpose(1, 2) for x in self.block(left.contiguous(), right.contiguous()))
        c = episode.ways
        return Refined(left[:, c:], left[:, :c], right[:, 1:], right[:, :1])

    def _inductive(self, episode: Episode, support: Tensor, query: Tensor) -> Refined:
        """Refine each query as an episode of its own; all share the supports' queries, keys and values."""
        block, c = self.block, episode.ways
        total = episode.class_sum(support).unsqueeze(1) + query.unsqueeze(2)  # [E, Q, C, T, D]
        tokens = (total / (episode.shots + 1)[:, None, :, None, None]).permute(
            0, 3, 1, 2, 4
        )  # [E, T, Q, C, D]
        pairs = torch.stack([tokens.mean(3), query.transpose(1, 2)], dim=3)  # [E, T, Q, 2, D]
        supports = support.transpose(1, 2)  # [E, T, S, D]
        e, t, q = tokens.shape[:3]
        s = supports.shape[2]

        counts = [e * t * q * c, e * t * q * 2, e * t * s]
        rows = torch.cat(
            [tokens.reshape(-1, self.dim), pairs.view(-1, self.dim), supports.reshape(-1, self.dim)]
        )
        of_tokens, of_pairs, of_supports = block.project(rows).split(counts)
        left = self._attend_left(
            of_tokens.view(e * t, q, c, 3, block.heads, -1), of_supports.view(e * t, s, 3, block.heads, -1)
        )
        right = block.attend(of_pairs.view(e * t * q, 2, -1))

        mixed = torch.cat(
            [tokens, supports.unsqueeze(2).expand(-1, -1, q, -1, -1)], dim=3
        )  # [E, T, Q, C+S, D]
        done = block.finish(
            torch.cat([mixed.view(-1, self.dim), pairs.view(-1, self.dim)]),
            torch.cat([left.flatten(0, 2), right.flatten(0, 1)]),
        )
        left, right = done.split([e * t * q * (c + s), counts[1]])
        left = left.view(e, t, q, c + s, -1).permute(0, 2, 3, 1, 4)
        right = right.view(e, t, q, 2, -1).permute(3, 0, 2, 1, 4)
        return Refined(left[:, :, c:], left[:, :, :c], right[1], right[0])

    @staticmethod
    def _attend_left(tokens: Tensor, supports: Tensor) -> Tensor:
        """Attend over ``[k ; supports]`` for every query, without copying the supports for each.

        ``tokens`` [B, Q, C, 3, h, d], ``supports`` [B, S, 3, h, d] -> [B, Q, C+S, h*d], B = E*T.
        """
        (b, q, c), s = tokens.shape[:3], supports.shape[1]
        qk, kk, vk = tokens.permute(3, 0, 4, 1, 2, 5)  # [B, h, Q, C, d]
        qs, ks, vs = supports.permute(2, 0, 3, 1, 4)  # [B, h, S, d]
        heads = kk.shape[1]
        to_tokens = torch.cat([qk, qs.unsqueeze(2).expand(-1, -1, q, -1, -1)], dim=3) @ kk.transpose(-1, -2)
        from_tokens = (qk.reshape(b, heads, q * c, -1) @ ks.transpose(-1, -2)).view(b, heads, q, c, s)
        among = (qs @ ks.transpose(-1, -2)).unsqueeze(2).expand(-1, -1, q, -1, -1)
        scores = torch.cat([to_tokens, torch.cat([from_tokens, among], dim=3)], dim=-1)
        share = (scores * qs.shape[-1] ** -0.5).softmax(-1)  # [B, h, Q, C+S, C+S]
        out = share[..., :c] @ vk
        out = out + (share[..., c:].reshape(b, heads, q * (c + s), s) @ vs).view_as(out)
        return out.permute(0, 2, 3, 1, 4).flatten(-2)

    @property
    def dim(self) -> int:
        """Feature width D."""
        return self.block.out.out_features


def distances(episode: Episode, refined: Refined, match: Matcher) -> tuple[Tensor, Tensor]:
    """Return ``D2`` and ``D3``, [E, Q, C] each: prototypes to queries, class tokens to the anchor."""
    prototypes = episode.class_mean(refined.support)
    if episode.protocol == "transductive":
        d2 = match(prototypes, refined.query)
        return d2, match(refined.class_token, refined.anchor).expand_as(d2)
    # every query has its own prototypes and tokens: episodes of one query
    e, q = refined.query.shape[:2]
    prototypes, tokens = prototypes.flatten(0, 1), refined.class_token.flatten(0, 1)
    d2 = match(prototypes, refined.query.reshape(e * q, 1, *refined.query.shape[2:]))
    d3 = match(tokens, refined.anchor.reshape(e * q, 1, *refined.anchor.shape[2:]))
    return d2.view(e, q, -1), d3.view(e, q, -1)
