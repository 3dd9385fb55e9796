"""``clipspm predict`` and ``timeline``: what clips show, by a few clips of each class."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clipspm.cache.disk import write_text
from clipspm.commands.common import Json, load_torch, say, tell
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.config import ExtractConfig, Precision
from clipspm.options import like, own

Support = Annotated[
    Path | None, own("Folder with a folder of clips for each class, or a CSV file: path, class.", "Data")
]
OfRun = Annotated[
    Path | None, own("Use this run's trained head, and the encoder of its cache.", "Evaluation", "--run")
]
Load = Annotated[Path | None, own("In place of --support: what predict --save kept.", "Data", "--load")]
Model = Annotated[str | None, like(ExtractConfig, "model")]
Pretrained = Annotated[str | None, like(ExtractConfig, "pretrained")]
Layers = Annotated[str | None, like(ExtractConfig, "layers")]
Frames = Annotated[int | None, like(ExtractConfig, "frames")]
Exact = Annotated[Precision | None, own("Number format of the encoder.", "Encoder")]
HeadName = Annotated[
    str | None, own("A head that works untrained (see clipspm heads); evidence if none.", "Evaluation")
]
Unknown = Annotated[
    Literal["auto", "off"],
    own("auto: a clip may be of none of the classes, from three of two clips or more on.", "Evaluation"),
]
Device = Annotated[str | None, like(ExtractConfig, "device")]
Threads = Annotated[int | None, like(ExtractConfig, "threads")]
Workers = Annotated[int | None, like(ExtractConfig, "workers")]
Timeout = Annotated[float, like(ExtractConfig, "decode_timeout")]


def predict(
    *,
    clips: Annotated[list[Path], typer.Argument(help="Clips, or folders of them.", metavar="CLIP...")],
    support: Support = None,
    load: Load = None,
    model: Model = None,
    pretrained: Pretrained = None,
    layers: Layers = None,
    frames: Frames = None,
    precision: Exact = None,
    run: OfRun = None,
    head: HeadName = None,
    unknown: Unknown = "auto",
    top: Annotated[int, own("How many classes to show for each clip.", "Output", min=1)] = 3,
    explain: Annotated[bool, own("What each piece of evidence says.", "Output", "--explain")] = False,
    save: Annotated[
        Path | None, own("Keep the recognizer in this folder, for --load.", "Output", "--save")
    ] = None,
    as_csv: Annotated[bool, own("CSV on standard output.", "Output", "--csv")] = False,
    device: Device = None,
    threads: Threads = None,
    workers: Workers = None,
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Recognise clips by a few clips of each class; nothing is trained."""
    from clipspm.recognise.clip_lists import clips_at

    if as_csv and as_json:
        raise UsageError("--csv and --json: choose one")
    known = _known(support, load, run)
    asked = clips_at(clips)
    encoder = {
        "model": model, "pretrained": pretrained, "layers": layers, "frames": frames, "precision": precision,
    }  # fmt: skip
    places = {"device": device, "workers": workers, "timeout": timeout}
    recognizer, unread = _recognizer(known, load, run, encoder, places, head, unknown, threads)
    from clipspm.recognise.answers import about, as_table, evidence_table
    from clipspm.recognise.answers import as_json as plain
    from clipspm.recognise.recognizer import Prediction

    count = len(recognizer.classes_)
    say(about(recognizer, unread))
    answers = recognizer.recognize(asked, explain=explain)
    if save is not None:
        recognizer.save_pretrained(save)
        say(f"recognizer: {save}")
    table = as_table(answers, min(top, count), repeat=as_csv)
    if as_csv:
        typer.echo(table.csv(), nl=False)
    else:
        said: list[Any] = [table]
        if explain:
            said += [evidence_table(a, min(top, count)) for a in answers if isinstance(a, Prediction)]
        tell(as_json, plain(answers, recognizer.threshold_), *said)
    failed = [answer for answer in answers if not isinstance(answer, Prediction)]
    for answer in failed:
        say(f"skipped {answer}")
    if len(failed) == len(answers):
        raise ClipspmError("none of the clips could be read")
    if failed or unread:
        raise typer.Exit(3)


def timeline(
    *,
    video: Annotated[Path, typer.Argument(help="A video file.", metavar="VIDEO")],
    support: Support = None,
    load: Load = None,
    model: Model = None,
    pretrained: Pretrained = None,
    layers: Layers = None,
    frames: Frames = None,
    precision: Exact = None,
    run: OfRun = None,
    window: Annotated[
        str | None,
        own("What is recognised at once, like 2s; if none, as long as the clips to go by.", "Evaluation"),
    ] = None,
    stride: Annotated[
        str | None, own("How often to look; if none, 0.5s, or a quarter of the window.", "Evaluation")
    ] = None,
    head: HeadName = None,
    unknown: Unknown = "auto",
    out_path: Annotated[
        Path | None,
        own("Write .json, .csv, .vtt (subtitles) or .svg (a strip), by the ending.", "Output", "--out"),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    workers: Workers = None,
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Find out what happens when in a long video, by a few clips of each class."""
    known = _known(support, load, run)
    lengths = _seconds("--window", window), _seconds("--stride", stride)
    writers = (".json", ".csv", ".vtt", ".svg")
    if out_path is not None and out_path.suffix.lower() not in writers:
        raise UsageError(f"--out {out_path}: its ending must be one of {', '.join(writers)}")
    if not video.exists():
        raise UsageError(f"{video}: no such file")
    encoder = {
        "model": model, "pretrained": pretrained, "layers": layers, "frames": frames, "precision": precision,
    }  # fmt: skip
    places = {"device": device, "workers": workers, "timeout": timeout}
    recognizer, unread = _recognizer(known, load, run, encoder, places, head, unknown, threads)
    from clipspm.recognise import timeline_files as files
    from clipspm.recognise.answers import about
    from clipspm.recognise.timeline import timeline as find

    say(about(recognizer, unread))
    found = find(recognizer, video, window=lengths[0], stride=lengths[1])
    if out_path is not None:
        texts = {
            ".json": lambda: json.dumps(files.as_json(found), indent=1) + "\n",
            ".csv": lambda: files.as_table(found).csv(),
            ".vtt": lambda: files.as_webvtt(found),
            ".svg": lambda: files.as_svg(found),
        }
        write_text(out_path, texts[out_path.suffix.lower()]())
        say(f"timeline: {out_path}")
    tell(as_json, files.as_json(found), files.as_table(found))
    if unread:
        raise typer.Exit(3)


def _known(support: Path | None, load: Path | None, run: Path | None) -> Any:
    """Return the clips to go by, or None where a saved recognizer brings them."""
    from clipspm.recognise.clip_lists import labelled_clips

    if run is not None and load is not None:
        raise UsageError("--run and --load: choose one; a saved recognizer has its head")
    if (support is None) == (load is None):
        raise UsageError("name the clips to go by with --support DIR, or with --load what --save kept")
    if support is None:
        return None
    known = labelled_clips(support)
    for note in known.notes:
        say(f"note: {note}")
    return known


def _check_head(name: str) -> None:
    """Raise :class:`UsageError` for a head that is unknown, or must be trained."""
    from clipspm.train_heads.heads.registry import head_entry

    try:
        entry = head_entry(name)
    except ValueError as error:
        raise UsageError(f"--head: {error}") from error
    if entry.trained:
        raise UsageError(f"--head {name} must be trained first (clipspm heads lists those that need not)")


def _seconds(flag: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = float(text.strip().removesuffix("s"))
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise UsageError(f"{flag} {text!r}: it must be a number of seconds, like 2s")
    return found


def _recognizer(
    known: Any,
    load: Path | None,
    run: Path | None,
    encoder: dict[str, Any],
    places: dict[str, Any],
    head: str | None,
    unknown: Literal["auto", "off"],
    threads: int | None,
) -> tuple[Any, int]:
    """Return a recognizer, and how many of its clips could not be read."""
    from clipspm.extract.models import check_model

    given = {name: value for name, value in encoder.items() if value is not None}
    if head is not None:
        if run is not None:
            raise UsageError("--run and --head: choose one; a run has its head")
        _check_head(head)
    if given.get("model"):
        check_model(given["model"], given.get("pretrained"))
    load_torch(threads)
    from clipspm.extract.failures import DecodeError
    from clipspm.recognise.clips import ClipEncoder
    from clipspm.recognise.recognizer import FewShotRecognizer

    if load is not None:
        other = ClipEncoder(**given, **places) if "model" in given else None
        return FewShotRecognizer.from_pretrained(load, encoder=other), 0
    if run is not None:
        recognizer = FewShotRecognizer.from_run(run, unknown=unknown, **given, **places)
    else:
        recognizer = FewShotRecognizer(
            ClipEncoder(**given, **places), head=head or "evidence", unknown=unknown
        )
    recognizer.encoder_ = recognizer.encoder.fit()  # type: ignore[union-attr]
    say("reading the clips to go by")
    found = recognizer.encoder_.encode(known.paths)
    good = {row: clip for row, clip in enumerate(found) if not isinstance(clip, DecodeError)}
    for clip in found:
        if isinstance(clip, DecodeError):
            say(f"skipped {clip}")
    classes = [known.classes[row] for row in good]
    if len(set(classes)) < 2:
        raise ClipspmError("fewer than two classes have a clip that can be read")
    recognizer.fit_features(list(good.values()), classes, [known.paths[row] for row in good])
    return recognizer, len(found) - len(good)
