"""Train the tiny CLIP of the demo on captioned stills.

``python -m clipspm.extract.demo.train_encoder --out DIR`` writes a folder that open_clip loads as
``local-dir:DIR``: ``open_clip_config.json`` and ``open_clip_model.safetensors`` (float16).

The vocabulary needs no file. open_clip's tokenizer reads its merges from ``bpe_path``; an empty one leaves
the 512 byte tokens, and the caption words come as additional special tokens, one id each, out of the
config itself. ``/dev/null`` is that empty file, the same from every working directory and installation.
Special tokens have higher ids than the end of text, so the text tower pools at ``eos_id``, not at argmax.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .stills import WORDS, Stills, draw_stills

MEAN, STD = (0.45, 0.45, 0.45), (0.3, 0.3, 0.3)
IMAGE = 48  # pixels of a side of the encoder's input
BYTE_TOKENS, MARKS = 512, 2  # the tokenizer's tokens before any word; start and end of text


def clip_config() -> dict[str, Any]:
    """What goes into ``open_clip_config.json``."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {"image_size": IMAGE, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
            "text_cfg": {
                "context_length": 40,
                "vocab_size": BYTE_TOKENS + MARKS + len(WORDS),
                "width": 96,
                "heads": 4,
                "layers": 2,
                "pool_type": "eos",
                "eos_id": BYTE_TOKENS + 1,
                "tokenizer_kwargs": {"bpe_path": "/dev/null", "additional_special_tokens": list(WORDS)},
            },
        },
        "preprocess_cfg": {
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def to_input(images: torch.Tensor) -> torch.Tensor:
    """Stills as the extractor would hand them over: short side 8/7 of the crop, centre crop, normalised.

    uint8 ``[N, S, S, 3]`` to float ``[N, 3, IMAGE, IMAGE]``.
    """
    short = round(IMAGE * 8 / 7)
    planes = images.permute(0, 3, 1, 2).float() / 255
    planes = F.interpolate(planes, size=(short, short), mode="bicubic", antialias=True).clamp(0, 1)
    edge = (short - IMAGE) // 2
    planes = planes[:, :, edge : edge + IMAGE, edge : edge + IMAGE]
    return (planes - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _batches(steps: int, *, groups: int, variants: int, seed: int) -> Iterator[Stills]:
    """Stills for every step, drawn one step ahead; each step has its own generator."""

    def draw(step: int) -> Stills:
        return draw_stills(np.random.default_rng([seed, step]), groups=groups, variants=variants)

    with ThreadPoolExecutor(max_workers=1) as ahead:
        pending = ahead.submit(draw, 0)
        for step in range(1, steps + 1):
            stills = pending.result()
            if step < steps:
                pending = ahead.submit(draw, step)
            yield stills


def train(
    out: Path, *, steps: int = 800, groups: int = 32, variants: int = 16, lr: float = 1.5e-3, seed: int = 0
) -> None:
    """Train on ``steps`` batches of ``groups * variants`` stills with the CLIP loss, and write ``out``."""
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    config = clip_config()
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    model = open_clip.model.CLIP(**config["model_cfg"])
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
    )
    warmup = max(1, min(100, steps // 8))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))),
    )
    started, recent = time.monotonic(), []
    for step, stills in enumerate(_batches(steps, groups=groups, variants=variants, seed=seed)):
        images = to_input(torch.from_numpy(stills.images))
        tokens = tokenizer(stills.captions)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image, text = model.encode_image(images), model.encode_text(tokens)
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        logits = model.logit_scale.exp() * image @ text.T
        target = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        recent.append([loss.item(), (logits.argmax(1) == target).float().mean().item()])
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean_loss, hits = np.mean(recent, axis=0)
            recent = []
            print(
                f"step {step + 1}/{steps}  loss {mean_loss:.3f}  caption found {hits:.1%}"
                f"  {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    (out / "open_clip_model.safetensors").chmod(0o644)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the demo's tiny CLIP on captioned stills.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; drawing has one of its own")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cuda.enable_flash_sdp(False)  # on a CPU too: its backward is slower than plain products
    train(args.out, steps=args.steps, seed=args.seed)


if __name__ == "__main__":
    main()
