"""Layers whose output is not a function of each sample alone: the batch matters, or chance.

Clients train as rows side by side, where a short batch is padded, and a result must depend neither
on the padding nor on the neighbours. So these layers have buffers that are set before each step:
which samples are real, and the step's random key. Torch's own layers of these kinds know no such
thing, and `check` refuses them.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from fedmpi.config import ConfigError


class BatchNorm(nn.Module):
    """Normalises each channel over a batch's real samples; S. Ioffe, C. Szegedy, ICML 2015.

    Its running statistics are float buffers, hence part of the model. It counts no batches: with a
    momentum that is fixed nothing would read the counter.

    Attributes:
        present: 1.0 where a sample is real, else 0.0, [B]; None if all are.
    """

    present: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("present", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, ...], likewise; in training, moves the running statistics."""
        if self.training and self.present is not None:
            return self._padded(x, self.present)
        known = (self.running_mean, self.running_var, self.weight, self.bias)
        return batch_norm(x, *known, self.training, self.momentum, self.epsilon)

    def _padded(self, x: Tensor, present: Tensor) -> Tensor:
        """The same of the real samples; nothing moves if there are none."""
        channel = (1, -1, *(1,) * (x.dim() - 2))
        others = (0, *range(2, x.dim()))
        mask, wide = present.view(-1, *(1,) * (x.dim() - 1)), x.float()
        count = present.sum() * x[0, 0].numel()
        divisor = count.clamp(min=1)
        mean = (wide * mask).sum(others) / divisor
        centred = wide - mean.view(channel)
        variance = (centred.square() * mask).sum(others) / divisor
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
        places = torch.arange(x.numel(), device=x.device).view(x.shape)
        low = scrambled(self.key)
        high = scrambled(low ^ (self.key >> 32)) + self.number
        drawn = scrambled(scrambled(places + low) ^ high)
        return x * (drawn >= int(self.share * 2**32)) / (1 - self.share)


def dropouts(share: float) -> list[nn.Module]:
    """A dropout of that share; nothing if it is zero."""
    return [Dropout(share)] if share else []


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
                "fedmpi.layers"
            )
    dropouts = (module for module in network.modules() if isinstance(module, Dropout))
    for number, module in enumerate(dropouts):
        module.number = number
