"""The configuration of a training run, and how it is put together from data files and flags.

A value comes from the last of these that names it: recipe (``recipes/*.yaml``), preset (a data set's
values of the method), ``--config`` file, explicit flags. All numbers live in the data files.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

from clipspm.cache.disk import Unreadable, reading, size_text
from clipspm.errors import UsageError
from clipspm.options import option, settle
from clipspm.settings import from_yaml, near, typed
from clipspm.train_heads.heads.clipspm.config import PRESETS, load_preset
from clipspm.train_heads.heads.protocol import PROTOCOLS, Protocol
from clipspm.train_heads.heads.registry import check_settings, head_entry

Precision = Literal["float32", "fp16", "bf16"]
#: where training curves can go besides the run
Service = Literal["tensorboard", "wandb", "mlflow"]

DEFAULT_HEAD = "clip-spm"
DEFAULT_PRESET = "hmdb51"
#: fields that name where values came from or where to compute; the numbers do not depend on them
_INFORMATIVE = ("recipe", "preset", "device")
#: bytes of a file of settings beyond which it is none
_MOST_YAML = 1 << 21


#: more is a slip of the hand: it would run for years, or take all memory
_MOST, _MOST_EPISODES = 2**16, 2**40


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that a training run depends on besides the cache; make one with :func:`resolve_config`."""

    shots: int = option(1, "Support videos per class.", "Episodes", min=1, max=_MOST)
    way: int = option(5, "Classes per episode.", "Episodes", min=2, max=_MOST)
    queries: int | None = option(
        None,
        "Training queries per class.",
        "Episodes",
        min=1,
        max=_MOST,
        shown="4, or what the classes allow",
    )
    frames: int | None = option(
        None, "Frames sampled from the cached ones.", "Episodes", min=1, shown="8, or all"
    )
    head: str = option(DEFAULT_HEAD, "The head; list: which there are.", "Training")
    head_config: Mapping[str, Any] = option(
        dict,
        "A setting of the head, e.g. matcher=bimhm (repeatable).",
        "Training",
        "--set",
        example="matcher=bimhm",
    )
    recipe: str = option("default", "Values to start from: default, official or paper.", "Training")
    preset: str | None = option(
        None, "Data set whose values of the method are used.", "Training", shown="the cache's, or hmdb51"
    )
    seed: int = option(0, "Of initialisation, training episodes, frame jitter and dropout.", "Training")
    device: str = option("auto", "cpu, cuda, cuda:1, mps or auto.", "Machine", shown="a GPU if there is one")
    hold_out: bool = option(
        True, "Without validation classes, choose the weights on a part of the training set.", "Training"
    )
    shuffle_time: bool = option(False)  #: put each clip's frames in random order (a control)
    # from here on, values come from the recipe
    precision: Precision = option()  #: of the arithmetic; weights stay float32
    protocol: Protocol = option(help="Protocol used in training.", panel="Training", shown="by recipe")
    select_protocol: Protocol = option()  #: scored on validation classes
    #: largest share of another class's motion in virtual training classes
    mix_motion: float = option(0.0, min=0)
    episodes: int = option(
        help="Training episodes.", panel="Training", min=0, max=_MOST_EPISODES, shown="by recipe"
    )
    batch: int = option(min=1, max=_MOST)  #: episodes per optimiser step
    optimizer: Literal["adam", "adamw"] = option()
    lr: float = option(help="Learning rate.", panel="Training", min=0, shown="by recipe")
    weight_decay: float = option(min=0)
    betas: tuple[float, float] = option()
    schedule: Literal["constant", "cosine"] = option()  #: after warm-up
    warmup: float = option(min=0, max=1)  #: fraction of the steps over which the learning rate rises
    clip: float | None = option(min=0)  #: largest gradient norm; none: no clipping
    val_every: int = option(min=1)  #: training episodes between validations
    val_episodes: int = option(min=1, max=_MOST_EPISODES)

    def __post_init__(self) -> None:
        settle(self)
        try:
            head_entry(self.head)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return {**asdict(self), "betas": list(self.betas)}

    @property
    def identity(self) -> str:
        """64 hex digits over every value that the numbers depend on."""
        from clipspm.train_heads.episodes.random import digest  # it loads numpy

        return digest({k: v for k, v in self.as_dict().items() if k not in _INFORMATIVE}).hex()

    def differences(self, other: "TrainConfig") -> list[str]:
        """The values in which two configurations of different :attr:`identity` differ, readable."""
        mine, theirs = self.as_dict(), other.as_dict()
        return [
            f"{k} {mine[k]} / {theirs[k]}" for k in mine if k not in _INFORMATIVE and mine[k] != theirs[k]
        ]

    def with_head(self, **settings: Any) -> "TrainConfig":
        """A copy with some settings of the head changed."""
        return replace(self, head_config={**self.head_config, **settings})


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is asked of an evaluation: episodes, and who scores them."""

    shots: int | None = option(
        None, "Support videos per class.", "Episodes", min=1, max=_MOST, shown="the run's"
    )
    way: int | None = option(None, "Classes per episode.", "Episodes", min=2, max=_MOST, shown="the run's")
    queries: int = option(1, "Queries per class.", "Episodes", min=1, max=_MOST)
    seed: int = option(0, "Seed of the test episodes.", "Episodes")
    protocols: tuple[Protocol, ...] = option(
        PROTOCOLS, "Only this protocol (repeatable).", "Evaluation", "--protocol", shown="both"
    )

    def __post_init__(self) -> None:
        settle(self)


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    root = resources.files("clipspm.train_heads") / "recipes"
    return sorted(item.name.removesuffix(".yaml") for item in root.iterdir() if item.name.endswith(".yaml"))


def load_recipe(name: str) -> dict[str, Any]:
    """A recipe: ``train`` (values of :class:`TrainConfig`), ``presets`` (the same, by preset), and ``heads``:
    by head, ``train`` and ``config`` (settings of the head). ``extends`` names a recipe to start from."""
    if name not in (names := recipe_names()):
        raise UsageError(f"unknown recipe {name!r}{near(name, names)}")
    file = resources.files("clipspm.train_heads") / "recipes" / f"{name}.yaml"
    recipe: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    parent = recipe.pop("extends", None)
    return _merged(load_recipe(parent), recipe) if parent else recipe


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``, mapping by mapping."""
    out = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if both else value
    return out


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Values of a ``--config`` YAML file; a run's ``config.json`` is one too."""
    try:
        with reading(Path(path), "is no configuration"):
            if (size := Path(path).stat().st_size) > _MOST_YAML:
                raise ValueError(f"it has {size_text(size)}, at most {size_text(_MOST_YAML)} are read")
            content = from_yaml(Path(path).read_text("utf-8"))
    except Unreadable as error:
        raise UsageError(str(error)) from error
    if isinstance(content, dict) and isinstance(content.get("config"), dict):
        content = content["config"]
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no settings: expected lines of the form `name: value`")
    return content


def parse_services(text: str) -> tuple[Service, ...]:
    """``"wandb,mlflow"`` -> the services that training curves go to."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    known: dict[str, Service] = {name: name for name in get_args(Service)}
    if wrong := [name for name in names if name not in known]:
        raise UsageError(f"--log-to {wrong[0]}: it must be one of {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names))


def resolve_config(
    *,
    recipe: str | None = None,
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    dataset: str | None = None,
) -> TrainConfig:
    """Put a configuration together: recipe < preset < ``file`` < ``overrides``.

    ``overrides`` holds explicit flags only; ``overrides["head_config"]`` is merged key by key. Without a
    preset, the one of ``dataset`` (the cache's) is used if there is one, else hmdb51's. Raises
    :class:`UsageError` for unknown keys (with near matches) and values of the wrong kind.
    """
    flags = dict(overrides or {})
    given = checked(read_config_file(file), str(file)) if file is not None else {}
    flags = checked(flags, "the options")
    chosen_recipe = recipe or flags.pop("recipe", None) or given.pop("recipe", None) or "default"
    chosen_preset = preset or flags.pop("preset", None) or given.pop("preset", None)
    if chosen_preset is None:
        chosen_preset = dataset if dataset in PRESETS else DEFAULT_PRESET
    head = flags.get("head") or given.get("head") or DEFAULT_HEAD
    data = load_recipe(chosen_recipe)
    for_head = data.get("heads", {}).get(head, {})
    by_preset = data.get("presets", {}).get(chosen_preset, {})
    layers = [
        checked(part, f"recipe {chosen_recipe}")
        for part in (data["train"], for_head.get("train", {}), by_preset)
    ] + [given, flags]
    settings = dict(for_head.get("config", {}))
    if head == DEFAULT_HEAD:
        if chosen_preset not in PRESETS:
            raise UsageError(f"unknown preset {chosen_preset!r}{near(chosen_preset, PRESETS)}")
        settings |= load_preset(chosen_preset)
    for layer in layers:
        settings |= layer.pop("head_config", {})
    values = {k: v for layer in layers for k, v in layer.items()}
    values |= {
        "recipe": chosen_recipe,
        "preset": chosen_preset if head == DEFAULT_HEAD else None,
        "head_config": settings,
    }
    missing = [f.name for f in fields(TrainConfig) if _required(f) and f.name not in values]
    if missing:
        raise UsageError(f"recipe {chosen_recipe} gives no value for {', '.join(missing)}")
    config = TrainConfig(**values)
    try:
        check_settings(config.head, config.head_config)
    except ValueError as error:
        raise UsageError(f"head {config.head}: {error}") from error
    return config


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration that :meth:`TrainConfig.as_dict` wrote."""
    return TrainConfig(**checked(values, "the saved configuration"))


def checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``values`` with each as its field's type; unknown keys and wrong kinds are errors."""
    try:
        return typed(values, get_type_hints(TrainConfig), f" in {where}")
    except ValueError as error:
        raise UsageError(str(error)) from error


def _required(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING
