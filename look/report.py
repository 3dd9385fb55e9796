"""Put a report together: what runs say, what the cache of the one in focus shows, and figures of both."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from clipspm.cache.disk import make_folder, write_atomically, write_text
from clipspm.cache.reader import Cache
from clipspm.cache.spec import CacheSpec
from clipspm.errors import ClipspmError
from clipspm.look import figures
from clipspm.look.clips import Strips, find_videos, strips
from clipspm.look.diagnose import Diagnosis, diagnose
from clipspm.look.explain import (
    Alignment,
    Motion,
    Piece,
    Places,
    alignments,
    contributions,
    motion,
    over_shots,
    places,
)
from clipspm.look.figures import Drawing
from clipspm.look.gather import Facts, Query, gather, right_query
from clipspm.look.inside import modules_of
from clipspm.look.subject import Subject
from clipspm.progress import track
from clipspm.train_heads.evaluation.stats import Estimate
from clipspm.train_heads.runs import Run

#: episodes that are scored for each measurement of a report
EPISODES = 100
#: confused pairs with examples, and classes beside the focus's in the measurement of look-alikes
_MOST_PAIRS, _MOST_ROWS = 100, 6


@dataclass(frozen=True)
class Seen:
    """What the cache shows of the head in focus, on ``episodes`` test episodes of its own.

    ``modules``: what is to say about SPM and PADM, or nothing.
    """

    episodes: int
    pieces: tuple[Piece, ...]
    shots: tuple[tuple[int, Estimate], ...]
    alignments: tuple[Alignment, ...]
    motion: Motion
    places: Places
    diagnosis: Diagnosis
    modules: str


@dataclass(frozen=True)
class Report:
    """All that the page shows. ``seen`` is None, and ``why`` says why, where the cache cannot be read."""

    facts: Facts
    seen: Seen | None
    strips: Strips
    drawings: dict[str, Drawing]
    why: str = ""
    spec: CacheSpec | None = None

    def notes(self) -> list[str]:
        """Return what is left out of the page, one line each."""
        left_out = [f"left out: {line}" for line in self.facts.results.skipped]
        return [line for line in (*left_out, self.why, self.strips.why) if line]

    def save_figures(self, folder: Path) -> int:
        """Write each figure into ``folder`` as SVG and PNG; return how many there are."""
        make_folder(folder)
        for name, one in self.drawings.items():
            write_text(folder / f"{name}.svg", '<?xml version="1.0" encoding="utf-8"?>\n' + one.svg)
            if one.png is not None:
                write_atomically(folder / f"{name}.png", one.png)
        return len(self.drawings)


def make_report(
    where: Sequence[str | Path] = (),
    *,
    cache: str | Path | None = None,
    videos: Path | None = None,
    episodes: int = EPISODES,
    device: str = "auto",
    png: bool = False,
) -> Report:
    """Gather, measure and draw; ``png``: each figure as PNG too.

    A cache that is not where the run says, or videos that are not found, leave their sections out.
    """
    facts = gather(where)
    try:
        subject = Subject.load(facts.run, cache, name=facts.focus.row, device=device)
    except ClipspmError as error:
        drawn = {one.name: one for one in figures.of_facts(facts, png=png)}
        return Report(facts, None, Strips(), drawn, str(error))
    queries = _queries_to_align(facts)
    seen = _look(subject, facts, queries, episodes)
    wanted = list(dict.fromkeys(_videos(facts, seen, queries)))
    source = subject.data.cache
    with ThreadPoolExecutor(1) as aside:  # other processes read the videos meanwhile
        reading = None
        if isinstance(source, Cache):
            reading = aside.submit(strips, source, find_videos(source, videos, wanted), wanted)
        drawn = {one.name: one for one in _draw(facts, seen, png)}
        pictures = reading.result() if reading else Strips()
    return Report(facts, seen, pictures, drawn, "", source.spec if isinstance(source, Cache) else None)


def _queries_to_align(facts: Facts) -> tuple[Query, ...]:
    """Choose the query that was taken for another class most surely, and the one recognised most surely."""
    surest = [pair.examples[0] for pair in facts.confusions if pair.examples]
    surest.sort(key=lambda query: -(query.sure or 0))
    right = right_query(facts.evaluation, facts.focus)
    return (*surest[:1], *([right] if right is not None else []))


def _look(subject: Subject, facts: Facts, queries: Sequence[Query], episodes: int) -> Seen:
    steps: dict[str, Callable[[], object]] = {
        "pieces": lambda: contributions(subject, episodes),
        "shots": lambda: () if facts.shots else over_shots(subject, episodes),
        "alignments": lambda: alignments(subject, facts, queries),
        "motion": lambda: motion(subject, episodes),
        "places": lambda: places(subject, episodes),
        "diagnosis": lambda: diagnose([subject, *_others(subject, facts)], episodes=episodes),
    }
    found = {name: step() for name, step in track(steps.items(), "looking", len(steps), "measurements")}
    return Seen(episodes, **found, modules=_modules(subject))  # type: ignore[arg-type]


def _others(subject: Subject, facts: Facts) -> list[Subject]:
    """Load the heads of other rows on the same cache, as far as they are there."""
    found: list[Subject] = []
    column, basis = facts.focus.column, facts.focus.basis
    for score in facts.results.scores:
        if score is facts.focus or (score.column, score.basis.episodes) != (column, basis.episodes):
            continue
        if len(found) == _MOST_ROWS:
            break
        try:
            run = Run.open(score.runs[0])
            if run.cache.get("fingerprint") == subject.data.spec.fingerprint:
                found.append(Subject.load(run, subject.data, name=score.row))
        except ClipspmError:
            continue
    return found


def _modules(subject: Subject) -> str:
    """Say what of SPM and PADM the head has, and whether its logits use it."""
    modules = modules_of(subject.head)
    if modules is None or not (modules.config.spm or modules.config.padm):
        return "This head has neither SPM nor PADM: there is only what was cached."
    weight = getattr(subject.head, "learned_weight", None)
    if weight is not None and float(weight) == 0:
        return (
            "SPM and PADM were trained, but validation classes gave what they learned no weight: the logits "
            "of this head do not use them."
        )
    return ""


def _videos(facts: Facts, seen: Seen, queries: Sequence[Query]) -> Iterable[str]:
    """Return the ids of the videos that the page shows, the most important first."""
    for query in queries:
        yield from (query.video, *query.supports.values())
    for hard in facts.hardest:
        for query in hard.queries:
            yield query.video
        yield from hard.queries[0].supports.values() if hard.queries else ()
    yield from (video for video, _, _ in seen.motion.clips)
    for pair in facts.confusions[:_MOST_PAIRS]:
        for query in pair.examples:
            yield from (query.video, query.supports[query.truth], query.supports[query.taken])


def _draw(facts: Facts, seen: Seen, png: bool) -> Iterable[Drawing]:
    yield from figures.of_facts(facts, png=png)
    if png:
        yield figures.confusion(facts.classes, png=True)
    way = facts.focus.column.way
    if not facts.shots and (
        one := figures.shots({facts.focus.row: seen.shots} if seen.shots else {}, way, png=png)
    ):
        yield one
    yield figures.evidence(seen.pieces, png=png)
    for i, aligned in enumerate(seen.alignments):
        for place in range(len(aligned.classes)):
            yield figures.alignment(aligned, place, f"alignment-{i}-{place}", png=png)
    yield figures.motion_energy(seen.motion, png=png)
    yield figures.motion_loss(seen.motion, png=png)
    for index in range(len(seen.places.placed)):
        yield figures.scatter(seen.places, index, png=png)
    yield figures.time(seen.diagnosis, png=png)
    if (one := figures.alike(seen.diagnosis, png=png)) is not None:
        yield one
    yield figures.gap(seen.diagnosis, png=png)
