"""What the benchmark of stage one compares is the same: frames, encoder, and features to within float16."""

from pathlib import Path

import pytest
import torch

from benchmarks.extract import Options, local_encoder, measure, medians
from clipspm.extract.demo import tiny_clip_source
from clipspm.extract.encoder import Encoder


@pytest.mark.slow
def test_features_are_within_a_hundredth_of_the_plain_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path))  # the measurement sets its own
    threads = torch.get_num_threads()
    options = Options(clips=5, plain=3, rounds=1, threads=1, workers=1, model=tiny_clip_source())
    try:
        found = measure(options, tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert found["error"]["largest"] < 1e-2
    middle = found["median"]
    assert middle["ratio"] == pytest.approx(middle["package"] / middle["plain"])
    assert all(middle[rate] > 0 for rate in ("plain", "package", "after_start", "decoding", "encoding"))


def test_an_architecture_gets_random_weights_that_give_finite_features(tmp_path: Path) -> None:
    encoder = Encoder(
        local_encoder(tmp_path / "encoder", "mobilenetv2"), None, precision="fp32", device="cpu"
    )
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    features = encoder.encode_images(pixels)["final"]
    assert features.shape == (2, 512) and features.isfinite().all() and features.std() > 1e-3


def test_medians_are_taken_inside_shares_too() -> None:
    rounds = [{"plain": x, "share": {"encoding": x / 10}} for x in (1.0, 5.0, 2.0)]
    assert medians(rounds) == {"plain": 2.0, "share": {"encoding": 0.2}}
