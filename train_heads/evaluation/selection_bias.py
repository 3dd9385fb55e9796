"""Measure what selecting the checkpoint on the test split would gain: a number nobody should report.

Published code in this field commonly scores every checkpoint on the test episodes and reports the best score.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipspm.errors import UsageError
from clipspm.progress import Reporter, Say
from clipspm.tables import Table
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.episodes.pool import FeatureSource
from clipspm.train_heads.evaluation.evaluate import evaluate, open_data
from clipspm.train_heads.evaluation.result import EvalResult
from clipspm.train_heads.heads.protocol import Protocol
from clipspm.train_heads.runs import Run


@dataclass(frozen=True)
class SelectionBias:
    """Test accuracy of a run's honestly selected weights, and of all other weights it kept.

    ``honest``: the evaluation of the weights selected on validation classes. ``scores``: accuracy on the same
    test episodes by weights (``best``, ``last`` and the kept checkpoints) and protocol.
    """

    honest: EvalResult
    scores: dict[str, dict[Protocol, float]]

    def chosen_on_test(self, protocol: Protocol) -> tuple[str, float]:
        """Return the weights with the highest test accuracy, and that accuracy."""
        which = max(self.scores, key=lambda name: self.scores[name][protocol])
        return which, self.scores[which][protocol]

    def as_dict(self) -> dict[str, Any]:
        """Return the honest accuracy, the one chosen on test and their difference, per protocol."""
        out: dict[str, Any] = {"scores": self.scores}
        for protocol in self.honest.protocols:
            honest, (which, best) = self.honest.estimate(protocol).mean, self.chosen_on_test(protocol)
            out[protocol] = {
                "honest": honest, "chosen_on_test": best, "weights": which, "bias": best - honest
            }  # fmt: skip
        return out

    def table(self) -> Table:
        """Return a table in per cent, a row per protocol."""
        rows = []
        for protocol in self.honest.protocols:
            honest, (which, best) = self.honest.estimate(protocol).mean, self.chosen_on_test(protocol)
            rows.append(
                (
                    protocol,
                    f"{100 * honest:.2f}",
                    f"{100 * best:.2f} ({which})",
                    f"{100 * (best - honest):+.2f}",
                )
            )
        facts = self.honest.facts
        plain = {"val": "validation classes", "none": "nothing (the last weights)"}
        chosen = plain.get(facts["selection"], facts["selection"])
        notes = (
            f"chosen on test: the best of {len(self.scores)} weights on these very episodes",
            f"honest: selected on {chosen}. Report the honest one.",
        )
        return Table(
            ("", "honest (%)", "chosen on test (%)", "difference (points)"),
            rows,
            "What selection on test is worth",
            notes,
        )


def selection_bias(
    target: str | Path | Run,
    data: Data | FeatureSource | str | Path | None = None,
    *,
    allow_partial: bool = False,
    device: str = "auto",
    log: Say | None = None,
    **asked: Any,
) -> SelectionBias:
    """Evaluate a run as :func:`evaluate` does, then score all other weights it holds on the same episodes.

    ``asked``: further arguments of :func:`evaluate`. The comparison is written into the run's
    ``results.json`` beside the evaluation; the weights and their selection stay as they are. Raises
    :class:`UsageError` for a run that kept no checkpoints.
    """
    run = target if isinstance(target, Run) else Run.open(target)
    if not run.checkpoints():
        if not run.load_head().trainable:
            raise UsageError(
                f"{run.path}: {run.config.head} has nothing to train, so there is nothing to select"
            )
        raise UsageError(f"{run.path} kept no checkpoints on the way: train with --keep-checkpoints 10")
    data = open_data(run, data, device=device, allow_partial=allow_partial)
    reporter = Reporter(log)
    honest = evaluate(run, data, log=log, **asked)
    scores: dict[str, dict[Protocol, float]] = {}
    for which in ("best", "last", *run.checkpoints()):
        if not (run.path / f"{which}.safetensors").is_file():
            continue
        reporter.say(f"weights {which}")
        found = evaluate(
            run.load_head(which),
            data,
            episodes=honest.episodes,
            frames=honest.facts["frames"],
            protocols=honest.protocols,
            precision=honest.facts["precision"],
            shuffle_time=honest.facts["shuffle_time"],
            log=log,
        )
        scores[which] = {p: found.estimate(p).mean for p in honest.protocols}
    bias = SelectionBias(honest, scores)
    with run.editing() as results:
        results["evaluations"][honest.name]["selection_bias"] = bias.as_dict()
    return bias
