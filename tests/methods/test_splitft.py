"""SplitFT: however the clients' cuts differ, plain steps and means make the model of FedAvg."""

import numpy as np
import pytest

from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from tests.small import refusal, run, small
from tests.split.test_fitted import DEEP

NAME = "method.name=splitft"
CUTS = "method.cuts=[hidden1,hidden2]"
CONVOLUTIONS = ("model.name=cnn", "model.norm=batch")
MIB = 2**20


@pytest.mark.parametrize(
    ("cuts", "more"),
    [
        (CUTS, ()),
        (CUTS, ("participation=0.6", "devices.dropouts=0.3", "epochs=2")),
        (CUTS, ("momentum=0.9", "aggregation.server=momentum", "aggregation.weights=equal")),
        (CUTS, ("aggregation.rule=median",)),
        (CUTS, ("aggregation.clip=0.1", "aggregation.server=adam", "aggregation.server_lr=0.01")),
        (CUTS, ("model.train=[hidden2]",)),
        (CUTS, ("model.hidden=[12,8,6]", "method.tail=head", "epochs=2")),
        (CUTS, ("model.hidden=[12,8,6]", "method.tail=head", "model.train=head")),
        ("method.cuts=[conv1,conv2,dense]", CONVOLUTIONS),
    ],
    ids=str,
)
def test_the_model_is_that_of_fedavg(cuts: str, more: tuple[str, ...]) -> None:
    """Rounding aside; nothing in these runs depends on where a network is cut."""
    own = [word for word in more if not word.startswith("method.")]
    ours = run(small("rounds=3", "seed=2", NAME, cuts, *more))
    theirs = run(small("rounds=3", "seed=2", *own, "method.name=fedavg"))
    assert len(set(ours.engine.clients.cuts)) == cuts.count(",") + 1
    np.testing.assert_allclose(ours.model, theirs.model, rtol=0, atol=2e-6)
    rows, others = (found.tables["clients"] for found in (ours, theirs))
    is_there = ~rows["lost"].astype(bool)
    np.testing.assert_allclose(rows["personal"][is_there], others["personal"][is_there])


@pytest.mark.parametrize("more", [(), ("model.hidden=[12,8,6]", "method.tail=head")], ids=str)
def test_equal_cuts_are_those_of_splitfed(more: tuple[str, ...]) -> None:
    words = ("participation=0.6", "momentum=0.9", "rounds=3", *more)
    ours = run(small(*words, NAME, "method.cuts=[hidden2]"))
    theirs = run(small(*words, "method.name=splitfed", "method.cut=hidden2"))
    assert ours.sha256 == theirs.sha256
    for name in ("up_model", "up_gradient", "up_activation", "up_label", "flops", "memory"):
        columns = (found.tables["clients"][name] for found in (ours, theirs))
        np.testing.assert_array_equal(*columns, name)


def test_a_client_is_sent_and_sends_its_own_part() -> None:
    """Fronts: 64 x 12 + 12 values, and 12 x 8 + 8 more."""
    found = run(small(NAME, CUTS))
    rows, sizes = found.tables["clients"], {"hidden1": 780, "hidden2": 884}
    wanted = [4 * sizes[found.engine.clients.cuts[client]] for client in rows["client"]]
    np.testing.assert_array_equal(rows["down_model"], wanted)
    np.testing.assert_array_equal(rows["up_gradient"], wanted)
    widths = {"hidden1": 12, "hidden2": 8}
    values = rows["up_label"] * [widths[found.engine.clients.cuts[c]] for c in rows["client"]]
    np.testing.assert_array_equal(rows["up_activation"], 4 * values, "a label takes a byte")
    np.testing.assert_array_equal(rows["down_gradient"], 4 * values)


def test_a_frozen_front_hears_no_gradients() -> None:
    """And one client's front may be frozen where another's is not."""
    found = run(small(NAME, CUTS, "model.train=[hidden2,head]"))
    cuts = np.array(found.engine.clients.cuts)
    rows = found.tables["clients"]
    is_frozen = cuts[rows["client"]] == "hidden1"
    assert is_frozen.any()
    assert ((rows["down_gradient"] == 0) == is_frozen).all()


def tiers(*memory: float | None) -> str:
    """Equal shares of clients with devices of these memories, in MiB."""
    about = [f", memory={limit}" if limit else "" for limit in memory]
    each = [f"{{name='{n}', share={1 / len(memory)}{some}}}" for n, some in enumerate(about)]
    return f"devices.tiers=[{', '.join(each)}]"


def test_memory_decides_the_cut_of_each_device() -> None:
    """A limit is the memory of a client with that cut and the largest batch, and a little less."""
    words = (*DEEP, "clients=6", "batch=4", "partition.name=iid", NAME)
    names = Engine(small(*words, CUTS)).flat.cuts()
    needs = {}
    for cut in names:
        rows = run(small(*words, f"method.cuts=[{cut}]")).tables["clients"]
        needs[cut] = rows["memory"].max()
    assert list(needs.values()) == sorted(needs.values())
    for cut, before in zip(names[1:], names, strict=False):
        limits = (needs[cut] + 1e-9, needs[cut] - 1e-6, None)
        engine = Engine(small(*words, tiers(*limits), "method.cut=fit"))
        kinds = [int(tier.name) for _, tier in engine.population.fleet.owners()]
        wanted = {0: cut, 1: before, 2: names[-1]}
        assert engine.clients.cuts == [wanted[kind] for kind in kinds]
        assert sorted(kinds) == [0, 0, 1, 1, 2, 2]


def test_without_memories_clients_are_spread_over_all_split_points() -> None:
    cuts = Engine(small(*DEEP, "clients=8", NAME)).clients.cuts
    assert sorted(cuts) == ["hidden1"] * 2 + ["hidden2"] * 2 + ["hidden3"] * 2 + ["hidden4"] * 2
    assert cuts != sorted(cuts)


def test_what_gives_no_cut_is_refused() -> None:
    assert refusal(NAME, "method.cuts=[hidden1,hidden9]") == (
        "method.cuts: the model has no split point 'hidden9'; there are: hidden1, hidden2"
    )
    assert refusal(NAME, CUTS, "method.tail=head") == (
        "method.cuts: the model has no split point 'hidden2' with a stage between it and 'head'; "
        "there are: hidden1"
    )
    said = refusal(NAME, CUTS, "method.tail=hidden2")
    assert said.startswith("method.tail = 'hidden2': wanted a stage behind 'hidden2'")
    assert "no split point: it is a single stage" in refusal(NAME, "model.hidden=[]")
    said = refusal(NAME, "method.cut=fit")
    assert "method.cut = 'fit': wanted devices.tiers with a memory" in said
    tiny = "devices.tiers=[{name='tiny', share=1, memory=1e-6}]"
    for words in (("method.cut=fit", tiny), (CUTS, tiny)):
        assert "is a 'tiny': wanted at most its memory" in refusal(NAME, *words)
    for words, wanted in (
        (("method.cut=hidden1",), r"method\.cut = 'hidden1': wanted 'fit', or absent"),
        (("method.cut=fit", CUTS, tiny), r"method\.cuts = .*: wanted method\.cut absent"),
        (("method.cuts=hidden1",), r"method\.cuts = .*: wanted a list of texts"),
        (("method.version=v2",), r"method\.version = 'v2': wanted 'v1'"),
    ):
        with pytest.raises(ConfigError, match=wanted):
            small(NAME, *words)
