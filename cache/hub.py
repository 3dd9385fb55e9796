"""Share a finished cache as a data set of the Hugging Face hub, with where its numbers come from."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clipspm.cache.disk import make_folder, move, room_on
from clipspm.cache.home import caches_dir, check_outside
from clipspm.cache.reader import open_cache
from clipspm.cache.seal import seal_path
from clipspm.cache.spec import format_of
from clipspm.cache.verify import verify
from clipspm.errors import ClipspmError, UsageError
from clipspm.hub import hub_errors
from clipspm.terminal import escaped

#: the folder of the data set that holds the cache, and the data set's card
_CACHE, _CARD = "cache", "README.md"


def push(path: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a cache to the data set ``repo_id`` of the hub, with a card. Returns the address.

    Every byte is compared with the seal first: :class:`ClipspmError` for an unfinished or damaged cache.
    """
    from huggingface_hub import HfApi

    cache = open_cache(path)
    _check_whole(cache.path, str(cache.path))
    files = [cache.path] if cache.path.is_dir() else [cache.path, seal_path(cache.path)]
    api = HfApi()
    to: dict[str, Any] = {"repo_id": repo_id, "repo_type": "dataset"}
    with hub_errors(repo_id), TemporaryDirectory() as aside:
        api.create_repo(**to, private=private, exist_ok=True)
        card = Path(aside, _CARD)
        card.write_text(_card(cache.path.name, cache.summary()), "utf-8")
        for file in files:
            place = f"{_CACHE}/{file.name}"
            if file.is_dir():
                api.upload_folder(**to, folder_path=file, path_in_repo=place, delete_patterns="*")
            else:
                api.upload_file(**to, path_or_fileobj=file, path_in_repo=place)
        return str(api.upload_file(**to, path_or_fileobj=card, path_in_repo=_CARD))


def pull(repo_id: str, target: str | Path | None = None, *, revision: str | None = None) -> Path:
    """Download a cache that :func:`push` shared, to ``target`` or below ``$CLIPSPM_HOME/caches``.

    Every byte is compared with the seal before the cache is put in its place: :class:`ClipspmError` for one
    that differs, and nothing is left behind. Returns the path.
    """
    from huggingface_hub import snapshot_download

    if target is not None:
        _check_free(Path(target))
    parent = Path(target).parent if target is not None else caches_dir()
    make_folder(parent)
    with TemporaryDirectory(prefix=".pull-", dir=parent) as aside:
        with hub_errors(repo_id), room_on(Path(aside)):
            snapshot_download(
                repo_id,
                repo_type="dataset",
                revision=revision,
                local_dir=aside,
                allow_patterns=[f"{_CACHE}/*"],
            )
        found = [file for file in Path(aside, _CACHE).glob("*") if file.suffix != ".sha256"]
        if len(found) != 1:
            raise ClipspmError(
                f"{repo_id} holds {len(found)} caches, not one that `clipspm cache push` shared"
            )
        (cache,) = found
        place = Path(target) if target is not None else parent / cache.name
        _check_free(place)
        if format_of(place) != format_of(cache):
            raise UsageError(f"{place}: the cache is {cache.name}, so give it the same ending")
        _check_whole(cache, f"the cache of {repo_id}")
        if not cache.is_dir():
            move(seal_path(cache), seal_path(place))
        move(cache, place)
    return place


def _check_whole(path: Path, name: str) -> None:
    findings = verify(path).findings
    if findings:
        raise ClipspmError(f"{name} is not finished and whole: {findings[0].where} {findings[0].problem}")


def _check_free(place: Path) -> None:
    check_outside(place)
    if place.exists():
        raise UsageError(f"{place} is there already: name another place with --out")


def _card(name: str, summary: dict[str, Any]) -> str:
    encoder = summary["encoder"]
    splits = "\n".join(
        f"| {split} | {of['classes']} | {of['videos']} of {of['expected']} |"
        for split, of in summary["splits"].items()
    )
    return f"""---
library_name: clipspm
tags:
- few-shot
- action-recognition
---

# Frame features of {_cell(summary["dataset"])}

Features that `clipspm extract` cached; no videos. `clipspm cache pull REPOSITORY` downloads `{_cell(name)}`
and compares every byte with its seal.

| | |
|---|---|
| encoder | `{_cell(encoder["model"])}` `{_cell(encoder["pretrained"])}` |
| its weights' SHA-256 | `{encoder["weights"]}` |
| layers (width) | {", ".join(f"{layer} ({width})" for layer, width in summary["layers"].items())} |
| frames, views | {summary["frames"]}, {summary["views"]} |
| precision, stored as | {summary["precision"]}, {summary["store_dtype"]} |
| fingerprint | `{summary["fingerprint"]}` |
| videos | {", ".join(f"{count} {status}" for status, count in summary["videos"].items())} |

| split | classes | videos |
|---|---|---|
{splits}
"""


def _cell(text: str) -> str:
    return escaped(text).replace("|", "\\|").replace("`", "'")
