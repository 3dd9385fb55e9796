"""``clipspm episodes``: lists of episodes as files."""

from pathlib import Path
from typing import Annotated

import typer

from clipspm.cache.spec import EpisodeSplit
from clipspm.commands.common import (
    App,
    CacheOf,
    CachePath,
    Json,
    SourceDisjoint,
    SourcePattern,
    Splits,
    Unbalanced,
    help_alone,
    kind_of,
    open_source,
    tell,
)
from clipspm.options import own

EpisodeFile = Annotated[Path, typer.Argument(help="A file of episodes.", metavar="FILE")]

app = App("Lists of episodes: draw and save them, look at them, check them.")
app.callback()(help_alone)


@app.command("make")
def episodes_make(
    target: Annotated[Path, own("The file to write (.npz).", "Output", "--out")],
    cache: CachePath = None,
    dataset: CacheOf = None,
    splits: Splits = None,
    split: Annotated[EpisodeSplit, own("Whose classes.", "Data")] = "test",
    number: Annotated[int, own("How many.", "Episodes", "--episodes", "--test-episodes")] = 10_000,
    way: Annotated[int, own("Classes per episode.", "Episodes", min=2)] = 5,
    shots: Annotated[int, own("Support videos per class.", "Episodes", min=1)] = 1,
    queries: Annotated[int, own("Queries per class.", "Episodes", min=1)] = 1,
    seed: Annotated[int, own("Seed of the episodes.", "Episodes")] = 0,
    unbalanced: Unbalanced = False,
    source_disjoint: SourceDisjoint = False,
    source_pattern: SourcePattern = None,
    as_json: Json = False,
) -> None:
    """Draw episodes and save them in a small file that eval --episodes-file scores."""
    from clipspm.train_heads import Pool, draw, summary
    from clipspm.train_heads.episodes.draw import EpisodeSpec

    source = open_source(cache, dataset, splits)
    spec = EpisodeSpec(
        dataset=source.spec.dataset, split=split, way=way, shot=shots, queries=queries, seed=seed,
        **kind_of(unbalanced, source_disjoint, source_pattern),
    )  # fmt: skip
    drawn = draw(spec, Pool.from_cache(source, spec.split), number)
    drawn.save(target)
    said = f"{target}: {len(drawn)} episodes, {drawn.hash}"
    tell(as_json, {"file": str(target), **summary(drawn)}, said)


@app.command("show")
def episodes_show(
    file: EpisodeFile,
    number: Annotated[int, own("Which one to write out.", "Episodes", "--episode")] = 0,
    as_json: Json = False,
) -> None:
    """What a file of episodes holds, and one of them in full."""
    from clipspm.train_heads import Episodes, summary
    from clipspm.train_heads.episodes.files import one_episode

    episodes = Episodes.load(file)
    facts, chosen = summary(episodes), one_episode(episodes, number)
    lines = [f"{key:<15} {value}" for key, value in facts.items()]
    for name, videos in chosen.items():
        lines.append(f"episode {number}, {name}:")
        lines += [f"  {part:<8} {', '.join(ids) or '-'}" for part, ids in videos.items()]
    tell(as_json, {**facts, "episode": chosen}, *lines)


@app.command("verify")
def episodes_verify(
    file: EpisodeFile, cache: CachePath = None, splits: Splits = None, as_json: Json = False
) -> None:
    """Whether a file is what its hash says, well-formed, and what its settings draw from a cache."""
    from clipspm.train_heads import Episodes
    from clipspm.train_heads.episodes.files import problems

    episodes = Episodes.load(file)
    found = problems(episodes, open_source(cache, None, splits) if cache else None)
    verdict = (
        f"drawn from {cache}" if cache else "well-formed; --cache PATH checks that they were drawn from it"
    )
    verdict = f"{len(found)} problems" if found else verdict
    tell(
        as_json,
        {"hash": episodes.hash, "checked_with": str(cache) if cache else None, "problems": found},
        *found,
        f"{file}: {len(episodes)} episodes, {episodes.hash}: {verdict}",
    )
    if found:
        raise typer.Exit(1)
