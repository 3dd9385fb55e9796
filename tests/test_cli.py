"""The command line: typical mistakes are one clear line; the three commands work on real video."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipspm import __version__ as clipspm_version
from clipspm.cache import open_cache
from clipspm.train_heads.heads.registry import HEADS
from clipspm.train_heads.runs import Run
from tests.support.cli import assert_one_clear_line, clipspm
from tests.support.media import numbered_frames, tiny_local_dir, write_video


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def model(home: Path) -> str:
    return tiny_local_dir(home / "tiny")


@pytest.fixture(scope="module")
def videos(home: Path) -> Path:
    root = home / "my clips"
    for c, name in enumerate(("wave", "run", "jump", "clap", "sit", "fall")):
        for i in range(5):
            write_video(root / name / f"{i}.mp4", numbered_frames(20 + 5 * c + i, 40 + 2 * i, 56))
    return root


@pytest.fixture(scope="module")
def splits(home: Path) -> Path:
    path = home / "splits.json"
    path.write_text(json.dumps({"train": ["wave", "run", "jump"], "test": ["clap", "sit", "fall"]}))
    return path


@pytest.fixture(scope="module")
def cache(home: Path, model: str, videos: Path, splits: Path) -> Path:
    result = clipspm(
        "extract", "--dataset", "folder", "--videos", videos, "--splits", splits, "--model", model,
        "--precision", "fp32", "--layers", "1,final", "--json", home=home,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return home / json.loads(result.stdout)["path"]


def test_the_installed_command() -> None:
    script = Path(sys.executable).with_name("clipspm")
    shown = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert shown.stdout.strip() == clipspm_version
    wrong = subprocess.run([script, "cach"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert len(wrong.stderr.strip().splitlines()) == 1


FEW = (
    "--episodes",
    "32",
    "--way",
    "3",
    "--set",
    "pool=false",
    "--set",
    "heads=2",
    "--set",
    "head_width=8",
    "--set",
    "ffn_width=16",
)


def test_extract_train_eval_ablate(home: Path, cache: Path) -> None:
    run = home / "run"
    trained = clipspm("train-heads", "--shots", "3", "--run-dir", run, "--json", *FEW, home=home)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["selection"] == "none"
    assert str(cache.name) in trained.stderr  # it says which cache it took
    assert "no validation classes" in trained.stderr
    for name in ("config.json", "metrics.jsonl", "last.safetensors", "results.json"):
        assert (run / name).is_file()
    resumed = clipspm("train-heads", "--run-dir", run, "--resume", "--json", home=home)
    assert resumed.returncode == 0, resumed.stderr  # with the settings it was begun with
    assert json.loads(resumed.stdout)["config"] == json.loads(trained.stdout)["config"]
    scored = clipspm("eval", run, "--test-episodes", "200", "--json", home=home)
    assert scored.returncode == 0, scored.stderr
    found = json.loads(scored.stdout)
    assert set(found["protocols"]) == {"inductive", "transductive"}
    assert found["cache_fingerprint"] == open_cache(cache).spec.fingerprint
    ablated = [
        clipspm(
            "ablate",
            "--drop",
            "padm",
            "--drop",
            "padm+spm",
            "--test-episodes",
            "100",
            "--json",
            *FEW,
            home=home,
        )
        for _ in range(2)
    ]
    for result in ablated:
        assert result.returncode == 0, result.stderr
    first, second = (json.loads(r.stdout) for r in ablated)
    assert [row["name"] for row in first["rows"]] == ["full", "without padm", "without spm+padm"]
    assert first == second
    assert "32/32 episodes" in ablated[0].stderr
    assert "32/32 episodes" not in ablated[1].stderr  # finished cells are not trained again


def test_a_head_is_scored_as_it_is(home: Path, cache: Path) -> None:
    asked = ("eval", "--head", "evidence", "--cache", cache, "--way", "3", "--test-episodes", "50", "--json")
    first, again = (clipspm(*asked, home=home) for _ in range(2))
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert (found["head"], found["selection"], found["way"]) == ("evidence", "none", 3)
    assert 0 <= found["protocols"]["inductive"]["reliability"]["ece"] < 1
    assert json.loads(again.stdout) == found
    assert "is finished already" in again.stderr  # the same run


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((), "name a run of train-heads, or with --head NAME a head"),
        (("RUN", "--head", "otam"), "(not both)"),
        (("--head", "evidense"), "unknown head 'evidense'; did you mean evidence?"),
    ],
)
def test_what_is_scored_is_one_thing(home: Path, asked: tuple[str, ...], says: str) -> None:
    done = clipspm("eval", *asked, home=home)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_setting_may_be_written_as_yaml_does_not_read_it(home: Path, cache: Path) -> None:
    """YAML reads 1e-1 as text."""
    done = clipspm(
        "train-heads", "--cache", cache, *FEW, "--set", "alpha=1e-1", "--json", "--run-dir", home / "alpha", home=home
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before = {*home.rglob("report.html")}
    weights = Run.open(home / "alpha")
    assert weights.load_head().config.alpha == 0.1  # type: ignore[attr-defined]
    rows = clipspm(
        "ablate", "--cache", cache, *FEW, "--set", "alpha=1e-1", "--drop", "padm", "--test-episodes", 5, "--json",
        "--no-report", home=home,
    )  # fmt: skip
    assert rows.returncode == 0, rows.stderr
    assert {*home.rglob("report.html")} == before


def test_a_run_is_named_after_its_cache_and_found_by_its_name(home: Path, cache: Path) -> None:
    done = clipspm("train-heads", "--cache", cache, "--head", "prototype", "--way", 3, "--json", home=home)
    assert done.returncode == 0, done.stderr
    name = Path(json.loads(done.stdout)["run_dir"]).name
    assert name.startswith("my-clips-") and cache.stem[-8:] not in name
    assert clipspm("eval", name, "--test-episodes", 5, home=home).returncode == 0
    assert_one_clear_line(clipspm("eval", "my-clip", home=home), "there is no run my-clip; at ", name, code=2)


def test_what_a_run_cannot_be_scored_on_is_said_before_torch_is_loaded(
    home: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    clipspm("train-heads", "--cache", cache, "--head", "prototype", "--way", 3, "--run-dir", run, home=home)
    monkeypatch.setattr("clipspm.cli.load_torch", lambda threads: pytest.fail("PyTorch would be loaded"))
    wrong = clipspm("eval", run, "--queries", 100, home=home)
    assert_one_clear_line(wrong, "has 5 usable videos, 1 shots + 100 queries need 101", code=2)
    assert_one_clear_line(clipspm("eval", run, "--way", 4, home=home), "--way 3", code=2)


def test_heads_are_listed_without_torch(home: Path) -> None:
    listed = clipspm("heads", home=home)
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == list(HEADS)
    assert all(len(line) <= 80 for line in listed.stdout.splitlines())
    assert clipspm("train-heads", "--head", "list", home=home) == listed
    rows = json.loads(clipspm("heads", "--json", home=home).stdout)["heads"]
    assert {row["name"]: row["trained"] for row in rows} == {n: h.trained for n, h in HEADS.items()}
    script = (
        "import sys, clipspm.cli as c, clipspm.train_heads.config\n"
        "c.app(['heads'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    alone = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert alone.returncode == 0, alone.stderr


def test_ablation_of_several_shots_is_planned_and_run(home: Path, cache: Path, tmp_path: Path) -> None:
    asked = (
        "ablate", "--cache", cache, "--drop", "padm", "--against", "prototype", "--shots", "1,2", "--seeds", "0,1",
        "--test-episodes", 20, "--out", tmp_path / "a", *FEW,
    )  # fmt: skip
    planned = clipspm(*asked, "--dry-run", home=home)
    assert planned.returncode == 0, planned.stderr
    assert "cells: 10 to train" in planned.stdout and str(cache) in planned.stdout
    assert json.loads(clipspm(*asked, "--dry-run", "--json", home=home).stdout)["cells"]["to train"] == 10
    assert not (tmp_path / "a").exists()
    done = clipspm(*asked, home=home)
    assert done.returncode == 0, done.stderr
    assert "2-shot, transductive" in done.stdout and "chance: 33.3 % (3-way)" in done.stdout
    assert json.loads((tmp_path / "a" / "ablation.json").read_text())["shots"] == [1, 2]
    assert f"report: {tmp_path / 'a' / 'report.html'}" in done.stderr
    page = (tmp_path / "a" / "report.html").read_text("utf-8")
    assert "Accuracy over shots. full: " in page and "without padm, seed 1" in page
    assert "cells: 10 finished" in clipspm(*asked, "--dry-run", home=home).stdout
    for option in ("--shots", "--seeds"):
        wrong = clipspm(*asked, option, "1,x", "--dry-run", home=home)
        assert_one_clear_line(wrong, f"{option} '1,x': expected whole numbers", code=2)
    assert_one_clear_line(clipspm(*asked, "--shots", "1,0", "--dry-run", home=home), "shots is 0", code=2)


def test_a_second_extraction_does_nothing(
    home: Path, model: str, videos: Path, splits: Path, cache: Path
) -> None:
    again = clipspm(
        "extract", "--dataset", "folder", "--videos", videos, "--splits", splits, "--model", model,
        "--precision", "fp32", "--layers", "1,final", "--json", home=home,
    )  # fmt: skip
    assert (json.loads(again.stdout)["done"], json.loads(again.stdout)["already"]) == (0, 30)


def test_cache_commands(home: Path, cache: Path) -> None:
    info = json.loads(clipspm("cache", "info", cache, "--json", home=home).stdout)
    assert info["videos"] == {"ok": 30}
    assert info["splits"]["train"] == {"classes": 3, "videos": 15, "expected": 15}
    listed = json.loads(clipspm("cache", "list", "--json", home=home).stdout)
    assert [c["fingerprint"] for c in listed["caches"]] == [info["fingerprint"]]
    plain = clipspm("cache", "info", cache, home=home)
    assert info["fingerprint"] in plain.stdout


def test_skipped_videos_are_a_table_and_exit_code_3(
    home: Path, model: str, videos: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad" / "wave"
    bad.mkdir(parents=True)
    (bad / "broken.mp4").write_text("no video")
    (bad / "good.mp4").write_bytes((videos / "wave" / "0.mp4").read_bytes())
    result = clipspm(
        "extract", "--dataset", "folder", "--videos", bad.parent, "--model", model, "--precision", "fp32",
        "--out", tmp_path / "c.zarr", "--json", home=home,
    )  # fmt: skip
    assert result.returncode == 3
    assert json.loads(result.stdout)["failed_by_category"] == {"unreadable": 1}
    assert "broken.mp4" in result.stderr
    assert len(open_cache(tmp_path / "c.zarr").good) == 1


@pytest.mark.parametrize(
    ("args", "parts", "code"),
    [
        (("extract", "--dataset", "hmdb51", "--videos", "nowhere"), ("nowhere", "one folder per class", "https://"), 1),
        (("extract", "--dataset", "folder", "--videos", "{empty}"), ("{empty}", "one folder per class"), 1),
        (("extract", "--dataset", "imagenet"), ("'imagenet'", "hmdb51"), 2),
        (("extract", "--dataset", "folder", "--videos", "{videos}", "--splits", "{wrong}"), ("'fly'", "{wrong}"), 1),
        (("extract", "--dataset", "folder", "--videos", "{videos}", "--model", "{model}", "--layers", "9"), ("layer 9", "0 to 2"), 2),
        (("extract", "--dataset", "folder", "--videos", "{videos}", "--model", "{model}", "--layers", "x"), ("'x'",), 2),
        (("extract", "--dataset", "folder", "--videos", "{videos}", "--model", "ViT-B-61"), ("ViT-B-61", "ViT-B-16"), 2),
        (("extract", "--dataset", "folder", "--videos", "{videos}", "--frames", "0"), ("--frames", "0"), 2),
        (("extract", "--dataset", "folder", "--videos", "{videos}", "--model", "{model}", "--out", "/proc/x.zarr"), ("/proc",), 1),
        (("extract",), ("--dataset",), 2),
        (("train-heads", "--cache", "nope.zarr"), ("nope.zarr",), 1),
        (("doctor", "nowhere"), ("there is no run nowhere",), 2),
        (("train-heads", "--cache", "splits.json"), ("splits.json", "neither"), 1),
        (("train-heads", "--dataset", "ucf101"), ("ucf101", "clipspm extract"), 1),
        (("train-heads", "--cache", "{cache}", "--way", "5"), ("3", "5"), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--shots", "5"), ("'jump'", "5", "6"), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--frames", "16"), ("16", "8"), 2),
        (("train-heads", "--cache", "{cache}", "--head", "protonet"), ("'protonet'", "prototype"), 2),
        (("train-heads", "--cache", "{cache}", "--recipe", "offical"), ("'offical'", "official"), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--set", "matcher=dtw"), ("matcher", "otam"), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--set", "matcher"), ("KEY=VALUE",), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--set", "heads=four"), ("setting heads: found 'four'; needed a whole number",), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--set", "hed=4"), ("unknown setting 'hed'; did you mean heads?",), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--head", "trx", "--set", "dropuot=0"), ("unknown setting 'dropuot'; did you mean dropout?",), 2),
        (("ablate", "--cache", "{cache}", "--way", "3", "--drop", "padm", "--set", "heads=four"), ("found 'four'; needed a whole number",), 2),
        (("ablate", "--cache", "{cache}", "--way", "3", "--drop", "padm", "--set", "hed=4"), ("did you mean heads?",), 2),
        (("train-heads", "--cache", "{cache}", "--splits", "{wrong}"), ("'fly'",), 1),
        (("eval", "nowhere"), ("there is no run nowhere",), 2),
        (("eval", "{videos}"), ("is not a run directory: it holds no config.json",), 2),
        (("ablate", "--cache", "{cache}", "--way", "3"), ("--drop",), 2),
        (("ablate", "--cache", "{cache}", "--way", "3", "--drop", "pdam"), ("'pdam'", "padm"), 2),
        (("ablate", "--cache", "{cache}", "--way", "3", "--drop", "padm", "--seeds", "a"), ("--seeds", "0,1,2"), 2),
        (("cache", "info", "{videos}"), ("not a cache",), 1),
        (("cach",), ("cach",), 2),
        (("extract", "--dataset", "hmdb15"), ("hmdb15", "did you mean hmdb51"), 2),
        (("extract", "--dataset", "hmdb51", "--frames", "-4"), ("--frames is -4; it must be at least 1",), 2),
        (("extract", "--dataset", "folder", "--videos", "wrong place"), ("wrong place does not exist",), 1),
        (("extract", "--dataset", "folder", "--videos", "{videos}/wave"), ("lie directly in", "-> "), 1),
        (("extract", "--dataset", "folder", "--videos", "{videos}", "--gpus", "1"), ("--device cuda:0,cuda:1",), 2),
        (("extract", "--dataset", "manifest", "--videos", "{videos}"), ("takes a CSV file",), 1),
        (("extract", "--dataset", "folder", "--videos", "{videos}", "--splits", "none.json"), ("none.json", "No such file"), 1),
        (("extract", "--fames", "8"), ("--fames", "--frames"), 2),
        (("train-heads", "--set", "hed=4"), ("'hed'; did you mean heads?",), 2),
        (("train-heads", "--set", "heads=four"), ("heads: found 'four'; needed a whole number",), 2),
        (("train-heads", "--config", "none.yaml"), ("none.yaml", "No such file"), 2),
        (("train-heads", "--lr", "fast"), ("--lr",), 2),
        (("train-heads", "--way", "1"), ("way is 1; it must be at least 2",), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--threads", "0"), ("--threads is 0",), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--device", "gpu"), ("'gpu'", "cuda"), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--device", "cuda:7"), ("'cuda:7' is not available",), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--seed", "5", "--resume"), ("nothing to resume", "leave --resume out"), 2),
        (("train-heads", "--cache", "{cache}", "--way", "3", "--set", "shallow_layer=2"), ("'2'", "--layers 1,2,final"), 2),
        (("ablate", "--cache", "{cache}", "--way", "3", "--drop", "padm", "--shots", "1,x"), ("--shots '1,x'",), 2),
        (("ablate", "--cache", "{cache}", "--way", "3", "--against", "protonet"), ("'protonet'; did you mean prototype?",), 2),
        (("results", "nowhere"), ("nowhere is not a folder of runs",), 2),
        (("compare", "a", "b"), ("there is no run a",), 2),
        (("cache", "info", "nothing"), ("no cache at nothing",), 1),
        (("cache", "convert", "{cache}", "{cache}"), ("exists already",), 2),
        (("datasets", "check", "hmdb15"), ("did you mean hmdb51",), 2),
        (("episodes", "show", "nothing.npz"), ("nothing.npz", "No such file"), 1),
        (("episodes", "make", "--cache", "{cache}", "--out", "x.npz"), ("5 classes", "--way 3"), 2),
        (("import-checkpoint", "nothing.pt", "--preset", "hmdb51", "--out", "r"), ("nothing.pt",), 1),
    ],
    ids=lambda value: " ".join(map(str, value))[:60] if isinstance(value, tuple) else str(value),
)  # fmt: skip
def test_likely_mistakes(home: Path, videos: Path, model: str, cache: Path, args, parts, code: int) -> None:  # type: ignore[no-untyped-def]
    (home / "empty").mkdir(exist_ok=True)
    (home / "wrong.json").write_text(json.dumps({"train": ["wave", "fly"]}))
    places = {
        "videos": videos,
        "model": model,
        "cache": cache,
        "empty": home / "empty",
        "wrong": home / "wrong.json",
    }
    filled = [str(a).format(**places) for a in args]
    result = clipspm(*filled, home=home)
    assert_one_clear_line(result, *(p.format(**places) for p in parts), code=code)


@pytest.mark.slow
def test_real_video_from_extract_to_ablate(shared_dir: Path, home: Path, tmp_path: Path) -> None:
    splits = tmp_path / "s.json"
    splits.write_text(json.dumps({"train": ["hug", "kick", "push"], "test": ["handshake", "point", "punch"]}))
    extracted = clipspm(
        "extract", "--dataset", "folder", "--videos", shared_dir / "videos" / "ut_interaction",
        "--model", f"local-dir:{shared_dir / 'weights' / 'mobilenetv2-in1k'}", "--layers", "1,3,final",
        "--splits", splits, "--limit", "36", "--frames", "4", "--out", tmp_path / "ut.zarr", home=home,
    )  # fmt: skip
    assert extracted.returncode == 0, extracted.stderr
    few = (*FEW, "--cache", tmp_path / "ut.zarr")
    trained = clipspm("train-heads", "--shots", "3", "--run-dir", tmp_path / "run", *few, home=home)
    assert trained.returncode == 0, trained.stderr
    ablated = clipspm(
        "ablate", "--drop", "padm", "--test-episodes", "50", "--out", tmp_path / "a", *few, home=home
    )
    assert ablated.returncode == 0, ablated.stderr
    assert "without padm" in ablated.stdout


# -------------------------------------------------------------------------------------------- many caches


def test_verify_repair_convert_merge_pack_export(home: Path, model: str, cache: Path, tmp_path: Path) -> None:
    assert clipspm("cache", "verify", cache, home=home).returncode == 0
    report = json.loads(clipspm("cache", "verify", cache, "--json", home=home).stdout)
    assert report["ok"] and report["findings"] == []
    copy = tmp_path / "copy.h5"
    assert clipspm("cache", "convert", cache, copy, home=home).returncode == 0
    assert open_cache(copy).videos == open_cache(cache).videos
    assert clipspm("cache", "pack", copy, tmp_path / "packed", home=home).returncode == 0
    assert clipspm("cache", "export", copy, tmp_path / "e.npz", home=home).returncode == 0
    merged = clipspm("cache", "merge", copy, tmp_path / "packed", "--out", tmp_path / "m", home=home)
    assert merged.returncode == 0
    damaged = bytearray(copy.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    copy.write_bytes(bytes(damaged))
    found = clipspm("cache", "verify", copy, home=home)
    assert found.returncode == 1 and "findings" in found.stdout and "Traceback" not in found.stderr
    assert_one_clear_line(clipspm("cache", "export", cache, tmp_path / "x.csv", home=home), ".npz", code=2)
    assert_one_clear_line(clipspm("cache", "convert", cache, tmp_path / "m", home=home), "exists", code=2)
    assert clipspm("cache", "export", cache, tmp_path / "new" / "x.safetensors", home=home).returncode == 0
    assert_one_clear_line(clipspm("cache", "export", cache, copy / "x.npz", home=home), "copy.h5")
    assert_one_clear_line(clipspm("cache", "verify", tmp_path / "none", home=home), "no cache at")


def test_a_cache_that_is_not_complete_is_refused(home: Path, cache: Path, tmp_path: Path) -> None:
    import shutil

    part = tmp_path / "part"
    shutil.copytree(cache, part)
    (part / "SHA256SUMS").unlink()
    (part / "ledger.jsonl").write_bytes(b"")
    assert_one_clear_line(
        clipspm("train-heads", "--cache", part, home=home), "is not complete", "--allow-partial"
    )
    result = clipspm("train-heads", "--cache", part, "--allow-partial", home=home)
    assert_one_clear_line(result, "need", code=2)  # nothing is left to train on


@pytest.mark.parametrize(
    ("options", "part", "code"),
    [
        (("--max-failures", "many"), "a share like 5%", 2),
        (("--engine", "pbs"), "engine", 2),
        (("--engine", "slurm", "--slurm", "partition"), "expected KEY=VALUE, for example partition=gpu", 2),
        (("--slurm", "partition=gpu"), "needs --engine slurm", 2),
        (("--jobs", "3"), "--jobs needs --engine", 2),
        (("--device", "cpu,cpu", "--engine", "ray"), "several devices", 2),
        (("--decode-timeout", "0"), "--decode-timeout is 0.0; it must be more than 0", 2),
        (("--worker-memory", "0.1"), "--worker-memory is 0.1; it must be at least 0.25", 2),
        (("--threads", "0"), "at least 1", 2),
        (("--threads", "1000000"), "at most 1024", 2),
        (("--device", "foo"), "unknown device 'foo'", 2),
        (("--device", "cpu,meta"), "device 'meta' is not available on this machine", 2),
        (("--out", "."), "names no cache", 2),
        (("--out", "two\nlines.h5"), "names no cache", 2),
        (("--prompts", "/bin/ls"), "not a text file in UTF-8", 1),
        (("--layers", "9" * 5000), "neither a layer number nor 'final'", 2),
        (("--engine", "slurm", "--gpus", "nan"), "--gpus is nan", 2),
    ],
)
def test_wrong_extract_options(
    home: Path, videos: Path, model: str, options: tuple[str, ...], part: str, code: int
) -> None:
    result = clipspm(
        "extract", "--dataset", "folder", "--videos", videos, "--model", model, *options, home=home
    )
    assert_one_clear_line(result, part, code=code)


@pytest.mark.parametrize("name", ["a::b.zarr", "[x] #?&.zarr", os.fsdecode(b"\xfe.h5"), "s3:x.zarr"])
def test_a_cache_may_have_any_name(home: Path, videos: Path, model: str, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    options = ("--limit", 3, "--format", "hdf5" if name.endswith("h5") else "zarr")
    done = clipspm(
        "extract", "--dataset", "folder", "--videos", videos, "--model", model, "--precision", "fp32",
        "--out", out, *options, home=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    verified = clipspm("cache", "verify", out, "--json", home=home)
    assert json.loads(verified.stdout)["ok"], verified.stdout


def test_datasets_lists_the_benchmarks(home: Path) -> None:
    shown = clipspm("datasets", home=home)
    assert shown.returncode == 0 and "ssv2-full" in shown.stdout and "77500/1926/2857" in shown.stdout
    found = json.loads(clipspm("datasets", "--json", home=home).stdout)["datasets"]
    assert found[0]["name"] == "hmdb51" and found[0]["splits"]["test"] == {"classes": 10, "videos": 1292}


def test_datasets_check_says_what_is_missing(home: Path, tmp_path: Path) -> None:
    for i in range(3):
        write_video(tmp_path / "v" / "brush_hair" / f"{i}.avi", numbered_frames(9), codec="mpeg4")
    (tmp_path / "v" / "brush_hair" / "3.avi").touch()
    result = clipspm("datasets", "check", "hmdb51", "--videos", tmp_path / "v", home=home)
    assert result.returncode == 1 and "brush hair" in result.stdout
    assert "51 classes have fewer than 6 usable videos, 'cartwheel' has 0" in result.stdout
    few = clipspm(
        "datasets", "check", "hmdb51", "--videos", tmp_path / "v", "--shots", "2", "--min-frames", "5", "--json",
        home=home,
    )  # fmt: skip
    assert few.returncode == 1  # one class has enough, the fifty others have nothing
    assert [c["class"] for c in json.loads(few.stdout)["classes"] if c["usable"] >= 3] == ["brush hair"]
    (row,) = [c for c in json.loads(few.stdout)["classes"] if c["class"] == "brush hair"]
    assert (row["found"], row["unreadable"], row["usable"]) == (4, 1, 3) and row["missing"] == row[
        "expected"
    ] - 4
    assert_one_clear_line(clipspm("datasets", "check", "hmdb52", home=home), "hmdb51", code=2)
    lists = clipspm(
        "extract", "--dataset", "hmdb51", "--videos", tmp_path / "v", "--split-files", tmp_path, home=home
    )
    assert_one_clear_line(lists, "holds no list of videos")
