"""The report's page: whole in itself, escaped, readable by machines that read to people, the same every time."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from clipspm.cache import open_cache
from clipspm.cache.checked import save_json
from clipspm.look.clips import find_videos, strips
from clipspm.look.figures import COLOURS
from clipspm.look.files import row_names
from clipspm.look.gather import _metrics, _points
from clipspm.look.page import as_html
from clipspm.look.report import Report, make_report
from clipspm.train_heads.runs import CONFIG, IN_CONFIG
from tests.look.conftest import Made

#: elements that have no end tag
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Every element with its attributes and the text within it, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.stack: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.text[self.stack[-1]] = self.text.get(self.stack[-1], "") + data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def page(made: Made) -> Page:
    return Page(made.page)


def test_it_is_one_well_formed_page(page: Page, made: Made) -> None:
    assert not page.wrong
    assert not page.stack
    assert made.page.startswith("<!DOCTYPE html>")
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("main")) == len(page.all("h1")) == len(page.all("title")) == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("a"):
        assert attributes["href"].removeprefix("#") in ids
    for name in ("popovertarget", "aria-labelledby"):
        assert {a[name] for _, a in page.elements if name in a} <= set(ids)
    for inside in re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", made.page):
        assert inside in ids


def test_nothing_is_fetched_and_nothing_runs(page: Page, made: Made) -> None:
    assert not page.all("script", "iframe", "object", "embed", "link", "base", "form", "img")
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert re.findall(r"https?://[^\s\"'<]+", made.page) == ["http://www.w3.org/2000/svg"] * len(
        page.all("svg")
    )
    assert set(re.findall(r"url\((?!#)([a-z]+:[a-z/]+)", made.page)) == {"data:image/jpeg"}
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    style = re.search(r"<style>(.*?)</style>", made.page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy


def test_names_stay_text(page: Page, made: Made) -> None:
    assert "<script" not in made.page
    assert "onerror=alert(2)>" not in made.page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in made.page
    assert "{{ 7*7 }}" in made.page
    assert "\u202e" not in made.page
    assert r"right\u202eleft" in made.page
    assert "手を振る" in made.page


def test_no_folder_of_the_machine_is_told(made: Made) -> None:
    assert str(made.folder.parent) not in made.page
    facts = made.report.facts.evaluation.facts
    assert facts["episode_hash_full"] in made.page
    assert facts["cache_fingerprint"] in made.page
    assert "clipspm eval " in made.page


def test_tables_have_heads_and_figures_have_words(page: Page) -> None:
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert {a.get("scope") for a in page.all("th")} <= {"row", "col", "rowgroup"}
    assert all(a.get("scope") for a in page.all("th"))
    assert len(page.all("svg")) > 10
    for attributes in page.all("svg"):
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 20
        assert "viewbox" in attributes or "viewBox" in attributes
    for attributes in page.all("span"):
        if attributes.get("role") == "img":
            assert attributes["aria-label"]
    for attributes in page.all("button"):
        assert attributes.get("popovertarget")


def test_every_section_is_there(page: Page, made: Made) -> None:
    found = [a["aria-labelledby"] for a in page.all("section")]
    assert found == [
        "results", "compared", "shots", "training", "evidence", "classes", "confusion", "hardest", "alignment",
        "motion", "places", "challenges", "provenance",
    ]  # fmt: skip
    assert made.report.facts.rivals[0].name == "full"
    assert {row.name for row in made.report.facts.rivals} == {"full", "without padm", "prototype"}
    assert "after PADM" in made.page
    assert len(made.report.strips.by_id) > 5
    assert not made.report.strips.why


def test_confused_pairs_open_with_pictures(page: Page, made: Made) -> None:
    opened = {a["id"] for a in page.all("div") if "popover" in a}
    buttons = {a["popovertarget"] for a in page.all("button") if "popovertargetaction" not in a}
    pairs = made.report.facts.confusions
    assert opened == buttons
    assert len(opened) == len(pairs) > 3
    counts = made.report.facts.classes
    for pair in pairs:
        row, column = (counts.names.index(name) for name in (pair.truth, pair.taken))
        assert counts.confusion[row, column] == pair.count
        assert pair.examples
        for query in pair.examples:
            assert (query.truth, query.taken) == (pair.truth, pair.taken)
            assert query.video in made.report.strips.by_id


def test_the_same_runs_make_the_same_bytes_within_bounds(made: Made, peer: Report) -> None:
    assert as_html(make_report([made.cells[2]], episodes=4, device="cpu")) == as_html(peer)
    assert len(made.page) < 5_000_000


def test_colours_have_contrast() -> None:
    """WCAG 2.2 AA: text 4.5 to 1 on the page, lines of data 3 to 1; shades of the matrix under its text."""

    def channels(colour: str) -> list[float]:
        return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: list[float], b: list[float]) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    css = (Path(__file__).parents[2] / "look" / "templates" / "report.css").read_text()
    softs = re.findall(r"--soft: (#\w{6})", css)
    for mode, soft in zip((0, 1), softs, strict=True):
        paper, ink = (channels(COLOURS[name][mode]) for name in ("paper", "ink"))
        for name, pair in COLOURS.items():
            if name not in ("paper", "rule"):
                assert contrast(channels(pair[mode]), paper) >= 4.5, (name, mode)
                assert contrast(channels(pair[mode]), channels(soft)) >= 4.5, (name, mode)
        for name, most in (("hit", 40), ("miss", 48)):
            shade = channels(re.search(rf"--{name}: (#\w{{6}})", css)[1])
            mixed = [most / 100 * s + (1 - most / 100) * p for s, p in zip(shade, paper, strict=True)]
            assert contrast(ink, mixed) >= 4.5, (name, mode)


def test_figures_follow_the_page_but_for_cells(made: Made) -> None:
    cells, lines = (made.report.drawings[name].inline() for name in ("alignment-0-0", "classes"))
    assert cells.count("var(--paper)") == 1  # what is behind it: marks on cells stay white
    assert "#fefefe" in cells
    assert "var(--c1)" in lines
    assert "#0b62a8" not in lines
    for drawing in made.report.drawings.values():
        assert "style=" not in drawing.inline()


def test_figures_are_files_too(peer: Report, tmp_path: Path) -> None:
    count = peer.save_figures(tmp_path / "figures")
    written = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert len(written) == 2 * count
    assert {"confusion.svg", "classes.png", "time.svg", "evidence.svg", "gap.png"} <= set(written)
    for path in (tmp_path / "figures").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg")
        assert "var(--" not in path.read_text()
    assert (tmp_path / "figures" / "time.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_head_lacks_is_left_out_and_said(peer: Report) -> None:
    page = as_html(peer)
    assert "This head has neither SPM nor PADM" in page
    assert "after PADM" not in page
    assert "Nothing was trained here" in page
    assert "There is no other row" in page
    assert "less prototype" not in page  # one piece of evidence: nothing is left without it


def test_a_cache_that_is_gone_is_said(made: Made, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.cells[0], run)
    config = json.loads((run / "config.json").read_text())
    config["cache"]["path"] = "/gone/cache.zarr"
    save_json(run / CONFIG, {name: config[name] for name in IN_CONFIG})
    page = as_html(make_report([run]))
    assert "The cache of this run could not be used" in page
    assert page.count("Needs the cache.") == 5
    assert Page(page).wrong == []


def test_videos_that_are_gone_are_said(made: Made, peer: Report, tmp_path: Path) -> None:
    cache = open_cache(made.cache)
    wanted = [video.id for video in cache.good]
    assert find_videos(cache, tmp_path, wanted) is None
    page = as_html(replace(peer, strips=strips(cache, None, wanted)))
    assert "name their folder with --videos DIR" in page
    assert "(no picture)" in page
    assert "data:image/jpeg" not in page


def test_a_video_that_cannot_be_read_costs_its_picture(made: Made, tmp_path: Path) -> None:
    cache = open_cache(made.cache)
    good, bad = [video for video in cache.good if video.split == "test"][:2]
    for video, source in ((good, made.cache.parent / "videos" / good.id), (bad, made.cache / "spec.json")):
        (tmp_path / video.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / video.path)
    found = strips(cache, tmp_path, [good.id, bad.id, "unknown"])
    assert list(found.by_id) == [good.id]
    assert found.by_id[good.id].frames == cache.spec.frames
    assert found.why == "2 of 3 videos could not be read."


def test_a_strange_ablation_file_names_no_row(made: Made, tmp_path: Path) -> None:
    shutil.copy(made.folder / "ablation.json", tmp_path)
    assert sorted(row_names(tmp_path).values()) == ["full", "prototype", "without padm"]
    for text in ("", "[]", "7", '{"rows": 7}', '{"rows": [{"cells": [1]}]}', "{" * 10_000, '{"tables": {}}'):
        (tmp_path / "ablation.json").write_text(text)
        assert row_names(tmp_path) == {}


def test_damaged_lines_of_metrics_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2}\n[1]\n{"step": 2, "loss": NaN}\n{"step": "x", "loss": 1}\n{"st')
    assert _points(_metrics(file), "loss") == ((1.0, 2.0),)
