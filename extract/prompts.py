"""Prompt templates, and descriptions: how a class becomes sentences for the text encoder."""

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from clipspm.cache.disk import check_size, reading
from clipspm.errors import ClipspmError
from clipspm.extract.class_names import matched, without_duplicates

#: the named sets: CLIP-FSAR's single prompt, and the 16 of ActionCLIP (arXiv 2109.08472)
TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of {}",),
    "actionclip16": (
        "a photo of action {}",
        "a picture of action {}",
        "Human action of {}",
        "{}, an action",
        "{} this is an action",
        "{}, a video of action",
        "Playing action of {}",
        "{}",
        "Playing a kind of action, {}",
        "Doing a kind of action, {}",
        "Look, the human is {}",
        "Can you recognize the action of {}?",
        "Video classification of {}",
        "A video of {}",
        "The man is {}",
        "The woman is {}",
    ),
}


def load_templates(source: str) -> tuple[str, ...]:
    """Read a named set, or a text file with one template per line, each with one ``{}`` for the class name.

    Raises :class:`ClipspmError`.
    """
    if source in TEMPLATES:
        return TEMPLATES[source]
    path = Path(source)
    if not path.is_file():
        raise ClipspmError(
            f"--prompts {source!r} is neither a named set ({', '.join(TEMPLATES)}) nor a file of templates"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ClipspmError(f"--prompts {source}: not a text file in UTF-8 ({error})") from error
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong or not lines:
        raise ClipspmError(
            f"{path}: every template needs one {{}}, found {wrong[0] if wrong else 'no line'!r}"
        )
    return lines


def fill(template: str, class_name: str) -> str:
    """Insert a class name into a template, without brackets around placeholders (``[something]``)."""
    return template.replace("{}", class_name.replace("[", "").replace("]", ""))


def spoken(class_name: str) -> str:
    """A class name as words: ``brush hair`` for ``brush_hair``, ``Pull Ups`` for ``PullUps``."""
    words = fill("{}", class_name).replace("_", " ").split()
    if len(words) == 1 and words[0][0].isupper():
        words = _WORD_ENDS.sub(" ", words[0]).split()
    return " ".join(words) or class_name


#: where a word in capitals begins: ``Pull|Ups``, ``PCB|Soldering``
_WORD_ENDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
#: the largest file of descriptions that is read (bytes), and the most sentences of a class
_MOST_BYTES, _MOST_SENTENCES = 2**24, 1000


def load_descriptions(path: Path) -> dict[str, list[str]]:
    """Read ``{class: sentence or [sentences]}`` from a JSON file; raises :class:`ClipspmError`."""
    with reading(path):
        check_size(path, _MOST_BYTES)
        text = path.read_text(encoding="utf-8")
    with reading(path, "is not valid JSON"):
        raw = json.loads(text, object_pairs_hook=without_duplicates)
    if not isinstance(raw, dict) or not raw:
        raise ClipspmError(f"{path} must hold {{class: sentence or [sentences]}}")
    found = {}
    for name, given in raw.items():
        sentences = [given] if isinstance(given, str) else given
        if not isinstance(sentences, list) or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise ClipspmError(f"{path}: class {name!r} needs a sentence or a list of sentences")
        if not 1 <= len(sentences) <= _MOST_SENTENCES:
            raise ClipspmError(
                f"{path}: class {name!r} has {len(sentences)} sentences; 1 to {_MOST_SENTENCES} are read"
            )
        found[name] = [" ".join(sentence.split()) for sentence in sentences]
    return found


def describe(
    needed: Sequence[str], others: Sequence[str], given: Mapping[str, list[str]], source: Path
) -> tuple[dict[str, list[str]], list[str]]:
    """The sentences of each class that is ``needed`` or among ``others``, and names that are no class.

    Names match as in :func:`~.class_names.matched`. Raises :class:`ClipspmError` for a needed class without
    sentences, with close names.
    """
    matches = matched([*needed, *others], given, source)
    found = {match: given[name] for name, match in matches.items() if match is not None}
    unknown = [name for name, match in matches.items() if match is None]
    if lacking := [name for name in needed if name not in found]:
        more = f" (nor of {len(lacking) - 1} others)" if len(lacking) > 1 else ""
        close = " or ".join(map(repr, get_close_matches(lacking[0], unknown)))
        hint = f"; is it {close}, which is no class?" if close else ""
        raise ClipspmError(f"{source} has no description of class {lacking[0]!r}{more}{hint}")
    return dict(sorted(found.items())), unknown
