"""A timeline as a file: JSON, CSV, subtitles that any player shows, and a strip to look at."""

from html import escape
from typing import Any

from clipspm.recognise.recognizer import UNKNOWN
from clipspm.recognise.timeline import Timeline
from clipspm.tables import Table
from clipspm.terminal import one_line

#: colours that people with any colour vision tell apart (Okabe and Ito, 2008), for classes in turn
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_GREY, _WIDTH, _BAR, _LINE = "#9a9a9a", 960, 44, 22


def as_table(found: Timeline) -> Table:
    """Make a row for each segment."""
    rows = [(f"{s.start:.2f}", f"{s.end:.2f}", s.label, f"{100 * s.probability:.1f}") for s in found.segments]
    return Table(("start, s", "end, s", "class", "probability, %"), rows, str(found.path), text=("class",))


def as_json(found: Timeline) -> dict[str, Any]:
    """Return the segments in plain JSON types."""
    return {
        "path": str(found.path),
        "segments": [vars(segment) for segment in found.segments],
        "stride": found.stride,
        "classes": list(found.classes),
    }


def as_webvtt(found: Timeline) -> str:
    """Write subtitles: a cue for each segment of a known class."""
    cues = [
        f"{_clock(s.start)} --> {_clock(s.end)}\n{_cue(s.label)} ({s.probability:.0%})\n"
        for s in found.segments
        if s.label != UNKNOWN
    ]
    return "\n".join(["WEBVTT\n", *cues])


def as_svg(found: Timeline) -> str:
    """Draw the segments in a strip, with a legend, as a picture that stands alone."""
    length = found.segments[-1].end
    names = list(dict.fromkeys(segment.label for segment in found.segments))
    colours = {name: _COLOURS[k % len(_COLOURS)] for k, name in enumerate(found.classes)} | {UNKNOWN: _GREY}
    height = _BAR + _LINE * (len(names) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'font-family="sans-serif" font-size="14"><title>{_text(str(found.path))}</title>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for s in found.segments:
        left, right = (_WIDTH * time / length for time in (s.start, s.end))
        said = f"{s.label}, {s.start:.1f} to {s.end:.1f} s, {s.probability:.0%}"
        parts.append(
            f'<rect x="{left:.1f}" y="0" width="{right - left:.1f}" height="{_BAR}" '
            f'fill="{colours[s.label]}"><title>{_text(said)}</title></rect>'
        )
    parts.append(
        f'<text x="0" y="{_BAR + 16}">0 s</text>'
        f'<text x="{_WIDTH}" y="{_BAR + 16}" text-anchor="end">{length:.1f} s</text>'
    )
    for k, name in enumerate(names):
        top = _BAR + _LINE * (k + 1) + 8
        parts.append(
            f'<rect x="0" y="{top}" width="14" height="14" fill="{colours[name]}"/>'
            f'<text x="22" y="{top + 12}">{_text(name)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _text(text: str) -> str:
    return escape(one_line(text))


def _cue(text: str) -> str:
    """Return text that no player takes for markup or for the end of a cue."""
    return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float) -> str:
    thousandths = round(1000 * seconds)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"
