"""Let a head measure on training classes what it needs to know before it scores, or is trained."""

from collections.abc import Iterator

from torch import Tensor

from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.draw import EpisodeSpec, draw
from clipspm.train_heads.evaluation.predict import batch_size, make_batch
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.heads.episode import Episode

#: episodes for each number of shots, and their seed, which no training has
_EPISODES, _SEED = 200, -2
_MOST_SHOTS, _QUERIES = 5, 2


def calibrate(head: Head, bank: FeatureBank, *, way: int, frames: int) -> None:
    """Call :meth:`Head.calibrate` for one shot up to five, as far as the classes of ``bank`` have videos."""
    pool = bank.pool
    if type(head).calibrate is Head.calibrate or len(pool.names) < 2:
        return
    for shots in range(1, _MOST_SHOTS + 1):
        queries = min(_QUERIES, pool.smallest()[1] - shots)
        if queries < 1:
            return
        spec = EpisodeSpec(
            dataset=pool.dataset,
            split=pool.split,
            way=min(way, len(pool.names)),
            shot=shots,
            queries=queries,
            seed=_SEED,
        )
        head.calibrate(shots, _episodes(head, bank, spec, frames))


def _episodes(
    head: Head, bank: FeatureBank, spec: EpisodeSpec, frames: int
) -> Iterator[tuple[Episode, Tensor]]:
    drawn = draw(spec, bank.pool, _EPISODES)
    step = batch_size(drawn, frames, bank.text.shape[-1], "inductive", bank.device, wide=False)
    for start in range(0, len(drawn), step):
        batch = make_batch(bank, drawn[start : start + step], frames, layers=head.layers)
        yield batch.episode, batch.query_labels
