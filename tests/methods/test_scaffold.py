"""Control variates: c_k is a mean of raw gradients, and c is the mean of all c_k."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi import models
from fedmpi.engine import Engine
from tests.plain import play
from tests.small import refusal, run, small, smooth

WORDS = ("method.name=scaffold", "epochs=3", "rounds=6")
LOSSY = ("devices.tiers=[{gflops=1.0}]", "devices.dropouts=0.4")
WAYS = {
    "sgd": (),
    "decay": ("lr_decay=0.9", "weight_decay=0.01"),
    "momentum": ("momentum=0.9", "lr=0.02"),
    "clip": ("clip=0.5", "momentum=0.5"),
    "adam": ("optimizer=adam", "lr=0.002", "weight_decay=0.01"),
    "restarts": ("schedule=restarts", "lr_min=0.01"),
}
"""Ways of local training."""
FEW = [pytest.param(("participation=0.6",), id="few"), pytest.param(("rows=5",), id="rows")]


def controls(engine: Engine) -> Tensor:
    """All c_k, [clients, n]."""
    return torch.stack(
        [engine.clients.variates.of(client) for client in range(engine.settings.clients)]
    )


def shares(engine: Engine) -> np.ndarray:
    """The clients' shares of all samples, float64 [clients]."""
    return engine.population.sizes / engine.population.sizes.sum()


class Watch:
    """What the corrections of a round see: the raw gradients, before anybody changes them."""

    def __init__(self, engine: Engine) -> None:
        self.raw: dict[int, list[Tensor]] = {}
        self.rates: dict[int, list[float]] = {}
        self.engine, self.inner = engine, engine.clients.variates.correct
        engine.clients.variates.correct = self.correct

    def correct(self, clients: tuple[int, ...], g: Tensor) -> None:
        """Notes the gradients, and goes on."""
        t = self.engine.clients.variates.t
        for row, client in enumerate(clients):
            rates = self.engine.trainer.rates.of_round(t, client)
            self.raw.setdefault(client, []).append(g[row].double().clone())
            self.rates.setdefault(client, []).append(rates[self.engine.trainer.at])
        self.inner(clients, g)

    def means(self) -> dict[int, Tensor]:
        """Each client's mean raw gradient, weighted by the rates of its steps, float64 [n]."""
        found = {}
        for client, raw in self.raw.items():
            rates = torch.tensor(self.rates[client], dtype=torch.float64)
            found[client] = (rates[:, None] * torch.stack(raw)).sum(0) / rates.sum()
        self.raw, self.rates = {}, {}
        return found


@pytest.mark.parametrize("more", FEW)
@pytest.mark.parametrize("way", WAYS)
def test_c_k_is_the_mean_raw_gradient_under_every_optimizer(way: str, more: tuple[str]) -> None:
    engine = Engine(small(*WORDS, *WAYS[way], *more))
    watch = Watch(engine)
    for _ in play(engine):
        own, means = controls(engine), watch.means()
        assert means
        for client, mean in means.items():
            assert float(mean.abs().max()) > 1e-3
            np.testing.assert_allclose(own[client], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            engine.server.control, shares(engine) @ own.double().numpy(), atol=1e-6
        )


@pytest.mark.parametrize("participation", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("weights", ["samples", "equal"])
@pytest.mark.parametrize("control", ["mean", "niid"])
def test_c_is_the_mean_of_all_c_k_in_the_weights_of_the_objective(
    control: str, weights: str, participation: float
) -> None:
    words = (f"participation={participation}", f"aggregation.weights={weights}")
    engine = Engine(small(*WORDS, *words, f"control={control}", "lr_decay=0.9"))
    share = shares(engine) if weights == "samples" else np.full(5, 0.2)
    for _ in play(engine):
        own = controls(engine)
        assert float(own.abs().max()) > 1e-3
        np.testing.assert_allclose(engine.server.control, share @ own.double().numpy(), atol=1e-6)
    assert (own.abs().amax(1) > 0).sum() > 1


@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_it_ends_where_the_objective_of_its_weights_is_least(weights: str) -> None:
    """The gradient of the weighted mean loss vanishes there, and that of the other one does not."""
    words = ("model.hidden=[]", "batch=1000", "epochs=5", "lr=0.5", "rounds=400")
    words += ("evaluate.every=400",)
    penalty = ("weight_decay=0.05", f"aggregation.weights={weights}")
    engine = Engine(small("method.name=scaffold", *words, *penalty, "partition.alpha=0.2"))
    list(play(engine))
    w, feed, gradients = engine.server.w, engine.trainer.feed, []
    for shard in engine.population.shards:
        rows = engine.trainer.rows
        rows.w[0] = w
        rows.losses([feed.x[shard]], [feed.y[shard]], ())
        gradients.append(rows.head(1)[1][0].clone())
    each = torch.stack(gradients).double() + 0.05 * w.double()
    by_samples, equal = (
        np.linalg.norm(share @ each.numpy()) for share in (shares(engine), np.full(5, 0.2))
    )
    mine, other = (by_samples, equal) if weights == "samples" else (equal, by_samples)
    assert mine < 1e-5
    assert other > 1e-2


def test_statistics_have_no_control_variates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", smooth)
    for control in ("mean", "niid"):
        engine = Engine(small(*WORDS, f"control={control}", "participation=0.6"))
        stat_positions = engine.flat.stat_positions
        list(play(engine))
        assert len(stat_positions) and engine.server.control.any()
        assert not engine.server.control[stat_positions].any()
        assert not controls(engine)[:, stat_positions].any()


@pytest.mark.parametrize("name", ["scaffold", "spatl"])
def test_a_lost_upload_moves_neither_c_nor_c_k(name: str) -> None:
    """Its client hears of the loss when it takes part again, and goes on from its old c_k."""
    engine = Engine(small(f"method.name={name}", *WORDS[1:], *LOSSY, "rounds=8"))
    heard, lost, told = controls(engine).double(), set[int](), 0
    for outcome in play(engine):
        rows = outcome.tables["clients"]
        told += len(lost.intersection(rows["client"].tolist()))
        now = {int(one) for one in rows["client"][rows["lost"]]}
        lost = (lost - set(rows["client"].tolist())) | now
        own = controls(engine).double()
        arrived = [client for client in range(5) if client not in lost]
        heard[arrived] = own[arrived]
        np.testing.assert_allclose(engine.server.control, shares(engine) @ heard.numpy(), atol=1e-6)
    assert told > 2


def test_the_first_round_of_full_participation_is_fedavgs() -> None:
    words = ("rounds=1",)
    assert run(small("method.name=scaffold", *words)).sha256 == run(small(*words)).sha256
    words = ("rounds=2",)
    assert run(small("method.name=scaffold", *words)).sha256 != run(small(*words)).sha256


def test_the_name_stands_for_a_setting() -> None:
    for control in ("mean", "niid"):
        mine = run(small("method.name=scaffold", f"control={control}"))
        assert mine.sha256 == run(small(f"control={control}")).sha256
    assert run(small("method.name=scaffold", "control=none")).sha256 == run(small()).sha256


BESIDE = (
    *("topk", "randomk", "dgc", "qsgd", "signsgd", "powersgd"),
    *("fedper", "fedbn", "fednova", "ditto", "finetune"),
)
"""Methods that go together with control variates."""


@pytest.mark.parametrize("name", BESIDE)
def test_control_variates_beside_compression(name: str) -> None:
    """c_k moves by what the server hears of it, so that c is the mean of all c_k here, too."""
    engine = Engine(small(f"method.name={name}", "control=mean", "rounds=4", "participation=0.6"))
    for _ in play(engine):
        own = controls(engine).double()
        assert float(own.abs().max()) > 1e-4
        np.testing.assert_allclose(engine.server.control, shares(engine) @ own.numpy(), atol=2e-6)


def test_the_change_of_c_k_costs_what_the_update_costs() -> None:
    """Values at the positions of the update, or as many levels; dense beside other compressors."""
    n, k = small_size(), round(0.1 * small_size())
    for name, mine, values in (
        ("topk", "method.sparsity=0.9", 4 * k),
        ("randomk", "method.sparsity=0.9", 4 * k),
        ("qsgd", "method.bits=8", n + 4 * -(-n // 128)),
        ("signsgd", "feedback=classic", 4 * n),
    ):
        words = (f"method.name={name}", mine, *(["method.bucket=128"] if name == "qsgd" else []))
        with_, without = (
            run(small(*words, f"control={control}")).tables["clients"]["up_gradient"]
            for control in ("mean", "none")
        )
        assert set((with_ - without).tolist()) == {values}


def small_size() -> int:
    """Values of the small run's model."""
    return Engine(small()).flat.size


@pytest.mark.parametrize("name", ["local", "ssfl", "heterofl", "splitfed", "stc", "fedrep"])
def test_methods_without_whole_updates_refuse_them(name: str) -> None:
    said = refusal(f"method.name={name}", "control=mean")
    assert "control = 'mean': wanted a method whose clients train" in said
    assert f"found method.name = '{name}'" in said
