"""README.md and docs/: every block runs as it stands, in a folder that has what it names, or says why not.

The folder stands in for a reader's: clips of a few classes, caches, runs. CLIP's weights are a tiny random encoder's.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import typer.main

from clipspm.cache import CacheWriter, Plan, VideoRecord, open_cache
from clipspm.cli import app
from clipspm.extract import encoder
from clipspm.extract.weights import LoadedModel, load_model
from clipspm.train_heads import Data, TrainConfig, evaluate, resolve_config, train
from tests.support.caches import SPEC
from tests.support.cli import clipspm
from tests.support.media import tiny_local_dir, write_video
from tests.support.synthetic import fake_cache, silent
from tools.docs_blocks import PAGES, REASONS, ROOT, Block, all_blocks, blocks

BLOCKS = all_blocks()
COMMANDS: Any = typer.main.get_command(app)
#: the classes of ``my_clips``, by the files of docs/recognise.md and docs/datasets.md
ACTIONS = ("hug", "kick", "push", "handshake", "point", "punch")


def _clip(path: Path, kind: int, seed: int, count: int = 12) -> Path:
    """A clip whose colour and direction say which class it is of."""
    rng = np.random.default_rng(seed)
    frames = np.full((count, 32, 48, 3), 40 * kind, np.uint8)
    for i in range(count):
        left = 3 * (i if kind % 2 else count - i)
        frames[i, :, left : left + 6, kind % 3] = 250
    return write_video(path, np.clip(frames + rng.normal(0, 6, frames.shape), 0, 255).astype(np.uint8))


def _cache(path: Path, dataset: str, rows: slice = slice(None)) -> Path:
    """A finished cache of drawn features, of the videos in ``rows``."""
    fake = fake_cache(per_class=6)
    spec = replace(SPEC, dataset=dataset, layers=("final",), dims=dict(fake.spec.dims), views=1)
    taken = fake.good[rows]
    names = tuple(name for name in fake.class_names if any(v.class_name == name for v in taken))
    splits = {name: fake.class_splits[name] for name in names}
    plan = Plan(tuple(VideoRecord(v.id, v.id, v.class_name, v.split) for v in taken), names, splits)
    texts = fake.texts[[fake.class_names.index(name) for name in names]]
    writer = CacheWriter(
        path, spec, plan, np.repeat(texts[:, None], len(spec.prompts), axis=1), shard_size=40
    )
    for shard, todo in writer.pending_shards():
        outcomes = {
            r: replace(writer.records[r], status="ok", frames=9, indices=(0, 2, 4, 6), fps=25.0) for r in todo
        }
        writer.commit(shard, outcomes, {"final": fake.arrays["final"][rows][list(todo)]})
    return writer.finish()


def _run(path: Path, cache: Path, **settings: Any) -> Path:
    """A run of a head with nothing to train, scored on a few episodes."""
    data = Data(open_cache(cache), device="cpu")
    config: TrainConfig = resolve_config(
        overrides={"device": "cpu", "val_episodes": 10, "way": 3, "queries": 1, **settings}
    )
    train(data, config, path, log=silent)
    evaluate(path, episodes=20, device="cpu", log=silent)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder: the names that the pages use."""
    root = tmp_path_factory.mktemp("reader")
    for k, action in enumerate(ACTIONS):
        for i in range(4):
            _clip(root / "my_clips" / action / f"{i}.mp4", k, 10 * k + i)
    _clip(root / "new.mp4", 0, 99)
    _clip(root / "more_clips" / "another.mp4", 1, 98)
    _clip(root / "match.mp4", 2, 97, 60)
    (root / "my_splits.json").write_text(json.dumps({"train": ACTIONS[:3], "val": [], "test": ACTIONS[3:]}))
    caches = root / "clipspm_data" / "caches"
    hands = _cache(caches / "hands.zarr", "hmdb51")
    for name in ("CACHE", "PATH", "a.zarr"):
        shutil.copytree(hands, root / name)
    _cache(root / "part1.zarr", "hmdb51", slice(0, 48))
    _cache(root / "part2.zarr", "hmdb51", slice(48, None))
    runs = root / "runs"
    _run(root / "RUN", hands, head="frame-cosine")
    shutil.copytree(root / "RUN", root / "clipspm_data" / "runs" / "RUN")
    _run(runs / "full", hands, head="frame-cosine")
    _run(runs / "without-padm", hands, head="prototype")
    return root


@pytest.fixture(scope="module", autouse=True)
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """CLIP's weights are those of a tiny random encoder."""
    model = tiny_local_dir(tmp_path_factory.mktemp("clip") / "tiny")

    def load(name: str, pretrained: str | None) -> LoadedModel:
        return load_model(model, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "load_model", load)
        yield


def run_python(block: Block, names: dict[str, Any], folder: Path) -> None:
    """Execute a block of a page in the names that earlier blocks of the page left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CLIPSPM_HOME", str(folder / "clipspm_data"))
        lines = "\n" * block.line + block.text  # so that a traceback names the page's line
        exec(compile(lines, str(ROOT / block.page), "exec"), names)


def run_commands(block: Block, folder: Path) -> None:
    """Call each command line; ``RUN...`` stands for one run."""
    for program, *words in block.commands():
        assert program == "clipspm", f"{block.page}:{block.line}: {program} is not run here: mark the block"
        args = [word.removesuffix("...") for word in words]
        result = clipspm(*args, home=folder / "clipspm_data", folder=folder)
        assert result.returncode == 0, f"{block.page}:{block.line}: {' '.join(words)}: {result.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_or_says_why_not(page: Path, folder: Path) -> None:
    (folder / "clipspm_data" / "caches" / "hands.zarr" / "ledger.jsonl").touch()  # the newest
    clips = sorted((folder / "my_clips").rglob("*.mp4"))
    names: dict[str, Any] = {"paths": clips, "labels": [path.parent.name for path in clips]}
    for block in blocks(page):
        if block.reason:
            assert block.reason in REASONS, f"{block.page}:{block.line}: {block.reason} is no reason"
        elif block.language == "python":
            run_python(block, names, folder)
        elif block.language == "json":
            json.loads(block.text)
        else:
            assert block.language in {"", "bash"}, f"{block.page}:{block.line}: what is {block.language}?"
            run_commands(block, folder)


def test_the_reader_of_the_specification_reads_what_the_package_reads(folder: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "cache.md"):
        run_python(block, names, folder)
    cache = open_cache(folder / names["root"])
    assert np.array_equal(names["features"], cache.features("final"))
    assert np.array_equal(names["text"].mean(1), cache.text())
    assert tuple(names["names"]) == cache.class_names
    assert [names["videos"][row]["id"] for row in names["good"]] == [video.id for video in cache.good]


def test_the_specification_has_every_field(folder: Path) -> None:
    """What is in a cache's files is in the tables of the specification, and nothing else."""
    text = (ROOT / "docs" / "cache.md").read_text("utf-8")

    def fields(title: str) -> set[str]:
        part = text[text.index(f"### {title}") :]
        table = part[: part.index("\n\n", part.index("|---"))]
        cells = re.findall(r"^\| ([^|]*) \|", table, re.M)
        return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}

    hands = folder / "clipspm_data" / "caches" / "hands.zarr"
    spec = json.loads((hands / "spec.json").read_text())
    later = {"crop_width", "resize_mode", "fill", "names", "descriptions", "logit_scale", "logit_bias"}
    assert fields("`spec.json`") == {*spec, *later}
    lines = [json.loads(line) for line in (hands / "ledger.jsonl").read_text().splitlines()]
    assert fields("`ledger.jsonl`") == {key for line in lines for key in line}
    files = {path.relative_to(hands).parts[0] for path in hands.rglob("*") if path.is_file()}
    assert all(f"`{name}" in text for name in files)


def test_chunks_are_files_of_plain_values_and_the_same_in_hdf5(folder: Path, tmp_path: Path) -> None:
    """What the specification says to readers without a library for Zarr, and to those of HDF5."""
    hands = folder / "clipspm_data" / "caches" / "hands.zarr"
    size, last = 40, 96 - 2 * 40
    every = open_cache(hands).features("final")
    for chunk, rows in enumerate((size, size, last)):
        data = (hands / f"layers/final/c/{chunk}/0/0/0").read_bytes()
        values = np.frombuffer(data[:-4], "<f2").reshape(size, *every.shape[1:])
        assert np.array_equal(values[:rows], every[chunk * size : chunk * size + rows])
        assert not values[rows:].any()
    assert clipspm("cache", "convert", hands, tmp_path / "hands.h5", home=tmp_path).returncode == 0
    with h5py.File(tmp_path / "hands.h5") as file:
        assert np.array_equal(file["layers/final"], every) and file["layers/final"].chunks[0] == size
        for name in ("spec.json", "classes.json", "videos.jsonl", "ledger.jsonl"):
            assert file[name][...].tobytes() == (hands / name).read_bytes()
        facts = {"class_names", "class_splits", "video_ids", "labels"}
        assert {*file} == {
            "spec.json",
            "classes.json",
            "videos.jsonl",
            "ledger.jsonl",
            "layers",
            "text",
            *facts,
        }
        assert [*file.attrs] == ["fingerprint"]


def _check_flags(words: list[str], where: str) -> None:
    """Every option in a command line is one of the command's."""
    command = COMMANDS
    for word in words:
        if re.match(r"--?[a-z]", word):
            known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
            assert word.partition("=")[0] in known, f"{where}: no option {word}"
        elif (inner := getattr(command, "commands", {})) and word != "COMMAND":
            assert word in inner, f"{where}: there is no command {word}"
            command = inner[word]


def test_every_option_that_the_pages_name_exists() -> None:
    for block in BLOCKS:
        if block.language in {"", "bash"} and block.reason != "listing":
            for words in block.commands():
                if words[0] == "clipspm":
                    _check_flags(words[1:], f"{block.page}:{block.line}")
    for page in PAGES:
        for line, text in enumerate(page.read_text("utf-8").splitlines(), 1):
            for span in re.findall(r"`clipspm ([^`]*)`", text):
                _check_flags(span.split(), f"{page.name}:{line}")


def test_an_option_that_is_gone_is_found() -> None:
    with pytest.raises(AssertionError, match="no option --frobnicate"):
        _check_flags(["cache", "verify", "PATH", "--frobnicate"], "x.md:1")
    with pytest.raises(AssertionError, match="no command bake"):
        _check_flags(["cache", "bake"], "x.md:1")


def test_a_block_that_cannot_run_is_found(folder: Path) -> None:
    for text, why in {
        "pip install clipspm\n": "mark the block",
        "clipspm cache info none\n": "no cache at none",
    }.items():
        with pytest.raises(AssertionError, match=f"x.md:7.*{why}"):
            run_commands(Block("x.md", 7, "bash", text, ""), folder)


def test_most_blocks_are_run() -> None:
    skipped = [block for block in BLOCKS if block.reason]
    assert len(skipped) < len(BLOCKS) / 2
    assert {block.reason for block in skipped} <= set(REASONS)
