"""Train the tiny CLIP of the demo on captioned stills.

``python -m tools.train_encoder --out DIR`` writes a folder that open_clip loads as
``local-dir:DIR``: ``open_clip_config.json`` and ``open_clip_model.safetensors`` (float16).

The vocabulary needs no file. open_clip's tokenizer reads its merges from ``bpe_path``; an empty file
(``/dev/null``, which exists everywhere) leaves the 512 byte tokens, and the caption words are additional
special tokens from the config, one id each. Special tokens have higher ids than the end of text, so the text
tower pools at ``eos_id``, not at argmax.
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

from clipspm.extract.demo.shapes import KINDS
from tools.stills import (
    ASPECTS,
    COLOURS,
    COLUMNS,
    COVERED,
    LIGHTS,
    NOTCHES,
    OPACITIES,
    ROWS,
    SIZES,
    WORDS,
    Stills,
    draw_stills,
    tilts,
)

MEAN, STD = (0.45, 0.45, 0.45), (0.3, 0.3, 0.3)
IMAGE = 48  # pixels per side of the encoder's input
PATCH = 8
BYTE_TOKENS, MARKS = 512, 2  # token ids before those of words: bytes, then start and end of text


def clip_config() -> dict[str, Any]:
    """The content of ``open_clip_config.json``."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": IMAGE,
                "patch_size": PATCH,
                "width": 128,
                "layers": 3,
                "head_width": 32,
                "pool_type": "avg",
            },
            "text_cfg": {
                "context_length": 28,
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


def _place_code(width: int) -> torch.Tensor:
    """The initial positional embedding: sines and cosines of the patch's column and row.

    From a random one, the tower takes far longer to learn positions.  [1 + patches, width]
    """
    cells = IMAGE // PATCH
    line = (torch.arange(cells) + 0.5) / cells
    phase = math.pi * line[:, None] * torch.linspace(0.5, cells / 2, width // 4)
    code = torch.cat([phase.sin(), phase.cos()], dim=1)  # [cells, width / 2]
    rows, columns = code[:, None].expand(-1, cells, -1), code[None].expand(cells, -1, -1)
    patches = torch.cat([columns, rows], dim=2).reshape(cells * cells, width)
    return torch.cat([torch.zeros(1, width), patches]) * 0.5


def to_input(images: torch.Tensor) -> torch.Tensor:
    """Preprocess stills like the extractor: short side 8/7 of the crop, centre crop, normalised.

    uint8 ``[N, S, S, 3]`` to float ``[N, 3, IMAGE, IMAGE]``.
    """
    short = round(IMAGE * 8 / 7)
    planes = images.permute(0, 3, 1, 2).float() / 255
    planes = F.interpolate(planes, size=(short, short), mode="bicubic", antialias=True).clamp(0, 1)
    edge = (short - IMAGE) // 2
    planes = planes[:, :, edge : edge + IMAGE, edge : edge + IMAGE]
    return (planes - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class WordReader(torch.nn.Module):
    """Predicts each attribute's word from the image embedding; an auxiliary loss, used only in training.

    The contrastive loss alone learns slowly from few stills; predicting the words as well is faster.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        kinds = {kind: [f"{kind} {step}" for step in tilts(kind)] for kind in KINDS}
        names = {
            "backdrop": ("dark", "bright"),
            "light": LIGHTS,
            "bar": ("upright", "level"),
            "bar_place": (*COLUMNS, *ROWS),
            "covered": COVERED,
            "kind": KINDS,
            "tilt": [word for words in kinds.values() for word in words],
            "size": SIZES,
            "opacity": OPACITIES,
            "aspect": ASPECTS,
            "colour": COLOURS,
            "row": ROWS,
            "column": COLUMNS,
            "notch": NOTCHES,
            "other": KINDS,
            "other_colour": COLOURS,
            "other_row": ROWS,
            "other_column": COLUMNS,
        }
        self.index = {name: {word: i for i, word in enumerate(words)} for name, words in names.items()}
        self.readers = torch.nn.ModuleDict(
            {name: torch.nn.Linear(width, len(w)) for name, w in names.items()}
        )

    def forward(self, image: torch.Tensor, words: list[dict[str, str]]) -> torch.Tensor:
        """Mean cross-entropy over the attributes in ``words``; ``image`` is ``[N, width]``."""
        losses = []
        for name, reader in self.readers.items():
            seen = [i for i, said in enumerate(words) if name in said]
            if seen:
                labels = [
                    f"{words[i]['kind']} {words[i][name]}" if name == "tilt" else words[i][name] for i in seen
                ]
                target = torch.tensor([self.index[name][label] for label in labels])
                losses.append(F.cross_entropy(reader(image[seen]), target))
        return torch.stack(losses).mean()


def _batches(steps: int, *, groups: int, variants: int, seed: int) -> Iterator[Stills]:
    """Yield the stills of every step, drawn one step ahead, each step with its own generator."""

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
    out: Path, *, steps: int = 1200, groups: int = 96, variants: int = 4, lr: float = 3e-3, seed: int = 0
) -> None:
    """Train on ``steps`` batches of ``groups * variants`` stills with the CLIP loss, and write ``out``."""
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    config = clip_config()
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    model = open_clip.model.CLIP(**config["model_cfg"])
    with torch.no_grad():
        model.visual.positional_embedding.copy_(_place_code(model.visual.positional_embedding.shape[1]))
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    reader = WordReader(config["model_cfg"]["embed_dim"])
    parameters = [*model.parameters(), *reader.parameters()]
    decayed = [p for p in parameters if p.ndim >= 2]
    plain = [p for p in parameters if p.ndim < 2]
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
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        naming = reader(image * math.sqrt(image.shape[1]), stills.words)
        loss = contrast + 4 * naming
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        recent.append([contrast.item(), naming.item(), (logits.argmax(1) == target).float().mean().item()])
        if (step + 1) % 50 == 0 or step + 1 == steps:
            contrast_loss, naming_loss, hits = np.mean(recent, axis=0)
            recent = []
            print(
                f"step {step + 1}/{steps}  contrast {contrast_loss:.3f}  naming {naming_loss:.3f}"
                f"  caption found {hits:.1%}  {time.monotonic() - started:.0f} s",
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
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads, besides one for drawing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cuda.enable_flash_sdp(False)  # affects CPUs too: its backward is slower there
    train(args.out, steps=args.steps, seed=args.seed)


if __name__ == "__main__":
    main()
