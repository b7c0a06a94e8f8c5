"""The convolutional autoencoder of FSVAE (AAAI 2022; released code), which is no spiking network.

Its latent is the feature of the papers' autoencoder distance.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from attsnn.attention import check_counts

from .registry import register
from .sizes import check_halved, check_widths


class Autoencoder(nn.Module):
    """`encode` and `decode`, for images [N, C, H, W] from -1 to 1.

    The names of its tensors are those of the released code.
    """

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
        """Encodes images to features [N, latent]."""
        features: Tensor = self.latent_layer(self.encoder(images).flatten(1))
        return features

    def decode(self, latent: Tensor) -> Tensor:
        """Decodes features [N, latent] to images."""
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
    """The released autoencoder. The defaults are those for MNIST and Fashion-MNIST.

    For CIFAR-10 and CelebA the latent is 128. CelebA, with 64 x 64 pixels, has a fifth width, 512.

    Args:
        in_channels: C of the images.
        size: side of the images in pixels, a multiple of 2 to the number of widths.
        widths: of the encoder's convolutions, each of which halves the side.
        latent: number of features.
    """
    check_counts(in_channels=in_channels, size=size, latent=latent)
    check_widths(widths, max(len(widths), 1), "widths")
    check_halved(size, len(widths))
    return Autoencoder(in_channels, size, widths, latent)
