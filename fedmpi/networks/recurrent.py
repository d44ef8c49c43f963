"""Recurrent layers that can be stacked: LSTM and GRU as plain matrix products.

`vmap` has no rule for torch's own, which are single operations. These have the same parameters in
the same shapes and initial values, and agree with torch's to rounding. The product with the inputs
is one for all steps; that with the last output is one a step.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Cell = Literal["lstm", "gru"]
"""S. Hochreiter, J. Schmidhuber, Neural Computation 1997, with forget gates; K. Cho et al., EMNLP
2014, with the reset gate behind the product, as in `torch.nn.GRU`."""
GATES = {"lstm": 4, "gru": 3}


class Recurrent(nn.Module):
    """A layer of LSTM or GRU cells over the steps of a sequence, from zeros at its beginning.

    Attributes:
        input: from a step's inputs to the gates, `weight_ih` and `bias_ih` in torch.
        recurrent: from the last outputs to the gates, `weight_hh` and `bias_hh` in torch.
        is_fused: run torch's own operation, which takes half the time on a CPU, but which neither
            `vmap` nor a counter of FLOPs knows; `rows.OneByOne` asks for it.
    """

    def __init__(self, cell: Cell, inputs: int, hidden: int) -> None:
        super().__init__()
        self.cell, self.hidden, self.is_fused = cell, hidden, False
        self.input = nn.Linear(inputs, GATES[cell] * hidden)
        self.recurrent = nn.Linear(hidden, GATES[cell] * hidden)
        for tensor in self._tensors():
            nn.init.uniform_(tensor, -(hidden**-0.5), hidden**-0.5)

    def _tensors(self) -> list[Tensor]:
        """The parameters in torch's order."""
        both = (self.input, self.recurrent)
        return [layer.weight for layer in both] + [layer.bias for layer in both]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all steps: [B, steps, inputs] -> [B, steps, hidden]."""
        if self.is_fused and not torch.is_autocast_enabled(x.device.type):
            return self._fused(x)
        run = self._lstm if self.cell == "lstm" else self._gru
        return torch.stack(run(self.input(x).unbind(1)), 1)

    def _fused(self, x: Tensor) -> Tensor:
        start = x.new_zeros(1, len(x), self.hidden)
        settings = (True, 1, 0.0, self.training, False, True)
        if self.cell == "lstm":
            return torch.lstm(x, (start, start), self._tensors(), *settings)[0]
        return torch.gru(x, start, self._tensors(), *settings)[0]

    def _lstm(self, steps: tuple[Tensor, ...]) -> list[Tensor]:
        """Gates input, forget, cell and output, [B, 4 hidden], to outputs [B, hidden]."""
        # In float32 whatever products are in: a memory adds up over many steps.
        h = memory = steps[0].new_zeros(len(steps[0]), self.hidden, dtype=torch.float32)
        outputs = []
        for given in steps:
            gates = (given + self.recurrent(h)).float().split(self.hidden, 1)
            enter, forget, leave = (gates[gate].sigmoid() for gate in (0, 1, 3))
            memory = forget * memory + enter * gates[2].tanh()
            h = leave * memory.tanh()
            outputs.append(h)
        return outputs

    def _gru(self, steps: tuple[Tensor, ...]) -> list[Tensor]:
        """Gates reset, update and new, [B, 3 hidden], to outputs [B, hidden]."""
        h = steps[0].new_zeros(len(steps[0]), self.hidden, dtype=torch.float32)
        outputs = []
        for given in steps:
            ours = given.float().split(self.hidden, 1)
            last = self.recurrent(h).float().split(self.hidden, 1)
            reset, update = ((ours[gate] + last[gate]).sigmoid() for gate in (0, 1))
            new = (ours[2] + reset * last[2]).tanh()
            h = new + update * (h - new)
            outputs.append(h)
        return outputs
