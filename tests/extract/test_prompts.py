"""What a text encoder is told of a class: names as words, and descriptions from a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipspm.errors import ClipspmError, UsageError
from clipspm.extract import ExtractConfig
from clipspm.extract.datasets import BENCHMARKS, benchmark
from clipspm.extract.demo import CLASSES
from clipspm.extract.prompts import describe, fill, load_descriptions, spoken


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("brush_hair", "brush hair"),
        ("PullUps", "Pull Ups"),
        ("BlowDryHair", "Blow Dry Hair"),
        ("PCBSoldering", "PCB Soldering"),
        ("CPR", "CPR"),
        ("iPhone", "iPhone"),
        ("Blow DryHair", "Blow DryHair"),
        ("pouring [something] into [something]", "pouring something into something"),
        ("Übung", "Übung"),
        ("__", "__"),
        ("[]", "[]"),
        ("pull-ups", "pull-ups"),
    ],
)
def test_names_become_words(name: str, words: str) -> None:
    assert spoken(name) == words and spoken(words) == words


def test_published_names_are_words_already() -> None:
    names = [n for b in BENCHMARKS for listed in benchmark(b).classes.values() for _, n, _ in listed]
    assert len(names) > 300
    assert [n for n in [*names, *CLASSES.values()] if spoken(n) != fill("{}", n)] == []


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_descriptions_are_one_sentence_or_several(tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", {"wave": "a hand\n  waves", "run": ["legs {}", "a person runs"]})
    assert load_descriptions(path) == {"wave": ["a hand waves"], "run": ["legs {}", "a person runs"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON: it is nested too deeply"),
        ('{"wave": "a", "wave": "b"}', "the key 'wave' occurs 2 times"),
        ({}, "must hold {class: sentence or [sentences]}"),
        (["wave"], "must hold {class: sentence or [sentences]}"),
        ({"wave": []}, "class 'wave' has 0 sentences"),
        ({"wave": ["a"] * 1001}, "class 'wave' has 1001 sentences"),
        ({"wave": " "}, "class 'wave' needs a sentence"),
        ({"wave": ["a", 3]}, "class 'wave' needs a sentence"),
        ({"wave": {"a": "b"}}, "class 'wave' needs a sentence"),
    ],
)
def test_other_files_are_one_clear_line(tmp_path: Path, content: Any, said: str) -> None:
    path = write(tmp_path / "d.json", content)
    with pytest.raises(ClipspmError) as caught:
        load_descriptions(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_pipe(tmp_path: Path) -> None:
    with pytest.raises(ClipspmError, match="No such file"):
        load_descriptions(tmp_path / "none.json")
    with pytest.raises(ClipspmError, match="cannot read"):
        load_descriptions(tmp_path)


def test_each_class_finds_its_description() -> None:
    given = {
        "brush_hair": ["a"],
        "PullUps": ["b"],
        "Wave": ["c"],
        "wave": ["d"],
        "gone": ["e"],
        "other": ["f"],
    }
    found, unknown = describe(["brush hair", "Pull Ups", "wave", "Wave"], ["gone"], given, Path("d.json"))
    assert found == {"Pull Ups": ["b"], "Wave": ["c"], "brush hair": ["a"], "gone": ["e"], "wave": ["d"]}
    assert list(found) == sorted(found) and unknown == ["other"]


@pytest.mark.parametrize(
    ("needed", "given", "said"),
    [
        (
            ["wave", "run"],
            {"run": ["a"], "wve": ["b"]},
            "no description of class 'wave'; is it 'wve', which is no",
        ),
        (["wave", "run"], {"fly": ["b"]}, r"d.json has no description of class 'wave' \(nor of 1 others\)$"),
        (["wave"], {"Wave": ["b"], "WAVE": ["a"]}, "'Wave' and 'WAVE' are both class 'wave'"),
        (["wave", "Wave"], {"WAVE": ["a"]}, "'WAVE' can be 'wave' or 'Wave': use the exact name"),
    ],
)
def test_a_class_without_its_own_description(
    needed: list[str], given: dict[str, list[str]], said: str
) -> None:
    with pytest.raises(ClipspmError, match=said):
        describe(needed, [], given, Path("d.json"))


def test_descriptions_stand_in_place_of_prompts() -> None:
    with pytest.raises(UsageError, match="--descriptions stand in place of --prompts"):
        ExtractConfig(dataset="folder", prompts="photo", descriptions=Path("d.json"))
