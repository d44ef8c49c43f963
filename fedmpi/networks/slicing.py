"""Some channels of a network's layers, masked or cut out: both networks say the same.

Each convolution, linear layer and attention has channels of its own here (`Topology.layers`), also
where its outputs are added to another layer's. A masked network is as large as ever, with zeros at
the channels that go; a sliced one is smaller.

To slice a network, it is taken apart into its operations. Each passes on some channels, of which it
is known which ones of the whole network's they are; all others are zero there, and do not exist
here. Where two branches with different channels meet, or an operation has to see all of them, zeros
are put back in.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import relu

from fedmpi.messages import select
from fedmpi.messages.counts import keep_round
from fedmpi.networks.attention import PARTS, Heads, Padding, Pool
from fedmpi.networks.flat import Flat
from fedmpi.networks.layers import BatchNorm, Dropout, OptionA
from fedmpi.networks.recurrent import Recurrent
from fedmpi.networks.topology import Layer, Topology

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SINGLE = (nn.ReLU, nn.Tanh, nn.GELU, nn.Identity, Dropout, Padding)
"""Layers that make zeros of zeros, value by value."""
POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, OptionA),
)
"""Layers that make zeros of a channel of zeros, and look at no other channel, if channels lie
along the first dimension behind samples."""


class Channels:
    """The channels of a network's convolutions, linear layers and heads, layer by layer.

    Attributes:
        layers: see `Topology.layers`.
        count: number of channels.
        owner: the channel that owns each position of the vector, int64 [flat.size]; -1 for nobody.
    """

    def __init__(self, topology: Topology, device: torch.device) -> None:
        self.layers = topology.layers
        self.count = sum(layer.count for layer in self.layers)
        self.owner = topology.layer_owners().to(device)

    def positions(self, chosen: Tensor) -> Tensor:
        """Where the chosen channels [k] lie, and what is nobody's, ascending: int64."""
        # The last place is found by nobody's number, -1.
        travels = torch.zeros(self.count + 1, dtype=torch.bool, device=self.owner.device)
        travels[chosen] = True
        travels[-1] = True
        return travels[self.owner].nonzero().squeeze(1)

    def masked(self, w: Tensor, chosen: Tensor) -> Tensor:
        """The model w [n] with zeros at all that other channels than the chosen [k] own.

        Args:
            w: of this network, or of one of which it is the front.
            chosen: channels.
        """
        kept = torch.zeros_like(w)
        kept[self.positions(chosen.to(self.owner.device)).to(w.device)] = 1
        kept[len(self.owner) :] = 1
        return w * kept

    def norms(self, w: Tensor) -> Tensor:
        """The Euclidean norm of each channel's weights in a model w [n], float32 [count]."""
        found = [_flattened(layer, w).norm(dim=1) for layer in self.layers]
        return torch.cat([torch.empty(0, device=w.device), *found])

    def largest(self, scores: Tensor, counts: Sequence[int]) -> Tensor:
        """In each layer as many channels as `counts` says, of the largest scores [count].

        They are ascending; of equal scores the first ones are taken.
        """
        found = [torch.empty(0, dtype=torch.int64, device=scores.device)]
        for layer, count in zip(self.layers, counts, strict=True):
            own = scores[layer.first : layer.first + layer.count]
            found.append(layer.first + select.positions(select.largest(own, count)))
        return torch.cat(found)

    def evenly(self, scores: Tensor, sparsity: float) -> Tensor:
        """The channels of the largest scores [count], the same share of each layer, ascending."""
        return self.largest(
            scores, [keep_round(layer.count, 1 - sparsity) for layer in self.layers]
        )

    def overall(self, scores: Tensor, sparsity: float) -> Tensor:
        """The channels of the largest scores [count] of all, one of each layer at least."""
        if not self.layers:
            return self.largest(scores, [])
        best = self.largest(scores, [1] * len(self.layers))
        count = max(len(best), keep_round(self.count, 1 - sparsity))
        others = torch.ones_like(scores, dtype=torch.bool).index_fill(0, best, False)
        found = select.largest(scores[others], count - len(best))
        return torch.cat([best, select.positions(others)[found]]).sort().values


def _flattened(layer: Layer, w: Tensor) -> Tensor:
    """The weights of each channel of a layer in a model w [n]: [count, weights of a channel]."""
    return torch.cat([weight.of(w).flatten(1) for weight in layer.weights], 1)


class Spread(nn.Module):
    """Puts zeros back in between channels.

    Args:
        places: where the given channels belong, [k].
        channels: how many there are in all.
        dimension: along which they lie.
    """

    places: Tensor

    def __init__(self, places: Tensor, channels: int, dimension: int = 1) -> None:
        super().__init__()
        self.channels, self.dimension = channels, dimension
        self.register_buffer("places", places)

    def forward(self, x: Tensor) -> Tensor:
        """[B, k, ...] -> [B, channels, ...] if channels lie along dimension 1."""
        before, behind = x.shape[: self.dimension], x.shape[self.dimension + 1 :]
        zeros = x.new_zeros(*before, self.channels, *behind)
        return zeros.index_add_(self.dimension, self.places, x)


class Joined(nn.Module):
    """The sum of two branches, of which one has all channels of the sum, and the other some.

    Args:
        places: where the channels of the second one belong, [k].
        dimension: along which they lie.
    """

    places: Tensor

    def __init__(self, places: Tensor, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension
        self.register_buffer("places", places)

    def forward(self, wide: Tensor, narrow: Tensor) -> Tensor:
        """[B, channels, ...] and [B, k, ...] -> [B, channels, ...], likewise."""
        return wide.index_add(self.dimension, self.places, narrow)


class Normed(nn.Module):
    """A GroupNorm of some of its channels, while all others are zero in front of it.

    Zeros are put back in for it, and go again behind it: torch's norm of all channels takes less
    time than one of some that is made of several operations.

    Args:
        norm: the whole one.
        kept: the channels that are there, [k].
    """

    kept: Tensor

    def __init__(self, norm: nn.GroupNorm, kept: Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        """[B, k, ...], likewise; the missing zeros count in each group's mean and variance."""
        whole = x.new_zeros(len(x), self.norm.num_channels, *x.shape[2:])
        return self.norm(whole.index_add_(1, self.kept, x)).index_select(1, self.kept)


def sliced(
    flat: Flat, w: Tensor, channels: Channels, chosen: Tensor, shape: tuple[int, ...]
) -> fx.GraphModule:
    """The network with the chosen channels alone, as it is judged.

    Args:
        flat: the whole network.
        w: its model, [flat.size].
        channels: its channels, or those of a front of it; what lies behind keeps all of its own.
        chosen: the channels to keep, ascending, [k]; one of each layer at least.
        shape: of a sample.

    Returns:
        A network that says what `channels.masked(w, chosen)` says.
    """
    return _Slicer(flat, w.cpu(), channels, chosen.cpu(), shape).result


class Tracer(fx.Tracer):
    """Takes layers as single operations, and looks into modules that are made of layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is an operation of its own."""
        return not list(m.children()) or isinstance(m, (Recurrent, Heads))


class Listener(fx.Interpreter):
    """Writes into each operation's `meta["shape"]` what comes out of it."""

    def run_node(self, n: fx.Node) -> Any:
        """Runs an operation."""
        found = super().run_node(n)
        n.meta["shape"] = tuple(found.shape) if isinstance(found, Tensor) else ()
        return found


def trace(network: nn.Module, x: Tensor) -> fx.GraphModule:
    """The network as a graph of its operations with their shapes for x [1, ...], as it is judged.

    Its modules are the network's own.
    """
    graph = Tracer().trace(network)
    found = fx.GraphModule(network, graph).train(False)
    with torch.no_grad():
        Listener(found).run(x)
    return found


class Alive(NamedTuple):
    """Some of the channels that come out of an operation.

    Attributes:
        channels: which, ascending, int64.
        dimension: along which they lie.
    """

    channels: Tensor
    dimension: int


class _Slicer:
    """Cuts one network.

    Attributes:
        result: the smaller one, when all is done.
        alive: which channels come out of an operation; None if all.
    """

    def __init__(
        self, flat: Flat, w: Tensor, channels: Channels, chosen: Tensor, shape: tuple[int, ...]
    ) -> None:
        network = flat.network(channels.masked(w, chosen))
        self.result = trace(network, torch.zeros(1, *shape))
        self.alive: dict[fx.Node, Alive | None] = {}
        self.kept: dict[str, Tensor] = {}
        self.norms: set[str] = set()
        for layer in channels.layers:
            own = chosen[(chosen >= layer.first) & (chosen < layer.first + layer.count)]
            self.kept[layer.name] = own - layer.first
            if layer.norm is not None:
                self.norms.add(layer.norm)
        for node in list(self.result.graph.nodes):
            self.alive[node] = self._cut(node)
        self.result.graph.lint()
        self.result.recompile()

    def _cut(self, node: fx.Node) -> Alive | None:
        """Makes one operation smaller; which channels come out of it."""
        given = [self.alive[one] for one in node.all_input_nodes]
        if node.op == "call_module":
            found = self._layer(node, self.result.get_submodule(str(node.target)), given[0])
            if found is not False:
                return found
        elif node.op == "call_function" and node.target is relu:
            return given[0]
        elif node.op == "call_function" and node.target is operator.add and len(given) == 2:
            return self._join(node)
        self._spread(node, None)
        return None

    def _layer(self, node: fx.Node, layer: nn.Module, given: Alive | None) -> Any:
        """Cuts a layer down to some channels; False if the layer has to see all of them."""
        name, inputs = str(node.target), node.all_input_nodes[0].meta["shape"]
        last = given is None or given.dimension == len(inputs) - 1
        first = given is None or given.dimension == 1
        if isinstance(layer, nn.Linear) and last:
            return self._matrix(name, layer, given, len(inputs) - 1)
        if isinstance(layer, Heads) and last:
            return self._attention(name, layer, given)
        if isinstance(layer, CONVOLUTIONS) and layer.groups == 1 and first:
            return self._matrix(name, layer, given, 1)
        if isinstance(layer, OptionA) and layer.more and first:
            # The new channels are zero, as if they were cut out.
            self.result.set_submodule(name, OptionA(layer.stride, 0))
            return Alive(torch.arange(inputs[1]), 1) if given is None else given
        if given is None or isinstance(layer, SINGLE):
            return given
        if isinstance(layer, Pool) and last:
            return Alive(given.channels, 1)
        if not first:
            return False
        if isinstance(layer, POOLS):
            return given
        if isinstance(layer, nn.Flatten) and layer.start_dim == 1:
            each = torch.Size(inputs[2:]).numel()
            pixels = given.channels[:, None] * each + torch.arange(each)
            return Alive(pixels.flatten(), 1)
        if name in self.norms and isinstance(layer, nn.GroupNorm):
            self.result.set_submodule(name, Normed(layer, given.channels))
            return given
        if name in self.norms and isinstance(layer, BatchNorm):
            self.result.set_submodule(name, _batch_norm(layer, given.channels))
            return given
        return False

    def _matrix(
        self,
        name: str,
        layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d,
        given: Alive | None,
        dimension: int,
    ) -> Alive | None:
        """Keeps some rows of a weight, and the columns of what is given."""
        kept, count = self.kept.get(name), len(layer.weight)
        _keep(layer, kept, given)
        return None if kept is None or len(kept) == count else Alive(kept, dimension)

    def _attention(self, name: str, layer: Heads, given: Alive | None) -> Alive | None:
        """Keeps some heads, and the columns of what is given."""
        kept, places = self.kept.get(name), torch.arange(layer.heads * layer.size)
        rows = None if kept is None else places.view(-1, layer.size)[kept].flatten()
        for part in PARTS:
            _keep(layer.get_submodule(part), rows, given)
        if rows is None or len(rows) == len(places):
            return None
        layer.heads = len(rows) // layer.size
        return Alive(rows, 2)

    def _join(self, node: fx.Node) -> Alive | None:
        """Adds two branches; which channels come out: all that are in any of them."""
        inputs = node.all_input_nodes
        dimensions = {one.dimension for one in (self.alive[n] for n in inputs) if one is not None}
        if len(dimensions) != 1:
            self._spread(node, None)
            return None
        dimension = dimensions.pop()
        count = inputs[0].meta["shape"][dimension]
        first, second = (
            torch.arange(count) if alive is None else alive.channels
            for alive in (self.alive[one] for one in inputs)
        )
        union = torch.cat([first, second]).unique()
        if len(union) not in (len(first), len(second)):
            self._spread(node, union, inputs[:1])
            inputs, first = node.all_input_nodes, union
        if len(first) != len(second):
            pair = [(inputs[0], first), (inputs[1], second)]
            (wide, _), (narrow, own) = sorted(pair, key=lambda one: -len(one[1]))
            name = f"join{len(self.alive)}"
            places = torch.searchsorted(union, own)
            self.result.add_submodule(name, Joined(places, dimension))
            node.op, node.target, node.args = "call_module", name, (wide, narrow)
        return None if len(union) == count else Alive(union, dimension)

    def _spread(
        self, node: fx.Node, wanted: Tensor | None, some: Sequence[fx.Node] | None = None
    ) -> None:
        """Puts zeros into an operation's inputs, so that they have the wanted channels, or all.

        Args:
            node: the operation.
            wanted: the channels; None for all.
            some: of its inputs; None for all of them.
        """
        for one in node.all_input_nodes if some is None else some:
            given = self.alive[one]
            if given is None or (wanted is not None and len(given.channels) == len(wanted)):
                continue
            places, dimension = given
            count = one.meta["shape"][dimension]
            if wanted is not None:
                places, count = torch.searchsorted(wanted, places), len(wanted)
            name = f"spread{len(self.alive)}_{one.name}"
            self.result.add_submodule(name, Spread(places, count, dimension))
            with self.result.graph.inserting_before(node):
                node.replace_input_with(one, self.result.graph.call_module(name, (one,)))


def _keep(layer: Any, rows: Tensor | None, given: Alive | None) -> None:
    """Leaves a convolution or linear layer some rows, and the columns of what is given."""
    weight, bias = layer.weight.detach(), layer.bias
    rows = torch.arange(len(weight)) if rows is None else rows
    columns = torch.arange(weight.shape[1]) if given is None else given.channels
    layer.weight = nn.Parameter(weight[rows][:, columns])
    layer.bias = bias if bias is None else nn.Parameter(bias.detach()[rows])
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = len(columns), len(rows)
    else:
        layer.in_channels, layer.out_channels = len(columns), len(rows)


def _batch_norm(norm: BatchNorm, kept: Tensor) -> BatchNorm:
    """A norm of some channels."""
    found = BatchNorm(len(kept), norm.momentum, norm.epsilon, norm.running_mean is None)
    state = {name: value[kept] for name, value in norm.state_dict().items()}
    found.load_state_dict(state)
    return found.train(False)
