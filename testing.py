"""The test that every head passes, for heads of the package and for your own.

``check_head("my_package.heads:MyHead")`` in a test of yours is enough; see :class:`.train_heads.heads.Head`
for what a head promises.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from clipspm.cache.spec import FINAL
from clipspm.train_heads.heads.base import Head, HeadOutput
from clipspm.train_heads.heads.episode import BaseClasses, Episode
from clipspm.train_heads.heads.protocol import PROTOCOLS
from clipspm.train_heads.heads.registry import build_head

E, S, Q, C = 2, 6, 5, 3
#: unequal numbers of supports per class, in no order
_SUPPORT_LABELS = ((2, 0, 1, 0, 0, 1), (1, 2, 2, 0, 2, 2))
_BASE_CLASSES = 9


def check_head(
    name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    dim: int = 16,
    frames: int = 4,
    layer_dims: Mapping[str, int] | None = None,
) -> None:
    """Raise AssertionError where the head ``name`` breaks a promise; one line says which.

    ``name``: as for ``--head``, so ``package.module:Class`` too. ``settings``: those of the head. It is built
    for random features of ``frames`` x ``dim``; ``layer_dims``: widths of the other cached layers. What the
    head itself raises is not caught. The random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        head = _Checked(name, dict(settings or {}), dim, frames, dict(layer_dims or {}))
        for check in CHECKS:
            torch.manual_seed(0)
            check(head)


@dataclass(frozen=True)
class _Checked:
    """A head that is looked at: how to build it, and what to call it with."""

    name: str
    settings: dict[str, Any]
    dim: int
    frames: int
    layer_dims: dict[str, int]

    def build(self, **more: Any) -> Head:
        """A new head in evaluation mode."""
        shape: dict[str, Any] = {"dim": self.dim, "frames": self.frames, "layer_dims": self.layer_dims}
        return build_head(self.name, config=self.settings | more, **shape).eval()

    def episode(self, head: Head) -> Episode:
        """E episodes with the layers that ``head`` reads."""
        widths = {layer: head.layer_dims[layer] for layer in head.layers}
        return Episode(
            support={layer: torch.randn(E, S, self.frames, width) for layer, width in widths.items()},
            query={layer: torch.randn(E, Q, self.frames, width) for layer, width in widths.items()},
            support_labels=torch.tensor(_SUPPORT_LABELS),
            text=torch.randn(E, C, self.dim),
        )

    def built(self) -> tuple[Head, Episode]:
        head = self.build()
        return head, self.episode(head)

    def base(self) -> BaseClasses:
        rows = (torch.randint(_BASE_CLASSES, (E, count)) for count in (S, Q))
        return BaseClasses(torch.randn(_BASE_CLASSES, self.dim), *rows)

    def refuse(self, says: str) -> NoReturn:
        raise AssertionError(f"head {self.name}: {says}")

    def same(self, found: Tensor, expected: Tensor, otherwise: str) -> None:
        """Refuse logits or losses that differ by more than rounding."""
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            gap, largest = (float(x.detach().abs().max()) for x in (found - expected, expected))
            self.refuse(f"{otherwise} (by {gap:.2g}, where values go up to {largest:.2g})")


def _alone(episode: Episode, e: int) -> Episode:
    """One of the episodes, without the axis E."""
    one = episode.mapped(lambda x: x[e], lambda x: x[e])
    return replace(one, support_labels=episode.support_labels[e], text=episode.text[e])


def _layers(checked: _Checked) -> None:
    """The layers read are named, and cached."""
    head = checked.build()
    if FINAL not in head.layers:
        checked.refuse(f"layers are {head.layers}; {FINAL!r} must be among them")
    try:
        head.run(checked.episode(head))
    except KeyError as missing:
        if missing.args[:1] and missing.args[0] in {*checked.layer_dims, *head.layer_dims}:
            message = f"reads layer {missing}, which its layers {head.layers} do not name"
            raise AssertionError(f"head {checked.name}: {message}") from missing
        raise


def _shapes(checked: _Checked) -> None:
    """Logits are [E, Q, C], evidence has names and that shape, and E may be absent."""
    head, episode = checked.built()
    whole = head.run(episode)

    def look(output: HeadOutput, *shape: int) -> None:
        letters = f"[{'E, ' * (len(shape) == 3)}Q, C] = {list(shape)}"
        if tuple(output.logits.shape) != shape:
            checked.refuse(f"logits have shape {tuple(output.logits.shape)}; needed {letters}")
        if not output.evidence:
            checked.refuse("scores names no evidence")
        for name, score in output.evidence.items():
            if not isinstance(name, str) or not name:
                checked.refuse(f"evidence is called {name!r}; needed a name")
            if tuple(score.shape) != shape:
                checked.refuse(f"evidence {name!r} has shape {tuple(score.shape)}; needed {letters}")

    look(whole, E, Q, C)
    if not torch.isfinite(whole.logits).all():
        checked.refuse("logits of finite features are not finite")
    if not torch.equal(head.run(episode).logits, whole.logits):
        checked.refuse("logits differ from call to call in evaluation mode")
    for e in range(E):
        alone = head.run(_alone(episode, e))
        look(alone, Q, C)
        checked.same(alone.logits, whole.logits[e], "logits of an episode depend on the others of the batch")


def _each_query_alone(checked: _Checked) -> None:
    """Inductive logits do not depend on the other queries."""
    head, episode = checked.built()
    every = head.run(episode).logits
    fewer = head.run(episode.mapped(query=lambda x: x[:, 1:3])).logits
    others = episode.mapped(query=lambda x: torch.cat([x[:, :1], 3 * torch.randn_like(x[:, :2])], dim=1))
    said = "inductive logits of a query depend on the other queries"
    checked.same(fewer, every[:, 1:3], said)
    checked.same(head.run(others).logits[:, :1], every[:, :1], said)


def _any_order(checked: _Checked) -> None:
    """Supports and queries come in any order, under both protocols."""
    head, episode = checked.built()
    supports, queries = torch.randperm(S), torch.randperm(Q)
    for protocol in PROTOCOLS:
        given = replace(episode, protocol=protocol)
        logits = head.run(given).logits
        labels = given.support_labels[:, supports]
        shuffled = replace(given.mapped(lambda x: x[:, supports]), support_labels=labels)
        checked.same(head.run(shuffled).logits, logits, f"{protocol} logits depend on the order of supports")
        found = head.run(given.mapped(query=lambda x: x[:, queries])).logits
        checked.same(found, logits[:, queries], f"{protocol} logits depend on the order of queries")


def _texts(checked: _Checked) -> None:
    """Logits depend on the class texts only if the head says that it needs them."""
    head, episode = checked.built()
    other = replace(episode, text=torch.randn_like(episode.text))
    if not head.needs_text and not torch.equal(head.run(other).logits, head.run(episode).logits):
        checked.refuse("logits change with the class texts, which its needs_text = False denies")


def _no_label_in_logits(checked: _Checked) -> None:
    """Labels of queries, and base classes, reach losses and never logits."""
    head, episode = checked.built()
    plain = head.run(episode).logits
    for labels in (torch.zeros(E, Q, dtype=torch.long), torch.randint(C, (E, Q))):
        if not torch.equal(head.run(episode, labels).logits, plain):
            checked.refuse("logits change with the labels of the queries")
        if not torch.equal(head.run(episode, labels, checked.base()).logits, plain):
            checked.refuse("logits change with the base classes")


def _losses(checked: _Checked) -> None:
    """The loss is one number per episode, whichever others are there; so is each of its terms."""
    head, episode = checked.built()
    labels, base = torch.randint(C, (E, Q)), checked.base()
    output = head.run(episode, labels, base)
    found = head.episode_loss(output, labels)
    for what, loss in {"episode_loss": found, **output.losses}.items():
        if tuple(loss.shape) != (E,) or not torch.isfinite(loss).all():
            checked.refuse(f"{what} is {loss.tolist()}; needed one finite number for each of {E} episodes")
    for e in range(E):
        own = BaseClasses(base.text, base.support[e], base.query[e])
        alone = head.episode_loss(head.run(_alone(episode, e), labels[e], own), labels[e])
        checked.same(alone, found[e], "the loss of an episode depends on the others of the batch")


def _gradients(checked: _Checked) -> None:
    """The loss's gradient reaches every parameter that is trained, but those that the head calls unused."""
    head, episode = checked.built()
    if not head.trainable:
        return
    labels = torch.randint(C, (E, Q))
    head.train()
    loss = head.episode_loss(head.run(episode, labels, checked.base()), labels).sum()
    if not loss.requires_grad:
        checked.refuse("the loss has no gradient")
    loss.backward()
    trained = {name: p for name, p in head.named_parameters() if p.requires_grad}
    still = {name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0}
    if missed := sorted(still - {*head.unused}):
        checked.refuse(f"no gradient reaches {', '.join(missed)}")
    if reached := sorted({*head.unused} - still):
        checked.refuse(f"{reached[0]} is among the unused, and is none of them")


def _state(checked: _Checked) -> None:
    """A new head with this one's state gives its logits."""
    head, episode = checked.built()
    with torch.no_grad():
        for tensor in head.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1
    torch.manual_seed(1)
    other = checked.build()
    other.load_state_dict(head.state_dict())
    if not torch.equal(other.run(episode).logits, head.run(episode).logits):
        checked.refuse("a new head with this one's state_dict gives other logits")


def _tunable(checked: _Checked) -> None:
    """What is chosen on validation classes is a scalar buffer, among several values."""
    head = checked.build()
    buffers = dict(head.named_buffers())
    for name, candidates in head.tunable.items():
        if name not in buffers or buffers[name].shape != ():
            found = f"has shape {tuple(buffers[name].shape)}" if name in buffers else "is none"
            checked.refuse(f"tunable {name!r} {found}; needed a scalar buffer")
        if name not in head.state_dict():
            checked.refuse(f"tunable {name!r} is not kept in the state: make its buffer persistent")
        if not len(set(candidates)) == len(candidates) > 1:
            checked.refuse(
                f"tunable {name!r} has candidates {tuple(candidates)}; needed two or more that differ"
            )


def _half_precision(checked: _Checked) -> None:
    """Features in half precision give float32 logits, those of the same features in float32."""
    head, episode = checked.built()
    halves = _cast(episode, torch.float16)
    found = head.run(halves).logits
    if found.dtype != torch.float32:
        checked.refuse(f"logits of half-precision features are {found.dtype}; needed torch.float32")
    checked.same(
        found, head.run(_cast(halves, torch.float32)).logits, "half-precision features lose precision"
    )


def _cast(episode: Episode, dtype: torch.dtype) -> Episode:
    changed = episode.mapped(lambda x: x.to(dtype), lambda x: x.to(dtype))
    return replace(changed, text=episode.text.to(dtype))


def _recall(checked: _Checked) -> None:
    """What the head recalls of videos scores as the videos do."""
    head, episode = checked.built()
    with torch.no_grad():
        for protocol in PROTOCOLS:
            given = replace(episode, protocol=protocol)
            texts = given.text_of(given.support_labels)
            unknown = torch.full((E * Q, texts.shape[-1]), torch.nan)  # the class of a query
            videos = {
                layer: torch.cat([given.support[layer].flatten(0, 1), given.query[layer].flatten(0, 1)])
                for layer in head.layers
            }
            scorer = head.recall(videos, torch.cat([texts.flatten(0, 1), unknown]))
            if scorer is None:
                return
            rows = torch.arange(E * (S + Q)).split([E * S, E * Q])
            found = scorer(given, rows[0].view(E, S), rows[1].view(E, Q))
            checked.same(found, head.run(given).logits, f"{protocol} logits differ with recall")


def _planned(checked: _Checked) -> None:
    """The head can be built without memory, as it is to see how large it is."""
    with torch.device("meta"):
        try:
            checked.build()
        except (RuntimeError, NotImplementedError) as error:
            checked.refuse(f"its constructor reads values, which tensors of the meta device lack ({error})")


def _settings(checked: _Checked) -> None:
    """A setting that there is none of is refused."""
    try:
        checked.build(no_such_setting=1)
    except ValueError:
        return
    checked.refuse("takes a setting that it does not have")


#: every promise, in the order in which they are looked at
CHECKS: tuple[Callable[[_Checked], None], ...] = (
    *(_layers, _shapes, _each_query_alone, _any_order, _texts, _no_label_in_logits, _losses),
    *(_gradients, _state, _tunable, _half_precision, _recall, _planned, _settings),
)
