"""The model of costs: fits to made-up timings return the model that made them."""

from dataclasses import replace
from itertools import product
from math import ceil, inf, log2

import numpy as np
import pytest

from fedmpi import config, costs
from fedmpi.costs import Law, Load, Model, Rate, Step
from fedmpi.errors import BadInput
from fedmpi.exchanges.auto import steps_of

SIZES = [8 * 4**power for power in range(11)]


def made(law: Law, ranks: list[int], sizes: list[int] | None = None) -> list[costs.Point]:
    """Timings of a known law."""
    return [(p, m, law.seconds(p, m)) for p in ranks for m in sizes or SIZES]


def test_a_law_is_hockneys() -> None:
    """Against the formula, written out."""
    law = Law("log", "each", (1000, inf), (2e-6, 9e-6), (1e-9, 2e-10))
    assert law.seconds(6, 1000) == pytest.approx(3 * 2e-6 + 5 * 1000 * 1e-9)
    assert law.seconds(6, 1001) == pytest.approx(3 * 9e-6 + 5 * 1001 * 2e-10)
    assert law.seconds(1, 8) == 0
    once = replace(law, latency="each", volume="once")
    assert once.seconds(4, 10) == pytest.approx(3 * 2e-6 + 10 * 1e-9)


@pytest.mark.parametrize("upto", [(inf,), (512.0, inf), (128.0, 131072.0, inf)])
def test_a_fit_returns_the_law_that_made_the_timings(upto: tuple[float, ...]) -> None:
    a, b = (3e-6, 2e-5, 2e-4)[: len(upto)], (2e-8, 3e-9, 1e-10)[: len(upto)]
    known = Law("log", "each", upto, a, b)
    found = costs.law(made(known, [4]), "gather")
    assert (found.latency, found.volume, found.upto) == (known.latency, known.volume, upto)
    np.testing.assert_allclose(found.a, known.a, 1e-6)
    np.testing.assert_allclose(found.b, known.b, 1e-6)


@pytest.mark.parametrize("latency", costs.FORMS)
@pytest.mark.parametrize("volume", costs.FORMS)
def test_several_numbers_of_ranks_tell_the_forms_apart(latency: str, volume: str) -> None:
    """So that numbers that were not measured are predicted."""
    known = Law(latency, volume, (inf,), (5e-6,), (1e-9,))
    found = costs.law(made(known, [3, 6, 20]), "bcast")
    assert (found.latency, found.volume) == (latency, volume)
    for ranks in (100, 4096):
        assert found.seconds(ranks, 3000) == pytest.approx(known.seconds(ranks, 3000), 1e-6)


def test_noise_is_weighed_by_the_size_of_times() -> None:
    """An absolute fit would lose the latency among the seconds of large messages."""
    random, known = np.random.default_rng(1), Law("log", "log", (inf,), (1e-5,), (1e-9,))
    noisy = [(p, m, t * random.uniform(0.9, 1.1)) for p, m, t in made(known, [4])]
    found = costs.law(noisy, "bcast")
    assert found.seconds(4, 8) == pytest.approx(known.seconds(4, 8), 0.1)
    fit = costs.assess(noisy, lambda points: costs.law(points, "bcast"))
    assert fit.points == 11
    assert 0 < fit.residual <= fit.worst < 0.2
    assert fit.good == 1.0
    assert fit.held < 0.2


def test_what_is_left_out_is_not_fitted() -> None:
    """A size that breaks the law is an error at that size, and the share of good ones falls."""
    known = Law("log", "log", (inf,), (1e-5,), (1e-9,))
    points = made(known, [4])
    exact = costs.assess(points, lambda some: costs.law(some, "bcast"))
    assert (exact.held, exact.good) == (pytest.approx(0, abs=1e-6), 1.0)
    points[5] = (*points[5][:2], 10 * points[5][2])
    assert costs.assess(points, lambda some: costs.law(some, "bcast")).good < 1
    assert np.isnan(costs.assess(points[:5], lambda some: costs.law(some, "bcast")).held)


def test_no_parameter_is_negative() -> None:
    points = [(4, m, 1e-3 / m) for m in SIZES]
    found = costs.law(points, "bcast")
    assert min(*found.a, *found.b) >= 0


def test_rates_of_work_are_returned() -> None:
    known = one_range(1e-5, 2e-10, 5e-9)
    points = [
        (n, k, known.seconds(n, k)) for n in (4096, 65536, 1 << 20) for k in (n // 10, n // 100)
    ]
    found = costs.rate(points)
    assert found.upto == (inf,)
    np.testing.assert_allclose((found.c, found.d, found.e), (known.c, known.d, known.e), 1e-6)


def test_a_vector_that_fits_no_cache_has_a_rate_of_its_own() -> None:
    """Ten times the time for each value from the largest size on, and beyond it."""
    small, large = one_range(1e-5, 1e-10, 2e-9), one_range(0.0, 1e-9, 2e-8)
    points = [
        (n, k, (small if n < 1 << 22 else large).seconds(n, k))
        for n in (1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
        for k in (n // 10, n // 100, n // 1000)
    ]
    found = costs.rate(points)
    assert found.upto == (1 << 20, inf)
    for n, k, seconds in points:
        assert found.seconds(n, k) == pytest.approx(seconds, rel=1e-6)
    assert found.seconds(1 << 23, 1000) == pytest.approx(large.seconds(1 << 23, 1000), rel=1e-6)


def one_range(c: float, d: float, e: float) -> Rate:
    return Rate((inf,), (c,), (d,), (e,))


def rows() -> list[dict[str, object]]:
    """What `bench mpi` would have measured of `machine`, on one node and between nodes."""
    found, known = [], machine()
    for key, law in known.laws.items():
        name, level = key.split()
        for size in SIZES if name != "meet" else SIZES[:1]:
            seconds = law.seconds(4, size)
            found.append({"kind": "collective", "name": name, "level": level, "bytes": size})
            found[-1] |= {"ranks": 4, "max_us": 1e6 * seconds}
    places = product(WORK, ("each", "root"), (1 << 14, 1 << 18, 1 << 22), (0.5, 0.9, 0.99, 0.999))
    for name, level, size, sparsity in places:
        kept = round(size // 4 * (1 - sparsity))
        found.append({"kind": "work", "name": name, "level": level, "bytes": size})
        found[-1] |= {"max_us": 1e6 * rate_of(name, size // 4, kept), "ranks": 4}
        found[-1]["sparsity"] = sparsity
    return [{"side": "ours", **each} for each in found]


WORK = [step for step in costs.PART_OF if step != "move"]


def rate_of(step: str, size: float, kept: float) -> float:
    """Seconds of a step of work on `machine`, written out; many kept values begin later."""
    at, is_many = WORK.index(step), step in costs.BY_SHARE and kept > size / 32
    return 1e-6 * (1 + at) * (1 + is_many) + 1e-10 * size + 1e-9 * (1 + at) * kept


def machine() -> Model:
    """A made-up one: laws of both levels, and rates."""
    laws = {}
    for name, (latency, volume) in costs.USUAL.items():
        for level, speed in (("near", 1.0), ("far", 10.0)):
            beta = 0.0 if name == "meet" else speed * 1e-10
            laws[f"{name} {level}"] = Law(latency, volume, (inf,), (speed * 1e-6,), (beta,))
    rates = {}
    for (at, step), where in product(enumerate(WORK), ("each", "root")):
        names = {step: 1, step + costs.MANY: 2} if step in costs.BY_SHARE else {step: 1}
        for name, times in names.items():
            rates[f"{name} {where}"] = one_range(1e-6 * (1 + at) * times, 1e-10, 1e-9 * (1 + at))
    return Model(laws, rates)


def test_a_file_of_timings_returns_the_machine_that_made_them() -> None:
    bare = {"side": "bare", "kind": "collective", "name": "bcast", "level": "near"}
    more = [{**bare, "ranks": 4, "bytes": 8, "max_us": 1e9}]
    found = costs.fitted([*rows(), *more], {"host": "x"}, steps_of)
    known = machine()
    assert found.about == {"host": "x"}
    assert found.laws.keys() == known.laws.keys()
    for name, law in known.laws.items():
        np.testing.assert_allclose(found.laws[name].a, law.a, 1e-6)
        np.testing.assert_allclose(found.laws[name].b, law.b, 1e-6)
    for name, rate in known.rates.items():
        some = found.rates[name]
        np.testing.assert_allclose((some.c, some.d, some.e), (rate.c, rate.d, rate.e), 1e-4)
    again = costs.parsed(found.text())
    assert (again.laws, again.rates, again.about) == (found.laws, found.rates, found.about)
    with pytest.raises(BadInput, match="wanted a model of costs"):
        costs.parsed("{}")


def test_several_files_count_with_the_median_of_their_times() -> None:
    odd = [{**row, "max_us": 50 * row["max_us"], "moved": 1} for row in rows()]
    found = costs.fitted([*rows(), *odd, *rows()], {}, steps_of)
    assert found.laws == costs.fitted(rows(), {}, steps_of).laws
    assert found.rates == costs.fitted(rows(), {}, steps_of).rates


def test_nodes_follow_each_other() -> None:
    """Written out for 4 nodes of 8 ranks with 1000 bytes each; a barrier comes first."""
    model = machine()
    meet = 3 * 1e-6 + 2 * 1e-5
    near, far = 3 * 1e-6 + 7 * 1000 * 1e-10, 2 * 1e-5 + 3 * 8000 * 1e-9
    assert model.collective("gather", 8, 4, 1000) == pytest.approx(meet + near + far)
    near, far = 3 * 1e-6 + 3 * 1000 * 1e-10, 2 * 1e-5 + 2 * 1000 * 1e-9
    assert model.collective("reduce", 8, 4, 1000) == pytest.approx(meet + near + far)
    del model.laws["gather far"]
    with pytest.raises(BadInput, match="gather: wanted measurements between nodes, found none"):
        model.collective("gather", 8, 4, 1000)
    with pytest.raises(BadInput, match="melt each: wanted measurements of work"):
        model.seconds(Step("melt", "each"))


def parts(name: str, load: Load) -> dict[str, float]:
    """What the made-up machine takes; nothing is left over there."""
    return machine().parts(name, config.module("exchange", name).steps(load), load.ranks)


def test_what_an_exchange_takes_beyond_its_steps_is_that_of_the_smallest() -> None:
    """There 12 us more than the steps on four ranks, so 6 for each doubling; a larger is kept."""
    found = list(rows())
    for parameters, more in ((1 << 10, 12e-6), (1 << 14, 1.0)):
        load = Load(6, 4, 2, parameters, 0.9, ready=True)
        row = {"kind": "exchange", "name": "star", "side": "ours", "clients": 2, "ranks": 4}
        row |= {"level": "all", "per_node": 2, "bytes": 4 * parameters}
        row |= {"sparsity": 0.9, "positions": "own"}
        found.append(row | {"max_us": 1e6 * (more + sum(parts("star", load).values()))})
    model = costs.fitted(found, {}, steps_of)
    assert model.starts == {"star": pytest.approx(6e-6, rel=1e-2)}
    assert [row["parameters"] for row in model.measured] == [1 << 14]
    assert model.parts("star", [], 4096)["start"] == pytest.approx(12 * 6e-6, rel=1e-2)
    assert model.parts("star", [], 1)["start"] == 0
    assert costs.parsed(model.text()).starts == model.starts


@pytest.mark.parametrize("agreed", [False, True])
def test_exchanges_take_what_their_steps_take(agreed: bool) -> None:
    """Written out: 62 clients of 10,000 values at 0.99 on 32 ranks, 8 a node."""
    load = Load(62, 32, 8, 10_000, 0.99, agreed)
    n, k, mine = 10_000, 100, 2
    size = k if agreed else n
    message = 48 + 4 * k + (0 if agreed else 4 * k)
    meet, here, there = 3e-6 + 2e-5, 3e-6, 2e-5  # latencies: log2 of 8 ranks, and of 4 nodes

    def of(step: str, kept: float = k, length: float = n) -> float:
        return rate_of(step, length, kept)

    def united(clients: int) -> float:
        return k if agreed else n * (1 - 0.99**clients)

    def length_of(kept: float) -> float:
        is_pairs = 4 * kept + min(4 * kept, -(-size // 8)) < 4 * size
        return 48 + 4 * kept + (min(4 * kept, n / 8) if is_pairs else 4 * (size - kept))

    def adding(kept: float, length: float) -> dict[str, float]:
        if agreed:
            return {part: of(f"{step} dense", kept, length)
                    for part, step in (("pack", "read"), ("add", "add"))}  # fmt: skip
        return {"pack": of("read", kept, length), "add": of("add", kept, length)}

    def writing(kept: float, length: float) -> float:
        pack = "pack dense" if agreed else "pack"
        return of("scan", kept, length) + of(pack, kept, length)

    choose = {"choose": 0.0 if agreed else mine * of("select"), "start": 0.0}

    packed, opened = (of(f"{s} dense", k, k) if agreed else of(s) for s in ("pack", "read"))

    def own(uploads: int) -> float:
        return uploads * of("add dense", k, k) if agreed else of("clear") + uploads * of("add")

    sent = 24 + mine * message
    moved = meet + here + 7 * sent * 1e-10 + there + 3 * 8 * sent * 1e-9
    pack = mine * packed + 62 * opened
    add = own(62)
    assert parts("star", load) == pytest.approx(choose | {"pack": pack, "move": moved, "add": add})

    m = 4 * size + 8
    moved = meet + here + 3 * m * 1e-10 + there + 2 * m * 1e-9
    pack = mine * packed
    assert parts("reduce", load) == pytest.approx(
        choose | {"pack": pack, "move": moved, "add": own(mine)}
    )
    numbers = meet + here + 3 * 8 * 1e-10 + there + 2 * 8 * 1e-9

    union = united(16)
    both = adding(union, size)
    written = writing(union, size)
    near = 2 * here + here + sent * 1e-10
    far = there + there + 3 * (24 + length_of(union)) * 1e-9
    last = there + there + 2 * 8 * 1e-9
    pack = mine * packed + 16 * opened + written + 3 * both["pack"]
    add = own(16) + 3 * both["add"]
    tree = choose | {"pack": pack, "move": near + far + last, "add": add}
    assert parts("tree", load) == pytest.approx(tree)

    pack, moved, add = mine * packed, numbers, own(mine)
    for clients, latency, each in (
        *((2, 1e-6, 1e-10), (4, 1e-6, 1e-10), (8, 1e-6, 1e-10)),
        *((16, 1e-5, 1e-9), (32, 1e-5, 1e-9)),
    ):
        union = united(clients)
        both = adding(union, size)
        pack += writing(union, size) + both["pack"]
        moved += latency + (24 + length_of(union)) * each
        add += both["add"]
    assert parts("sparse", load) == pytest.approx(
        choose | {"pack": pack, "move": moved, "add": add}
    )

    some, all_of_it = united(2), united(62)
    pieces = 32 * 24 + 31 * (48 + (length_of(some) - 48) / 32)
    piece = 24 + 48 + (length_of(all_of_it) - 48) / 32
    words = 8 * 33
    moved = numbers + meet + here + 3 * words * 1e-10 + there + 2 * words * 1e-9
    moved += meet + 7e-6 + pieces * 1e-10 + 3e-5 + 8 * pieces * 1e-9
    moved += meet + here + 7 * piece * 1e-10 + there + 3 * 8 * piece * 1e-9
    # 2 and 62 uploads at 0.99 are sparse: 2 % and 46 %.
    each, total = adding(some / 32, size / 32), adding(all_of_it / 32, size / 32)
    pack = mine * packed + writing(some, size) + writing(all_of_it / 32, size / 32)
    pack += 31 * (each["pack"] + total["pack"])
    add = own(mine) + of("clear", k / 32, size / 32) + 2 * of("add dense", k / 32, size / 32)
    add += 31 * (each["add"] + total["add"])
    if not agreed:
        add += of("clear", k * 31 / 32, size * 31 / 32)
    found = choose | {"pack": pack, "move": moved, "add": add}
    assert parts("sharded", load) == pytest.approx(found)


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_uploads_without_positions_are_dense(sparsity: float) -> None:
    """Of all values, which nobody chooses and which are added up densely, or of drawn ones."""
    load, n = Load(4, 3, 3, 10_000, sparsity, travels=False), 10_000
    k = round(n * (1 - sparsity))
    add = rate_of("add dense" if k == n else "add", n, k)
    found = parts("star", load)
    assert found["choose"] == pytest.approx(0 if k == n else 2 * rate_of("select", n, k))
    packed, opened = (rate_of(f"{step} dense", k, k) for step in ("pack", "read"))
    assert found["pack"] == pytest.approx(2 * packed + 4 * opened)
    assert found["add"] == pytest.approx(rate_of("clear", n, k) + 4 * add)
    if k == n:
        assert parts("star", replace(load, travels=True)) == found


def test_loads_say_who_hosts_what() -> None:
    load = Load(100, 17, 8, 1000, 0.9)
    assert (load.nodes, load.near, load.mine, load.kept) == (3, 8, 7, 100)
    assert Load(5, 1, 8, 1000, 0.9).mine == 5
    assert ceil(log2(17)) == costs.FORMS["log"](17) == 5
    # Against the mean of drawn ones.
    random, drawn = np.random.default_rng(0), []
    for _ in range(50):
        some = {one for _ in range(6) for one in random.choice(1000, 100, replace=False).tolist()}
        drawn.append(len(some))
    assert load.union(6) == pytest.approx(np.mean(drawn), rel=0.02)


@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_every_exchange_can_be_predicted(ranks: int) -> None:
    """On a single rank nothing moves."""
    for name in config.exchanges():
        found = parts(name, Load(10, ranks, 2, 1000, 0.9))
        assert found["add"] > 0
        assert (found["move"] > 0) == (ranks > 1)
