"""The convolutional autoencoder whose latent is the feature of the papers' autoencoder distance (FSVAE, AAAI
2022; spec of the released code), no spiking network.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from attsnn.attention import check_counts

from .registry import register
from .sizes import check_halved, check_widths


class Autoencoder(nn.Module):
    """`encode`, `decode`; images [N, C, H, W] from -1 to 1. Names are the released code's."""

    averages_scores = False  # it has none

    def __init__(self, in_channels: int, size: int, widths: Sequence[int], latent: int):
        super().__init__()
        down, up, side = (in_channels, *widths), (*reversed(widths), widths[0]), size >> len(widths)

        def halved(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.LeakyReLU())

        def doubled(a: int, b: int) -> list[nn.Module]:
            return [nn.ConvTranspose2d(a, b, 3, 2, 1, 1), nn.BatchNorm2d(b), nn.LeakyReLU()]

        self.encoder = nn.Sequential(*map(halved, down, down[1:]))
        self.latent_layer = nn.Linear(widths[-1] * side**2, latent)
        self.decoder_input = nn.Linear(latent, widths[-1] * side**2)
        self.decoder = nn.Sequential(
            *(nn.Sequential(*doubled(a, b)) for a, b in zip(up, up[1:-1], strict=False))
        )
        closing = nn.ConvTranspose2d(up[-1], in_channels, 3, padding=1)
        self.final_layer = nn.Sequential(*doubled(up[-2], up[-1]), closing, nn.Tanh())
        self.maps = (widths[-1], side, side)

    def encode(self, images: Tensor) -> Tensor:
        """The features [N, latent]."""
        features: Tensor = self.latent_layer(self.encoder(images).flatten(1))
        return features

    def decode(self, latent: Tensor) -> Tensor:
        images: Tensor = self.final_layer(self.decoder(self.decoder_input(latent).unflatten(1, self.maps)))
        return images

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))


@register
def fsvae_autoencoder(
    *,
    in_channels: int = 1,
    size: int = 32,
    widths: Sequence[int] = (32, 64, 128, 256),
    latent: int = 64,
) -> Autoencoder:
    """The released autoencoder, by default that of MNIST and Fashion-MNIST; of CIFAR-10 and CelebA its latent
    is 128, and CelebA's has a fifth width, 512, for 64 x 64 pixels.
    """
    check_counts(in_channels=in_channels, size=size, latent=latent)
    check_widths(widths, max(len(widths), 1), "widths")
    check_halved(size, len(widths))
    return Autoencoder(in_channels, size, widths, latent)
