"""Encoders that are known to work, and what is known of each. The list is made by ``tools/encoders.py``."""

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from clipspm.cache.disk import size_text
from clipspm.extract.plan import DEFAULT_MODEL, DEFAULT_PRETRAINED
from clipspm.tables import Table

#: bytes of a weight in a published file, unless it is in half precision
_BYTES = 4


def describe_encoders() -> list[dict[str, Any]]:
    """The encoders of the list, most by open_clip, the default marked.

    ``width`` of ``final``; ``layers`` blocks or stages, the last of them ``layer_width`` wide, of ``tokens``
    or maps; ``input`` pixels a side; ``text``: tokens that are read, and whether a tokenizer of transformers
    reads them (none: no text tower); ``cost``: multiplications per frame beside the default's; ``family``:
    whose tiny random model the tests extract with.
    """
    text = (files("clipspm.extract") / "encoders.json").read_text("utf-8")
    found: list[dict[str, Any]] = json.loads(text)
    default = DEFAULT_MODEL, DEFAULT_PRETRAINED
    return [
        {
            **row,
            "default": (row["model"], row["pretrained"]) == default,
            "bytes": _BYTES * row["parameters"],
        }
        for row in found
    ]


def encoders_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The result of :func:`describe_encoders` as a table."""
    lines = []
    for row in rows:
        text = row["text"]
        reads = f"{text['context']}{'*' if text['transformers'] else ''}" if text else "none"
        lines.append(
            (
                row["model"] + (" (default)" if row["default"] else ""),
                row["pretrained"],
                str(row["width"]),
                f"{row['layers']} x {row['layer_width']}",
                str(row["input"]) + (" squash" if row["resize_mode"] == "squash" else ""),
                reads,
                row["licence"],
                size_text(row["bytes"]),
                f"{row['cost']:g}",
                row["family"],
            )
        )
    columns = (
        *("--model", "--pretrained", "width", "layers", "input", "text", "licence", "float32"),
        *("cost", "tested"),
    )
    notes = (
        "layers: blocks or stages, and the width of the last; text: tokens read (* pip install "
        "'clipspm[transformers]')",
        "cost: multiplications per frame, the default's is 1; licence: as published, read it yourself",
        "tested: tiny random models of this family go through extract in the tests; the architecture itself "
        "was built and run without values; none was run with its published weights",
        "others of open_clip and timm, and hf-hub:ORG/NAME and local-dir:FOLDER, work alike",
    )
    text_columns = ("--pretrained", "input", "licence", "tested")
    return Table(columns, lines, "encoders that are known to work", notes, text=text_columns)
