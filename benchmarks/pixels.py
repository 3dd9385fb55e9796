"""What an encoder is shown, beside open_clip's own transform of the same frames.

``python -m benchmarks.pixels --videos FOLDER`` takes the middle frame of each video there and makes it small
in every way that open_clip's published weights ask for: with Pillow, as decoders do, with torch, as
``--resize-on encoder`` does, and with the margin that all had before (the short side at 8/7 of the crop).
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CLAIM = "Encoders are shown the pixels that open_clip shows them (docs/encoders.md)."

Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Published:
    """A preprocessing of open_clip's published weights, how many of them have it, and one of these."""

    config: Mapping[str, Any]
    weights: int
    example: str


def published() -> list[Published]:
    """Every distinct preprocessing among open_clip's pretrained configurations, most used first."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    counts: Counter[tuple[Any, ...]] = Counter()
    examples: dict[tuple[Any, ...], str] = {}
    for name, tag in open_clip.list_pretrained():
        cfg = get_pretrained_cfg(name, tag)
        size = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
        kinds = (cfg.get("resize_mode", "shortest"), cfg.get("interpolation", "bicubic"))
        key = (*kinds, size, tuple(cfg["mean"]), tuple(cfg["std"]), cfg.get("fill_color", 0))
        counts[key] += 1
        examples.setdefault(key, f"{name}, {tag}")
    names = ("resize_mode", "interpolation", "size", "mean", "std", "fill_color")
    return [
        Published(dict(zip(names, key, strict=True)), count, examples[key])
        for key, count in counts.most_common()
    ]


def shown(frame: Frame, config: Mapping[str, Any], *, by: str = "pillow", resize: int | None = None) -> Any:
    """What the package shows an encoder of ``config``: normalised pixels [3, H, W], resized with ``by``."""
    import torch

    from clipspm.extract.encoder import cut_views, preprocessing_of
    from clipspm.extract.views import ClipSettings, cut_of, still

    pre = preprocessing_of(dict(config), resize, "model")
    kept = {
        k: getattr(pre, k) for k in ("resize", "crop", "interpolation", "resize_mode", "crop_width", "fill")
    }
    settings = ClipSettings(frames=1, views=1, flip=False, min_frames=1, **kept)
    if by == "pillow":
        view = torch.from_numpy(still(frame, settings))
    else:
        view = cut_views(torch.from_numpy(frame.copy())[None], cut_of(*frame.shape[:2], "", settings), pre)[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (pre.mean, pre.std))
    return (view.permute(2, 0, 1).float() - mean) / std


def expected(frame: Frame, config: Mapping[str, Any]) -> Any:
    """What open_clip's own transform makes of a frame, [3, H, W]."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    return image_transform_v2(PreprocessCfg(**config), is_train=False)(Image.fromarray(frame))


def differences(
    frames: Sequence[Frame], config: Mapping[str, Any], *, mode: str | None = None, **options: Any
) -> tuple[float, float]:
    """The largest and the mean difference of :func:`shown` from :func:`expected`, in steps of 255.

    ``mode``: the resize mode that is shown, in place of the model's own.
    """
    import torch

    std = torch.tensor(config["std"]).view(3, 1, 1) * 255
    ours = {**config, "resize_mode": mode or config["resize_mode"]}
    gaps = [((shown(f, ours, **options) - expected(f, config)) * std).abs().flatten() for f in frames]
    every = torch.cat(gaps)
    return float(every.max()), float(every.mean())


def covering(config: Mapping[str, Any]) -> dict[str, Any]:
    """``--resize`` with which the package leaves no margin around the crop, as open_clip does."""
    size = config["size"]
    return {"resize": min(size) if isinstance(size, Sequence) else size}


def main() -> None:
    """Print the table."""
    from clipspm.extract.decode import read_frames

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path, required=True, help="a folder of videos")
    options = parser.parse_args()
    files = sorted(p for p in options.videos.rglob("*") if p.suffix in (".avi", ".mp4"))
    frames = [read_frames(path, 1).frames[0] for path in files]
    print(f"{len(frames)} frames; largest and mean difference from open_clip's transform, in steps of 255\n")
    print("| resize mode | interpolation | mean | sizes | weights | like | Pillow | torch | 8/7 margin |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows: dict[tuple[str, str, float], list[Published]] = {}
    for found in published():
        c = found.config
        rows.setdefault((c["resize_mode"], c["interpolation"], c["mean"][0]), []).append(found)
    for (mode, interpolation, mean), alike in rows.items():
        cells = []
        for ways in ({"by": "pillow"}, {"by": "torch"}, {"mode": "shortest"}):
            each = [
                differences(frames, one.config, **ways, **({} if "mode" in ways else covering(one.config)))
                for one in alike
            ]
            cells.append(f"{max(most for most, _ in each):.0f}, {sum(m for _, m in each) / len(each):.3f}")
        sizes = ", ".join(str(size) for size in sorted(one.config["size"] for one in alike))
        name = f"{mode} | {interpolation} | {mean:.2g} | {sizes} | {sum(one.weights for one in alike)}"
        print(f"| {name} | {alike[0].example} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
