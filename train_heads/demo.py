"""Stage two of ``clipspm demo``: the default model, one ablation, and the controls it has to beat.

In the demo's videos one action of every pair is the time reversal of the other, so a head that ignores the
order of frames cannot tell them apart. The controls show what is left without order, without training, or
with shuffled frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipspm.cache.reader import Cache
from clipspm.cache.spec import Split
from clipspm.progress import Reporter, Say
from clipspm.tables import Table
from clipspm.train_heads.config import resolve_config
from clipspm.train_heads.evaluation.stats import Difference
from clipspm.train_heads.experiments.ablate import ablate
from clipspm.train_heads.experiments.ablation_table import AblationResult, together
from clipspm.train_heads.experiments.rows import FULL
from clipspm.train_heads.heads.protocol import Protocol

SHUFFLED = "full, frames shuffled"
PUBLISHED = "as published, small"
PROTOTYPE = "prototype"
#: heads without parameters: order-blind, frame by frame, frame by frame less the clip's mean
CONTROLS = (PROTOTYPE, "frame-cosine", "frame-cosine-centered")
HEADLINE: Protocol = "inductive"
#: training episodes, a third of the default recipe's: on the demo's folds twice as many brought no clear gain
#: (docs/recipes.md)
EPISODES = 800


@dataclass(frozen=True)
class DemoResult:
    """All rows over the concatenated episodes of all class splits (``together``), and per split."""

    together: AblationResult
    splits: tuple[AblationResult, ...]

    @property
    def margins(self) -> dict[str, Difference]:
        """The full model's lead over each control, paired by episode, inductive."""
        return {name: self.together.effect(name, HEADLINE) for name in (*CONTROLS, SHUFFLED)}

    @property
    def convincing(self) -> bool:
        """Whether the lead over the order-blind prototype excludes zero."""
        return self.margins[PROTOTYPE].low > 0

    def table(self) -> Table:
        """Return the table that ``clipspm demo`` prints."""
        return self.together.table()

    def sentence(self) -> str:
        """Return the finding in one line."""
        lead = self.margins[PROTOTYPE]
        full = self.together[FULL].estimate(HEADLINE)
        return (
            f"on unseen actions the default model is right in {full.mean:.1%} of queries (inductive), "
            f"{100 * lead.mean:+.1f} points [{100 * lead.low:+.1f}, {100 * lead.high:+.1f}] against the "
            "mean-frame prototype; a tiny encoder on drawn shapes: not CLIP's accuracy"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fractions rather than per cent; ``summary`` comes last."""
        lead = self.margins[PROTOTYPE]
        return {
            **self.together.as_dict(),
            "per_split": [split.as_dict() for split in self.splits],
            "margins": {name: margin.as_dict() for name, margin in self.margins.items()},
            "summary": {
                "full": self.together[FULL].estimate(HEADLINE).mean,
                "prototype": self.together[PROTOTYPE].estimate(HEADLINE).mean,
                "margin": lead.mean,
                "interval": [lead.low, lead.high],
            },
        }


def run_demo(
    cache: Cache,
    splits: Sequence[Mapping[str, Split]],
    out_dir: Path,
    *,
    quick: bool = False,
    seeds: Sequence[int] = (0,),
    log: Say | None = None,
) -> DemoResult:
    """Train and score every row on every class split, 5-way 1-shot; results lie below ``out_dir``.

    ``splits``: class name -> split, one mapping per class split. ``quick``: fewer training and test
    episodes, and neither the ablation nor the published model.
    """
    results = []
    for k, split in enumerate(splits):
        Reporter(log).say(f"class split {k + 1} of {len(splits)}")
        own = cache.with_splits(split)
        results.append(_one_split(own, out_dir / f"split{k}", quick=quick, seeds=seeds, log=log))
    return DemoResult(together(results), tuple(results))


def _one_split(
    cache: Cache, out_dir: Path, *, quick: bool, seeds: Sequence[int], log: Say | None
) -> AblationResult:
    shorter = {"episodes": 640, "val_every": 320, "val_episodes": 200} if quick else {"episodes": EPISODES}
    base = resolve_config(dataset=cache.spec.dataset, overrides={"way": 5, "shots": 1, **shorter})
    extra = {SHUFFLED: replace(base, shuffle_time=True)}
    if not quick:
        # the released model on raw frames, with the default's block sizes and training: the published
        # learning rate is for training the whole encoder
        settings = resolve_config(recipe="official", dataset=cache.spec.dataset).head_config
        sizes = {key: base.head_config[key] for key in ("heads", "head_width", "ffn_width")}
        extra[PUBLISHED] = replace(base, head_config={**settings, **sizes}, mix_motion=0.0)
    return ablate(
        cache,
        base,
        out_dir=out_dir,
        drops=() if quick else ("padm",),
        heads=CONTROLS,
        extra=extra,
        seeds=seeds,
        episodes=600 if quick else 2000,
        log=log,
    )
