"""Stage 2 under Lightning: loss, optimizer, EMA and validation of a `LegoModel`.

What is trained: the denoiser and, unless `conditioner.trained` is false (as in the released code),
the conditioner; where `lora.rank` is above 0, adapters alone. The frozen encoders are left out of
the module tree while a cache stands in for them, so that they take no memory on the device;
checkpoints hold them all the same.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from egogen import EgoGenError, stable_seed
from ldm.checkpoints.layouts import OWN, OWN_EMA
from ldm.checkpoints.lora import FILE, add_adapters, write_lora
from ldm.checkpoints.released_names import stored_name
from ldm.data import project
from ldm.model import FROZEN_PARTS, LegoModel
from ldm.networks import cpu
from ldm.schedule import released_schedule
from ldm.schema import LearningRateParams, LightningConfig, ModelParams, OptimizerParams
from ldm.training.distill import distillation_loss
from ldm.training.ema import EMA


def rate_factor(step: int, params: LearningRateParams) -> float:
    """Factor of the learning rate before optimizer step `step` (latent diffusion's linear rule).

    f_start to f_max over warm_up_steps, then towards f_min, reached at cycle_lengths. The released
    values, no warm-up and f_max = f_min = 1, are a constant rate.
    """
    warm, length = params.warm_up_steps[0], params.cycle_lengths[0]
    start, top, low = params.f_start[0], params.f_max[0], params.f_min[0]
    if step < warm:
        return start + (top - start) * step / warm
    return low + (top - low) * max(0.0, (length - step) / length)


def bound_weights(params: ModelParams) -> Tensor:
    """(timesteps,) weights that make the mean squared error of the noise the variational bound.

    beta_t^2 / (2 sigma_t^2 alpha_t (1 - alphas_cumprod_t)) (DDPM, equation 12), sigma_t^2 the
    posterior variance; where that is 0, at t = 0, the next one's weight, as in the released code.
    Only logged: the loss is not weighted.
    """
    vectors = released_schedule(params.linear_start, params.linear_end, params.timesteps)
    betas, variance = vectors["betas"], vectors["posterior_variance"]
    weights = betas**2 / (2 * variance * (1 - betas) * (1 - vectors["alphas_cumprod"]))
    weights[0] = weights[1]
    # The error of the noise is alpha_t times that of the velocity.
    return weights * (vectors["alphas_cumprod"] if params.parameterization == "v" else 1)


class LegoTraining(pl.LightningModule):
    """`cached`: batches hold encoder outputs (see `ldm.cache`) in place of pixels and texts."""

    _frozen: nn.ModuleDict  # the encoders that `model` is without
    teacher: LegoModel | None  # whose guidance is learnt, see `ldm.training.distill`

    def __init__(
        self,
        model: LegoModel,
        optimizer: OptimizerParams,
        lightning: LightningConfig,
        seed: int,
        cached: bool = False,
        teacher: LegoModel | None = None,
    ):
        super().__init__()
        self.model, self.optimizer_params, self.lightning = model, optimizer, lightning
        self.seed, params = seed, model.config
        model.denoiser.network.requires_grad_(True)
        model.conditioner.requires_grad_(params.conditioner.trained)
        alpha = params.lora.rank if params.lora.alpha is None else params.lora.alpha
        self.lora = replace(params.lora, alpha=alpha)
        if self.lora.rank:
            add_adapters(model, self.lora, seed)
        if params.unet.use_checkpoint:
            model.denoiser.checkpoint_activations()
        model.denoiser.prepare(channels_last=lightning.channels_last, compiled=lightning.compile)
        cpu.exchange(model.denoiser.network, cpu.TRAINED)
        self.ema = EMA(model, params.ema_decay) if params.use_ema else None
        with torch.no_grad():
            self.register_buffer("empty_prompt", model.encode_text([""]), persistent=False)
        self.register_buffer("bound_weights", bound_weights(params), persistent=False)
        self._validation = ExitStack()
        frozen = {part: getattr(model, part) for part in FROZEN_PARTS} if cached else {}
        # Not among the modules of this one:
        self.__dict__ |= {"_frozen": nn.ModuleDict(frozen), "teacher": teacher}
        for part in frozen:
            setattr(model, part, None)

    @contextmanager
    def encoders(self) -> Iterator[None]:
        """Inside, the frozen encoders are in the model and on its device."""
        for part, module in self._frozen.to(self.device).items():
            setattr(self.model, part, module)
        try:
            yield
        finally:
            for part in self._frozen.to("cpu"):
                setattr(self.model, part, None)

    def ema_weights(self) -> AbstractContextManager:
        """Inside, the model holds the EMA, where there is one."""
        return nullcontext() if self.ema is None else self.ema.applied()

    def encode(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of `TrainingPairs` -> what `LegoModel.training_loss` takes."""
        batch = project(batch, self.model.conditioner.features)
        source, edited = batch.pop("source"), batch.pop("edited")
        if source.shape[1] == 3:  # pixels; moments have twice the latent channels
            source, edited = self.model.encode_moments(torch.cat([source, edited])).chunk(2)
            batch["prompt"] = self.model.encode_text(batch["prompt"])
        return {**batch, "source_moments": source, "edited_moments": edited}

    def losses(self, batch: dict[str, Any]) -> Tensor:
        """Per sample: (B,)."""
        batch = self.encode(batch)
        if self.teacher is None:
            return self.model.training_loss(batch, self.empty_prompt)
        teacher = self.teacher.to(self.device)
        return distillation_loss(self.model, teacher, batch, self.empty_prompt)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        # The conditioner's own dropout draws from torch's global stream: tie it to the place in
        # the training, so that a resumed run draws what an undisturbed one does.
        place = self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank
        torch.manual_seed(stable_seed(*place))
        losses = self.losses(batch)
        self._log("loss", losses, batch["t"])
        return losses.mean()

    def on_validation_start(self) -> None:
        """The EMA goes in once for the complete validation, not once a batch."""
        self._validation.enter_context(self.ema_weights())

    def on_validation_end(self) -> None:
        self._validation.close()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._log("val_loss", self.losses(batch), batch["t"])

    def _log(self, name: str, losses: Tensor, t: Tensor) -> None:
        """The mean and, beside a loss of noise or velocity, the bound; losses, t: (B,)."""
        values = {name: losses.mean()}
        if self.model.config.parameterization != "x0" and self.teacher is None:
            values[f"{name}_vlb"] = (self.bound_weights[t] * losses.detach()).mean()
        # For TrainingLog alone: Lightning would count other steps, and log single micro-batches.
        self.log_dict(values, sync_dist=True, batch_size=len(t), logger=False)

    def write_adapters(self, folder: Path) -> None:
        """The EMA's, where there is one, in a file of their own; nothing where all is trained."""
        if self.lora.rank:
            live = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
            adapters = live if self.ema is None else self.ema.state_dict()
            write_lora(folder / FILE, adapters, self.lora.alpha)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over everything trained; weight decay on all of it, as in the released code."""
        settings, options = self.optimizer_params, self.lightning.trainer
        mixed = not str(options.get("precision", 32)).startswith(("32", "64"))
        optimizer = torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad],
            lr=settings.base_learning_rate,
            weight_decay=settings.weight_decay,
            # Otherwise a launch, or a pass over memory, per parameter. Lightning cannot clip for
            # it in mixed precision: it would undo the scaling of gradients only inside its step.
            fused=not (mixed and options.get("gradient_clip_val")),
        )
        params = self.model.config.learning_rate
        schedule = LambdaLR(optimizer, lambda step: rate_factor(step, params))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """EMA and frozen parts join the state dict: the file generates without any other."""
        state = checkpoint["state_dict"]
        state |= self._frozen.state_dict(prefix=OWN)
        if self.ema is not None:
            state |= {OWN_EMA + name: value for name, value in self.ema.state_dict().items()}
            checkpoint["ema_updates"] = self.ema.updates
        if self.teacher is not None:
            checkpoint["distill"] = self.model.config.distill.note
        for name in list(state):  # in the state dict's order
            state[stored_name(name)] = state.pop(name)
        if self.lora.rank:
            checkpoint["lora"] = asdict(self.lora)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The reverse; Lightning then loads what is left."""
        state = checkpoint["state_dict"]
        lora = asdict(self.lora) if self.lora.rank else None
        if (found := checkpoint.get("lora")) != lora:
            raise EgoGenError(f"checkpoint: has adapters {found}, but the config asks for {lora}")
        averaged = [] if self.ema is None else [OWN_EMA + name for name in self.ema.names]
        known = {stored_name(name): name for name in [*self.state_dict(), *averaged]}
        for name in list(state):
            state[known.get(name, name)] = state.pop(name)
        names = [name for name in state if name.startswith(OWN_EMA)]
        shadow = {name.removeprefix(OWN_EMA): state.pop(name) for name in names}
        if self.ema is not None:
            self.ema.load_state_dict(shadow, checkpoint["ema_updates"])
        frozen = {name: state.pop(OWN + name) for name in self._frozen.state_dict()}
        self._frozen.load_state_dict(frozen)
