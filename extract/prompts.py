"""Prompt templates: how a class name becomes sentences for the text encoder."""

from pathlib import Path

from clipspm.errors import ClipspmError

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
