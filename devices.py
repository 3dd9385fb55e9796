"""Turn a device name into a torch device."""

from typing import TYPE_CHECKING

from clipspm.errors import UsageError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> "torch.device":
    """Return the device called ``name``; ``auto`` is the GPU if there is one, else the CPU.

    Raises :class:`UsageError` for a name that torch does not know or a device that does not work here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: cpu, cuda, cuda:1, mps or auto") from error
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise UsageError(
            f"device {name!r} is not available on this machine ({why}): use --device auto or cpu"
        ) from error
    return device
