"""Make ``extract/encoders.json``, the list that ``clipspm encoders`` shows.

``python -m tools.encoders`` builds every listed model without memory for its weights and passes one image
through it, which gives widths, layers, sizes and multiplications. Names, licences and families are written
here: licences as the repository or timm's registry of the same weights states them.
"""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.pretrained import get_pretrained_cfg
from torch.utils.flop_counter import FlopCounterMode

from clipspm.extract.encoder import preprocessing_of, tower_of
from clipspm.extract.layers import spread
from clipspm.extract.timm_towers import ImageTower

OUT = Path(__file__).parents[1] / "extract" / "encoders.json"
#: model, tag, licence, and the family of tests/extract/test_towers.py that it is of
OPEN_CLIP = (
    ("RN50-quickgelu", "openai", "MIT", "resnet"),
    ("ViT-B-32-quickgelu", "openai", "MIT", "vit"),
    ("ViT-B-16-quickgelu", "openai", "MIT", "vit"),
    ("ViT-L-14-quickgelu", "openai", "MIT", "vit"),
    ("ViT-L-14-336-quickgelu", "openai", "MIT", "vit"),
    ("ViT-B-16", "laion2b_s34b_b88k", "MIT", "vit"),
    ("ViT-B-16", "datacomp_xl_s13b_b90k", "MIT", "vit"),
    ("ViT-L-14", "datacomp_xl_s13b_b90k", "MIT", "vit"),
    ("ViT-H-14", "laion2b_s32b_b79k", "MIT", "vit"),
    ("convnext_base_w", "laion2b_s13b_b82k_augreg", "MIT", "timm-convnext"),
    ("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup", "MIT", "timm-convnext"),
    ("coca_ViT-B-32", "laion2b_s13b_b90k", "MIT", "coca"),
    ("coca_ViT-L-14", "laion2b_s13b_b90k", "MIT", "coca"),
    ("EVA02-B-16", "merged2b_s8b_b131k", "MIT", "pe"),
    ("EVA02-L-14", "merged2b_s4b_b131k", "MIT", "pe"),
    ("ViT-B-16-quickgelu", "metaclip_fullcc", "CC-BY-NC-4.0", "vit"),
    ("ViT-L-14-quickgelu", "metaclip_fullcc", "CC-BY-NC-4.0", "vit"),
    ("ViT-B-16-quickgelu", "dfn2b", "Apple sample code", "vit"),
    ("ViT-L-14-quickgelu", "dfn2b", "Apple sample code", "vit"),
    ("ViT-H-14-quickgelu", "dfn5b", "Apple sample code", "vit"),
    ("ViT-H-14-378-quickgelu", "dfn5b", "Apple sample code", "vit"),
    ("MobileCLIP2-S0", "dfndr2b", "Apple AMLR", "timm-convnext"),
    ("MobileCLIP2-S2", "dfndr2b", "Apple AMLR", "timm-convnext"),
    ("MobileCLIP2-B", "dfndr2b", "Apple AMLR", "siglip"),
    ("ViT-L-14-CLIPA", "datacomp1b", "Apache-2.0", "vit"),
    ("ViT-B-16-SigLIP", "webli", "Apache-2.0", "siglip"),
    ("ViT-B-16-SigLIP2", "webli", "Apache-2.0", "siglip"),
    ("ViT-L-16-SigLIP2-256", "webli", "Apache-2.0", "siglip"),
    ("ViT-SO400M-14-SigLIP2", "webli", "Apache-2.0", "siglip"),
    ("ViT-SO400M-16-SigLIP2-384", "webli", "Apache-2.0", "siglip"),
    ("PE-Core-T-16-384", "meta", "Apache-2.0", "pe"),
    ("PE-Core-S-16-384", "meta", "Apache-2.0", "pe"),
    ("PE-Core-B-16", "meta", "Apache-2.0", "pe"),
    ("PE-Core-L-14-336", "meta", "Apache-2.0", "pe"),
    ("PE-Core-bigG-14-448", "meta", "Apache-2.0", "pe"),
    ("ViT-H-14-worldwide-quickgelu", "metaclip2_worldwide", "CC-BY-NC-4.0", "vit"),
    ("ViT-H-14-worldwide-378", "metaclip2_worldwide", "CC-BY-NC-4.0", "vit"),
)
#: image towers of timm; licences are in its registry
TIMM = (
    ("vit_small_patch14_dinov2.lvd142m", "timm-vit"),
    ("vit_base_patch14_dinov2.lvd142m", "timm-vit"),
    ("vit_large_patch14_dinov2.lvd142m", "timm-vit"),
    ("vit_small_patch16_dinov3.lvd1689m", "timm-vit"),
    ("vit_base_patch16_dinov3.lvd1689m", "timm-vit"),
    ("vit_large_patch16_dinov3.lvd1689m", "timm-vit"),
    ("convnext_tiny.dinov3_lvd1689m", "timm-cnn"),
    ("convnext_tiny.fb_in22k_ft_in1k", "timm-cnn"),
    ("convnext_base.fb_in22k_ft_in1k", "timm-cnn"),
    ("resnet50.a1_in1k", "timm-cnn"),
    ("mobilenetv3_large_100.ra_in1k", "timm-cnn"),
)


def facts(model: Any, size: tuple[int, int]) -> dict[str, Any]:
    """What shapes say of a model on the meta device."""
    model = model.eval().requires_grad_(False)
    tower = tower_of("", model.visual)
    images = torch.empty(1, 3, *size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        width = model.encode_image(images, normalize=False).shape[-1]
    options: dict[str, Any] = {"image_output_fmt": "NLC" if tower.tokens else "NCHW"}
    indices = sorted({*spread(tower), *((4,) if type(model.visual).__name__ == "ModifiedResNet" else ())})
    with torch.no_grad():
        out = model.forward_intermediates(image=images, image_indices=indices, normalize=False, **options)
    widths = [x.shape[-1] if tower.tokens else x.shape[1] for x in out["image_intermediates"]]
    return {
        "width": width,
        "layers": tower.depth,
        "tokens": tower.tokens,
        "layer_width": widths[-1],
        "input": size[0] if size[0] == size[1] else list(size),
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": counter.get_total_flops(),
    }


def main() -> None:
    """Write the file."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = []
    for name, tag, licence, family in OPEN_CLIP:
        with torch.device("meta"):
            model = open_clip.create_model(name, load_weights=False, device="meta")
        cfg = get_pretrained_cfg(name, tag)
        pixels = {**model.visual.preprocess_cfg, **{k: cfg[k] for k in ("resize_mode", "interpolation")}}
        pre = preprocessing_of(pixels, None, "model")
        config = open_clip.get_model_config(name)
        text = {
            "context": config["text_cfg"].get("context_length", 77),
            "transformers": "hf_tokenizer_name" in config["text_cfg"],
        }
        row = {"model": name, "pretrained": tag, "licence": licence, "family": family, "text": text}
        rows.append({**row, "resize_mode": pre.resize_mode, **facts(model, pre.shape)})
    for name, family in TIMM:
        with torch.device("meta"):
            tower = ImageTower(name, timm.create_model(name, pretrained=False, num_classes=0))
        pre = preprocessing_of(tower.visual.preprocess_cfg, None, "model")
        licence = {"apache-2.0": "Apache-2.0", "dinov3-license": "DINOv3"}[
            timm.get_pretrained_cfg(name).license
        ]
        rows.append({"model": f"timm:{name}", "pretrained": "", "licence": licence, "family": family,
                     "text": None, "resize_mode": pre.resize_mode, **facts(tower, pre.shape)})  # fmt: skip
        print(rows[-1])
    unit = next(row["flops"] for row in rows if row["model"] == "ViT-B-16-quickgelu")
    for row in rows:
        row["cost"] = float(f"{row.pop('flops') / unit:.2g}")
    OUT.write_text("[\n" + ",\n".join(f" {json.dumps(row)}" for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
