"""Select weights on validation classes, or without any on a held-out part of the training set.

Test classes cannot be used: their split is closed while a head is trained (:meth:`Data.closed`).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipspm.progress import Say
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec, draw
from clipspm.train_heads.evaluation.predict import fit_temperature, predict, tune
from clipspm.train_heads.evaluation.stats import accuracies
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.training.hold_out import Selection, set_aside

#: seed of the episodes drawn from held-out data
_HELD_OUT = -1
#: training without selection was not seen to hurt up to so many episodes
_SHORT = 160


@dataclass(frozen=True)
class Selector:
    """Scores heads on a ``bank`` and ``episodes`` that no training step sees, to select between them.

    ``by``: where these come from; ``none``: there are none, and the last weights are kept.
    """

    by: Selection = "none"
    bank: FeatureBank | None = None
    episodes: Episodes | None = None

    @property
    def held_out(self) -> bool:
        """Whether the bank is a part of the training set."""
        return self.by.startswith("held-out")

    @property
    def unseen(self) -> bool:
        """Whether the bank holds classes that are not trained on."""
        return self.by in ("val", "held-out classes")

    def accuracy(self, head: Head, config: TrainConfig) -> float | None:
        """Return the mean accuracy of ``head``; None if there is nothing to select on."""
        if self.bank is None or self.episodes is None:
            return None
        found = predict(head, self.bank, self.episodes, **_how(config))
        return float(accuracies(found, self.episodes).mean())

    def tuned(self, head: Head, config: TrainConfig) -> dict[str, float]:
        """Tune the buffers that ``head`` declares as tunable; return the chosen values."""
        if self.bank is None or self.episodes is None:
            return {}
        return tune(head, self.bank, self.episodes, **_how(config))

    def temper(self, head: Head, config: TrainConfig) -> None:
        """Fit the head's temperature, if it has one."""
        if self.bank is not None and self.episodes is not None and self.unseen:
            fit_temperature(head, self.bank, self.episodes, **_how(config))

    def save(self, folder: Path) -> None:
        """Write the episodes beside the weights that are selected on them."""
        if self.episodes is not None:
            self.episodes.save(folder / f"episodes-{self.episodes.hash}.npz")


def make_selector(
    config: TrainConfig, train: FeatureBank, val: FeatureBank | None, head: Head, why: str, say: Say
) -> tuple[FeatureBank, Selector]:
    """Return the part of the bank ``train`` to train on, and the selector.

    It uses the bank ``val`` of the validation classes if there is one, else what :func:`set_aside` takes out
    of ``train``; that, and ``why``, are reported to ``say``.
    """
    spec = EpisodeSpec(dataset=train.pool.dataset, split="val", way=2, shot=config.shots, queries=1)
    if val is not None:
        return train, _selector_on("val", val, spec, config)
    if not head.trainable or not config.episodes:
        if head.tunable:
            say(f"note: {why}: nothing is tuned (selection: none)")
        return train, Selector()
    assert config.queries is not None
    found = None
    if config.hold_out:
        found = set_aside(train.pool, way=config.way, shot=config.shots, queries=config.queries)
    if head.needs_unseen and (found is None or found[0] != "held-out classes"):
        say(
            f"note: {why}, and too few training classes to set some aside: nothing is trained, because what "
            "is learned gets its weight on classes that did not train it (selection: none)"
        )
        return train, Selector()
    if found is None:
        say(f"warning: {why}, so the last weights are kept (selection: none)")
        if config.episodes > _SHORT:
            say(
                f"warning: training {config.episodes} episodes without selection hurt accuracy on real "
                "clips: name validation classes in --splits, add clips, or train less "
                f"(--episodes {_SHORT})"
            )
        return train, Selector()
    by, held = found
    rest, bank = train.part(~held), train.part(held)
    what = f"{int(held.sum())} of {held.size} training videos"
    if by == "held-out classes":
        what = f"{len(bank.pool.names)} training classes ({', '.join(bank.pool.names)})"
    say(f"note: {why}: {what} are set aside to choose when to stop (--no-hold-out trains on all)")
    return rest, _selector_on(by, bank, replace(spec, split="train", seed=_HELD_OUT), config)


def _selector_on(by: Selection, bank: FeatureBank, spec: EpisodeSpec, config: TrainConfig) -> Selector:
    pool = bank.pool
    shot = config.shots if by == "val" else min(config.shots, pool.smallest()[1] - 1)
    spec = replace(spec, way=min(config.way, len(pool.names)), shot=shot)
    return Selector(by, bank, draw(spec, pool, config.val_episodes))


def _how(config: TrainConfig) -> dict[str, Any]:
    return {
        "frames": config.frames,
        "protocol": config.select_protocol,
        "precision": config.precision,
    }
