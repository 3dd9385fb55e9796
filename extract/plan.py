"""Plan an extraction, and make every check that does not need torch.

Cheap checks come first: names and options, then the place of the cache, then the videos on the disk.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile

from clipspm.cache.home import caches_dir, check_outside, home
from clipspm.cache.spec import FINAL
from clipspm.engines import check_installed
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.config import ExtractConfig
from clipspm.extract.datasets import DEMOS, Index, demo_videos, index_dataset, index_demo, read_splits
from clipspm.extract.layers import AUTO, TOKENS, parse_layers, parse_tokens
from clipspm.extract.models import check_model, has_text
from clipspm.extract.prompts import describe, load_descriptions, load_templates

DEFAULT_MODEL, DEFAULT_PRETRAINED = "ViT-B-16-quickgelu", "openai"
DEFAULT_PROMPTS = "photo"


@dataclass(frozen=True)
class Work:
    """A checked request: the settings with defaults filled in, texts, layer names, and videos.

    ``layers`` may hold ``auto``, with ``tokens`` of each block. ``descriptions``: sentences by class, empty
    if ``templates`` are filled with class names. Without a text tower there are no templates either.
    """

    config: ExtractConfig
    templates: tuple[str, ...]
    layers: tuple[str, ...]
    tokens: tuple[str, ...]
    descriptions: dict[str, list[str]]
    index: Index


def prepare(config: ExtractConfig, on_start: Callable[[str], None] = lambda message: None) -> Work:
    """Check the request and find the videos; renders the demo's videos if they are missing.

    Raises :class:`ClipspmError` for unknown names, no videos, wrong splits or prompts, a missing extra, or a
    place that is not writable.
    """
    config = _with_defaults(config)
    assert config.model is not None
    check_model(config.model, config.pretrained)
    templates = load_templates(config.prompts or DEFAULT_PROMPTS)
    if not has_text(config.model):
        if config.prompts is not None or config.descriptions is not None:
            option = "--prompts" if config.descriptions is None else "--descriptions"
            raise UsageError(f"{option}: {config.model} has no text tower that could read them")
        templates = ()
    given = load_descriptions(config.descriptions) if config.descriptions else {}
    check_installed(config.engine)
    _check_writable(config.out)
    index = _find_videos(config, on_start)
    for note in index.notes:
        on_start(f"note: {note}")
    descriptions: dict[str, list[str]] = {}
    if config.descriptions:
        others = [name for name, _, _ in index.plan.absent]
        descriptions, unknown = describe(index.plan.class_names, others, given, config.descriptions)
        templates = ("{}",)
        if unknown:
            on_start(f"note: {config.descriptions}: {_listed(unknown)} no class here, not used")
    layers = parse_layers(AUTO if config.layers is None else config.layers)
    tokens = parse_tokens(config.tokens) if config.tokens is not None else TOKENS
    return Work(config, templates, layers, tokens, descriptions, index)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} is" if len(names) == 1 else f"{shown}{', ...' if len(names) > 3 else ''} are"


def decoders(config: ExtractConfig) -> int:
    """The number of decode workers per encoder; by default this machine's cores, divided by its encoders."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.engine.name != "local":
        return config.workers or config.engine.cpus
    return config.workers or max(1, min(16, available) // max(1, len(config.devices)))


def _with_defaults(config: ExtractConfig) -> ExtractConfig:
    if config.dataset in DEMOS:
        from clipspm.extract.demo import tiny_clip_source

        if config.model is None:
            layers = config.layers or (FINAL if config.tokens is None else AUTO)
            config = replace(config, model=tiny_clip_source(), precision="fp32", layers=layers)
        return replace(config, videos=config.videos or demo_videos(config.dataset))
    if config.model is None:
        pretrained = config.pretrained or DEFAULT_PRETRAINED
        return replace(config, model=DEFAULT_MODEL, pretrained=pretrained)
    return config


def _find_videos(config: ExtractConfig, on_start: Callable[[str], None]) -> Index:
    """Find the videos; splits are checked before the demo is rendered."""
    videos = config.videos
    if config.dataset in DEMOS and videos is not None and not videos.is_dir():
        from clipspm.extract.demo import clip_files, render_demo, world_of

        world = world_of(config.dataset).name
        files = [path for path, _, _ in clip_files(videos, world=world)]
        index = index_demo(videos, files, config.splits, config.dataset)
        if config.dry_run:
            on_start(f"{len(index.plan.videos)} demo videos would be rendered to {videos}")
        else:
            on_start(f"rendering the demo videos to {videos}")
            render_demo(videos, workers=decoders(config), world=world)
        return index
    if config.splits is not None:
        read_splits(config.splits)  # before a large folder is listed
    index = index_dataset(config.dataset, videos, config.splits, config.split_files)
    return _with_missing_files_noted(index) if config.dataset == "manifest" else index


def _with_missing_files_noted(index: Index) -> Index:
    """Add a note on listed files that are missing; raises :class:`ClipspmError` if all are."""
    listed = index.plan.videos
    missing = [video.path for video in listed if not os.path.exists(index.root / video.path)]
    if not missing:
        return index
    said = f"{len(missing)} of {len(listed)} listed files are missing, the first is {index.root / missing[0]}"
    if len(missing) == len(listed):
        raise ClipspmError(f"{said}: relative paths start at the folder of the CSV file, {index.root}")
    return replace(index, notes=(*index.notes, said))


def _check_writable(out: Path | None) -> None:
    """Raise :class:`ClipspmError` if no cache can be written at ``out`` (None: in the caches folder)."""
    if out is not None:
        check_outside(out)
    wanted = out.absolute().parent if out else caches_dir().absolute()
    place = wanted
    while not place.exists() and place != place.parent:
        place = place.parent
    for folder in [place, out] if out and out.is_dir() else [place]:
        try:
            with TemporaryFile(dir=folder):
                continue
        except OSError as error:
            trouble = f"cannot write to {folder} ({error.strerror})"
        if out is not None:
            raise ClipspmError(f"{trouble}: choose another --out")
        raise ClipspmError(
            f"{trouble}, and caches go to {wanted}: set CLIPSPM_HOME to another folder (now {home()}), or "
            "choose --out"
        )
