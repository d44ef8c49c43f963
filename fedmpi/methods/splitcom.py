"""SplitCom: activations cross the cut only if they differ from those last sent of the same sample.

T. Li, Y. Tang, Y. Song, C. Wu, X. Liu, P. Li, X. Chen, *SplitCom: Communication-efficient Split
Federated Fine-tuning of LLMs via Temporal Compression*, 2026, arXiv 2602.10564. Both sides of a cut
keep what was last sent of each sample. The sender compares a sample's activations with these by
their cosine similarity. If it is below `threshold`, they are sent, and both sides keep them;
otherwise the receiver takes those that it has. With a tail the same is done with the activations
that the server sends, as in the paper's U-shape. With `gradient_threshold` gradients are sent and
taken by the same rule. With `threshold` 1 and no other this is SplitFed.

Differs from the paper: the threshold is a constant, where the paper controls it while it trains,
and whole activations are kept and compared, where the paper makes them shorter to save memory.
There are many clients, as in SplitFed.
Reconstruction: the rule for gradients is ours. They are kept in units of a sample's own loss,
whatever the size of a batch. A gradient is that of what the server took for the activations; the
client propagates it back through those that it has now. Which samples a batch has both sides draw
from the seed, so that no numbers are sent; which of them are sent is a bit each, or their places if
that is shorter, and nothing if all are.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import splitfed
from fedmpi.networks.flat import Flat
from fedmpi.split import links
from fedmpi.split.cuts import Crossing, shape_behind
from fedmpi.split.samples import Samples
from fedmpi.training.store import Store, Stores
from fedmpi.training.train import Trainer

Similarity = Annotated[float, Field(ge=-1, le=1)]


class Config(splitfed.Config):
    keeps_state: ClassVar[bool] = True

    threshold: Similarity = 0.98
    """Cosine similarity of a sample's activations to those last sent of it, from which on they are
    not sent again. 1 sends all that are not the same, and is SplitFed."""
    gradient_threshold: Similarity | None = None
    """The same of gradients at a cut. If absent, all gradients are sent, and none is kept."""

    def least(self, kind: Kind) -> float | None:
        """The threshold of activations, or of gradients."""
        return self.threshold if kind == Kind.ACTIVATION else self.gradient_threshold

    def remembered(self, flat: Flat, x: Tensor) -> int:
        """Values that a client keeps of each of its samples: what was last sent, each way."""
        front, back, _ = self.parts(flat)
        sizes = [prod(shape_behind([front], x))]
        if self.tail is not None:
            sizes.append(prod(shape_behind([front, back], x)))
        learning = self.learning(flat) if self.gradient_threshold is not None else (False, False)
        return sum(size * (1 + learns) for size, learns in zip(sizes, learning, strict=False))


class Sent:
    """What was last sent over a cut of each sample, in one direction; the same on both sides.

    A sample of which nothing was sent has zeros. Gradients are those of a sample's own loss.

    Args:
        store: keeps it by sample, float32 [D].
        least: similarity from which on a sample is not sent again.
        device: where batches are.
    """

    def __init__(self, store: Store, least: float, device: torch.device) -> None:
        self.store, self.least, self.device = store, least, device

    def of(self, samples: Sequence[int]) -> Tensor:
        """Returns what was last sent of these samples, a copy [B, D]."""
        nothing = torch.zeros(self.store.size)
        found = [self.store.get(sample, nothing) for sample in samples]
        return torch.stack(found).to(self.device)

    def fresh(self, x: Tensor, known: Tensor) -> Tensor:
        """Returns which samples have to be sent: bool [B], for x and what is known of it [B, D].

        A sample without a similarity, because it is zero or not finite, is sent unless it is the
        same.
        """
        same = (x == known).all(1)
        if self.least == 1:  # what points the same way may still be longer
            return ~same
        a, b = x.double(), known.double()
        product, lengths = (a * b).sum(1), (a.square().sum(1) * b.square().sum(1)).sqrt()
        return ~(same | (product / lengths >= self.least))

    def keep(self, samples: Sequence[int], fresh: Tensor, x: Tensor) -> None:
        """Keeps what was sent anew: of samples [B] those that are fresh, of x [B, D]."""
        for sample, is_fresh, row in zip(samples, fresh.tolist(), x, strict=True):
            if is_fresh:
                self.store[sample] = row


class Link(links.Link[list[int]]):
    """The link on both sides; its memory is the samples of a batch.

    Attributes:
        samples: which ones a batch has.
        sent_last: by kind and cut, what was last sent; not of gradients that are all sent.
    """

    method: Config
    samples: Samples
    sent_last: dict[tuple[Kind, int], Sent]

    def prepare(self, stores: Stores) -> None:
        """Makes the stores of both directions at each cut."""
        trainer, method = self.trainer, self.method
        front, back, _ = method.parts(trainer.flat)
        self.samples, self.sent_last = Samples(trainer.feed), {}
        parts = [[front]] if method.tail is None else [[front], [front, back]]
        for cut, some in enumerate(parts):
            size = prod(shape_behind(some, trainer.feed.x))
            for kind in (Kind.ACTIVATION, Kind.GRADIENT):
                least = method.least(kind)
                if least is None or (kind == Kind.GRADIENT and not self.learning[cut]):
                    continue
                store = stores.add(f"{kind.name.lower()} at cut {cut}", size, by_sample=True)
                self.sent_last[kind, cut] = Sent(store, least, trainer.device)

    def told(self, crossing: Crossing, x: Tensor, samples: list[int]) -> list[Block]:
        """Encodes x [B, D]: what is sent anew, and which samples that are unless all are."""
        sent = self.sent_last.get((crossing.kind, crossing.cut))
        if sent is None:
            return [sparse.block(crossing.kind, x)]
        own = self.own(crossing, x)
        fresh = sent.fresh(own, sent.of(samples))
        sent.keep(samples, fresh, own)
        where = fresh.nonzero().flatten()
        places = [] if len(where) == len(x) else [sparse.places(where, len(x))]
        return [sparse.block(crossing.kind, x[where]), *places]

    def taken(self, crossing: Crossing, blocks: Sequence[Block], samples: list[int]) -> Tensor:
        """Decodes a batch [B, D]: what was sent anew, and for the others what was sent before."""
        (block, *places), device = blocks, self.trainer.device
        sent = self.sent_last.get((crossing.kind, crossing.cut))
        if sent is None:
            return sparse.values(block, device).view(len(samples), -1)
        found = sent.of(samples)
        scale = len(samples) if crossing.kind == Kind.GRADIENT else 1
        if scale != 1:
            found /= scale
        fresh = torch.ones(len(samples), dtype=torch.bool, device=device)
        if places:
            fresh.zero_()[sparse.indices(places[0], device)] = True
        found[fresh] = sparse.values(block, device).view(-1, found.shape[1])
        sent.keep(samples, fresh, self.own(crossing, found))
        return found

    def own(self, crossing: Crossing, x: Tensor) -> Tensor:
        """Returns what is kept of a batch [B, D]: gradients as those of each sample's own loss."""
        return x if crossing.kind == Kind.ACTIVATION else len(x) * x

    def sent(self, crossing: Crossing, x: Tensor) -> tuple[list[Block], list[int]]:
        """Sends the activations that differ from those last sent."""
        samples = self.samples.of(crossing)
        return self.told(crossing, x, samples), samples

    def arrived(self, crossing: Crossing, blocks: Sequence[Block]) -> tuple[Tensor, list[int]]:
        """Takes what was sent, and for other samples what was sent before."""
        samples = self.samples.of(crossing)
        return self.taken(crossing, blocks, samples), samples

    def answered(self, crossing: Crossing, g: Tensor, memory: list[int]) -> list[Block]:
        """Sends gradients: all, or those that differ from the ones last sent."""
        return self.told(crossing, g, memory)

    def returned(self, crossing: Crossing, blocks: Sequence[Block], memory: list[int]) -> Tensor:
        """Takes gradients: all, or for some samples those that were sent before."""
        return self.taken(crossing, blocks, memory)


class Server(Link, splitfed.Server):
    """The server's half."""

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prepare(self.stores)


class Clients(Link, splitfed.Clients):
    """The clients' half.

    Attributes:
        remembered: values that a client keeps of each of its samples.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prepare(trainer.stores)
        self.remembered = self.method.remembered(trainer.flat, trainer.feed.x)

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of training front and tail, and of keeping what was last sent."""
        kept = self.remembered * int(self.trainer.population.sizes[client])
        return replace(super().burden(t, client), remembered=kept)
