"""The loop that all small networks of the mini world are trained in."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import AdamW

from egogen.jobs import Progress


def learn(
    parameters: Iterable[nn.Parameter],
    loss_of: Callable[[int], tuple[Tensor, float]],
    rates: list[float],
    what: str,
    *,
    clip: float = 1.0,
    **adamw: Any,
) -> float:
    """Minimise the loss that `loss_of(step)` gives beside a figure, a step for each learning rate.

    `clip`: largest norm of the gradients. -> mean of the figures of the last tenth of the steps.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer, figures = AdamW(parameters, **adamw), []
    with Progress(len(rates), what, "steps") as progress:
        for step, rate in enumerate(rates):
            loss, figure = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, clip)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            figures.append(figure)
            progress.update()
    return float(np.mean(figures[-max(1, len(rates) // 10) :]))


def cosine_rates(steps: int, peak: float) -> list[float]:
    """Linear warm-up over 2 % of the steps, then a cosine to zero."""
    warm = max(1, steps // 50)
    return [
        peak * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for step in range(steps)
    ]


def flat_rates(steps: int, peak: float) -> list[float]:
    """Short linear warm-up, full rate for most of the steps, the last third linearly to zero."""
    warm, falling = max(1, steps // 20), max(1, steps // 3)
    return [peak * min(1.0, (step + 1) / warm, (steps - step) / falling) for step in range(steps)]
