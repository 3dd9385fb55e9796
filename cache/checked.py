"""Files that carry a SHA-256 of their content: JSON, arrays (``.npz``) and tensors (``.safetensors``).

The digest is part of the file, and the file is replaced as a whole: a killed process leaves the old content
with the old digest, or the new with the new. The digest covers names, types, shapes and values, not the file
layout. Files of earlier versions have none; they are read unchecked and their digest is None.
"""

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipspm.cache.disk import reading, replacing, size_text, write_json

if TYPE_CHECKING:
    from torch import Tensor

#: the key of the digest in a file
SHA256 = "sha256"
#: the metadata key of a ``.safetensors`` file under which facts and digest are stored as JSON
_FACTS = "facts"
#: the largest JSON file, and the largest total of unpacked arrays, that are read (bytes)
_MOST_JSON, _MOST_ARRAYS = 1 << 27, 1 << 32

Arrays = dict[str, npt.NDArray[Any]]


def file_digest(path: Path) -> str:
    """SHA-256 of every byte of a file, 64 hex digits."""
    with reading(path), path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# JSON


def save_json(path: Path, content: Mapping[str, Any]) -> str:
    """Write ``content`` with its digest, atomically. Returns the digest."""
    digest = _json_digest(content)
    write_json(path, {**content, SHA256: digest})
    return digest


def load_json(
    path: Path, known: Sequence[str], *, problem: str = "is damaged", advice: str = ""
) -> tuple[dict[str, Any], str | None]:
    """Read what :func:`save_json` wrote. Returns the content and its digest.

    ``known``: the keys that a file without a digest may hold; with any other key, the digest must have been
    damaged. ``problem`` and ``advice`` go into the message of :class:`~.disk.Unreadable`, which is raised if
    the file cannot be read or does not match its digest.
    """
    with reading(path, problem):
        size = path.stat().st_size
        if size > _MOST_JSON:
            raise ValueError(f"it has {size_text(size)}, at most {size_text(_MOST_JSON)} are read")
        content = json.loads(path.read_bytes(), parse_constant=_refuse)
        if not isinstance(content, dict):
            raise TypeError("it is not a JSON object")
        said = content.pop(SHA256, None)
        found = _json_digest(content)  # refuses values that cannot be written as JSON, such as 1e999
        if said is not None:
            _compare(said, found, advice)
        elif strange := [name for name in content if name not in known]:
            raise ValueError(f"it holds the unknown key {strange[0]!r}")
    return content, said


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _json_digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _compare(said: Any, found: str, advice: str = "") -> None:
    if said != found:
        raise ValueError(f"it was changed after it was written{advice and ': '}{advice}")


# arrays


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Write a compressed ``.npz`` (no pickle) with its digest, atomically. Returns the digest."""
    digest = _arrays_digest(arrays)
    with replacing(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **{**arrays, SHA256: np.array(digest)})  # type: ignore[arg-type]
    return digest


def load_arrays(path: Path, *, problem: str = "") -> tuple[Arrays, str | None]:
    """Read an ``.npz`` file without unpickling. Returns the arrays and their digest.

    The size that its headers announce is checked before any array is read. Raises :class:`~.disk.Unreadable`.
    """
    with reading(path, problem):
        with path.open("rb") as start:
            if start.read(2) != b"PK":
                raise ValueError("it is not an .npz archive")
        with zipfile.ZipFile(path) as archive:
            size = sum(_declared(archive, name) for name in archive.namelist())
        if size > _MOST_ARRAYS:
            raise ValueError(f"it unpacks to {size_text(size)}, at most {size_text(_MOST_ARRAYS)} are read")
        with np.load(path, allow_pickle=False) as file:
            arrays: Arrays = {name: file[name] for name in file.files}
        written = arrays.pop(SHA256, None)
        said = None if written is None else str(written)
        if said is not None:
            _compare(said, _arrays_digest(arrays))
    return arrays, said


def _declared(archive: zipfile.ZipFile, name: str) -> int:
    """Bytes of the array in member ``name``, by its header."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        else:
            raise ValueError(f"{name} has the unknown array format version {version}")
    return math.prod(shape) * dtype.itemsize


def _arrays_digest(arrays: Mapping[str, npt.NDArray[Any]], facts: str = "") -> str:
    state = hashlib.sha256(facts.encode())
    for name, array in sorted(arrays.items()):
        state.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()


# tensors


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", facts: Mapping[str, Any]) -> str:
    """Write CPU tensors and ``facts`` about them with their digest, atomically. Returns the digest.

    Facts and digest share one metadata key, because safetensors does not fix the order of several: equal
    content gives equal bytes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    digest = _arrays_digest({name: tensor.numpy() for name, tensor in tensors.items()}, _json_digest(facts))
    with replacing(path) as aside:
        try:
            save_file(dict(tensors), aside, {_FACTS: json.dumps({**facts, SHA256: digest})})
        except SafetensorError as error:  # names OS errors, such as a full disk, only in its message
            code = re.search(r"\b(?:os error|code:) (\d+)\b", str(error))
            raise (OSError(int(code[1]), str(error), str(path)) if code else error) from error
    return digest


def load_tensors(path: Path) -> tuple[Arrays, dict[str, Any], str | None]:
    """Read what :func:`save_tensors` wrote. Returns the tensors as arrays, the facts, and the digest of both.

    Raises :class:`~.disk.Unreadable`.
    """
    from safetensors import safe_open

    with reading(path), safe_open(path, "np") as file:
        facts, said = _facts(file)
        arrays: Arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
        if said is not None:
            _compare(said, _arrays_digest(arrays, _json_digest(facts)))
    return arrays, facts, said


def tensors_digest(path: Path) -> str | None:
    """The digest stored in a ``.safetensors`` file, without reading the tensors."""
    from safetensors import safe_open

    with reading(path), safe_open(path, "np") as file:
        return _facts(file)[1]


def _facts(file: Any) -> tuple[dict[str, Any], str | None]:
    metadata = file.metadata() or {}
    if strange := sorted(metadata.keys() - {_FACTS, "format"}):
        raise ValueError(f"it holds the unknown key {strange[0]!r}")
    facts = json.loads(metadata.get(_FACTS, "{}"))
    if not isinstance(facts, dict):
        raise TypeError("its facts are not a JSON object")
    return facts, facts.pop(SHA256, None)
