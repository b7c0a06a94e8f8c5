"""The fully spiking VAE (Kamata et al., AAAI 2022), also with a PFA in front (Deng et al., 2024).

Encoder, latent, prior, posterior and decoder are spiking layers (current -> tdBN -> LIF). The posterior
offers each latent unit k spike trains. One of them is drawn anew at every step. Images are [N, C, H, W] from
-1 to 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attsnn import neurons
from attsnn._extension import Backend
from attsnn.attention import PFA, as_made, check_counts
from attsnn.layers import SpikingLayer

from .registry import register
from .sizes import check_halved, check_widths

THRESHOLD = 0.2
DECAY = 0.8  # of the membrane that the image is read from
FIRST_SCHEDULED = 5  # from this step on, the prior may be given its own draw
NOISE = 1e-3  # added to the prior's rates before they are rounded to such a draw
PSP_STEPS = 2.0  # time constant of the filter that spike trains pass to be compared
PFA_RULES = {"published": ("sum", "multiply"), True: ("mean", "residual")}  # scale, fusion


@dataclass(frozen=True)
class Plan:
    """What differs between the networks, and what a caller may change."""

    in_channels: int = 1
    size: int = 32
    steps: int = 16
    latent: int = 128
    k: int = 20
    widths: tuple[int, ...] = (32, 64, 128, 256)
    hidden: tuple[int, int] = (256, 512)
    pfa: bool | str = False
    rank: int = 64
    prefix: str = "exact"

    @property
    def side(self) -> int:
        """The side of the encoder's last maps."""
        return self.size >> len(self.widths)


PLANS = {"fsvae": Plan(), "fsvae_large": Plan(in_channels=3, size=64, widths=(32, 64, 128, 256, 512))}


class VAEOutput(NamedTuple):
    """What `FSVAE.forward` returns."""

    images: Tensor  # [N, C, H, W], from -1 to 1
    posterior: Tensor  # [T, N, latent, k], spikes
    prior: Tensor  # [T, N, latent, k], spikes
    z: Tensor  # [T, N, latent], spikes


class FSVAE(nn.Module):
    """The network of a plan. Spikes are [T, N, ...] throughout; z_1 ... z_T is the latent sequence."""

    averages_scores = False  # it has none

    def __init__(self, plan: Plan, backend: Backend):
        super().__init__()

        def layer(
            current: nn.Module, width: int, norm: type[_BatchNorm] = nn.BatchNorm2d, alpha: float = 1.0
        ) -> SpikingLayer:
            neuron = neurons.fsvae(threshold=THRESHOLD, backend=backend)
            return SpikingLayer(current, neuron, norm=norm(width), norm_scale=alpha * THRESHOLD)

        def linear(a: int, b: int, alpha: float = 1.0) -> SpikingLayer:
            return layer(nn.Linear(a, b), b, nn.BatchNorm1d, alpha)

        def mlp(inputs: int) -> nn.Sequential:
            sizes = (inputs, *plan.hidden, plan.latent * plan.k)
            return nn.Sequential(*(linear(a, b, 2.0) for a, b in zip(sizes, sizes[1:], strict=False)))

        def doubled(a: int, b: int) -> SpikingLayer:
            return layer(nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1), b)

        down = (plan.in_channels, *plan.widths)
        up = (*reversed(plan.widths), plan.widths[0])
        flat = plan.widths[-1] * plan.side**2
        self.attention: PFA | None = None
        if plan.pfa:
            scale, fusion = PFA_RULES[plan.pfa]
            self.attention = PFA(
                plan.steps, plan.in_channels, plan.rank, scale=scale, fusion=fusion, backend=backend
            )
        self.encoder = nn.Sequential(
            *(layer(nn.Conv2d(a, b, 3, stride=2, padding=1), b) for a, b in zip(down, down[1:], strict=False))
        )
        self.before_latent = linear(flat, plan.latent)
        self.posterior, self.prior = mlp(2 * plan.latent), mlp(plan.latent)
        self.decoder_input = linear(plan.latent, flat)
        self.decoder = nn.Sequential(*(doubled(a, b) for a, b in zip(up, up[1:], strict=False)))
        self.final = nn.ConvTranspose2d(up[-1], plan.in_channels, 3, padding=1)
        self.plan = plan

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images [N, C, H, W] to the latent's input, spikes [T, N, latent]."""
        plan = self.plan
        size = (plan.in_channels, plan.size, plan.size)
        if images.dim() != 4 or tuple(images.shape[1:]) != size:
            raise ValueError(f"images must be [N, {', '.join(map(str, size))}], got {tuple(images.shape)}")
        x = images[None]
        if self.attention is not None:
            # For a static image the map is the same at every step.
            x = self.attention(images.expand(plan.steps, *images.shape))[:1]
        x = self.encoder[0](x, steps=plan.steps)
        latent: Tensor = self.before_latent(self.encoder[1:](x).flatten(2))
        return latent

    def posterior_bits(self, latent: Tensor, z: Tensor) -> Tensor:
        """q(z_t | x_<=t, z_<t) as k spike trains for each unit, [T, N, latent, k].

        `latent` is what `encode` returns, and `z` is z_1 ... z_T [T, N, latent]. Step t sees z_(t-1), the
        first step zeros.
        """
        return self._bits(self.posterior(torch.cat([latent, _shifted(z)], -1)))

    def prior_bits(self, z: Tensor) -> Tensor:
        """p(z_t | z_<t), of the same form, from z_1 ... z_T [T, N, latent]; any T."""
        return self._bits(self.prior(_shifted(z)))

    def decode(self, z: Tensor) -> Tensor:
        """Decodes z_1 ... z_T [T, N, latent] to images [N, C, H, W] from -1 to 1.

        They are the tanh of the membrane, at the last step, of neurons that do not fire.
        """
        plan = self.plan
        x = self.decoder_input(z).unflatten(2, (plan.widths[-1], plan.side, plan.side))
        x = self.decoder(x)
        # The last convolution is linear: the steps are weighed before it, and it runs once.
        weights = DECAY ** torch.arange(len(x) - 1, -1, -1, dtype=torch.float64, device=x.device)
        mean: Tensor = torch.tensordot(weights.to(x.dtype), x, 1)
        if not as_made(self.final, nn.ConvTranspose2d):  # called: its bias then counts once
            total = weights.sum().to(x.dtype)
            images: Tensor = (self.final(mean / total) * total).tanh()
            return images
        bias, padding = cast(Tensor, self.final.bias), cast(tuple[int, ...], self.final.padding)
        bias = bias * weights.sum().to(bias.dtype)
        return F.conv_transpose2d(mean, self.final.weight, bias, self.final.stride, padding).tanh()

    def forward(
        self, images: Tensor, scheduled: float = 0.0, generator: torch.Generator | None = None
    ) -> VAEOutput:
        """Reconstructs images from a drawn z; also returns what the loss compares.

        Args:
            images: [N, C, H, W], from -1 to 1.
            scheduled: in training, the probability that the prior gets its own draw instead of the
                posterior's z, from step 5 on. It is decided once a step for the whole batch.
            generator: of the CPU, whatever the device, so that the draws are the same everywhere. None:
                PyTorch's own.
        """
        latent = self.encode(images)
        drawn = self._drawn_from_posterior(latent.detach(), generator)
        posterior = self.posterior_bits(latent, drawn.z)
        z = _picked(posterior, drawn.indices)
        seen = z.detach()
        if self.training and scheduled > 0:
            seen = self._scheduled(seen, scheduled, generator)
        return VAEOutput(self.decode(z), posterior, self.prior_bits(seen), z)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Generates n images [n, C, H, W]: draws z from the prior step by step, then decodes it.

        Raises ValueError in training mode.
        """
        if self.training:
            raise ValueError("sample() wants evaluation mode, as it was published: call eval() first")
        return self.decode(self.sample_z(n, generator))

    @torch.no_grad()
    def sample_z(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws z_1 ... z_T [T, n, latent] from the prior, with the running statistics.

        A step costs one pass of one step.
        """
        plan, like = self.plan, self.final.weight
        z, stream, drawn = like.new_zeros(n, plan.latent), _Stream(self.prior), []
        for _ in range(plan.steps):
            z = _picked(self._bits(stream(z)), self._indices(n, generator).to(like.device))
            drawn.append(z)
        return torch.stack(drawn)

    def _bits(self, flat: Tensor) -> Tensor:
        return torch.unflatten(flat, -1, (self.plan.latent, self.plan.k))

    def _indices(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Which of the k spike trains each unit takes at a step, [n, latent]; drawn as published."""
        plan = self.plan
        return torch.randint(0, plan.k, (n * plan.latent,), generator=generator).view(n, plan.latent)

    def _streams(self) -> bool:
        """Whether a prefix continues the one before by a step, instead of starting again."""
        return not self.training or self.plan.prefix == "running"

    @torch.no_grad()
    def _drawn_from_posterior(self, latent: Tensor, generator: torch.Generator | None) -> "_Drawn":
        """Draws z_1 ... z_(T-1) in turn, and the indices of all T. No step sees z_T, which is zeros."""
        steps, n, _ = latent.shape
        z, indices = [torch.zeros_like(latent[0])], []
        last = self._last_of(self.posterior)
        for t in range(1, steps):
            bits = last(torch.cat([latent[:t], torch.stack(z)], -1))
            indices.append(self._indices(n, generator).to(latent.device))
            z.append(_picked(self._bits(bits), indices[-1]))
        indices.append(self._indices(n, generator).to(latent.device))
        return _Drawn(torch.stack([*z[1:], z[0]]), torch.stack(indices))

    @torch.no_grad()
    def _scheduled(self, z: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
        """z_1 ... z_T [T, N, latent], where rounded rates of the prior replace some draws."""
        wanted = torch.rand(len(z) - 1, generator=generator) < probability
        wanted[:FIRST_SCHEDULED] = False
        own = self._agreed(wanted, z.device)
        if not any(own):
            return z
        last, seen = self._last_of(self.prior), [torch.zeros_like(z[0])]
        for t, drawn in enumerate(own):
            if drawn or self._streams():
                bits = last(torch.stack(seen))
            if drawn:
                rates = self._bits(bits).mean(-1)
                noise = torch.randn(rates.shape, generator=generator).to(rates)
                seen.append((rates + NOISE * noise > 0.5).to(z.dtype))
            else:
                seen.append(z[t])
        return torch.stack([*seen[1:], z[-1]])

    @staticmethod
    def _agreed(own: Tensor, device: torch.device) -> list[bool]:
        """The choice of the first process, for all: synchronised norms meet in each pass of a prefix."""
        if dist.is_available() and dist.is_initialized():
            shared = own.to(device, torch.uint8)
            dist.broadcast(shared, 0)
            own = shared
        return own.bool().tolist()

    def _last_of(self, network: nn.Sequential) -> Callable[[Tensor], Tensor]:
        """The last step's output [N, ...] of sequences [t, N, ...], given for t = 1, 2, ... in turn."""
        if not self._streams():
            return lambda x: network(x)[-1]
        stream = _Stream(network)
        return lambda x: stream(x[-1])


class _Drawn(NamedTuple):
    z: Tensor  # [T, N, latent]
    indices: Tensor  # [T, N, latent]


class _Stream:
    """Runs spiking layers step by step, each from the state that the step before left."""

    def __init__(self, network: nn.Sequential):
        self.layers = [cast(SpikingLayer, layer) for layer in network]
        self.states: list[Tensor | None] = [None] * len(network)

    def __call__(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x, self.states[i] = layer.step(x, self.states[i])
        return x


def _shifted(z: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(z[:1]), z[:-1]])


def _picked(bits: Tensor, indices: Tensor) -> Tensor:
    """Picks from bits [..., latent, k] one for each unit: [..., latent]."""
    return bits.gather(-1, indices[..., None]).squeeze(-1)


def loss(out: VAEOutput, images: Tensor, distance: Literal["mmd", "kld"] = "mmd") -> tuple[Tensor, Tensor]:
    """The two terms of the loss, (reconstruction, distance).

    The reconstruction term is the mean squared error against `images`. The distance term says how far
    posterior and prior are apart:

    - "mmd" (maximum mean discrepancy): the mean squared difference of their rates after a filter.
    - "kld" (Kullback-Leibler divergence): summed over steps and units, a mean over samples.

    As published, their sum is minimised, with "kld" times 1e-4.
    """
    q, p = out.posterior.mean(-1), out.prior.mean(-1)  # [T, N, latent], rates over k
    return F.mse_loss(out.images, images), DISTANCES[distance](q, p)


def _mmd(q: Tensor, p: Tensor) -> Tensor:
    # s_t = s_(t-1) + (x_t - s_(t-1)) / tau is linear: the filter of a difference, as one matrix.
    steps = torch.arange(len(q), dtype=torch.float64, device=q.device)
    ages = steps[:, None] - steps
    decay = (1 - 1 / PSP_STEPS) ** ages.clamp(min=0) / PSP_STEPS
    psp = torch.where(ages >= 0, decay, 0.0).to(q.dtype)
    difference: Tensor = torch.tensordot(psp, q - p, 1)
    return difference.square().mean()


def _kld(q: Tensor, p: Tensor) -> Tensor:
    off = 1 - q
    divergence = q * ((q + 0.01) / (p + 0.01)).log() + off * ((off + 0.01) / (1 - p + 0.01)).log()
    return divergence.sum((0, 2)).mean()


DISTANCES = {"mmd": _mmd, "kld": _kld}


def _build(plan: Plan, backend: Backend, **overrides: Any) -> FSVAE:
    plan = replace(plan, **overrides)
    counts = ("in_channels", "size", "steps", "latent", "k", "rank")
    check_counts(**{name: getattr(plan, name) for name in counts})
    check_widths(plan.widths, max(len(plan.widths), 1), "widths")
    check_widths(plan.hidden, 2, "hidden")
    check_halved(plan.size, len(plan.widths))
    if plan.pfa is not False and plan.pfa not in PFA_RULES:
        raise ValueError(f'pfa must be False, True or "published", got {plan.pfa!r}')
    if plan.prefix not in ("exact", "running"):
        raise ValueError(f'prefix must be "exact" or "running", got {plan.prefix!r}')
    return FSVAE(plan, backend)


_KEYWORDS = """Args:
        in_channels: of the images, whose values lie from -1 to 1.
        size: side of an image in pixels.
        steps: T.
        latent: units of the latent.
        k: spike trains that posterior and prior offer each unit.
        widths: channels of the encoder's convolutions, each of which halves the side. The decoder has them in
            reverse.
        hidden: units of the two hidden layers of posterior and prior.
        pfa: True: a PFA weighs the image, x + A x, where the map's sum is divided by its rank (ours, for any
            image). "published": relu(A x) with the map's sum, as released; it loses what is darker than grey.
        rank: of the PFA.
        prefix: how z is drawn in training. "exact": each prefix of the sequence is computed anew with the
            batch's statistics, as published, T (T + 1) / 2 steps. "running": a step at a time with the
            running statistics, as in evaluation.
        backend: "auto", "fused" or "reference"."""


def _register(name: str, what: str) -> None:
    plan = PLANS[name]

    def builder(
        *,
        in_channels: int = plan.in_channels,
        size: int = plan.size,
        steps: int = plan.steps,
        latent: int = plan.latent,
        k: int = plan.k,
        widths: Sequence[int] = plan.widths,
        hidden: Sequence[int] = plan.hidden,
        pfa: bool | str = plan.pfa,
        rank: int = plan.rank,
        prefix: str = plan.prefix,
        backend: Backend = "auto",
    ) -> FSVAE:
        return _build(
            plan,
            backend,
            in_channels=in_channels,
            size=size,
            steps=steps,
            latent=latent,
            k=k,
            widths=tuple(widths),
            hidden=tuple(hidden),
            pfa=pfa,
            rank=rank,
            prefix=prefix,
        )

    builder.__name__ = name
    builder.__doc__ = f"""The fully spiking VAE for {what}.

    {_KEYWORDS}
    """
    globals()[name] = register(builder)


_register("fsvae", "images of 32 x 32 pixels: MNIST, Fashion-MNIST, CIFAR-10")
_register("fsvae_large", "images of 64 x 64 pixels: CelebA")
