"""One way to say an option: a field of a frozen dataclass, with its default, help, choices and bounds.

:func:`option` declares the field (its choices are those of its type, a ``Literal``), :func:`settle` checks
the values for ``__post_init__``, :func:`options_of` puts the fields among the parameters of a command.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache, wraps
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from clipspm.errors import UsageError
from clipspm.settings import from_pairs, typed

#: headings of the help, which shows them in the order in which a command has options of them
Panel = Literal[
    "Rows", "Data", "Frames", "Encoder", "Episodes", "Training", "Evaluation", "Output", "Machine"
]
#: what a command is handed for a dataclass: the values that were given, by field
Given = dict[str, Any]
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
Command = TypeVar("Command", bound=Callable[..., None])


@dataclass(frozen=True)
class Option:
    """An option. Without ``help`` no command has it: its values are only checked.

    ``flags``: its names (else ``--`` and the field's). ``min``, ``max``: the least and the most it may be;
    ``above``: what it must be more than. ``shown``: what the help says of its default; an option with neither
    must be given. ``example``: a KEY=VALUE of a field that is a mapping. The rest is the field's: ``kind``
    is its type, without the None of one that is ``optional``.
    """

    help: str = ""
    panel: Panel = "Output"
    flags: tuple[str, ...] = ()
    min: float | None = None
    above: float | None = None
    max: float | None = None
    shown: str = ""
    metavar: str | None = None
    example: str = ""
    name: str = ""
    default: Any = None
    kind: Any = None
    optional: bool = False

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.flags[0].partition("/")[0] if self.help else self.name

    def check(self, label: str, value: Any) -> None:
        """:class:`UsageError` for a number that is out of bounds."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        for wrong, needed in (
            (self.min is not None and not value >= self.min, f"at least {self.min}"),
            (self.above is not None and not value > self.above, f"more than {self.above}"),
            (self.max is not None and not value <= self.max, f"at most {self.max}"),
            (not math.isfinite(value), "finite"),
        ):
            if wrong:
                raise UsageError(f"{label} is {value}; it must be {needed}")

    def read(self, value: Any) -> Any:
        """The field's value, for a mapping of any number of KEY=VALUE."""
        try:
            return from_pairs(value, self.example) if value and get_origin(self.kind) is Mapping else value
        except ValueError as error:
            raise UsageError(f"{self.label} {error}") from error

    def for_typer(self, **more: Any) -> Any:
        """The same in typer's words."""
        import typer  # not above: processes that decode load this module

        text = f"{self.help}  [default: {self.shown}]" if self.shown else self.help
        about = {"help": text, "rich_help_panel": self.panel, "metavar": self.metavar, **more}
        return typer.Option(*self.flags, show_default=not self.shown, **about)

    def parameter(self) -> inspect.Parameter:
        """The parameter of a command: None where the option is not given."""
        needed = self.default is MISSING and not self.shown
        kind = list[str] if get_origin(self.kind) in (Mapping, tuple) else self.kind  # repeatable
        annotation: Any = Annotated[kind if needed else kind | None, self.for_typer()]
        default = inspect.Parameter.empty if needed else None
        return inspect.Parameter(self.name, _KEYWORD, default=default, annotation=annotation)


def option(default: Any = MISSING, help: str = "", panel: Panel = "Output", *flags: str, **more: Any) -> Any:
    """A field of a dataclass that is an :class:`Option`; a ``default`` that is a class is called."""
    value = {"default_factory" if isinstance(default, type) else "default": default}
    return field(**value, metadata={"option": Option(help, panel, flags, default=default, **more)})


def own(help: str, panel: Panel = "Output", *flags: str, **more: Any) -> Any:
    """An option of one command, for ``Annotated``, with bounds that are checked as a dataclass's are."""
    return _checked(Option(help, panel, flags, **more))


def _checked(said: Option) -> Any:
    """The option in typer's words, with its bounds."""
    import typer

    def check(parameter: typer.CallbackParam, value: Any) -> Any:
        said.check(parameter.opts[0], value)
        return value

    bounded = any(bound is not None for bound in (said.min, said.above, said.max))
    return said.for_typer(callback=check if bounded else None)


def like(config: type, name: str) -> Any:
    """The option that a dataclass has, with its bounds, for ``Annotated`` in a command that has it too."""
    return _checked(next(said for said in declared(config) if said.name == name))


@cache
def declared(config: type) -> tuple[Option, ...]:
    """The options of a dataclass, in the order of its fields."""
    kinds, found = get_type_hints(config), []
    for item in fields(config):
        if (said := item.metadata.get("option")) is None:
            continue
        kind, default, flag = kinds[item.name], said.default, "--" + item.name.replace("_", "-")
        optional = NoneType in get_args(kind)
        if optional:
            kind = next(k for k in get_args(kind) if k is not NoneType)
        shown = f"{default:g}" if isinstance(default, float) else "on" if default is True else str(default)
        if default is False or not isinstance(default, int | float | str):
            shown = ""
        metavar = "KEY=VALUE" if get_origin(kind) is Mapping else None
        if get_origin(kind) is tuple:
            metavar = "|".join(get_args(get_args(kind)[0]))
        found.append(
            replace(
                said,
                flags=said.flags or (f"{flag}/--no-{flag[2:]}" if default is True else flag,),
                shown=said.shown or shown,
                metavar=said.metavar or metavar,
                name=item.name,
                kind=kind,
                optional=optional,
            )
        )
    return tuple(found)


def settle(config: Any) -> None:
    """Give each option of a frozen dataclass its type; :class:`UsageError` in one line where it cannot be."""
    options = {said.label: said for said in declared(config.__class__)}
    values = {label: getattr(config, said.name) for label, said in options.items()}
    given = {k: value for k, value in values.items() if value is not None or not options[k].optional}
    try:
        found = typed(given, {label: said.kind for label, said in options.items()})
    except ValueError as error:
        raise UsageError(str(error)) from error
    for label, value in found.items():
        options[label].check(label, value)
        object.__setattr__(config, options[label].name, value)


def options_of(*, without: Sequence[str] = (), **configs: type) -> Callable[[Command], Command]:
    """Put the options of dataclasses, but those ``without``, in place of a command's parameters so named.

    The command is handed :data:`Given` for each. A parameter of its own goes before a field of the same name.
    """

    def decorate(command: Command) -> Command:
        own_ones = inspect.signature(command).parameters
        taken = {
            into: [said for said in declared(config) if said.help and said.name not in (*own_ones, *without)]
            for into, config in configs.items()
        }
        parameters: list[inspect.Parameter] = []
        for name, parameter in own_ones.items():
            here = [said.parameter() for said in taken.get(name, ())]
            parameters += here or [parameter.replace(kind=_KEYWORD)]

        @wraps(command)
        def run(**values: Any) -> None:
            for into, options in taken.items():
                read = {said.name: said.read(values.pop(said.name)) for said in options}
                values[into] = {name: value for name, value in read.items() if value not in (None, [])}
            command(**values)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return cast(Command, run)

    return decorate
