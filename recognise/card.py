"""The model card of a saved recognizer: what is in it, how it was made, how to use it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from clipspm.terminal import escaped


def model_card(content: Mapping[str, Any]) -> str:
    """Return the card of what ``content``, a saved recognizer's configuration, describes, as Markdown."""
    counts = Counter(content["labels"])
    rows = "\n".join(f"| {_cell(name)} | {count} |" for name, count in sorted(counts.items()))
    threshold = content["threshold"]
    unknown = (
        "Every clip is given one of the classes."
        if threshold is None
        else (
            "Clips of none of the classes are called `unknown`. Expected, from leaving each class out: "
            f"{threshold['false_alarms']:.0%} of the classes' own clips are called unknown, "
            f"{threshold['misses']:.0%} of other clips are given a class."
        )
    )
    head = f"the head `{_cell(str(content['head']))}` of clipspm {content['clipspm']}"
    how = (
        f"Features of clips are compared by {head}, trained on other actions."
        if content["trained"]
        else f"Nothing was trained: features of clips are compared by {head}."
    )
    return f"""---
library_name: clipspm
tags:
- video-classification
- few-shot
---

# Few-shot action recognizer

Recognises {len(counts)} actions from {len(content["labels"])} clips. {how}

| class | clips |
|---|---|
{rows}

{unknown}

Encoder: `{_cell(str(content["encoder"]["model"]))}`, weights with SHA-256 `{content["weights_sha256"]}`,
layers {", ".join(f"`{layer}`" for layer in content["layers"])}. The files hold features and names, no video.

```python
from clipspm import FewShotRecognizer

recognizer = FewShotRecognizer.from_pretrained("FOLDER")
print(recognizer.predict(["clip.mp4"]))
```
"""


def _cell(text: str) -> str:
    return escaped(text).replace("|", "\\|").replace("`", "'")
