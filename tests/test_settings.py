"""What people write into configurations: one meaning, quickly, or one line."""

import re
import time
from pathlib import Path
from typing import Any, Optional, Union

import pytest

from clipspm.errors import UsageError
from clipspm.settings import coerced, from_yaml
from clipspm.train_heads.config import read_config_file, resolve_config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [1, 2.5, x]", {"a": 1, "b": [1, 2.5, "x"]}),
        ("1e-3", "1e-3"),  # typed by its setting
        ("none", "none"),
        ("base: &b {x: 1}\nmore: {<<: *b, x: 2}", {"base": {"x": 1}, "more": {"x": 2}}),
        ("", None),
    ],
)
def test_yaml_is_read_as_ever(text: str, value: object) -> None:
    assert from_yaml(text) == value


def test_a_list_has_brackets_and_the_documented_one_is_read() -> None:
    with pytest.raises(ValueError, match=r"needed a list, like \[a, b\]"):
        coerced("8:mean,final", tuple[str, ...])
    page = (Path(__file__).parents[1] / "docs" / "heads.md").read_text()
    [written] = re.findall(r"`without=(.*?)`", page)
    assert coerced(from_yaml(written), tuple[str, ...]) == ("8:mean", "final")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "nan", "inf"])
def test_what_is_no_finite_number_is_refused(value: str) -> None:
    for head, setting in (("clip-spm", "logit_scale"), ("tip-adapter", "alpha")):
        with pytest.raises(UsageError, match=f"head {head}: setting {setting}: .* needed a finite number"):
            resolve_config(overrides={"head": head, "head_config": {setting: from_yaml(value)}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 0.1\nlr: 0.9", "'lr' is there twice"),
        ("a: {b: 1, b: 2}", "'b' is there twice"),
        ("seed: " + ":".join(["1"] * 500_000), "a number of 999999 digits"),
        ("seed: 0x" + "f" * 100_000, "a number of 100002 digits"),
        ("lr: 0." + "1" * 100_000, "a number of"),
        ("a: !!python/object/apply:os.system [id]", "it is not YAML"),
        ("{", "it is not YAML"),
    ],
)
def test_what_has_two_meanings_or_none_is_refused_at_once(tmp_path: Path, text: str, said: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match=said):
        from_yaml(text)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"c\.yaml is no configuration: {said}"):
        read_config_file(tmp_path / "c.yaml")
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("name", ["way", "shots", "queries", "batch", "episodes", "val_episodes"])
def test_slips_of_the_hand_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is 1000000000000000; it must be at most"):
        resolve_config(overrides={name: 10**15})


@pytest.mark.parametrize(
    ("hint", "value", "found"),
    [
        (Optional[int], "none", None),  # noqa: UP045
        (Optional[int], "3", 3),  # noqa: UP045
        (Union[int, str], "four", "four"),  # noqa: UP007
        (list[int], (1, "2"), [1, 2]),
        (dict, {"a": 1}, {"a": 1}),
        (Any, "1e-1", "1e-1"),
    ],
)  # fmt: skip
def test_hints_of_other_people(hint: Any, value: Any, found: Any) -> None:
    assert coerced(value, hint) == found


@pytest.mark.parametrize(("hint", "value"), [(list[int], "12"), (dict, [1]), (int | float, "four")])
def test_values_that_fit_no_hint_are_refused(hint: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="needed a"):
        coerced(value, hint)
