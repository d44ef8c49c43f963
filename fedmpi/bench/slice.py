"""Inference with channels cut out of a network, against the masked one, which is as large as ever.

Half of each layer's channels but the head's are kept, those of the largest norms. Both networks
have to say the same; then their times for a batch are set against each other, and FLOPs are those
that torch counts in each.
"""

from collections.abc import Iterator, Sequence

import click
import torch
from torch import nn

from fedmpi import loading, models
from fedmpi.bench import JSON, REPEATS, Result, chosen, weigh
from fedmpi.networks.flat import Flat
from fedmpi.networks.flops import forward
from fedmpi.networks.slicing import Channels, sliced
from fedmpi.networks.topology import Topology
from fedmpi.training.inference import passes
from fedmpi.turns import take_turns

MODELS = {
    "cnn": ((1, 28, 28), {"name": "cnn"}),
    "resnet20": ((3, 32, 32), {"name": "resnet", "depth": 20}),
    "vgg11": ((3, 32, 32), {"name": "vgg", "depth": 11}),
}
"""Shape of a sample, and the model's settings."""
PASSES = 5
"""Batches in a turn."""


def measure(name: str, batch: int, sparsity: float, repeats: int) -> Result:
    """Times a batch on one thread of a CPU.

    Raises:
        AssertionError: if the networks do not say the same.
    """
    shape, words = MODELS[name]
    torch.set_num_threads(1)
    flat = Flat(models.build(loading.load({"model": words}).model, shape, 10, 1))
    front, _ = flat.split(flat.cuts()[-1])
    channels = Channels(Topology(front, shape), torch.device("cpu"))
    kept = channels.evenly(channels.norms(flat.initial), sparsity)
    small = sliced(flat, flat.initial, channels, kept, shape)
    masked = flat.network(channels.masked(flat.initial, kept)).train(False)
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x), rtol=1e-3, atol=1e-4)
    seconds = take_turns(
        {"sliced": passes(small, x, PASSES), "masked": passes(masked, x, PASSES)}, repeats, PASSES
    )
    counts = [forward(Flat(nn.Sequential(each)), shape).all for each in (small, masked)]
    also = {"mflops": counts[0] / 1e6, "masked_mflops": counts[1] / 1e6}
    case = {"model": name, "batch": batch, "sparsity": sparsity}
    return weigh("slice", case, seconds, "sliced", ["masked"], also)


def cases(names: Sequence[str], batch: int, sparsity: float, repeats: int) -> Iterator[Result]:
    """One result a model."""
    for name in names:
        yield measure(name, batch, sparsity, repeats)


@click.command()
@click.option("--model", "names", multiple=True, help="Only this model. Can be repeated.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Batch size."
)
@click.option(
    "--sparsity",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.5,
    show_default=True,
    help="Share of the channels that are removed.",
)
@REPEATS
@JSON
def command(
    names: tuple[str, ...], batch: int, sparsity: float, repeats: int, as_json: bool
) -> None:
    """Measure time and FLOPs of inference without the pruned channels.

    The reference is the network of full size with these channels masked.
    """
    for result in cases(chosen(names, MODELS), batch, sparsity, repeats):
        result.say(as_json)
