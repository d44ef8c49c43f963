"""Layers that look beyond a sample: like torch's own, and blind to padding."""

import pytest
import torch
from torch import Tensor, nn

from fedmpi.config import ConfigError
from fedmpi.networks import layers
from fedmpi.networks.layers import BatchNorm, Dropout, check, dropouts, scrambled


def norms(channels: int) -> tuple[BatchNorm, nn.BatchNorm2d]:
    """Ours and torch's, with the same parameters."""
    ours, torchs = BatchNorm(channels), nn.BatchNorm2d(channels)
    with torch.no_grad():
        for parameter, other in zip(ours.parameters(), torchs.parameters(), strict=True):
            other.copy_(parameter.uniform_(0.5, 2))
    return ours, torchs


def close(ours: BatchNorm, torchs: nn.BatchNorm2d) -> None:
    torch.testing.assert_close(ours.running_mean, torchs.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.running_var, torchs.running_var, rtol=1e-5, atol=1e-6)


def passed(module: nn.Module, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients of its weighted sum by the input and the parameters."""
    x = x.clone().requires_grad_()
    out = module(x)
    return out, *torch.autograd.grad((out * weight).sum(), [x, *module.parameters()])


@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (9, 3)], ids=["images", "vectors"])
@pytest.mark.parametrize("padding", [None, 0, 2, 7])
def test_batch_norm_is_torchs_and_padding_is_nothing(
    shape: tuple[int, ...], padding: int | None
) -> None:
    torch.manual_seed(1)
    ours, torchs = norms(3)
    if len(shape) == 2:
        torchs = nn.BatchNorm1d(3)
        torchs.load_state_dict(ours.state_dict(), strict=False)
    for _ in range(3):
        x, weight = torch.randn(shape) * 3 + 1, torch.randn(shape)
        wanted = passed(torchs, x, weight)
        if padding is not None:
            behind = torch.full((padding, *shape[1:]), 1e3)
            ours.present = torch.tensor([1.0] * len(x) + [0.0] * padding)
            x, weight = torch.cat([x, behind]), torch.cat([weight, 0 * behind])
        found = passed(ours, x, weight)
        for one, other in zip(found, wanted, strict=True):
            one = one[: len(other)]
            torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-5)
        close(ours, torchs)
    for module in (ours, torchs):
        module.train(False)
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), torchs(x))
    close(ours, torchs)


def test_batch_norm_of_nothing_moves_nothing() -> None:
    norm = BatchNorm(2)
    norm.present = torch.zeros(3)
    out, *gradients = passed(norm, torch.randn(3, 2, 2, 2), torch.zeros(3, 2, 2, 2))
    assert torch.isfinite(out).all()
    assert all((gradient == 0).all() for gradient in gradients)
    assert (norm.running_mean.tolist(), norm.running_var.tolist()) == ([0, 0], [1, 1])


def test_batch_norm_counts_no_batches() -> None:
    norm = BatchNorm(2)
    assert set(norm.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


@pytest.mark.parametrize("padding", [None, 0, 3])
@pytest.mark.parametrize("training", [True, False])
def test_static_norms_are_torchs_without_statistics(training: bool, padding: int | None) -> None:
    torch.manual_seed(2)
    (ours,), torchs = layers.norms("static", 3, 8), nn.BatchNorm2d(3, track_running_stats=False)
    assert isinstance(ours, BatchNorm)
    assert set(ours.state_dict()) == set(torchs.state_dict()) == {"weight", "bias"}
    x, weight = torch.randn(6, 3, 4, 5) * 3 + 1, torch.randn(6, 3, 4, 5)
    wanted = passed(torchs.train(training), x, weight)
    if padding is not None:
        behind = torch.full((padding, 3, 4, 5), 1e3)
        ours.present = torch.tensor([1.0] * len(x) + [0.0] * padding)
        x, weight = torch.cat([x, behind]), torch.cat([weight, 0 * behind])
    for one, other in zip(passed(ours.train(training), x, weight), wanted, strict=True):
        torch.testing.assert_close(one[: len(other)], other.detach(), rtol=1e-4, atol=1e-5)


def test_a_lone_value_is_its_own_mean() -> None:
    """Torch refuses to normalise it; but a test may have one sample, and a network one pixel."""
    for norm in (BatchNorm(3), BatchNorm(3, is_static=True)):
        for x in (torch.randn(1, 3), torch.randn(1, 3, 1, 1)):
            assert (norm(x) == 0).all()
    assert BatchNorm(3, is_static=True).train(False)(torch.randn(1, 3)).tolist() == [[0, 0, 0]]


def test_norms_by_name() -> None:
    assert layers.norms("none", 4, 2) == []
    (group,), (batch,) = layers.norms("group", 4, 2), layers.norms("batch", 4, 2)
    assert isinstance(group, nn.GroupNorm) and (group.num_groups, group.num_channels) == (2, 4)
    assert isinstance(batch, BatchNorm) and batch.running_mean is not None


def dropped(share: float, key: int, number: int = 0, shape: tuple[int, ...] = (50, 200)) -> Tensor:
    layer = Dropout(share)
    layer.number = number
    layer.key.fill_(key)
    return layer(torch.ones(shape))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(share: float) -> None:
    found = dropped(share, 123456789123456789)
    kept = found != 0
    assert float(kept.float().mean()) == pytest.approx(1 - share, abs=0.015)
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / (1 - share)))
    assert float(found.mean()) == pytest.approx(1, abs=0.1)
    # Samples and units are dropped independently of each other.
    for means in (kept.float().mean(0), kept.float().mean(1)):
        count = kept.numel() / len(means)
        assert float(means.std()) == pytest.approx((share * (1 - share) / count) ** 0.5, rel=0.4)


def test_keys_layers_and_places_are_independent() -> None:
    key = 5_000_000_000_000
    first = dropped(0.5, key) != 0
    others = [dropped(0.5, key + 1), dropped(0.5, key, number=1), dropped(0.5, key + (1 << 32))]
    # A key that is greater by one must not be the same drops, one place further.
    others.append(torch.roll(others[0].reshape(-1), 1).view_as(first))
    others.append(torch.roll(first.reshape(-1), 1).view_as(first))
    for other in others:
        assert float((first == (other != 0)).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(first, dropped(0.5, key) != 0)


def test_a_padded_batch_drops_the_same() -> None:
    assert torch.equal(dropped(0.3, 7)[:20], dropped(0.3, 7, shape=(20, 200)))


def test_dropout_is_nothing_in_judging() -> None:
    layer = Dropout(0.9).train(False)
    assert torch.equal(layer(torch.ones(5)), torch.ones(5))


def test_scrambling_is_a_bijection_that_mixes() -> None:
    some = torch.arange(1 << 16)
    found = scrambled(some)
    assert len(found.unique()) == len(some)
    assert ((found >= 0) & (found < 1 << 32)).all()
    assert torch.equal(scrambled(some - (1 << 32)), found), "the low 32 bits count"
    assert scrambled(torch.tensor(1)).item() == 0x514E28B7, "MurmurHash3's fmix32(1)"
    # Each bit of the result is as often one as zero.
    for bit in range(32):
        assert float(((found >> bit) & 1).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_dropouts_are_numbered() -> None:
    network = nn.Sequential(nn.Linear(2, 2), *dropouts(0.5), nn.Sequential(*dropouts(0.1)))
    check(network)
    assert [m.number for m in network.modules() if isinstance(m, Dropout)] == [0, 1]
    assert dropouts(0.0) == []


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(3),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.Dropout(0.5),
        nn.Dropout2d(0.5),
        nn.AlphaDropout(0.5),
        nn.InstanceNorm2d(3, track_running_stats=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_torchs_own_are_refused(layer: nn.Module) -> None:
    with pytest.raises(ConfigError, match=rf"'1.0' is torch's {type(layer).__name__}, .*fedmpi"):
        check(nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer)))


@pytest.mark.parametrize("layer", [nn.GroupNorm(1, 2), nn.InstanceNorm2d(3), nn.Dropout(0.0)])
def test_layers_that_look_at_one_sample_are_welcome(layer: nn.Module) -> None:
    check(nn.Sequential(layer))
