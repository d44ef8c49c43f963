"""Sums that ranks add up themselves are those of `star`, to the rounding that is promised."""

import numpy as np
import pytest

from fedmpi import config, models
from fedmpi.engine import Engine
from fedmpi.exchanges import reduce
from fedmpi.methods.fedavg import Half
from tests.exchanges.added import ADDING, CASES, LOST, WORLD, Seen, both, bytes_of, close
from tests.plain import METHODS, place
from tests.small import refusal, run, small, smooth

OTHERS = [name for name in METHODS if name not in ADDING]
REDUCE = "exchange.name=reduce"

on_ranks = pytest.mark.parallel([1, 2, 3, 4])
both_servers = pytest.mark.parametrize("server", ["dedicated", "shared"])


@on_ranks
@both_servers
@pytest.mark.parametrize("name", ADDING)
def test_sums_and_bytes_of_every_method_are_those_of_star(name: str, server: str) -> None:
    """In one round, before which all is equal; some agree on something first."""
    words = (f"method.name={name}", f"server={server}", "rounds=1", "epochs=1")
    found, wanted, ours, theirs = both(REDUCE, *words)
    if WORLD.rank > 0:
        return
    close(ours, theirs, 5)
    for column, values in bytes_of(wanted).items():
        np.testing.assert_array_equal(bytes_of(found)[column], values, err_msg=column)
    up = found.tables["rounds"]["up"]
    np.testing.assert_array_equal(up, wanted.tables["rounds"]["up"])
    if WORLD.size == 1:
        assert found.sha256 == wanted.sha256
    else:
        np.testing.assert_allclose(found.model, wanted.model, rtol=1e-4, atol=1e-6)


@on_ranks
@pytest.mark.parametrize("case", CASES)
def test_settings_of_all_kinds(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds: what was rounded once goes on."""
    if case == "statistics":
        monkeypatch.setattr(models, "build", smooth)
    words = (*CASES[case], "rounds=3", "epochs=1")
    found, wanted, ours, theirs = both(REDUCE, *words)
    if WORLD.rank > 0:
        return
    clients = 1 if case == "one client" else 5
    first = [Seen(*(list(each)[:1] for each in vars(seen).values())) for seen in (ours, theirs)]
    if case != "stacked":  # then each client's update is rounded, too
        close(*first, clients)
    np.testing.assert_allclose(found.model, wanted.model, rtol=1e-2, atol=1e-4)
    assert len(ours.vectors) == 3


@on_ranks
def test_lost_uploads_are_added_nowhere() -> None:
    """Clients learn of it, and their residuals are those of before."""
    words = (*LOST, "method.name=topk", "rounds=4", "epochs=1")
    found, wanted, ours, theirs = both(REDUCE, *words)
    if WORLD.rank > 0:
        return
    lost = found.tables["clients"]["lost"]
    assert 0 < lost.sum() < len(lost)
    np.testing.assert_array_equal(lost, wanted.tables["clients"]["lost"])
    assert ours.numbers == theirs.numbers
    np.testing.assert_allclose(found.model, wanted.model, rtol=1e-2, atol=1e-4)
    np.testing.assert_array_equal(found.tables["rounds"]["down"], wanted.tables["rounds"]["down"])


@on_ranks
def test_if_all_are_lost_the_model_stays() -> None:
    words = (*LOST[:1], "devices.spectrum.outage=0.999", LOST[2], "rounds=2")
    found = run(small(*words, REDUCE), WORLD)
    if WORLD.rank == 0:
        assert found.tables["clients"]["lost"].all()
        np.testing.assert_array_equal(found.model, found.engine.flat.initial.numpy())


@on_ranks
@pytest.mark.parametrize(
    ("words", "vectors", "numbers"),
    [
        ((), 1, 1),
        (("control=mean",), 2, 1),
        (("aggregation.server=fedexp",), 1, 2),
        (("method.name=heterofl",), 2, 1),
    ],
    ids=["sum", "control", "measured", "held"],
)
def test_ranks_hand_over_dense_sums(words: tuple[str, ...], vectors: int, numbers: int) -> None:
    """And the root none: it adds to its own in place."""
    found = run(small(*words, REDUCE, "rounds=1", "server=shared"), WORLD)
    if WORLD.rank == 0:
        handed = 4 * vectors * found.engine.flat.size + 8 * numbers
        assert found.tables["ranks"]["up"].tolist() == [0, *[handed] * (WORLD.size - 1)]


@on_ranks
@pytest.mark.parametrize("name", ["staticmask", "ssfl", "fedper"])
def test_where_all_agree_only_values_there_travel(name: str) -> None:
    found = run(small(f"method.name={name}", REDUCE, "rounds=1", "server=shared"), WORLD)
    if WORLD.rank > 0:
        return
    server, rows = found.engine.server, found.tables["ranks"]
    kept = len(server.agreed(0))
    assert kept < found.engine.flat.size
    rows = rows[rows["round"] == 0]
    assert rows["up"].tolist() == [0, *[4 * kept + 8] * (WORLD.size - 1)]
    if name == "ssfl":
        rows = found.tables["ranks"][: WORLD.size]
        scores = 4 * int(server.prunable.sum()) + 8
        assert rows["up"].tolist() == [0, *[scores] * (WORLD.size - 1)]


@on_ranks
def test_who_hosts_nobody_adds_nothing() -> None:
    """Two clients, on up to four ranks."""
    found, _, ours, theirs = both(REDUCE, "clients=2", "server=shared", "rounds=1")
    if WORLD.rank == 0:
        close(ours, theirs, 2)
        assert len(found.tables["ranks"]) == WORLD.size
        assert len(set(found.tables["clients"]["rank"].tolist())) == min(2, WORLD.size)


@pytest.mark.parametrize("name", ADDING)
def test_both_halves_add_up_in_the_same_way(name: str) -> None:
    method = config.module("method", name)
    adding = ("absorb", "add", "take_change", "addends", "agreed", "prepare_sums", "share")
    reading = ("heard", "decode_update", "decode_change", "sent_positions")
    for what in (*adding, *reading):
        assert getattr(method.Server, what) is getattr(method.Clients, what), what


@pytest.mark.parametrize("name", OTHERS)
def test_methods_that_need_each_upload_are_refused(name: str) -> None:
    """And no method says that it does although both halves would do the same."""
    wanted = f"found method.name = '{name}'; possible is 'star'"
    assert wanted in refusal(f"method.name={name}", REDUCE)
    method, shared = config.module("method", name), ("absorb", "add")
    assert any(getattr(method.Server, what) is not getattr(Half, what) for what in shared) or (
        method.Config.converses
    )


@pytest.mark.parametrize("word", ["aggregation.rule=median", "aggregation.clip=1.0"])
def test_robust_rules_are_refused(word: str) -> None:
    why = refusal(word, REDUCE)
    assert why.startswith("exchange.name = 'reduce': wanted aggregation.rule = 'mean' and no clip")
    assert "possible is 'star'" in why


def test_estimates_of_clients_on_the_server_are_refused() -> None:
    why = refusal("method.name=topk", "feedback=ef21", REDUCE)
    assert "wanted a feedback without clients' estimates on the server, found 'ef21'" in why


def test_no_sum_is_kept_where_nobody_asks_for_it() -> None:
    """With `star` the clients' half has none."""
    assert not hasattr(Engine(small()).clients, "sum")
    assert issubclass(reduce.Exchange, config.module("exchange", "star").Exchange)


@pytest.mark.parallel([2, 3])
def test_who_is_not_the_root_forgets_its_sum() -> None:
    settings = small(REDUCE, "control=mean", "rounds=1", "server=shared")
    engines: list[Engine] = []
    run(settings, WORLD, engines.append)
    (engine,) = engines
    assert place(WORLD).is_root == (engine.server is not None)
    if engine.server is None:
        addends = engine.clients.addends(0)
        assert not any(vector.any() for vector in addends.vectors)
        assert addends.sums[0].numbers == [0.0]
