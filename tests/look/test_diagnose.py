"""The paper's three challenges on worlds whose answers are known: what is measured is what was drawn."""

import json

import numpy as np
import pytest

from clipspm.extract.demo import PAIRS, WORLDS
from clipspm.look.diagnose import (
    AS_IT_IS,
    STILL,
    diagnose,
    measure_gap,
    measure_look_alikes,
    measure_time,
    similar_pairs,
)
from clipspm.look.explain import contributions, motion
from tests.support.synthetic import fake_cache
from tests.support.worlds import drawn_world, untrained

EPISODES = 150


def accuracy(found: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(x.mean()) for name, x in found.items()}


def test_where_only_motion_tells_nothing_is_left_without_it() -> None:
    found = measure_time(untrained(drawn_world("motion")), EPISODES)
    right = accuracy(found.accuracies)
    assert right[AS_IT_IS] > 0.4
    for name in ("shuffled", "the middle one repeated", STILL):
        assert right[name] < 0.3, name
    assert right["reversed"] < 0.2  # a query shows the other class of its pair, which may be in the episode
    assert abs(found.static[0]) < 0.15
    assert found.static[1] <= found.static[0] <= found.static[2]


def test_where_appearance_tells_order_does_not_matter_and_all_is_left() -> None:
    found = measure_time(untrained(drawn_world("look")), EPISODES)
    for effect in found.effects().values():
        assert effect.mean < 0.05  # less motion is even better: it is noise here
    assert found.static[0] > 0.8


def test_where_both_tell_a_part_is_left() -> None:
    found = measure_time(untrained(drawn_world("both")), EPISODES)
    right = accuracy(found.accuracies)
    assert 0.25 < right[STILL] < right[AS_IT_IS] - 0.05
    assert 0.1 < found.static[0] < 0.8


def test_classes_that_look_alike_are_those_drawn_alike() -> None:
    """In ``both`` a class shares its look with three others: only those look alike, and only motion parts them."""
    subject = untrained(drawn_world("both"))
    world = WORLDS["both"]
    look = {world.names[folder]: world.names[folder].split()[0] for folder in world.splits[0]["test"]}
    pairs = similar_pairs(subject)
    assert len(pairs) == 6
    assert all(look[pair.first] == look[pair.second] for pair in pairs)
    found = measure_look_alikes([subject, untrained(drawn_world("both"), "prototype")], EPISODES)
    assert found is not None
    alike, any_two = accuracy(found.alike), accuracy(found.any)
    assert abs(alike["prototype"] - 0.5) < 0.1  # blind to order
    assert any_two["prototype"] > alike["prototype"] + 0.1
    assert alike["evidence"] > 0.65
    assert alike["less drift"] < alike["evidence"] - 0.03
    assert alike["less look"] > alike["evidence"] - 0.03
    assert "less prototype" not in alike


def test_in_motion_the_most_alike_pair_is_an_action_and_its_reversal() -> None:
    names = WORLDS["motion"].names
    reversals = {frozenset((names[a], names[b])) for a, b in PAIRS}
    pairs = similar_pairs(untrained(drawn_world("motion")))
    assert frozenset((pairs[0].first, pairs[0].second)) in reversals
    assert [pair.cosine for pair in pairs] == sorted((pair.cosine for pair in pairs), reverse=True)


@pytest.mark.parametrize(
    ("world", "low", "high"), [("told", 0.05, 1), ("lied", -1, -0.01), ("both", -0.02, 0.02)]
)
def test_texts_are_nearest_to_what_they_say(world: str, low: float, high: float) -> None:
    """Names say what is seen (told), what is not (lied), or nothing (both)."""
    gaps = measure_gap(untrained(drawn_world(world)), EPISODES)
    assert list(gaps) == ["as cached"]
    same, other = gaps["as cached"].text_query
    assert low < float((other - same).mean()) < high
    same, other = gaps["as cached"].prototype_query
    assert float((other - same).mean()) > 0.05


def test_evidence_counts_where_it_was_drawn() -> None:
    for world, kinds in (("motion", {"move", "drift"}), ("look", {"look", "still"})):
        pieces = {piece.name: piece for piece in contributions(untrained(drawn_world(world)), EPISODES)}
        assert set(pieces) == {"look", "still", "move", "drift", "text"}
        assert sum(piece.share for piece in pieces.values()) == pytest.approx(1, abs=0.02)  # logits are a sum
        assert sum(pieces[kind].share for kind in kinds) > 0.8
        assert max(pieces.values(), key=lambda piece: piece.alone.mean).name in kinds


def test_shares_of_motion_add_up_and_follow_what_moves() -> None:
    cache = fake_cache({"train": 0, "val": 0, "test": 5}, frames=8)
    still = cache.arrays["final"].astype(np.float32)
    still[:] = still.mean(2, keepdims=True)
    still[:, :, 5] += 3.0  # all that moves is in one frame
    cache.arrays["final"] = still.astype(np.float16)
    found = motion(untrained(cache), 20)
    assert found.energy.shape == (5, 8)
    assert found.energy.sum(1) == pytest.approx(np.ones(5), abs=1e-6)
    assert (found.energy.argmax(1) == 5).all()
    assert found.energy[:, 5] == pytest.approx(np.full(5, 49 / 56), abs=0.02)


def test_it_is_the_same_twice_and_plain_values() -> None:
    first, again = (diagnose([untrained(drawn_world("look"))], episodes=20) for _ in range(2))
    assert first.as_dict() == again.as_dict()
    said = json.loads(json.dumps(first.as_dict()))
    assert set(said) >= {"time", "look_alikes", "gap"}
    assert set(said["time"]["accuracy"]) == set(first.time.accuracies)
    titles = [table.title.split(":")[0] for table in first.tables()]
    assert titles == ["Time", "Look-alikes", "Look-alikes", "Gap between texts and videos"]
    for table in first.tables():
        assert table.markdown() and table.csv()


def test_two_classes_have_no_most_similar_pair() -> None:
    cache = fake_cache({"train": 0, "val": 0, "test": 2}, frames=8)
    found = diagnose([untrained(cache, way=2)], episodes=5)
    assert found.look_alikes is None
    assert found.as_dict()["look_alikes"] is None
    assert len(found.tables()) == 2
