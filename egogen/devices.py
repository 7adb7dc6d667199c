"""The device that a command computes on."""

from typing import TYPE_CHECKING

from egogen.errors import EgoGenError

if TYPE_CHECKING:
    import torch


def usable_device(name: str | None) -> "torch.device":
    """`name` ("cpu", "cuda", "cuda:1" ...), or by default a GPU where there is one.

    Raises EgoGenError where no tensor can be put there.
    """
    import torch  # slow to import

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise EgoGenError(f"--device {name}: cannot be used here ({reason})") from None
    return torch.device(name)
