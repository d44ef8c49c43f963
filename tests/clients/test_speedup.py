"""Devices that compute faster with fewer bits: time, energy and memory of FedSL's fronts."""

import numpy as np
import pytest
import torch

from fedmpi import loading
from fedmpi.config import Tier
from fedmpi.engine import Engine
from tests.plain import play
from tests.small import SMALL, Run, alike, refusal, run, small

FEDSL = ("method.name=fedsl", "method.cut=hidden1", "method.pruning=0.5")
FAST = "devices.tiers=[{name='a', gflops=0.001, power=3.0, speedup={8=2.0, 4=4.0}}]"
PLAIN = "devices.tiers=[{name='a', gflops=0.001, power=3.0}]"
FRONT = 2 * 64 * 12 / 2
"""FLOPs of a sample's way forward through the half of the front that is left."""


@pytest.mark.parametrize(
    ("bits", "wanted"), [(32, 1.0), (16, 1.0), (9, 1.0), (8, 2.0), (5, 2.0), (4, 4.0), (2, 4.0)]
)
def test_bits_that_are_not_named_compute_as_the_next_larger_ones(bits: int, wanted: float) -> None:
    assert Tier(speedup={"8": 2.0, "4": 4.0}).faster(bits) == wanted
    assert Tier().faster(bits) == 1


def by_bits(*words: str) -> dict[int, Run]:
    return {bits: run(small(*FEDSL, f"method.bits={bits}", *words)) for bits in (32, 16, 8, 4)}


def test_time_energy_and_memory_fall_with_bits() -> None:
    """A third of the FLOPs is the way forward, which takes as long whatever the bits."""
    found, spent = by_bits(FAST, "devices.server_gflops=1.0"), {}
    for (bits, one), faster in zip(found.items(), (1, 1, 2, 4), strict=True):
        rows = one.tables["clients"]
        flops = 3 * FRONT * 2 * rows["samples"]
        np.testing.assert_allclose(rows["flops"], flops)
        np.testing.assert_allclose(rows["sim_compute"], flops * (1 / 3 + 2 / 3 / faster) / 1e6)
        np.testing.assert_allclose(rows["sim_compute_joules"], 3 * rows["sim_compute"])
        rounds = one.tables["rounds"]
        spent[bits] = rounds["sim_seconds"].sum(), rounds["sim_joules"].sum()
    for better, worse in ((4, 8), (8, 16)):
        assert spent[better][0] < spent[worse][0] and spent[better][1] < spent[worse][1]
    kept = 64 * 12 // 2 + 12
    for bits, one in found.items():
        saved = found[32].tables["clients"]["memory"] - one.tables["clients"]["memory"]
        wanted = 0 if bits == 32 else kept * (4 - (bits + 1) / 8) / 2**20
        np.testing.assert_allclose(saved, wanted, atol=1e-12)


def test_without_a_speedup_bits_take_as_long() -> None:
    seconds = {bits: one.tables["clients"]["sim_compute"] for bits, one in by_bits(PLAIN).items()}
    for bits in (16, 8, 4):
        np.testing.assert_array_equal(seconds[bits], seconds[32])


@pytest.mark.parametrize("method", ["fedavg", "splitfed", "qsgd", "ssfl"])
def test_methods_that_quantize_no_gradients_of_steps_take_as_long(method: str) -> None:
    words = (f"method.name={method}",)
    both = (run(small(*words, tiers)) for tiers in (PLAIN, FAST.replace("{name", "{bits=4, name")))
    alike(*both)


def test_all_devices_with_as_many_bits_are_the_method_with_so_many() -> None:
    tiers = "devices.tiers=[{name='a', bits=4}]"
    found, wanted = run(small(*FEDSL, tiers)), run(small(*FEDSL, "method.bits=4", PLAIN))
    assert found.sha256 == wanted.sha256 != run(small(*FEDSL, PLAIN)).sha256


def test_each_device_quantizes_with_its_own_bits() -> None:
    """Magnitudes of a tensor: three with 2 bits, up to seven with 3, as they were without."""
    tiers = (
        "devices.tiers=[{name='two', share=0.4, bits=2}, {name='three', share=0.4, bits=3}, "
        "{name='whole', share=0.2}]"
    )
    engine = Engine(small("method.name=fedsl", "method.pruning=0.0", tiers))
    clients, most = engine.clients, {"two": 3, "three": 7}
    g = torch.randn(5, clients.held.size, generator=torch.Generator().manual_seed(1))
    given = g.clone()
    clients.adjust(range(5), g, g)
    for client in range(5):
        name, values = engine.fleet.tier(client).name, g[client, : 64 * 12].abs().unique()
        if name == "whole":
            assert torch.equal(g[client], given[client])
        else:
            assert most[name] - 2 < len(values) <= most[name]
    alone = given[1:2].clone()
    clients.adjust((1,), alone, alone)
    assert torch.equal(alone[0], g[1]), "whoever else is there"
    assert len(list(play(engine))) == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{17=2.0}", "devices.tiers.0.speedup = '17': wanted numbers of bits from 2 to 16"),
        ("{fast=2.0}", "devices.tiers.0.speedup = 'fast': wanted numbers of bits from 2 to 16"),
        ("{8=0.5}", "devices.tiers.0.speedup.8 = 0.5: wanted a number of at least 1"),
        ("{8='x'}", "devices.tiers.0.speedup.8 = 'x': wanted a number"),
        ("3.0", "devices.tiers.0.speedup = 3.0: wanted a table of numbers of bits from 2 to 16"),
    ],
)
def test_what_is_no_speedup_is_refused(value: str, said: str) -> None:
    assert said in refusal(f"devices.tiers=[{{name='a', speedup={value}}}]")


def test_a_speedup_is_set_on_the_command_line_and_read_from_a_result() -> None:
    settings = small(FAST, "devices.tiers.0.speedup.8=3", "devices.tiers.0.bits=16")
    assert settings.devices.tiers[0].speedup == {"8": 3.0, "4": 4.0}
    assert settings.devices.tiers[0].bits == 16
    again = loading.load(settings.tree())
    assert again == settings and again.identity() == settings.identity()
    assert again.identity() != loading.load({**SMALL}).identity()
