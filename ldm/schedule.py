"""The noise schedule of Stable Diffusion v1 and its continuous (sigma) form."""

import torch
from torch import Tensor


class NoiseSchedule:
    """Variance-preserving schedule with "scaled linear" betas.

    betas = linspace(sqrt(linear_start), sqrt(linear_end), n)^2 in float64 (latent diffusion);
    sigma = sqrt((1 - alphas_cumprod) / alphas_cumprod), as k-diffusion's CompVis denoiser has it.
    """

    def __init__(self, linear_start: float = 0.00085, linear_end: float = 0.012, steps: int = 1000):
        self.steps, self.vectors = steps, released_schedule(linear_start, linear_end, steps)
        self.betas, product = self.vectors["betas"], self.vectors["alphas_cumprod"]
        self.sigmas = ((1 - product) / product).sqrt()
        self.log_sigmas = self.sigmas.log()

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0): x_0, noise (B, C, h, w), t (B,) int64 -> x_t (DDPM, equation 4)."""
        names = "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"
        signal, spread = (self.vectors[n].to(x_0.device)[t].view(-1, 1, 1, 1) for n in names)
        return signal * x_0 + spread * noise

    def velocity(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v = alpha_t noise - sigma_t x_0 (Salimans & Ho 2022, appendix D); shapes as above."""
        return self.add_noise(noise, -x_0, t)

    def sampling_sigmas(self, steps: int) -> Tensor:
        """`steps` falling sigmas and a final 0: t evenly spaced from the last to the first."""
        t = torch.linspace(self.steps - 1, 0, steps)
        low, high = t.floor().long(), t.ceil().long()
        weight = t.frac()
        log_sigma = (1 - weight) * self.log_sigmas[low] + weight * self.log_sigmas[high]
        return torch.cat([log_sigma.exp(), torch.zeros(1)])

    def timestep(self, sigma: Tensor) -> Tensor:
        """The fractional t of sigma (any shape), linear in log sigma, clamped to [0, steps - 1]."""
        log_sigmas = self.log_sigmas.to(sigma.device)
        log_sigma = sigma.log()
        low = torch.searchsorted(log_sigmas, log_sigma.flatten(), right=True) - 1
        low = low.clamp(0, self.steps - 2).view(sigma.shape)
        weight = (log_sigma - log_sigmas[low]) / (log_sigmas[low + 1] - log_sigmas[low])
        return low + weight.clamp(0, 1)


def released_schedule(linear_start: float, linear_end: float, steps: int) -> dict[str, Tensor]:
    """The vectors (steps,) float32 that released checkpoints hold beside the weights.

    Computed in float64 and cast, as there. `posterior_*`: mean x_0 * coef1 + x_t * coef2 and
    variance of q(x_{t-1} | x_t, x_0) (DDPM, equations 6 and 7).
    """
    betas = torch.linspace(linear_start**0.5, linear_end**0.5, steps, dtype=torch.float64) ** 2
    alphas = 1 - betas
    product = torch.cumprod(alphas, dim=0)
    before = torch.cat([product.new_ones(1), product[:-1]])
    variance = betas * (1 - before) / (1 - product)
    vectors = {
        "betas": betas,
        "alphas_cumprod": product,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": product.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - product).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - product).log(),
        "sqrt_recip_alphas_cumprod": (1 / product).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / product - 1).sqrt(),
        "posterior_variance": variance,
        # the first variance is 0
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - product),
        "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - product),
    }
    return {name: vector.float() for name, vector in vectors.items()}
