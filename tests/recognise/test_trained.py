"""Recognising with the head of a trained run, and as `eval` scores the same episode."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipspm import ClipEncoder, FewShotRecognizer
from clipspm.cache import Cache, open_cache
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract import ExtractConfig, extract
from clipspm.train_heads import EpisodeSpec, build_head, draw, resolve_config, train
from clipspm.train_heads.episodes.data import Data
from clipspm.train_heads.evaluation.predict import scored
from clipspm.train_heads.runs import Run
from tests.recognise.conftest import COLOURS
from tests.support.cli import assert_one_clear_line, clipspm
from tests.support.media import tiny_local_dir


@pytest.fixture(scope="module")
def cache(model: str, support: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    config = ExtractConfig(
        dataset="folder", videos=support, model=model, layers="1,final", frames=4, precision="fp32",
        device="cpu", batch_size=4, out=tmp_path_factory.mktemp("trained") / "cache.zarr",
    )  # fmt: skip
    return open_cache(extract(config).path)


@pytest.fixture(scope="module")
def run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    asked = {"head": "trx", "way": 3, "shots": 1, "queries": 1, "episodes": 4, "frames": 3, "device": "cpu"}
    place = tmp_path_factory.mktemp("runs") / "run"
    train(
        cache.with_splits(dict.fromkeys(COLOURS, "train")),
        resolve_config(dataset="folder", overrides=asked),
        place,
    )
    return place


def test_eval_scores_the_same_episode_to_the_last_digit(
    cache: Cache, encoder: ClipEncoder, support: Path
) -> None:
    """Of a cache that was encoded in the same batches; others differ in the last digit of half precision.

    The classes are in another order, which changes the last digit of single precision.
    """
    data = Data(cache.with_splits(dict.fromkeys(COLOURS, "test")), "cpu")
    head = build_head("evidence", dim=16, frames=4, layer_dims={"1": data.spec.dims["1"]}).eval()
    bank = data.bank("test", head.layers)
    spec = EpisodeSpec(dataset="folder", split="test", way=3, shot=2, queries=1)
    episodes = draw(spec, bank.pool, 3)
    by_eval = next(iter(scored(head, bank, episodes, frames=4, protocol="inductive")))
    for k in range(3):
        one = episodes[k : k + 1]
        paths = [
            [support / f"{bank.pool.ids[row]}.mp4" for row in rows[0]] for rows in (one.support, one.query)
        ]
        names = [path.parent.name for path in paths[0]]
        found = FewShotRecognizer(encoder, unknown="off").fit(paths[0], names)
        order = [list(found.classes_).index(bank.pool.names[c]) for c in one.classes[0]]
        logits = found.classifier_.logits(encoder.transform(paths[1]))[:, order]
        np.testing.assert_allclose(logits, by_eval[k].numpy(), rtol=1e-6, atol=1e-6)


def test_a_trained_head_recognises(
    run: Path, model: str, support: Path, queries: dict[str, Path], tmp_path: Path
) -> None:
    paths = sorted(support.rglob("*.mp4"))
    made = FewShotRecognizer.from_run(run, model=model).fit(paths, [path.parent.name for path in paths])
    assert made.classifier_.head_.state_dict().keys() == Run.open(run).load_head().state_dict().keys()
    made.save_pretrained(tmp_path / "saved")
    made.save_pretrained(tmp_path / "saved")
    opened = FewShotRecognizer.from_pretrained(tmp_path / "saved")
    assert (opened.predict_proba(queries.values()) == made.predict_proba(queries.values())).all()
    assert "head `trx`" in (tmp_path / "saved" / "README.md").read_text()
    assert str(tmp_path) not in (tmp_path / "saved" / "clipspm_head" / "config.json").read_text()


def test_predict_with_a_run(
    run: Path, model: str, support: Path, queries: dict[str, Path], tmp_path: Path
) -> None:
    args = "predict", *queries.values(), "--support", support, "--run", run
    assert_one_clear_line(clipspm(*args, home=tmp_path), "the encoder was local-dir:tiny: say where", code=2)
    result = clipspm(*args, "--model", model, "--json", home=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["predictions"]) == 3
    assert f"head trx of {run}" in result.stderr
    assert_one_clear_line(clipspm(*args, "--head", "evidence", home=tmp_path), "a run has its head", code=2)
    assert_one_clear_line(clipspm(*args[:-1], tmp_path, home=tmp_path), "is not a run directory", code=2)


def test_another_encoder_is_refused(run: Path, cache: Cache, tmp_path: Path) -> None:
    other = tiny_local_dir(tmp_path / "other", seed=1)
    with pytest.raises(ClipspmError, match="makes other features than the cache has: weights_sha256"):
        FewShotRecognizer.from_run(run, model=other)
    with pytest.raises(UsageError, match="say where it is"):
        ClipEncoder.like(replace(cache.spec, model="local-dir:elsewhere"))
