"""The published structure of the fully spiking VAE, on the weights of ours: time last, 3-D convolutions,
linear layers step by step, neurons in a Python loop, and each prefix of the sequence computed anew.

Written from the published code's description, to be measured beside; draws are ours, in the same order.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attsnn.layers import SpikingLayer
from attsnn.models.fsvae import DECAY, FIRST_SCHEDULED, FSVAE, NOISE, THRESHOLD, VAEOutput

LEAK, WINDOW = 0.25, 0.5


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return u.gt(THRESHOLD).to(u.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad * (u.abs() < WINDOW).to(grad.dtype) / (2 * WINDOW)


def spikes(x: Tensor) -> Tensor:
    """[..., T] of currents [..., T]."""
    u, o, out = torch.zeros_like(x[..., 0]), torch.zeros_like(x[..., 0]), torch.zeros_like(x)
    for t in range(x.shape[-1]):
        u = LEAK * u * (1 - o) + x[..., t]
        o = _Fire.apply(u)
        out[..., t] = o
    return out


def block(layer: SpikingLayer, x: Tensor) -> Tensor:
    """A layer over [N, C, H, W, T] or [N, F, T]."""
    current, norm = layer.current, layer.norm
    if isinstance(current, nn.Linear):
        z = torch.stack([F.linear(x[..., t], current.weight, current.bias) for t in range(x.shape[-1])], -1)
    else:
        weight, stride = current.weight[..., None], (*current.stride, 1)
        how = {"stride": stride, "padding": (*current.padding, 0)}
        if isinstance(current, nn.ConvTranspose2d):
            how["output_padding"] = (*current.output_padding, 0)
            z = F.conv_transpose3d(x, weight, current.bias, **how)
        else:
            z = F.conv3d(x, weight, current.bias, **how)
    if norm.training:
        norm.num_batches_tracked += 1
    running = norm.running_mean, norm.running_var
    gain = norm.weight * layer.norm_scale
    return spikes(F.batch_norm(z, *running, gain, norm.bias, norm.training, norm.momentum, norm.eps))


class PublishedVAE:
    """A network of ours, computed as it was published; `z` is [T, N, latent] outside, as ours."""

    def __init__(self, net: FSVAE):
        if net.attention is not None:
            raise ValueError("the published structure is measured without PFA")
        self.net, self.plan = net, net.plan

    def forward(
        self, images: Tensor, scheduled: float, generator: torch.Generator | None = None
    ) -> VAEOutput:
        """As `FSVAE.forward` in training."""
        plan, n = self.plan, len(images)
        x = images[..., None].repeat(1, 1, 1, 1, plan.steps)
        for layer in self.net.encoder:
            x = block(layer, x)
        latent = block(self.net.before_latent, x.flatten(1, 3))
        with torch.no_grad():
            z, indices = torch.zeros_like(latent[..., :1]), []
            for t in range(1, plan.steps):
                bits = self._chain(self.net.posterior, torch.cat([latent.detach()[..., :t], z], 1))[..., -1]
                indices.append(self._indices(n, generator))
                z = torch.cat([z, self._picked(bits, indices[-1])[..., None]], -1)
            indices.append(self._indices(n, generator))
        posterior = self._chain(self.net.posterior, torch.cat([latent, z], 1))
        picked = [self._picked(posterior[..., t], j) for t, j in enumerate(indices)]
        drawn = torch.stack(picked, -1)
        seen = self._seen(drawn.detach(), scheduled, generator)
        prior = self._chain(self.net.prior, seen)
        bits = lambda flat: flat.unflatten(1, (plan.latent, plan.k)).permute(3, 0, 1, 2)  # noqa: E731
        return VAEOutput(self.decode(drawn), bits(posterior), bits(prior), drawn.permute(2, 0, 1))

    def decode(self, z: Tensor) -> Tensor:
        """Images of z [N, latent, T]."""
        plan = self.plan
        x = block(self.net.decoder_input, z).unflatten(1, (plan.widths[-1], plan.side, plan.side))
        for layer in self.net.decoder:
            x = block(layer, x)
        final = self.net.final
        y = F.conv_transpose3d(x, final.weight[..., None], final.bias, padding=(*final.padding, 0))
        weights = DECAY ** torch.arange(plan.steps - 1, -1, -1, dtype=y.dtype, device=y.device)
        return (y * weights).sum(-1).tanh()

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images from the prior."""
        return self.decode(self.sample_z(n, generator))

    @torch.no_grad()
    def sample_z(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z [n, latent, T] from the prior, whose whole sequence so far is computed at each step."""
        z = self.net.final.weight.new_zeros(n, self.plan.latent, 1)
        for _ in range(self.plan.steps):
            bits = self._chain(self.net.prior, z)[..., -1]
            z = torch.cat([z, self._picked(bits, self._indices(n, generator))[..., None]], -1)
        return z[..., 1:]

    def _seen(self, z: Tensor, scheduled: float, generator: torch.Generator | None) -> Tensor:
        """What the prior is given: z shifted, some steps its own rates."""
        own = torch.rand(self.plan.steps - 1, generator=generator) < scheduled
        seen = torch.zeros_like(z[..., :1])
        for t in range(self.plan.steps - 1):
            step = z[..., t]
            if t >= FIRST_SCHEDULED and own[t]:
                with torch.no_grad():
                    bits = self._chain(self.net.prior, seen)[..., -1]
                rates = bits.unflatten(1, (self.plan.latent, self.plan.k)).mean(-1)
                noise = torch.randn(rates.shape, generator=generator).to(rates)
                step = (rates + NOISE * noise > 0.5).to(rates.dtype)
            seen = torch.cat([seen, step[..., None]], -1)
        return seen

    @staticmethod
    def _chain(layers: nn.Sequential, x: Tensor) -> Tensor:
        for layer in layers:
            x = block(layer, x)
        return x

    def _indices(self, n: int, generator: torch.Generator | None) -> Tensor:
        flat = torch.randint(0, self.plan.k, (n * self.plan.latent,), generator=generator)
        return flat.to(self.net.final.weight.device)

    def _picked(self, bits: Tensor, indices: Tensor) -> Tensor:
        """[N, latent] of [N, latent k]."""
        rows = bits.reshape(-1, self.plan.k)
        return rows[torch.arange(len(rows), device=rows.device), indices].view(-1, self.plan.latent)


def loss_of(out: VAEOutput, images: Tensor) -> Tensor:
    """MSE + MMD, the filter as a recursion."""
    rates: list[Callable | Tensor] = [out.posterior.mean(-1), out.prior.mean(-1)]
    filtered = []
    for x in rates:
        s, steps = torch.zeros_like(x[0]), []
        for step in x:
            s = s + (step - s) / 2
            steps.append(s)
        filtered.append(torch.stack(steps))
    return F.mse_loss(out.images, images) + (filtered[0] - filtered[1]).square().mean()
