"""What can lie in a run directory in the place of each of its files, and which commands read it."""

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from clipspm.cache.checked import load_arrays, load_tensors, save_arrays, save_tensors
from tests.support.edits import edit_facts, edit_json

HUGE = 10 * 2**30
ALL = "eval results compare resume ablate doctor"
#: by file: the commands that read it, and so must refuse it
READ_BY = {
    "config.json": ALL,
    "results.json": ALL,
    "best.safetensors": "eval resume doctor",
    "trainer.safetensors": "resume doctor",
    "predictions": "results compare doctor",
    "episodes": "results compare doctor",
    "metrics.jsonl": "resume doctor",
}


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Put what ``make`` makes where the file was."""

    def replace(file: Path) -> None:
        file.unlink()
        make(file)

    return replace


def sparse(file: Path) -> None:
    with file.open("wb") as content:
        content.truncate(HUGE)


def text(content: str | bytes) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda file: file.write_bytes(data)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2 + 40] ^= 1
    file.write_bytes(bytes(data))


#: what can lie anywhere
ANYWHERE: dict[str, Callable[[Path], object]] = {
    "empty": text(""),
    "a folder": instead(lambda file: (file / "x").mkdir(parents=True)),
    "a pipe": instead(os.mkfifo),
    "a link to nothing": instead(lambda file: file.symlink_to("nowhere")),
    "a link to itself": instead(lambda file: file.symlink_to(file)),
    "a device": instead(lambda file: file.symlink_to("/dev/zero")),
    "10 GB of zeros": sparse,
    "not UTF-8": text(b'{"a": "\xff\xfe"}'),
    "nested deeply": text('{"a":' * 200_000),
    "another type": text("[1, 2]"),
    "null": text("null"),
}


def config(**changes: Any) -> Callable[[Path], object]:
    """``part__name=value`` set in ``config.json``, with a right digest: nobody's hand but an attacker's."""

    def change(content: dict[str, Any]) -> None:
        for place, value in changes.items():
            *parts, name = place.split("__")
            target = content
            for part in parts:
                target = target[part]
            target[name] = value

    return lambda file: edit_json(file, change, digest=True)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def raw(before: str, after: str) -> Callable[[Path], object]:
    def change(file: Path) -> None:
        content = file.read_text()
        assert before in content
        file.write_text(content.replace(before, after, 1))

    return change


def unsealed(before: str, after: str) -> Callable[[Path], object]:
    """The same in a file without a digest, as earlier versions wrote it."""

    def change(file: Path) -> None:
        edit_json(file, lambda content: None)
        raw(before, after)(file)

    return change


CONFIG: dict[str, Callable[[Path], object]] = {
    "edited by hand": raw('"lr": ', '"lr": 1'),
    "NaN": unsealed('"lr": ', '"lr": NaN, "x": '),
    "infinite": unsealed('"seed": 0', '"clip": 1e999, "sEed": 0'),
    "a number of 5,000 digits": unsealed('"seed": 0', f'"seed": {"9" * 5000}'),
    "an unknown name": unsealed('"version"', '"versiom"'),
    "no digest, wrong type": unsealed('"way": 3', '"way": "three"'),
    "huge width": config(config__head_config__head_width=10**9),
    "width beyond numbers": config(config__head_config__head_width=10**30),
    "negative width": config(config__head_config__head_width=-8),
    "width in words": config(config__head_config__head_width="wide"),
    "no heads": config(config__head_config__heads=0),
    "heads that do not divide": config(config__head_config__heads=1.5),
    "nested settings": config(config__head_config__alpha=nested(400)),
    "settings of no head": config(config__head_config=[1]),
    "no such head": config(config__head="clip-smp"),
    "head of another type": config(config__head=["clip-spm"]),
    "negative way": config(config__way=-3),
    "betas of another length": config(config__betas=[0.9]),
    "configuration of another type": config(config=3),
    "negative dim": config(built_for__dim=-3),
    "huge dim": config(built_for__dim=10**9),
    "half a dim": config(built_for__dim=15.5),
    "huge frames": config(built_for__frames=10**9),
    "frames beyond TRX": config(built_for__frames=4000, config__head="trx", config__head_config={}),
    "layers of another type": config(built_for__layer_dims=[16]),
    "an unknown shape": config(built_for__depth=3),
    "no cache": config(cache=None),
    "cache at a number": config(cache__path=5),
    "cache at no path": config(cache__path="a\0b"),
    "splits of another type": config(cache__class_splits=["a"]),
    "unknown splits": config(cache__class_splits={"a": "tset"}),
    "splits in lists": config(cache__class_splits={"a": ["test"]}),
}
RESULTS: dict[str, Callable[[Path], object]] = {
    "edited by hand": raw('"selection": "val"', '"selection": "none"'),
    "evaluations of another type": config(evaluations=None),
    "an evaluation elsewhere": config(evaluations={"../../x": {}}),
    "an evaluation of another type": config(evaluations={"0123456789abcdef": 3}),
    "training of another type": config(training=[]),
    "files of another type": config(files="best"),
    "a name that is unknown": unsealed('"version"', '"versiom"'),
}


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Other weights, with a right digest, in a run that does not say which it ended with."""

    def write(file: Path) -> None:
        _, facts, _ = load_tensors(file)
        tensors = {name: torch.tensor(array) for name, array in load_file(file).items()}
        change(tensors)
        save_tensors(file, tensors, facts)
        if (file.parent / "results.json").exists():
            edit_json(file.parent / "results.json", lambda content: content.pop("files"), digest=True)

    return write


def all_of(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: value.to(dtype) for name, value in tensors.items()})


def first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name, value in sorted(tensors.items()) if value.dim() == 2)


WEIGHTS: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "a header beyond the file": text(struct.pack("<Q", 2**62) + b"{}"),
    "a header of another type": text(struct.pack("<Q", 2) + b"[]"),
    "float64": weights(all_of(torch.float64)),
    "float16": weights(all_of(torch.float16)),
    "bfloat16": lambda file: torch_save(file, torch.bfloat16),
    "another shape": weights(lambda t: t.update({first(t): t[first(t)].mT.contiguous()[:1]})),
    "another name": weights(lambda t: t.update(other=torch.zeros(2))),
    "a name less": weights(lambda t: t.pop(first(t))),
    "not finite": weights(lambda t: t[first(t)].fill_(float("nan"))),
    "a pickle": instead(lambda file: torch.save({"a": print}, file)),
}


def torch_save(file: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file

    save_file({name: value.to(dtype) for name, value in load(file).items()}, file)


def facts(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        arrays, said, _ = load_tensors(file)
        change(said)
        save_tensors(file, {name: torch.tensor(array) for name, array in arrays.items()}, said)

    return write


def moment(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if name.endswith("exp_avg") and tensors[name].dim() == 2)


STATE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "float64": weights(all_of(torch.float64)),
    "a moment of another shape": weights(lambda t: t.update({moment(t): torch.zeros(3, 5)})),
    "a moment that is not finite": weights(lambda t: t[moment(t)].fill_(float("inf"))),
    "a name without parts": weights(lambda t: t.update(other=torch.zeros(2))),
    "a parameter that there is none of": weights(
        lambda t: t.update({"optimizer.999.exp_avg": torch.zeros(2)})
    ),
    "no step": facts(lambda f: f.pop("step")),
    "a negative step": facts(lambda f: f.update(step=-1)),
    "a step in words": facts(lambda f: f.update(step="two")),
    "losses of another type": facts(lambda f: f.update(losses={"a": 1})),
    "an unknown fact": facts(lambda f: f.update(other=1)),
}


def bomb(file: Path) -> None:
    """A few bytes that say they hold 80 GB."""
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000, 1), }"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("inductive", "classes"):
            archive.writestr(f"{name}.npy", member)


def arrays(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        content, _ = load_arrays(file)
        change(content)
        save_arrays(file, content)

    return write


def changed(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update({name: np.array(value)})


PREDICTIONS: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "a bomb": bomb,
    "pickled objects": lambda file: np.savez(file, inductive=np.array([{}, None], dtype=object)),
    "another shape": arrays(changed("inductive", [[1, 2]])),
    "no class": arrays(lambda content: content.update(inductive=content["inductive"] + 90)),
    "half a class": arrays(lambda content: content.update(inductive=content["inductive"] + 0.5)),
    "nested facts": arrays(changed("facts", "[" * 100_000)),
    "no facts": arrays(changed("facts", "3")),
    "a dataset that is a number": lambda file: edit_facts(file.parent, lambda f: f.update(dataset=5)),
    "coverage of another type": lambda file: edit_facts(file.parent, lambda f: f.update(coverage=[1])),
    "frames that are missing": lambda file: edit_facts(file.parent, lambda f: f.pop("frames")),
    "nothing predicted": arrays(lambda content: [content.pop(p) for p in ("inductive", "transductive")]),
}
EPISODES: dict[str, Callable[[Path], object]] = {
    "a bomb": bomb,
    "nested spec": arrays(changed("spec", "[" * 100_000)),
    "spec of another type": arrays(changed("spec", '{"dataset": 3, "split": "test"}')),
    "a huge way": arrays(changed("spec", '{"dataset": "fake", "split": "test", "way": 1000000000000}')),
    "videos that there are none of": arrays(lambda content: content.update(query=content["query"] + 999)),
    "names of another type": arrays(changed("class_names", 3)),
}
KINDS = {
    "config.json": CONFIG,
    "results.json": RESULTS,
    "best.safetensors": WEIGHTS,
    "trainer.safetensors": STATE,
    "predictions": PREDICTIONS,
    "episodes": EPISODES,
}
#: configurations that are none of a head, which those that build none do not see
OF_HEADS = {
    "huge width", "width beyond numbers", "negative width", "width in words", "no heads",
    "heads that do not divide", "nested settings", "frames beyond TRX",
}  # fmt: skip
#: here they are read as what they are: lines that are no measurements end a file of metrics
METRICS = ("a folder", "a pipe", "a link to nothing", "a link to itself", "a device")
CASES = [
    *((file, what, make) for file, own in KINDS.items() for what, make in {**ANYWHERE, **own}.items()),
    *(("metrics.jsonl", what, ANYWHERE[what]) for what in METRICS),
]
