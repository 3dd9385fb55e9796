"""Names of layers: what is asked for, what a tower has, and what auto takes of it."""

import pytest

from clipspm.cache.store import layer_file, layer_key
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract import ExtractConfig
from clipspm.extract.layers import TOKENS, Tower, parse_layers, parse_tokens, settle, spread

VIT = Tower("ViT", 12, tokens=True, cls=True)
POOLED = Tower("SigLIP", 12, tokens=True)
STAGES = Tower("MobileNet", 5, tokens=False)


def test_names_are_sorted_by_number_then_token_and_final_is_always_last() -> None:
    assert parse_layers("final") == parse_layers("final,final") == ("final",)
    assert parse_layers("11, 3,7") == ("3", "7", "11", "final")
    assert parse_layers("final,11:mean,8,011:cls,8:mean,3") == (
        "3", "8", "8:mean", "11:cls", "11:mean", "final",
    )  # fmt: skip
    assert parse_layers("2,auto") == ("auto", "2", "final")
    assert parse_tokens("mean, cls") == ("cls", "mean") and parse_tokens("mean") == ("mean",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3,",
        "last",
        "-1",
        "8:",
        "8:max",
        ":cls",
        "8:cls:mean",
        "final:cls",
        "auto:mean",
        "８",
        "8 8",
        "9" * 9,
    ],
)
def test_other_names_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"--layers .* is neither a layer number nor 'final'") as caught:
        parse_layers(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "patch", "cls,", "cls;mean"])
def test_other_tokens_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is neither cls nor mean"):
        ExtractConfig(dataset="folder", tokens=text)


def test_no_layer_is_not_auto() -> None:
    with pytest.raises(UsageError, match="--layers ''"):
        ExtractConfig(dataset="folder", layers="")


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(12, (5, 8, 11)), (24, (11, 17, 23)), (32, (15, 23, 31)), (3, (0, 1, 2)), (2, (0, 1)), (1, (0,))],
)
def test_auto_spreads_three_blocks_over_the_upper_half(depth: int, blocks: tuple[int, ...]) -> None:
    assert spread(Tower("ViT", depth, tokens=True)) == blocks


@pytest.mark.parametrize(("depth", "stages"), [(5, (3, 4)), (4, (2, 3)), (1, (0,))])
def test_auto_takes_the_last_two_stages(depth: int, stages: tuple[int, ...]) -> None:
    assert spread(Tower("CNN", depth, tokens=False)) == stages


def test_auto_takes_the_tokens_and_what_is_named_is_taken_as_named() -> None:
    auto = parse_layers("auto")
    both = ("5:cls", "5:mean", "8:cls", "8:mean", "11:cls", "11:mean", "final")
    assert settle(auto, TOKENS, VIT) == both
    assert settle(auto, ("mean",), VIT) == ("5:mean", "8:mean", "11:mean", "final")
    assert settle(auto, TOKENS, POOLED) == ("5:mean", "8:mean", "11:mean", "final")
    assert settle(auto, TOKENS, STAGES) == ("3", "4", "final")
    assert settle(parse_layers("auto,2,8:mean"), TOKENS, VIT) == ("2", *both)
    assert settle(parse_layers("8,8:mean"), TOKENS, VIT) == ("8", "8:mean", "final")


@pytest.mark.parametrize(
    ("layers", "tokens", "tower", "said"),
    [
        ("12", TOKENS, VIT, "ViT has no layer 12; it has 0 to 11, and final"),
        ("12:mean", TOKENS, VIT, "ViT has no layer 12:mean; it has 0 to 11"),
        ("3:cls", TOKENS, STAGES, "MobileNet has pooled maps, no tokens: 3, not 3:cls"),
        ("3:cls", TOKENS, POOLED, "SigLIP has no CLS token: 3:mean, not 3:cls"),
        ("auto", ("cls",), POOLED, "SigLIP has no CLS token: use --tokens mean"),
    ],
)
def test_what_a_tower_has_not_is_said(layers: str, tokens: tuple[str, ...], tower: Tower, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        settle(parse_layers(layers), tokens, tower)


def test_tokens_are_for_auto_alone() -> None:
    ExtractConfig(dataset="folder", tokens="mean")
    ExtractConfig(dataset="folder", layers="auto,3", tokens="mean")
    with pytest.raises(UsageError, match="--tokens mean is for --layers auto; layers named one by one"):
        ExtractConfig(dataset="folder", layers="8,final", tokens="mean")


def test_files_have_no_colons() -> None:
    assert (layer_file("8:mean"), layer_key("8:mean"), layer_key("8")) == (
        "8.mean",
        "layers/8.mean",
        "layers/8",
    )
    for wrong in ("../x", "8:", ":cls", "8:a:b", "8:../x", "8:a.b", "a b", ""):
        with pytest.raises(ClipspmError, match="is not a layer name"):
            layer_file(wrong)
