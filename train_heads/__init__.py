"""Stage two: cached features -> light heads -> numbers.

:func:`resolve_config` puts a configuration together, :func:`train` writes a run directory, :func:`evaluate`
scores it on test episodes that are named by a hash, :func:`ablate` says what each part is worth,
:func:`collect` and :func:`compare` put runs beside each other.
"""

from clipspm.train_heads.ablate import ablate, ablation_rows
from clipspm.train_heads.bank import Banks, FeatureBank
from clipspm.train_heads.compare import Comparison, compare
from clipspm.train_heads.comparison import AblationResult
from clipspm.train_heads.config import TrainConfig, load_recipe, recipe_names, resolve_config
from clipspm.train_heads.episode_files import summary
from clipspm.train_heads.episodes import Episodes, EpisodeSpec, draw
from clipspm.train_heads.evaluate import EvalResult, evaluate, load_evaluation
from clipspm.train_heads.heads.base import Head, HeadOutput
from clipspm.train_heads.heads.clipspm import CLIPSPM
from clipspm.train_heads.heads.otam import otam_distance
from clipspm.train_heads.heads.registry import HEADS, build_head
from clipspm.train_heads.pool import Pool
from clipspm.train_heads.results import Results, collect
from clipspm.train_heads.runs import Run, default_run_dir
from clipspm.train_heads.selection import SelectionBias, selection_bias
from clipspm.train_heads.stats import Difference, Estimate, Spread, estimate, paired, spread
from clipspm.train_heads.train import train
from clipspm.train_heads.trainer import TrainResult

__all__ = [
    "CLIPSPM",
    "HEADS",
    "AblationResult",
    "Banks",
    "Comparison",
    "Difference",
    "EpisodeSpec",
    "Episodes",
    "Estimate",
    "EvalResult",
    "FeatureBank",
    "Head",
    "HeadOutput",
    "Pool",
    "Results",
    "Run",
    "SelectionBias",
    "Spread",
    "TrainConfig",
    "TrainResult",
    "ablate",
    "ablation_rows",
    "build_head",
    "collect",
    "compare",
    "default_run_dir",
    "draw",
    "estimate",
    "evaluate",
    "load_evaluation",
    "load_recipe",
    "otam_distance",
    "paired",
    "recipe_names",
    "resolve_config",
    "selection_bias",
    "spread",
    "summary",
    "train",
]
