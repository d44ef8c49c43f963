"""How a network's layers hang together: its operations, their shapes, and who feeds whom."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from fedmpi.networks.recurrent import Recurrent


class Tracer(fx.Tracer):
    """Takes layers as they are, and looks into what is made of them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is an operation of its own."""
        return not list(m.children()) or isinstance(m, Recurrent)


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


def feeders(traced: fx.GraphModule, layers: Collection[str]) -> dict[str, tuple[str, ...]]:
    """For each of the named layers those whose outputs reach it through no other of them."""
    sources: dict[fx.Node, tuple[str, ...]] = {}
    found = {}
    for node in traced.graph.nodes:
        given = [name for one in node.all_input_nodes for name in sources[one]]
        sources[node] = tuple(dict.fromkeys(given))
        if node.op == "call_module" and node.target in layers:
            found[str(node.target)] = sources[node]
            sources[node] = (str(node.target),)
    return found
