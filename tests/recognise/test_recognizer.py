"""Clips in, names out; saved and opened again; and a card that says what was saved."""

import json
from pathlib import Path

import numpy as np
import pytest

from clipspm import ClipEncoder, FewShotRecognizer
from clipspm.errors import ClipspmError
from clipspm.extract.failures import DecodeError
from clipspm.recognise.recognizer import CARD, CONFIG, HEAD, TENSORS, Prediction
from clipspm.recognise.unknown import Threshold
from tests.support.media import tiny_local_dir


def test_it_names_what_clips_show(recognizer: FewShotRecognizer, queries: dict[str, Path]) -> None:
    assert list(recognizer.predict(queries.values())) == list(queries)
    probabilities = recognizer.predict_proba(queries.values())
    assert list(recognizer.classes_) == sorted(queries)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert recognizer.score(list(queries.values()), list(queries)) == 1


def test_answers_hold_what_was_found(
    recognizer: FewShotRecognizer, queries: dict[str, Path], tmp_path: Path
) -> None:
    first, missing = recognizer.recognize([queries["dawn"], tmp_path / "none.mp4"], explain=True)
    assert isinstance(missing, DecodeError)
    assert isinstance(first, Prediction) and first.evidence is not None
    (best, probability), _ = first.top(2)
    assert best == first.label == "dawn"
    assert probability == pytest.approx(recognizer.predict_proba([queries["dawn"]]).max())
    assert {"look/1", "move/final", "text"} <= first.evidence.keys()


def test_a_clip_that_stands_out_too_little_is_unknown(
    encoder: ClipEncoder, support: Path, queries: dict[str, Path]
) -> None:
    paths = sorted(support.rglob("*.mp4"))
    names = [path.parent.name for path in paths]
    found = FewShotRecognizer(encoder).fit(paths, names)
    assert found.threshold_ is not None
    found.threshold_ = Threshold(1e9, 0.0, 0.0)
    assert set(found.predict(queries.values())) == {"unknown"}
    assert FewShotRecognizer(encoder, unknown="off").fit(paths, names).threshold_ is None


def test_what_is_saved_answers_alike(
    recognizer: FewShotRecognizer, encoder: ClipEncoder, queries: dict[str, Path], tmp_path: Path
) -> None:
    recognizer.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == sorted([CONFIG, TENSORS, CARD])
    opened = FewShotRecognizer.from_pretrained(tmp_path / "saved")
    given = FewShotRecognizer.from_pretrained(tmp_path / "saved", encoder=encoder)
    for other in (opened, given):
        assert (other.predict_proba(queries.values()) == recognizer.predict_proba(queries.values())).all()
        assert other.threshold_ == recognizer.threshold_
    card = (tmp_path / "saved" / CARD).read_text()
    assert "| dusk | 3 |" in card and "called `unknown`" in card


def test_a_hub_that_is_a_folder(
    recognizer: FewShotRecognizer, queries: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is pushed and what is fetched again, with a local folder in the hub's place."""
    import huggingface_hub

    hub = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            (hub / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id: str, folder_path: str) -> str:
            for path in Path(folder_path).iterdir():
                (hub / repo_id / path.name).write_bytes(path.read_bytes())
            return f"https://hub/{repo_id}"

    def fetch(repo_id: str, *, allow_patterns: list[str]) -> str:
        assert sorted(path.name for path in (hub / repo_id).iterdir()) == sorted(
            set(allow_patterns) - {f"{HEAD}/*"}
        )
        return str(hub / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert recognizer.push_to_hub("me/gestures") == "https://hub/me/gestures"
    opened = FewShotRecognizer.from_pretrained("me/gestures")
    assert (opened.predict_proba(queries.values()) == recognizer.predict_proba(queries.values())).all()


def test_another_encoder_is_refused(recognizer: FewShotRecognizer, tmp_path: Path) -> None:
    recognizer.save_pretrained(tmp_path / "saved")
    other = ClipEncoder(tiny_local_dir(tmp_path / "other", seed=1), layers="1,final", frames=4)
    with pytest.raises(ClipspmError, match="made with other weights"):
        FewShotRecognizer.from_pretrained(tmp_path / "saved", encoder=other)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("labels"),
        lambda content: content.update(labels=["a"]),
        lambda content: content.update(temperature="hot"),
        lambda content: content.update(threshold={"value": 1}),
        lambda content: content.update(encoder={"model": "local-dir:x", "rm": "-rf"}),
        lambda content: content.update(head="os:system"),
    ],
)
def test_files_that_make_no_sense_are_refused_in_one_line(
    recognizer: FewShotRecognizer, encoder: ClipEncoder, tmp_path: Path, change
) -> None:  # type: ignore[no-untyped-def]
    recognizer.save_pretrained(tmp_path / "saved")
    content = json.loads((tmp_path / "saved" / CONFIG).read_text())
    change(content)
    (tmp_path / "saved" / CONFIG).write_text(json.dumps(content))
    given = None if "rm" in content.get("encoder", {}) else encoder
    with pytest.raises(ClipspmError, match="is not a saved recognizer") as caught:
        FewShotRecognizer.from_pretrained(tmp_path / "saved", encoder=given)
    assert "\n" not in str(caught.value)


def test_names_do_no_harm_in_the_card(encoder: ClipEncoder, support: Path, tmp_path: Path) -> None:
    paths = sorted(support.rglob("*.mp4"))
    names = {"dawn": "a|b", "dusk": "`x`", "grow": "c\x1b[31m"}
    found = FewShotRecognizer(encoder).fit(paths, [names[path.parent.name] for path in paths])
    found.save_pretrained(tmp_path)
    card = (tmp_path / CARD).read_text()
    assert "a\\|b" in card and "'x'" in card and "\x1b" not in card
