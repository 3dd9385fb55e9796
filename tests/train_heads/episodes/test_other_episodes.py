"""Unbalanced and source-disjoint episodes: a plain reference, properties, names of sources, files."""

from collections import Counter
from dataclasses import replace
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipspm.cache import open_cache
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract import extract
from clipspm.extract.datasets import benchmark
from clipspm.train_heads.episodes import sources as sources_module
from clipspm.train_heads.episodes.draw import Episodes, EpisodeSpec, draw
from clipspm.train_heads.episodes.files import check_claims, one_episode, problems, summary
from clipspm.train_heads.episodes.pool import Pool
from clipspm.train_heads.episodes.queries import words_needed
from clipspm.train_heads.episodes.random import below, blocks, digest, sample_distinct, urn
from clipspm.train_heads.episodes.sources import source_of, sources
from clipspm.train_heads.evaluation.evaluate import evaluate
from tests.support.campaigns import tiny_config
from tests.support.media import numbered_frames, write_video
from tests.support.synthetic import ByHand, fake_cache, silent

CACHE = fake_cache({"train": 3, "val": 3, "test": 7}, per_class=12)
POOL = Pool.from_cache(CACHE, "test")
PAIRS = r"^(.*v\d\d)\d$"  # of a class, v000..v009 are one source, v010 and v011 another


def spec(**changes: object) -> EpisodeSpec:
    return EpisodeSpec(**{"dataset": "fake", "split": "test", "way": 4, "shot": 2, "queries": 3, **changes})


def by_hand(s: EpisodeSpec, number: int) -> tuple[list[int], list[int], list[int]]:
    """Supports, queries and counts of one episode, with lists and loops."""
    raw = blocks(s.key, number, 1, s.way * (1 + s.shot) + words_needed(s))[0]
    take = iter(raw)
    classes = sample_distinct(raw[None, : s.way], len(POOL.names))[0].tolist()
    for _ in classes:
        next(take)
    supports, free = [], []
    for c in classes:
        left = [int(v) for v in np.flatnonzero(POOL.labels == c)]
        free.append(left)
        left = list(left)
        supports += [left.pop(int(below(next(take), len(left)))) for _ in range(s.shot)]
    group = sources(POOL, s.sources) if s.sources else np.arange(len(POOL.ids))
    taken = {int(group[v]) for v in supports}
    free = [[v for v in videos if int(group[v]) not in taken] for videos in free]
    total = s.way * s.queries
    counts = [0 if s.dirichlet else s.queries] * s.way
    if s.dirichlet:
        for _ in range(total):
            weights = [s.dirichlet + n if n < len(f) else 0 for n, f in zip(counts, free, strict=True)]
            ball = int(below(next(take), sum(weights)))
            counts[next(c for c in range(s.way) if ball < sum(weights[: c + 1]))] += 1
    words = np.array(list(take), dtype=np.uint64).reshape(s.way, -1)
    queries = []
    for c, videos in enumerate(free):
        queries += [videos.pop(int(below(words[c, i], len(videos)))) for i in range(counts[c])]
    return supports, queries, counts


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**9),
    st.integers(2, 6),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([(0, True), (1, False), (2, True), (5, False)]),
)
def test_draws_equal_plain_loops(
    seed: int, way: int, shot: int, queries: int, kind: tuple[int, bool]
) -> None:
    dirichlet, disjoint = kind
    # sources of four videos each, so that two supports leave at least four of twelve
    rule = r"(class \d+/v0(?:0[0-3]|0[4-7]|..))" if disjoint else ""
    s = spec(seed=seed, way=way, shot=shot, queries=queries, dirichlet=dirichlet, sources=rule)
    drawn = draw(s, POOL, 3)
    for e in range(3):
        supports, chosen, counts = by_hand(s, e)
        assert drawn.support[e].tolist() == supports
        assert drawn.query[e].tolist() == chosen
        if dirichlet:
            assert drawn.counts is not None and drawn.counts[e].tolist() == counts
    labels = np.take_along_axis(drawn.classes, drawn.query_labels, 1)
    assert (POOL.labels[drawn.query] == labels).all()


def test_no_query_shares_a_source_with_a_support() -> None:
    drawn = draw(spec(shot=1, queries=1, sources=PAIRS), POOL, 300)
    group = sources(POOL, PAIRS)
    assert not (group[drawn.query][:, :, None] == group[drawn.support][:, None]).any()
    plain = draw(spec(shot=1, queries=1), POOL, 300)
    assert (group[plain.query][:, :, None] == group[plain.support][:, None]).any()


def test_the_urn_is_dirichlet_multinomial() -> None:
    n, k, alpha = 40_000, 6, 2
    counts = urn(blocks(digest("urn"), 0, n, k), np.full((n, 3), k), alpha)
    assert (counts.sum(1) == k).all()

    # P(n_1 = j) of a beta-binomial(k, alpha, 2 alpha), by the product of rising factorials
    def rising(x: int, m: int) -> float:
        return float(np.prod([x + i for i in range(m)])) if m else 1.0

    for j in range(k + 1):
        p = comb(k, j) * rising(alpha, j) * rising(2 * alpha, k - j) / rising(3 * alpha, k)
        found = (counts[:, 0] == j).mean()
        assert abs(found - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-9


def test_a_full_box_takes_no_more() -> None:
    counts = urn(blocks(digest("full"), 0, 500, 5), np.tile([1, 4, 2], (500, 1)), 2)
    assert (counts <= [1, 4, 2]).all() and (counts.sum(1) == 5).all()
    with pytest.raises(ValueError, match="cannot put 8 balls into boxes for 7"):
        urn(blocks(digest("full"), 0, 2, 8), np.tile([1, 4, 2], (2, 1)), 2)


@pytest.mark.parametrize(
    ("dataset", "video", "class_name", "source"),
    [
        (
            "ucf101",
            "HandstandPushups/v_HandStandPushups_g01_c04",
            "Handstand Pushups",
            "v_HandStandPushups_g01",
        ),
        ("hmdb51", "brush hair/April_09_brush_hair_u_nm_np1_ba_goo_0", "brush hair", "April_09"),
        ("hmdb51", "pick/#122_Cleaning_(Up)!_pick_f_cm_np1_fr_med_1", "pick", "#122_Cleaning_(Up)!"),
        ("hmdb51", "pick/odd name", "pick", "odd name"),
        ("kinetics100", "air drumming/-_aB123_x-Y_000010_000020", "air drumming", "-_aB123_x-Y"),
        ("ssv2-small", "x/1234", "x", "1234"),
    ],
)
def test_sources_are_told_from_names(dataset: str, video: str, class_name: str, source: str) -> None:
    assert source_of(dataset, video, class_name) == source


def test_a_data_set_without_a_rule_needs_a_pattern() -> None:
    with pytest.raises(UsageError, match="no rule says which clips of fake share a source"):
        draw(spec(sources="name"), POOL, 1)
    with pytest.raises(UsageError, match="is not a regular expression"):
        draw(spec(sources="("), POOL, 1)


def test_too_few_left_is_one_clear_line() -> None:
    with pytest.raises(UsageError, match=r"episode 0 leaves 0 videos of class 'test class \d\d' that may be"):
        draw(spec(sources=r"(test class)"), POOL, 5)


@pytest.mark.parametrize("kind", [{"dirichlet": 2}, {"sources": PAIRS, "shot": 1, "queries": 1}])
def test_streams_do_not_depend_on_batch_or_order(kind: dict[str, object], tmp_path: Path) -> None:
    whole = draw(spec(**kind), POOL, 1203)
    part = draw(spec(**kind), POOL, 7, 1100)
    assert (part.query == whole.query[1100:1107]).all() and (part.support == whole.support[1100:1107]).all()
    other = Pool.from_cache(CACHE.reordered(5), "test")
    assert draw(spec(**kind), other, 1203).hash == whole.hash != draw(spec(), POOL, 1203).hash
    whole.save(tmp_path / "e.npz")
    loaded = Episodes.load(tmp_path / "e.npz")
    assert loaded.full_hash == whole.full_hash
    assert (loaded.on(POOL).query_labels == whole.query_labels).all()
    assert loaded[3:5].query_labels.tolist() == whole.query_labels[3:5].tolist()
    assert problems(loaded, CACHE) == []


def test_recorded_names() -> None:
    assert draw(spec(dirichlet=2), POOL, 100).hash == RECORDED[0]
    assert draw(spec(sources=PAIRS, shot=1, queries=1), POOL, 100).hash == RECORDED[1]


def test_unbalanced_episodes_are_scored_like_a_loop() -> None:
    drawn = draw(spec(dirichlet=2, queries=2), POOL, 40)
    result = evaluate(ByHand(), CACHE, episodes=drawn, log=silent, device="cpu")
    truth = drawn.query_labels
    right = [float(np.mean(p == t)) for p, t in zip(result.predictions["inductive"], truth, strict=True)]
    assert result.accuracies().tolist() == pytest.approx(right)
    assert result.facts["dirichlet"] == 2
    table = result.classes()
    everything = Counter(drawn.class_names[c] for c in np.take_along_axis(drawn.classes, truth, 1).ravel())
    assert {n: int(k) for n, k in zip(table.names, table.confusion.sum(1), strict=True)} == {
        name: everything[name] for name in table.names
    }


def test_a_file_is_described_and_checked() -> None:
    drawn = draw(spec(dirichlet=2), POOL, 20)
    facts = summary(drawn)
    assert (facts["episodes"], facts["way"], facts["dirichlet"], facts["hash"]) == (20, 4, 2, drawn.hash)
    shown = one_episode(drawn, 3)
    assert [len(parts["supports"]) for parts in shown.values()] == [2] * 4
    assert sum(len(parts["queries"]) for parts in shown.values()) == 12
    with pytest.raises(UsageError, match=r"there is no episode 20: the file holds 0\.\.19"):
        one_episode(drawn, 20)
    assert problems(draw(spec(), POOL, 20), CACHE) == []


@pytest.mark.parametrize("planted", ["twice", "class", "source", "shape", "other"])
def test_episodes_that_break_the_rules_are_found(planted: str) -> None:
    drawn = draw(spec(shot=1, queries=1, sources=PAIRS if planted == "source" else ""), POOL, 20)
    query = drawn.query.copy()
    if planted == "twice":
        query[4, 0] = drawn.support[4, 0]
        expected = "episode 4 has the same video twice"
    elif planted == "class":
        query[4, [0, 1]] = query[4, [1, 0]]
        expected = "episode 4 has a query of another class than it says"
    elif planted == "source":
        place = drawn.support[4, 0] % 12  # in its class
        other = (place + 1) % 10 if place < 10 else 21 - place
        query[4, 0] = drawn.support[4, 0] - place + other
        expected = "has a query from the source of a support"
    elif planted == "shape":
        query = query[:, :3]
        expected = r"query has shape (20, 3); 4-way 1-shot needs (20, 4)"
    else:
        free = set(range(int(POOL.starts[drawn.classes[0, 0]]), int(POOL.starts[drawn.classes[0, 0]]) + 12))
        query[0, 0] = min(free - {int(drawn.support[0, 0]), int(query[0, 0])})
        expected = "gives other episodes for these settings"
    found = problems(replace(drawn, query=query), CACHE)
    assert any(expected in line for line in found), found


RECORDED = ("858a7087af4d1091", "a4d698a604aaa6c4")


def test_neither_workers_nor_places_of_files_change_the_name(tmp_path: Path) -> None:
    """Two extractions of a benchmark: one worker from class folders, four from folders in small letters."""
    clip = write_video(tmp_path / "clip.mp4", numbered_frames(6, 32, 32))
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    about = benchmark("ucf101")
    for split, classes in about.classes.items():
        for folder, _, _ in classes[: 2 if split != "test" else 4]:
            for group, part in product((1, 2), (1, 2)):
                name = f"v_{folder}_g{group:02d}_c{part:02d}.mp4"
                for place in (upper / folder / name, lower / folder.lower() / name):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.hardlink_to(clip)
    names = set()
    for root, workers in ((upper, 1), (lower, 4)):
        config = tiny_config(tmp_path, root, dataset="ucf101", frames=2, workers=workers)
        pool = Pool.from_cache(
            open_cache(extract(replace(config, out=tmp_path / f"{workers}.zarr")).path), "test"
        )
        request = EpisodeSpec(dataset="ucf101", split="test", way=4, shot=1, queries=1, sources="name")
        drawn = draw(request, pool, 200)
        for query, support in zip(drawn.query, drawn.support, strict=True):
            groups = [{pool.ids[v].rsplit("_", 1)[0] for v in part} for part in (query, support)]
            assert not groups[0] & groups[1]
        names.add(drawn.full_hash)
    assert len(names) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"counts": np.array([[7, 5, 0, -1]] * 20)},
        {"counts": np.array([[2**31 - 1] * 4] * 20)},
        {"counts": np.ones((20, 4), int)},
        {"counts": None},
        {"classes": np.zeros((20, 4))},
        {"classes": np.zeros(20, int)},
        {"support": np.full((20, 8), -1)},
        {"support": np.full((20, 8), 10**6)},
        {"class_names": np.array(["a"] * 7)},
        {"video_ids": np.array(5)},
        {"spec": np.array('{"dataset": "fake", "split": "test", "way": 4.0}')},
        {"spec": np.array('{"dataset": "fake", "split": "test", "shot": 1000000000000}')},
        {"spec": np.array('{"dataset": 5, "split": "test"}')},
    ],
)
def test_tampered_files_are_one_clear_line(tmp_path: Path, change: dict[str, np.ndarray | None]) -> None:
    """Even if their hash is right: it is looked at last."""
    draw(spec(dirichlet=2), POOL, 20).save(tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as file:
        arrays = {**dict(file), **change}
    np.savez(tmp_path / "f.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ClipspmError, match=r"f\.npz is not a file of episodes: ") as caught:
        Episodes.load(tmp_path / "f.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04junk", b"\x93NUMPY"])
def test_files_of_other_bytes_are_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(ClipspmError, match=r"e\.npz is not a file of episodes: "):
        Episodes.load(tmp_path / "e.npz")


def test_episodes_whose_queries_are_of_other_classes_are_not_scored() -> None:
    drawn = draw(spec(shot=1, queries=1), POOL, 20)
    query = drawn.query.copy()
    query[4, [0, 1]] = query[4, [1, 0]]
    with pytest.raises(ClipspmError, match="episode 4 has a query of another class than it says"):
        evaluate(ByHand(), CACHE, episodes=replace(drawn, query=query), log=silent, device="cpu")


def test_a_pattern_whose_group_matches_nothing_leaves_a_video_its_own_source() -> None:
    assert source_of("fake", "a/b", "a", r"(x)?") == "a/b"
    assert draw(spec(shot=1, queries=1, sources=r"(x)?"), POOL, 5).hash


def test_what_a_file_of_episodes_claims_is_looked_at(tmp_path: Path) -> None:
    """A file can be sealed with a rule that its episodes do not keep."""
    drawn = draw(spec(shot=1, queries=1), POOL, 300)
    claimed = replace(drawn, spec=replace(drawn.spec, sources=PAIRS))
    with pytest.raises(ClipspmError, match=r"episode \d+ has a query from the source of a support"):
        check_claims(claimed, POOL)
    check_claims(draw(spec(shot=1, queries=1, sources=PAIRS), POOL, 300), POOL)
    with pytest.raises(UsageError, match="is not a regular expression"):
        check_claims(replace(drawn, spec=replace(drawn.spec, sources="((")), POOL)


@pytest.mark.timeout(30)
def test_a_pattern_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "_PATIENCE", 0.1)
    with pytest.raises(UsageError, match="takes more than 0 s on"):
        source_of("folder", "a" * 60 + "!", "x", "(a|aa)+$")
