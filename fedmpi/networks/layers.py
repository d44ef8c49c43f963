"""Layers whose output is not a function of each sample alone: the batch matters, or chance.

Clients train as rows side by side, where a short batch is padded, and a result must depend neither
on the padding nor on the neighbours. So these layers have buffers that are set before each step:
which samples are real, and the step's random key. Torch's own layers of these kinds know no such
thing, and `check` refuses them.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, pad

from fedmpi.config import ConfigError


class BatchNorm(nn.Module):
    """Normalises each channel over a batch's real samples; S. Ioffe, C. Szegedy, ICML 2015.

    Its running statistics are float buffers, hence part of the model. It counts no batches: with a
    momentum that is fixed nothing would read the counter.

    A static one keeps none, and a batch is normalised by its own statistics in judging, too. In
    training that is the static batch norm of E. Diao, J. Ding, V. Tarokh, *HeteroFL*, ICLR 2021,
    arXiv 2010.01264.
    Differs from the paper: there the clients run their data through a model that has been trained,
    one after the other, and it is judged by the statistics of all of them. Here nobody collects
    any: a model is judged by those of the batch that is judged, of up to 256 samples.

    A frozen one (see `parts`) normalises by its running statistics in training, too, and never
    moves them.

    Attributes:
        is_frozen: whether it never changes.
        present: 1.0 where a sample is real, else 0.0, [B]; None if all are.
        running_mean: [channels]; None if it is static.
        running_var: likewise.
    """

    present: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(
        self,
        channels: int,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        is_static: bool = False,
    ) -> None:
        super().__init__()
        self.momentum, self.epsilon, self.is_frozen = momentum, epsilon, False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", None if is_static else torch.zeros(channels))
        self.register_buffer("running_var", None if is_static else torch.ones(channels))
        self.register_buffer("present", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, ...], likewise; in training, moves the running statistics if it has any."""
        by_batch = (self.training and not self.is_frozen) or self.running_mean is None
        if by_batch and self.present is not None:
            return self._padded(x, self.present)
        if by_batch and x.numel() == x.shape[1]:  # a lone value, which torch refuses to normalise
            return self._padded(x, x.new_ones(1))
        known = (self.running_mean, self.running_var, self.weight, self.bias)
        return batch_norm(x, *known, by_batch, self.momentum, self.epsilon)

    def _padded(self, x: Tensor, present: Tensor) -> Tensor:
        """Normalises the real samples of a padded batch; statistics stay if there are none."""
        channel = (1, -1, *(1,) * (x.dim() - 2))
        others = (0, *range(2, x.dim()))
        mask, wide = present.view(-1, *(1,) * (x.dim() - 1)), x.float()
        count = present.sum() * x[0, 0].numel()
        divisor = count.clamp(min=1)
        mean = (wide * mask).sum(others) / divisor
        centred = wide - mean.view(channel)
        variance = (centred.square() * mask).sum(others) / divisor
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                momentum = self.momentum * (count > 0)
                unbiased = variance * divisor / (divisor - 1).clamp(min=1)
                self.running_mean.add_(momentum * (mean - self.running_mean))
                self.running_var.add_(momentum * (unbiased - self.running_var))
        scale = self.weight * (variance + self.epsilon).rsqrt()
        return (centred * scale.view(channel) + self.bias.view(channel)).to(x.dtype)


class Dropout(nn.Module):
    """Zeroes a share of the values and scales up the rest; N. Srivastava et al., JMLR 2014.

    Which values, is a function of the key, the layer and the place of the value in its batch: the
    same wherever a client trains, and for padded batches.

    Attributes:
        key: int64 [], drawn anew for each step.
        number: of the layer, so that no two of a network drop the same; see `check`.
    """

    key: Tensor

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.number = share, 0
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, samples first."""
        if not self.training:
            return x
        return x * self.kept(x, self.key) / (1 - self.share)

    def kept(self, x: Tensor, keys: Tensor) -> Tensor:
        """Returns which values of a batch stay.

        Args:
            x: the batch, samples first.
            keys: random keys, int64 [] or [k, 1, ...] for so many batches like x.

        Returns:
            Bool, of the shape of x, or [k, *x.shape].
        """
        places = torch.arange(x.numel(), device=x.device).view(x.shape)
        low = scrambled(keys)
        high = scrambled(low ^ (keys >> 32)) + self.number
        return scrambled(scrambled(places + low) ^ high) >= int(self.share * 2**32)


def dropouts(share: float) -> list[nn.Module]:
    """A dropout of that share; nothing if it is zero."""
    return [Dropout(share)] if share else []


def dropout(share: float) -> nn.Module:
    """A dropout of that share; what leaves values as they are if it is zero."""
    return Dropout(share) if share else nn.Identity()


Norm = Literal["none", "group", "batch", "static"]
"""None; over groups of a sample's channels; over the batch; over the batch without statistics."""


def norms(kind: Norm, channels: int, groups: int) -> list[nn.Module]:
    """A norm layer of that kind, GroupNorm with so many groups; nothing if it is "none"."""
    if kind == "none":
        return []
    if kind == "group":
        return [nn.GroupNorm(groups, channels)]
    return [BatchNorm(channels, is_static=kind == "static")]


def scrambled(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers that looks random: the end of MurmurHash3, by A. Appleby.

    Args:
        x: int64, of which the low 32 bits count.
    """
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)


KNOWN = (BatchNorm, Dropout)
REFUSED = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.dropout._DropoutNd,
)


def check(network: nn.Module) -> None:
    """Numbers the network's dropouts.

    Raises:
        ConfigError: if a layer would make results depend on who trains beside a client.
    """
    for name, module in network.named_modules():
        draws = isinstance(module, REFUSED[2]) and module.p > 0
        counts = isinstance(module, REFUSED[:2]) and module.track_running_stats
        if draws or counts or isinstance(module, REFUSED[0]):
            raise ConfigError(
                f"the model's layer '{name}' is torch's {type(module).__name__}, whose result "
                "depends on who trains beside a client; possible are BatchNorm and Dropout of "
                "fedmpi.networks.layers"
            )
    dropouts = (module for module in network.modules() if isinstance(module, Dropout))
    for number, module in enumerate(dropouts):
        module.number = number


class OptionA(nn.Module):
    """A shortcut without parameters: every other pixel, and zeros for the new channels."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride, self.more = stride, more

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C + more, H / stride, W / stride]."""
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))

    def narrowed(self, inputs: Tensor, outputs: Tensor) -> nn.Module:
        """The shortcut of a narrower network, of which only these channels are left."""
        return Some(self.stride, inputs, outputs)


class Some(nn.Module):
    """Some channels of a shortcut without parameters: those of `inputs`, and zeros."""

    places: Tensor

    def __init__(self, stride: int, inputs: Tensor, outputs: Tensor) -> None:
        super().__init__()
        self.stride = stride
        # Where each output lies among the inputs, behind a channel of zeros for all others.
        found = torch.searchsorted(inputs, outputs).clamp(max=len(inputs) - 1)
        places = torch.where(inputs[found] == outputs, found + 1, 0)
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        narrow = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 1, 0))
        return narrow.index_select(1, self.places)
