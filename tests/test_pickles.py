"""Nothing that is loaded runs code, and what is downloaded is what the hub says it is."""

import hashlib
import http.server
import io
import os
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants as hub
import pytest
import torch
from safetensors.torch import load_file

from clipspm.cache import open_cache
from clipspm.errors import ClipspmError
from clipspm.extract.weights import _fetch, load_model, openai_archives
from clipspm.train_heads.import_checkpoint import read_checkpoint
from tests.support.media import TINY_CONFIG, register_architecture, tiny_local_dir

ROOT = Path(__file__).parents[1]
_found: list[tuple[str, ...]] | None = None


def _audit(event: str, arguments: tuple[str, ...]) -> None:
    if event == "pickle.find_class" and _found is not None:
        _found.append(arguments)


sys.addaudithook(_audit)  # hooks stay for good: this one listens only inside :func:`unpickled`


@contextmanager
def unpickled() -> Iterator[list[tuple[str, ...]]]:
    """The classes that pickle looks up meanwhile."""
    global _found
    _found = found = []
    try:
        yield found
    finally:
        _found = None


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_what_can_unpickle_is_called_nowhere_but_for_tensors_alone() -> None:
    sources = [*ROOT.glob("*.py")]
    for package in ("cache", "engines", "extract", "train_heads"):
        sources += (ROOT / package).rglob("*.py")
    assert len(sources) > 80
    found = {}
    for path in sources:
        text = path.read_text()
        calls = re.findall(
            r"torch\.load\([^)]*\)|pickle\.(?:load|loads|Unpickler)\b|allow_pickle=(?!False)\w+", text
        )
        calls += re.findall(
            r"joblib|dill|weights_only=(?!True)\w+|np\.load\((?![^)]*allow_pickle=False)", text
        )
        if calls:
            found[path.relative_to(ROOT).as_posix()] = calls
    assert found == {
        "train_heads/import_checkpoint.py": ['torch.load(file, map_location="cpu", weights_only=True)']
    }


def test_no_class_is_unpickled_on_any_way_in(tmp_path: Path) -> None:
    with unpickled() as found:
        pickle.loads(pickle.dumps(Path("x")))
    assert found  # it does listen
    source = tiny_local_dir(tmp_path / "t")
    state = load_file(tmp_path / "t" / "open_clip_model.safetensors")
    name = register_architecture(tmp_path / "q", "tiny-pickles", TINY_CONFIG)
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": state}, tmp_path / "w.bin")
    torch.save({"model_state_dict": state}, tmp_path / "head.pt")
    with unpickled() as found:
        for pretrained in (tmp_path / "w.pt", tmp_path / "w.bin", None):
            load_model(name if pretrained else source, str(pretrained) if pretrained else None)
        with pytest.raises(ClipspmError):
            read_checkpoint(tmp_path / "head.pt", "hmdb51-1shot")
    assert found == []


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    name = register_architecture(tmp_path / "q", "tiny-evil", TINY_CONFIG)
    tiny_local_dir(tmp_path / "t")
    (tmp_path / "t" / "open_clip_model.safetensors").unlink()
    for suffix in (".pt", ".bin", ".npz"):
        for raw in (False, True):
            content = io.BytesIO()
            pickle.dump(Evil(mark), content) if raw else torch.save(Evil(mark), content)
            for path in (tmp_path / f"w{suffix}", tmp_path / "t" / "open_clip_pytorch_model.bin"):
                path.write_bytes(content.getvalue())
            for model, pretrained in (
                (name, str(tmp_path / f"w{suffix}")),
                (f"local-dir:{tmp_path / 't'}", None),
            ):
                with pytest.raises(ClipspmError):
                    load_model(model, pretrained)
            with pytest.raises(ClipspmError):
                read_checkpoint(tmp_path / f"w{suffix}", "hmdb51-1shot")
            with pytest.raises(ClipspmError):
                open_cache(tmp_path / f"w{suffix}")
    assert not mark.exists()


def test_openais_archives_are_known_by_their_digests() -> None:
    assert len(openai_archives()) == 9
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in openai_archives())


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A hub at localhost: what it sends for ``weights``, and the file whose digest it states."""
    if int(huggingface_hub.__version__.split(".")[0]) < 1:
        pytest.skip("this stand-in is a hub to huggingface_hub 1.0 and newer only")
    files: dict[str, bytes] = {}

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            known = self.path.endswith("/open_clip_model.safetensors")
            self.send_response(200 if known else 404)
            if known:
                digest = hashlib.sha256(files["stated"]).hexdigest()
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("X-Linked-Etag", f'"{digest}"')
                self.send_header("ETag", f'"{digest}"')
                self.send_header("X-Linked-Size", str(len(files["sent"])))
            self.send_header("Content-Length", str(len(files["sent"]) if known else 0))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(files["sent"])

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub, "ENDPOINT", place)
    monkeypatch.setattr(
        hub, "HUGGINGFACE_CO_URL_TEMPLATE", place + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield files
    server.shutdown()


def test_a_download_is_held_to_the_digest_that_the_hub_states(
    tmp_path: Path, served: dict[str, bytes]
) -> None:
    tiny_local_dir(tmp_path / "t")
    weights = (tmp_path / "t" / "open_clip_model.safetensors").read_bytes()
    config = {"hf_hub": "someone/tiny/"}
    served["stated"] = weights
    served["sent"] = weights[:-1] + bytes([weights[-1] ^ 1])  # one bit, of the same length
    with pytest.raises(
        ClipspmError,
        match="were damaged: their SHA-256 was not the hub's, .* run the same command to download it again",
    ):
        _fetch("tiny", "tag", config)
    served["sent"] = weights
    path = _fetch("tiny", "tag", config)
    assert path.read_bytes() == weights
    assert _fetch("tiny", "tag", config) == path  # from the store
    path.resolve().write_bytes(b"x" * len(weights))
    with pytest.raises(ClipspmError, match="were damaged"):
        _fetch("tiny", "tag", config)
    assert _fetch("tiny", "tag", config).read_bytes() == weights
