"""EMA (exponential moving average) of what is trained: diffusers' EMAModel, the released decay.

LitEma of the released code: decay(k) = min(max_decay, (1 + k) / (10 + k)) for update k = 1, 2, ...
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from egogen import EgoGenError


class EMA:
    """EMA of the trainable parameters of `module`, float32, kept outside the module tree."""

    def __init__(self, module: nn.Module, max_decay: float):
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.names, self.live = [*trained], [*trained.values()]
        self.ema = EMAModel(self.live, decay=max_decay, foreach=True)
        # EMAModel's first update would copy, that of the released code averages: begin one later.
        self.ema.optimization_step = 1

    @property
    def updates(self) -> int:
        return self.ema.optimization_step - 1

    def update(self) -> None:
        self.ema.to(device=self.live[0].device)
        self.ema.step(self.live)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module holds the EMA weights."""
        self.ema.to(device=self.live[0].device)
        self.ema.store(self.live)
        self.ema.copy_to(self.live)
        try:
            yield
        finally:
            self.ema.restore(self.live)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.ema.shadow_params, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor], updates: int) -> None:
        if set(state) != set(self.names):
            odd = sorted(set(state) ^ set(self.names))
            raise EgoGenError(f"checkpoint: the EMA is not of what is trained, first {odd[0]}")
        for name, shadow in zip(self.names, self.ema.shadow_params, strict=True):
            shadow.copy_(state[name])
        self.ema.optimization_step = updates + 1
