"""Check that a cache can give what is asked, before any work starts."""

from collections.abc import Mapping
from dataclasses import replace
from math import isclose

from clipspm.errors import UsageError
from clipspm.progress import Say
from clipspm.train_heads.config import TrainConfig
from clipspm.train_heads.episodes.draw import check_frames, check_request
from clipspm.train_heads.episodes.pool import Pool, Spec, Split
from clipspm.train_heads.heads.registry import HEADS, OF_CLIPSPM, head_entry

DEFAULT_QUERIES = 4
DEFAULT_FRAMES = 8
#: the scale of texts that CLIP was trained with, and heads have unless told otherwise
CLIPS_SCALE = 100.0


def fit_to_cache(config: TrainConfig, pools: Mapping[Split, Pool], spec: Spec, say: Say) -> TrainConfig:
    """Fill in what is open, and fit the head to the texts; refuse what the cache cannot give.

    Checks the training split, and the validation split if it has two classes or more. ``say`` reports what
    was reduced, and warns if the test split is too small for the same request.
    """
    config, cached_frames = _fit_texts(config, spec, say), spec.frames
    pool = pools["train"]
    queries = config.queries
    if queries is None:
        least = pool.smallest()[1] - config.shots if pool.names else 0
        queries = max(1, min(DEFAULT_QUERIES, least))
        if queries < DEFAULT_QUERIES and least >= 1:
            name, size = pool.smallest()
            say(
                f"{queries} queries per class instead of {DEFAULT_QUERIES}: class {name!r} (train) has "
                f"{size} videos for {config.shots} shots"
            )
    frames = config.frames if config.frames is not None else min(DEFAULT_FRAMES, cached_frames)
    check_frames(cached_frames, frames)
    check_request(pool, way=config.way, shot=config.shots, queries=queries)
    val = pools["val"]
    if len(val.names) >= 2:
        check_request(val, way=min(config.way, len(val.names)), shot=config.shots, queries=1)
    test = pools["test"]  # names and counts only
    if test.names:
        try:
            check_request(test, way=config.way, shot=config.shots, queries=1)
        except UsageError as error:
            say(f"warning: this run cannot be tested as it is trained: {error}")
    return replace(config, queries=queries, frames=frames)


def check_texts(spec: Spec, head: str, needed: bool) -> None:
    """Raise :class:`UsageError` if the head called ``head`` needs class texts and the cache has none."""
    if needed and not spec.has_text:
        others = ", ".join(name for name, entry in HEADS.items() if not entry.texts)
        raise UsageError(
            f"head {head} needs class texts, and this cache has none: its encoder, {spec.model}, has no text "
            f"tower. Heads that do without: {others}"
        )


def _fit_texts(config: TrainConfig, spec: Spec, say: Say) -> TrainConfig:
    """Switch off what needs texts where there are none; else take over the encoder's scale and bias."""
    settings, entry = config.head_config, head_entry(config.head)
    if not spec.has_text:
        check_texts(spec, config.head, bool(entry.texts))
        parts = {"spm": "SPM", "text": "the evidence of texts"} if config.head in OF_CLIPSPM else {}
        parts = {name: part for name, part in parts.items() if name not in entry.fixed}
        on = [part for name, part in parts.items() if settings.get(name, True)]
        if on:
            say(f"note: {spec.model} has no text tower: {config.head} works without {' and '.join(on)}")
        return config.with_head(**dict.fromkeys(parts, False)) if parts else config
    scale, bias = spec.logit_scale, spec.logit_bias
    as_clip = scale is None or (bias is None and isclose(scale, CLIPS_SCALE, rel_tol=1e-3))
    if as_clip or not {"text_scale", "text_bias"} <= (entry.settings or {}).keys():
        return config
    return config.with_head(**{"text_scale": scale, "text_bias": bias or 0.0, **settings})
