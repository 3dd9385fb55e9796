"""The training loop: steps, validation, checkpoints.

No random state is carried from step to step: the episodes, frame jitter and dropout of step ``s`` are
functions of (seed, s), so a run resumed from a checkpoint repeats what an uninterrupted one does.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn

import clipspm
from clipspm.cache.disk import reading
from clipspm.errors import ClipspmError, UsageError
from clipspm.interrupts import undisturbed
from clipspm.progress import Reporter
from clipspm.settings import typed
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes.bank import FeatureBank
from clipspm.train_heads.episodes.draw import EpisodeSpec, draw
from clipspm.train_heads.episodes.random import derive_seed
from clipspm.train_heads.evaluation.predict import autocast, make_batch
from clipspm.train_heads.heads.base import Head
from clipspm.train_heads.runs import STATE, Run
from clipspm.train_heads.training.augment import mix_motion
from clipspm.train_heads.training.curves import MetricLogger
from clipspm.train_heads.training.hold_out import Selection
from clipspm.train_heads.training.optim import lr_at, make_optimizer
from clipspm.train_heads.training.selection import Selector

#: the reference sums the losses of this many episodes per step; other batch sizes are scaled to it
REFERENCE_BATCH = 16
#: with held-out data: validations per training, and validations without improvement that stop it
VALIDATIONS, _PATIENCE = 30, 10
#: seconds between checkpoints, at most
SAVE_EVERY = 60.0


@dataclass(frozen=True)
class TrainResult:
    """How training ended. ``selection``: what the weights were selected on (``none``: they are the last)."""

    run_dir: Path
    config: TrainConfig
    head: Head = field(repr=False)
    selection: Selection
    val_accuracy: float | None
    best_step: int
    steps: int
    tuned: dict[str, float]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for ``--json``."""
        rest = {
            k: getattr(self, k)
            for k in ("selection", "val_accuracy", "best_step", "steps", "tuned", "seconds")
        }
        return {"run_dir": str(self.run_dir), **rest, "config": self.config.as_dict()}


@dataclass
class _Progress:
    """What a checkpoint holds besides weights and optimiser.

    ``step``: steps done; ``logged``: steps done when last validated and logged; ``losses``: of the steps
    since then; ``values``: what the last step has to log.
    """

    step: int = 0
    logged: int = 0
    losses: list[float] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    best_accuracy: float | None = None
    best_step: int = 0
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)
    keep_checkpoints: int = 0


def read_progress(facts: Mapping[str, Any]) -> _Progress:
    """Read the progress from the facts of a checkpoint. Raises ValueError or TypeError if they are invalid.

    Checkpoints of versions before 0.3 lack ``logged``: they were all written right after a validation.
    """
    losses = facts.get("losses", [])
    rest = {k: v for k, v in facts.items() if k != "losses"}
    at = _Progress(losses=losses, **typed({"logged": facts["step"], **rest}, get_type_hints(_Progress)))
    if min(at.step, at.logged, at.best_step, at.keep_checkpoints, at.seconds) < 0 or at.logged > at.step:
        raise ValueError("its step counts are impossible")
    if not isinstance(losses, list) or not all(isinstance(loss, float | int) for loss in losses):
        raise TypeError("its losses are not numbers")
    return at


class Trainer:
    """One training run."""

    def __init__(
        self,
        bank: FeatureBank,
        selector: Selector,
        run: Run,
        head: Head,
        metrics: MetricLogger,
        reporter: Reporter,
        *,
        keep_checkpoints: int = 0,
    ) -> None:
        self.run, self.head, self.metrics, self.reporter = run, head, metrics, reporter
        self.config = config = run.config
        assert config.frames is not None
        assert config.queries is not None
        self.frames = config.frames
        self.bank, self.selector = bank, selector
        self.spec = EpisodeSpec(
            dataset=bank.pool.dataset,
            split="train",
            way=config.way,
            shot=config.shots,
            queries=config.queries,
            seed=config.seed,
        )
        trains = head.trainable and (selector.unseen or not head.needs_unseen)
        self.steps = -(-config.episodes // config.batch) if trains else 0
        self.every = max(1, config.val_every // config.batch)
        if self.selector.held_out:
            self.every = max(1, min(self.every, self.steps // VALIDATIONS))
        self.selector.save(run.path)
        if self.steps:
            head.start_training()
        parameters = [p for p in head.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(parameters, config) if trains else None
        # with torch's default of 65,536 gradients overflow and the first steps are skipped
        self.scaler = torch.amp.GradScaler(
            self.bank.device.type, init_scale=256.0, enabled=config.precision == "fp16"
        )
        self.at = _Progress(keep_checkpoints=keep_checkpoints)
        self.saved = 0  #: training episodes in the last checkpoint
        self._began = self._saved = time.monotonic()

    def run_to_end(self) -> TrainResult:
        """Train from the run's last checkpoint to the end, tune, and write the results."""
        self._restore()
        if len(self.kept()) < self.at.keep_checkpoints:
            self.reporter.say(
                f"note: only {len(self.kept())} of {self.at.keep_checkpoints} checkpoints can be kept, one "
                f"per validation (every {self.every * self.config.batch} episodes; val_every sets it)"
            )
        self.head.train()
        self._began = time.monotonic() - self.at.seconds
        try:
            self._steps()
            self.at.seconds = time.monotonic() - self._began
            return self._finish()
        except KeyboardInterrupt:
            self._save()
            raise

    def _steps(self) -> None:
        """Run the remaining steps, with validations and checkpoints."""
        check, first = self.head.check, self.at.step
        total = self.config.episodes if self.steps else 0
        title = f"training {self.config.head}"
        with self.reporter.task(title, total, "episodes", self.episodes()) as advance:
            if self.at.step and self._checkpoint_due():  # interrupted before the checkpoint after this step
                self._checkpoint()
            for step in range(self.at.step, self.steps):
                if self._stopped_improving():
                    self.reporter.say(
                        "stopped early: held-out accuracy was best after "
                        f"{self.episodes(self.at.best_step)} episodes"
                    )
                    break
                self.head.check = check and step == first  # every step has the same shapes and labels
                values = self.step(step)
                if self._checkpoint_due():
                    self._checkpoint()
                elif time.monotonic() - self._saved > SAVE_EVERY:
                    self._save()
                advance(self.step_size(step), f"loss {values['loss']:.3f}")
        self.head.check = check

    def _checkpoint_due(self) -> bool:
        """Return whether to validate, log and save after the last step."""
        at = self.at
        return at.logged < at.step and (at.step == self.steps or at.step % self.every == 0)

    def _stopped_improving(self) -> bool:
        """Return whether the last validations on held-out data brought no improvement."""
        at = self.at
        if at.best_accuracy is None or not self.selector.held_out:
            return False
        return at.step % self.every == 0 and at.step - at.best_step >= _PATIENCE * self.every

    def episodes(self, step: int | None = None) -> int:
        """Return the training episodes in ``step`` steps (default: in the steps done)."""
        return min((self.at.step if step is None else step) * self.config.batch, self.config.episodes)

    def step_size(self, step: int) -> int:
        """Return the episodes in step ``step``: the batch, or what is left of ``episodes``."""
        return min(self.config.batch, self.config.episodes - step * self.config.batch)

    def step(self, step: int) -> dict[str, float]:
        """Do one optimiser step on the episodes of ``step``; return the values to log."""
        assert self.optimizer is not None
        config, head = self.config, self.head
        torch.manual_seed(derive_seed("dropout", config.seed, step))
        jitter = torch.Generator().manual_seed(derive_seed("frames", config.seed, step))
        episodes = draw(self.spec, self.bank.pool, self.step_size(step), start=step * config.batch)
        batch = make_batch(
            self.bank, episodes, self.frames, jitter, layers=head.layers, protocol=config.protocol
        )
        if config.mix_motion:
            batch = mix_motion(batch, config.mix_motion, jitter)
        with autocast(self.bank.device, config.precision):
            output = head.run(batch.episode, batch.query_labels, batch.base)
            loss = head.episode_loss(output, batch.query_labels).mean() * REFERENCE_BATCH
        value = loss.item()
        if not torch.isfinite(loss):
            raise ClipspmError(
                f"loss is {value} at step {step + 1} of {self.steps} (lr {config.lr}, {config.precision}): "
                f"lower --lr, set clip, or use float32; the last checkpoint in {self.run.path} is intact"
            )
        lr = lr_at(step, self.steps, config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        values = {"loss": value, "lr": lr}
        if config.clip is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for p in head.parameters() if p.requires_grad]
            values["grad_norm"] = float(nn.utils.clip_grad_norm_(parameters, config.clip))
        with undisturbed():  # weights, optimiser and step count change together
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.at.step = step + 1
            self.at.losses.append(value)
            self.at.values = values
        return values

    def kept(self) -> set[int]:
        """Return the steps whose weights are kept; the last step is one of them."""
        checks = -(-self.steps // self.every)
        count = min(self.at.keep_checkpoints, checks)
        return {min(-(-i * checks // count) * self.every, self.steps) for i in range(1, count + 1)}

    def validate(self) -> float | None:
        """Return the mean accuracy on the selection episodes, None if there are none."""
        return self.selector.accuracy(self.head, self.config)

    def _checkpoint(self) -> None:
        """Validate, keep the best weights, log and save. Repeating it changes nothing."""
        at = self.at
        accuracy = self.validate()
        facts = {"step": at.step, "val_accuracy": accuracy}
        if accuracy is not None and (at.best_accuracy is None or accuracy > at.best_accuracy):
            self.run.save_weights("best", self.head, **facts)
            at.best_accuracy, at.best_step = accuracy, at.step
        if at.step == self.steps or self._stopped_improving():
            self.run.save_weights("last", self.head, **facts)
        if at.step in self.kept():
            self.run.save_weights(f"step-{at.step:06d}", self.head, **facts)
        loss = sum(at.losses) / len(at.losses)
        shown = {k: v for k, v in {**at.values, "loss": loss}.items() if v == v and abs(v) != float("inf")}
        if accuracy is not None:
            shown["val_accuracy"] = accuracy
        self.metrics.log(at.step, {"episodes": self.episodes(), **shown})
        at.logged, at.losses = at.step, []
        self._save()
        validation = "" if accuracy is None else f", validation {accuracy:.1%} (best {at.best_accuracy:.1%})"
        self.reporter.say(f"{self.episodes()}/{self.config.episodes} episodes: loss {loss:.4f}{validation}")

    def _save(self) -> None:
        """Write the checkpoint that a resume needs."""
        self.at.seconds = time.monotonic() - self._began
        self.at.scaler = self.scaler.state_dict()
        self.run.save_state(self.head, self.optimizer, asdict(self.at))
        self._saved, self.saved = time.monotonic(), self.episodes()

    def _restore(self) -> None:
        facts = self.run.load_state(self.head, self.optimizer)
        if facts is None:
            self.metrics.rewind(-1)
            return
        with reading(self.run.path / STATE, "is not a valid checkpoint"):
            asked, self.at = self.at.keep_checkpoints, read_progress(facts)
            if self.at.scaler:
                self.scaler.load_state_dict(self.at.scaler)
        self.saved = self.episodes()
        if asked not in (0, self.at.keep_checkpoints):
            raise UsageError(
                f"{self.run.path} was begun with --keep-checkpoints {self.at.keep_checkpoints}, not {asked}"
            )
        self.metrics.rewind(self.at.logged)
        self.reporter.say(f"resumed {self.run.path} at {self.episodes()}/{self.config.episodes} episodes")

    def _finish(self) -> TrainResult:
        """Tune what the head declares as tunable, write the final weights and ``results.json``."""
        at, run, config = self.at, self.run, self.config
        tuned: dict[str, float] = {}
        if self.selector.by != "none":
            if self.steps:
                run.load_weights(self.head, "best")
            tuned = self.selector.tuned(self.head, config)
            self.selector.temper(self.head, config)
            if tuned or at.best_accuracy is None:
                at.best_accuracy = self.validate()
            run.save_weights("best", self.head, step=at.best_step, val_accuracy=at.best_accuracy, tuned=tuned)
        else:
            at.best_step = self.steps
        if not self.steps:
            run.save_weights("last", self.head, step=0)
        result = TrainResult(
            run_dir=run.path,
            config=config,
            head=self.head.eval(),
            selection=self.selector.by,
            val_accuracy=at.best_accuracy,
            best_step=at.best_step,
            steps=self.at.step,
            tuned=tuned,
            seconds=round(at.seconds, 3),
        )
        facts = {k: v for k, v in result.as_dict().items() if k not in ("run_dir", "config")}
        if (chosen_on := self.selector.episodes) is not None:
            facts["val_episodes"] = {"n": len(chosen_on), "hash": chosen_on.hash}
        facts["trainable"] = self.head.trainable
        facts["parameters"] = sum(p.numel() for p in self.head.parameters())
        run.end(version=clipspm.__version__, selection=result.selection, training=facts)
        return result
