"""Recurrent layers are torch's own, step by step and fused, alone and stacked."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.flop_counter import FlopCounterMode

from fedmpi.networks.recurrent import GATES, Recurrent

TORCHS = {"lstm": nn.LSTM, "gru": nn.GRU}
NAMES = {
    "input.weight": "weight_ih_l0",
    "recurrent.weight": "weight_hh_l0",
    "input.bias": "bias_ih_l0",
    "recurrent.bias": "bias_hh_l0",
}
"""Our parameters, and the same ones of torch."""
INPUTS, HIDDEN = 5, 7
cells = pytest.mark.parametrize("cell", TORCHS)


def pair(cell: str, seed: int = 1) -> tuple[Recurrent, nn.Module]:
    """Ours and torch's, with the same parameters."""
    torch.manual_seed(seed)
    ours, torchs = Recurrent(cell, INPUTS, HIDDEN), TORCHS[cell](INPUTS, HIDDEN, batch_first=True)
    torchs.load_state_dict({theirs: ours.get_parameter(name) for name, theirs in NAMES.items()})
    return ours, torchs


def gradients(
    out: Tensor, weight: Tensor, x: Tensor, module: nn.Module, names: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """Of a weighted sum of the outputs, by the inputs and the parameters."""
    parameters = [module.get_parameter(name) for name in names]
    return torch.autograd.grad((out * weight).sum(), [x, *parameters])


@cells
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize(("batch", "steps"), [(3, 9), (1, 1), (2, 30)])
def test_outputs_and_gradients_are_torchs(
    cell: str, is_fused: bool, batch: int, steps: int
) -> None:
    ours, torchs = pair(cell)
    ours.is_fused = is_fused
    x = (3 * torch.randn(batch, steps, INPUTS)).requires_grad_()
    weight = torch.randn(batch, steps, HIDDEN)
    found, wanted = ours(x), torchs(x)[0]
    assert found.shape == (batch, steps, HIDDEN)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    both = (
        gradients(found, weight, x, ours, tuple(NAMES)),
        gradients(wanted, weight, x, torchs, tuple(NAMES.values())),
    )
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@cells
def test_initial_parameters_are_drawn_as_torch_draws_them(cell: str) -> None:
    """Uniformly within one over the root of the cells, biases too."""
    layer = Recurrent(cell, 30, 100)
    assert layer.input.weight.shape == (GATES[cell] * 100, 30)
    for tensor in layer.parameters():
        assert 0.09 < float(tensor.detach().abs().max()) <= 0.1
        assert float(tensor.detach().std()) == pytest.approx(0.1 / 3**0.5, rel=0.1)


@cells
def test_rows_run_at_once(cell: str) -> None:
    layers = [pair(cell, seed)[0] for seed in (1, 2, 3)]
    stacked = {
        name: torch.stack([dict(layer.named_parameters())[name].detach() for layer in layers])
        for name in dict(layers[0].named_parameters())
    }
    x = torch.randn(3, 4, 6, INPUTS)
    found = vmap(lambda tensors, row: functional_call(layers[0], tensors, (row,)))(stacked, x)
    for layer, row, wanted in zip(layers, found, x, strict=True):
        torch.testing.assert_close(row, layer(wanted), rtol=1e-5, atol=1e-6)


@cells
@pytest.mark.parametrize("is_fused", [False, True])
def test_a_memory_is_in_float32(cell: str, is_fused: bool) -> None:
    ours, torchs = pair(cell)
    ours.is_fused = is_fused
    x = torch.randn(2, 40, INPUTS)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(x)
    wanted = torchs(x)[0]
    assert found.dtype == torch.float32
    apart = float(((found - wanted).norm() / wanted.norm()).detach())
    assert 1e-5 < apart < 0.02, "the products are in bfloat16"


@cells
def test_products_are_counted(cell: str) -> None:
    layer, batch, steps = Recurrent(cell, INPUTS, HIDDEN), 3, 11
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(batch, steps, INPUTS))
    weights = GATES[cell] * HIDDEN * (INPUTS + HIDDEN)
    assert counter.get_total_flops() == 2 * batch * steps * weights
