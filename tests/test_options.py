"""An option is said once, in a dataclass: what it is, what it may be, and what its help says."""

import inspect
import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
import typer

from clipspm import cli
from clipspm.commands.common import App
from clipspm.engines.base import EngineConfig
from clipspm.errors import UsageError
from clipspm.extract.config import ExtractConfig
from clipspm.options import Given, declared, option, options_of, own, settle
from clipspm.train_heads.config import EvalConfig, TrainConfig, resolve_config
from clipspm.train_heads.heads.clipspm.config import CLIPSPMConfig
from clipspm.train_heads.heads.registry import HEADS
from tests.support.cli import assert_one_clear_line, clipspm


@dataclass(frozen=True, kw_only=True)
class Asked:
    name: str = option(help="Whose.", panel="Data")
    colour: Literal["red", "green"] = option("red", "Which.", "Output")
    count: int = option(3, "How many.", "Data", "--count", "-n", min=1, max=9)
    share: float = option(help="How much.", panel="Data", above=0, shown="by recipe")
    where: Path | None = option(None, "Where.", "Data")
    quick: bool = option(False, "Be quick.", "Output")
    careful: bool = option(True, "Be careful.", "Output")
    settings: Mapping[str, Any] = option(dict, "A setting.", "Training", "--set", example="a=1")
    parts: tuple[Literal["x", "y"], ...] = option(
        ("x", "y"), "Only this.", "Training", "--part", shown="both"
    )
    hidden: int = option(0, min=0)
    plain: str = "not an option"

    def __post_init__(self) -> None:
        settle(self)


def ask(*args: str) -> dict[str, Any]:
    """What a command is handed for ``args``."""
    app, seen = App("."), []

    @app.command()
    @options_of(given=Asked, without=("hidden",))
    def command(
        given: Given, threads: Annotated[int | None, own("Threads.", "Machine", max=8)] = None
    ) -> None:
        seen.append({**given, "threads": threads})

    typer.main.get_command(app)([*args], standalone_mode=False)
    return seen[0]  # type: ignore[no-any-return]


def help_of(command: str, width: int = 80) -> list[str]:
    text = io.StringIO()
    with redirect_stdout(text), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        cli.app([command, "--help"], standalone_mode=False)
    return text.getvalue().splitlines()


def test_a_command_is_handed_what_was_given_and_nothing_else() -> None:
    assert ask("--name", "a") == {"name": "a", "threads": None}
    given = ask(
        "--name", "a", "--colour", "green", "-n", "4", "--where", "w", "--quick", "--no-careful", "--threads", "2",
        "--set", "a=1e-1", "--set", "b=[1, x]", "--part", "y",
    )  # fmt: skip
    assert given == {
        "name": "a", "colour": "green", "count": 4, "where": Path("w"), "quick": True, "careful": False,
        "threads": 2, "settings": {"a": "1e-1", "b": [1, "x"]}, "parts": ["y"],
    }  # fmt: skip
    del given["threads"]
    made = Asked(**given, share=1)
    assert (made.parts, made.share, made.hidden) == (("y",), 1.0, 0)
    assert type(made.share) is float


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"colour": "blue"}, "--colour: found 'blue'; needed one of red, green"),
        ({"count": 0}, "--count is 0; it must be at least 1"),
        ({"count": 10}, "--count is 10; it must be at most 9"),
        ({"count": "many"}, "--count: found 'many'; needed a whole number"),
        ({"count": True}, "--count: found True; needed a whole number"),
        ({"count": None}, "--count: found None; needed a whole number"),
        ({"share": 0}, "--share is 0.0; it must be more than 0"),
        ({"share": float("nan")}, "--share is nan; it must be more than 0"),
        ({"share": float("inf")}, "--share is inf; it must be finite"),
        ({"where": 3}, "--where: found 3; needed a path"),
        ({"quick": 1}, "--quick: found 1; needed true or false"),
        ({"settings": [1]}, "--set: found [1]; needed a mapping"),
        ({"parts": ["x", "z"]}, "--part: found ['x', 'z']; needed one of x, y"),
        ({"hidden": -1}, "hidden is -1; it must be at least 0"),
    ],
)
def test_a_dataclass_refuses_what_it_cannot_be_in_one_line(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Asked(**{"name": "a", "share": 0.5, **wrong})
    assert str(caught.value).removeprefix("setting ") == said


def test_what_says_the_same_is_taken() -> None:
    made = Asked(name="none", share="1e-1", count=4.0, where="w", parts=["x"])  # type: ignore[arg-type]
    assert (made.name, made.share, made.count, made.where, made.parts) == ("none", 0.1, 4, Path("w"), ("x",))
    assert replace(made, count=5).share == 0.1
    assert Asked(name="a", share=1, where="none").where == Path("none")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "--name"),
        (("--name", "a", "--colour", "blue"), "'blue' is not one of"),
        (("--name", "a", "--hidden", "1"), "--hidden"),
        (("--name", "a", "--set", "a"), "--set 'a': expected KEY=VALUE, for example a=1"),
        (("--name", "a", "--set", "a=["), "--set 'a=[': '[' is not a value"),
        (("--name", "a", "--threads", "9"), "--threads is 9; it must be at most 8"),
    ],
)
def test_a_command_refuses_as_it_reads(args: tuple[str, ...], said: str) -> None:
    with pytest.raises((UsageError, typer.BadParameter.__base__)) as caught:  # type: ignore[arg-type]
        ask(*args)
    message = getattr(caught.value, "format_message", lambda: str(caught.value))()
    assert said in message


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    ("command", "panels"),
    [
        ("extract", ["Data", "Frames", "Encoder", "Output", "Machine"]),
        ("train-heads", ["Data", "Episodes", "Training", "Machine", "Output"]),
        ("eval", ["Arguments", "Data", "Episodes", "Evaluation", "Output", "Machine"]),
        ("ablate", ["Rows", "Data", "Episodes", "Training", "Output", "Machine"]),
    ],
)
def test_help_has_options_under_headings(command: str, panels: list[str], width: int) -> None:
    lines = help_of(command, width)
    assert [line[:-1] for line in lines if line.endswith(":") and line[0].isupper()] == panels
    assert all(len(line) <= width for line in lines)
    assert not any("\\[" in line for line in lines)


def test_help_says_choices_and_defaults() -> None:
    text = " ".join(" ".join(help_of("extract")).split())
    for said in (
        "auto|fp32|fp16|bf16", "Frames per video. [default: 8]", "[default: 60]", "[required]", "--slurm KEY=VALUE",
        "Refuse videos with fewer frames. [default: 1]", '"val": [...], "test": [...]}',
    ):  # fmt: skip
        assert said in text
    text = " ".join(" ".join(help_of("train-heads")).split())
    assert "--hold-out / --no-hold-out" in text
    assert "inductive|transductive" in text


@pytest.mark.parametrize("config", [ExtractConfig, EngineConfig, TrainConfig, EvalConfig])
def test_every_default_is_what_its_option_may_be(config: type) -> None:
    assert declared(config)
    flags = [flag for said in declared(config) if said.help for flag in said.flags]
    assert len(flags) == len(set(flags))
    for said in declared(config):
        assert not said.help or said.help.endswith((".", ": here.", "}.")), said.name


def test_the_library_refuses_as_the_command_line_does(tmp_path: Path) -> None:
    for wrong in ({"frames": 0}, {"frames": "x"}, {"precision": "fp8"}, {"decode_timeout": 0}, {"limit": 0}):
        with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
            ExtractConfig(dataset="folder", **wrong)  # type: ignore[arg-type]
    config = resolve_config()
    for name in (f.name for f in fields(TrainConfig) if f.name not in ("recipe", "head_config", "preset")):
        with pytest.raises(UsageError, match=name.replace("_", "[-_]")):
            replace(config, **{name: [object()]})
    assert_one_clear_line(
        clipspm("extract", "--dataset", "demo", "--views", "0", home=tmp_path), "--views is 0", code=2
    )


def test_no_list_of_choices_is_written_twice() -> None:
    source = inspect.getsource(cli)
    for word in ("fp16", "zarr", 'inductive"', "latex", "Enum"):
        assert word not in source


def test_settings_of_heads_are_what_the_heads_take() -> None:
    for name, entry in HEADS.items():
        if name == "evidence":  # those of clip-spm that speak of the pool
            assert entry.settings is not None
            assert entry.settings.items() <= get_type_hints(CLIPSPMConfig).items()
        elif name != "clip-spm":
            taken = {
                key: parameter.annotation
                for key, parameter in inspect.signature(entry.load()).parameters.items()
                if key not in ("dim", "frames", "layer_dims", *entry.fixed)
            }
            assert entry.settings == taken, name


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ("train-heads", "--head", "trx", "--set", "dropuot=0"),
            "unknown setting 'dropuot'; did you mean dropout?",
        ),
        (("train-heads", "--head", "cpm", "--set", "heads=four"), "found 'four'; needed a whole number"),
        (("train-heads", "--head", "trx", "--set", "sizes=2"), "found 2; needed a list"),
        (("train-heads", "--head", "prototype", "--set", "a=1"), "prototype has no settings, found 'a'"),
        (("eval", "nowhere", "--way", "1"), "--way is 1; it must be at least 2"),
        (("eval", "nowhere", "--queries", "0"), "--queries is 0; it must be at least 1"),
        (("eval", "nowhere", "--protocol", "both"), "needed one of inductive, transductive"),
        (("eval", "nowhere", "--test-episodes", "0"), "--test-episodes is 0; it must be at least 1"),
        (("ablate", "--drop", "padm", "--shots", "1,0"), "--shots is 0; it must be at least 1"),
        (("ablate", "--drop", "padm", "--gpus", "nan", "--engine", "ray"), "--gpus is nan"),
    ],
)
def test_mistakes_are_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(cli, "load_torch", lambda threads: pytest.fail("PyTorch would be loaded"))
    assert_one_clear_line(clipspm(*args, home=tmp_path), said, code=2)
