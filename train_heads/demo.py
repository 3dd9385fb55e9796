"""Stage two of ``clipspm demo``: the default model, one ablation, and the controls it has to beat.

In the world ``motion`` one action of every pair is the time reversal of the other, so a head that ignores the
order of frames cannot tell them apart. The controls show what is left without order, without training, or
with shuffled frames. In the other worlds appearance, motion, or both tell classes apart, and class names may
say what is seen or mislead: there, what counts is the lead over the best of the controls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipspm.cache.reader import Cache
from clipspm.cache.spec import Split
from clipspm.progress import Reporter, Say
from clipspm.tables import Table, chance
from clipspm.train_heads.config import resolve_config
from clipspm.train_heads.evaluation.stats import Difference
from clipspm.train_heads.experiments.ablate import ablate
from clipspm.train_heads.experiments.ablation_table import AblationResult, Row, signed, together
from clipspm.train_heads.experiments.rows import FULL
from clipspm.train_heads.heads.protocol import Protocol

SHUFFLED = "full, frames shuffled"
PUBLISHED = "as published, small"
PROTOTYPE = "prototype"
#: heads without parameters: order-blind, frame by frame, frame by frame less the clip's mean
CONTROLS = (PROTOTYPE, "frame-cosine", "frame-cosine-centered", "otam")
#: heads without parameters that read the class names, for worlds in which these mean something
READERS = ("zero-shot", "tip-adapter")
#: the data set of the world in which only motion tells classes apart
MOTION = "demo"
HEADLINE: Protocol = "inductive"
#: training episodes, a third of the default recipe's: on the demo's folds twice as many brought no clear gain
#: (docs/recipes.md)
EPISODES = 800


@dataclass(frozen=True)
class DemoResult:
    """All rows over the concatenated episodes of all class splits (``together``), and per split.

    ``controls``: the rows without parameters.
    """

    together: AblationResult
    splits: tuple[AblationResult, ...]
    controls: tuple[str, ...]

    @property
    def dataset(self) -> str:
        """The data set, ``demo`` for the world ``motion``."""
        return str(self.together.facts["dataset"])

    @property
    def rival(self) -> str:
        """The control that the finding is about: the prototype on ``motion``, else the best one."""
        if self.dataset == MOTION:
            return PROTOTYPE
        return self.best

    @property
    def best(self) -> str:
        """The control with the highest accuracy, in hindsight."""
        return max(self.controls, key=lambda name: self.together[name].estimate(HEADLINE).mean)

    @property
    def margins(self) -> dict[str, Difference]:
        """The full model's lead over each control, paired by episode, inductive."""
        return {name: self.together.effect(name, HEADLINE) for name in (*self.controls, SHUFFLED)}

    @property
    def convincing(self) -> bool:
        """Whether the lead over the order-blind prototype excludes zero; elsewhere, whether the model is not
        behind the best control by more than the interval.
        """
        lead = self.margins[self.rival]
        return lead.low > 0 if self.dataset == MOTION else lead.high >= 0

    def table(self) -> Table:
        """Return the table that ``clipspm demo`` prints."""
        return self.together.table()

    def sentence(self) -> str:
        """Return the finding in one line."""
        lead = self.margins[self.rival]
        full = self.together[FULL].estimate(HEADLINE)
        motion = self.dataset == MOTION
        unseen = "actions" if motion else "classes"
        rival = "the mean-frame prototype" if motion else f"the best control here, {self.rival}"
        return (
            f"on unseen {unseen} the default model is right in {full.mean:.1%} of queries (inductive), "
            f"{100 * lead.mean:+.1f} points [{100 * lead.low:+.1f}, {100 * lead.high:+.1f}] against {rival}; "
            "a tiny encoder on drawn shapes: not CLIP's accuracy"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fractions rather than per cent; ``summary`` comes last."""
        lead = self.margins[self.rival]
        return {
            **self.together.as_dict(),
            "per_split": [split.as_dict() for split in self.splits],
            "margins": {name: margin.as_dict() for name, margin in self.margins.items()},
            "summary": {
                "full": self.together[FULL].estimate(HEADLINE).mean,
                self.rival: self.together[self.rival].estimate(HEADLINE).mean,
                "margin": lead.mean,
                "interval": [lead.low, lead.high],
            },
        }


def worlds_table(results: Mapping[str, DemoResult]) -> Table:
    """Return a row per world: the default model, each control, and the lead over the best control."""
    controls = (*CONTROLS, *READERS)
    rows = []
    for world, result in results.items():
        shown = [_percent(result.together[name]) if name in result.controls else "" for name in controls]
        lead = signed(result.margins[result.best])
        rows.append([world, _percent(result.together[FULL]), *shown, result.best, lead])
    facts = next(iter(results.values())).together.facts
    return Table(
        ["world", FULL, *controls, "best control", f"{FULL} − best (points)"],
        rows,
        f"{facts['way']}-way {facts['shots']}-shot, {HEADLINE}, accuracy in %",
        [
            f"±: 95 % interval over episodes; {chance([facts['way']])}",
            "the best control is chosen in hindsight; paired difference [95 % bootstrap interval]",
        ],
        text=("best control",),
    )


def _percent(row: Row) -> str:
    score = row.estimate(HEADLINE)
    return f"{100 * score.mean:.1f} ± {100 * score.half:.1f}"


def run_demo(
    cache: Cache,
    splits: Sequence[Mapping[str, Split]],
    out_dir: Path,
    *,
    telling: bool = False,
    quick: bool = False,
    seeds: Sequence[int] = (0,),
    log: Say | None = None,
) -> DemoResult:
    """Train and score every row on every class split, 5-way 1-shot; results lie below ``out_dir``.

    ``splits``: class name -> split, one mapping per class split. ``telling``: class names mean something, so
    that controls that read them are worth a row. ``quick``: fewer training and test episodes, and neither the
    ablation nor the published model.
    """
    controls = (*CONTROLS, *(READERS if telling else ()))
    results = []
    for k, split in enumerate(splits):
        Reporter(log).say(f"class split {k + 1} of {len(splits)}")
        own = cache.with_splits(split)
        results.append(_one_split(own, out_dir / f"split{k}", controls, quick=quick, seeds=seeds, log=log))
    return DemoResult(together(results), tuple(results), controls)


def _one_split(
    cache: Cache,
    out_dir: Path,
    controls: Sequence[str],
    *,
    quick: bool,
    seeds: Sequence[int],
    log: Say | None,
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
        heads=controls,
        extra=extra,
        seeds=seeds,
        episodes=600 if quick else 2000,
        log=log,
    )
