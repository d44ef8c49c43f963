"""Changes of the server's model: one model on all sides, whoever missed how many rounds."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi import models
from fedmpi.config import Down
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Coding, Kind, Message, WireError, pack, unpack
from fedmpi.networks.flat import Flat
from fedmpi.networks.layers import BatchNorm
from fedmpi.streams import Purpose, key
from fedmpi.training.downlink import Changes, Words
from tests.coded import wants_zstd
from tests.plain import play
from tests.small import Run, refusal, run, small, smooth

CPU = torch.device("cpu")
FLAT = Flat(nn.Sequential(nn.Linear(60, 20), BatchNorm(20), nn.Linear(20, 4)))
"""Running statistics lie between parameters."""
EACH = [
    "values=f4 sparsity=0.9",
    "values=f4 sparsity=0.7 spans=tensor positions=delta",
    "values=f2",
    "values=bf16 sparsity=0.5",
    "values=uniform bits=2 rounding=stochastic",
    "values=uniform bits=6 scales=tensor",
    "values=uniform bits=4 sparsity=0.8 rounding=stochastic",
    "values=uniform bits=4 sparsity=0.8 spans=tensor scales=bucket bucket=100",
    "values=sign sparsity=0.9 positions=golomb",
    "values=sign sparsity=0.9 spans=tensor scales=tensor",
    "values=sign",
    "values=sign scales=tensor",
]
ZSTD = pytest.param("values=zstd sparsity=0.9 positions=delta", marks=wants_zstd)
each = pytest.mark.parametrize("words", [*EACH, ZSTD])


def down(words: str) -> tuple[str, ...]:
    return tuple(f"codec.down.{word}" for word in words.split())


def changes(words: str, flat: Flat = FLAT) -> Changes:
    return Changes(small(*down(words)).codec.down, flat, CPU)


def wired(blocks: Sequence[Block]) -> list[Block]:
    """The same after a way over the wire."""
    (message,), _ = unpack(pack([Message(0, blocks)]).data)
    return list(message.blocks)


def keyed(t: int) -> np.ndarray:
    """Rounds the values of round t."""
    return key(1, Purpose.ROUND, t)


def drawn(seed: int) -> Tensor:
    """A change of many sizes, with zeros and values that tie."""
    random = torch.Generator().manual_seed(seed)
    found = torch.randn(FLAT.size, generator=random) ** 3
    found[::7] = 0
    found[1::5] = found[1::5].sign()
    return found


def sent(coding: Changes, change: Tensor) -> Tensor:
    """What arrives of a change, [n]."""
    blocks = coding.encode(change, keyed(0))
    return sparse.vector(coding.decode(wired(blocks)), FLAT.size, CPU)


@each
def test_both_sides_move_alike_and_nothing_is_lost(words: str) -> None:
    """The server's model and a client's copy, in every bit, after each of six rounds; what was left
    out is what was not sent, and running statistics are sent exactly.
    """
    coding, where = changes(words), FLAT.stat_positions
    said, w, kept = Words(coding, 1), FLAT.initial.clone(), FLAT.initial.clone()
    total = torch.zeros(FLAT.size)
    for t in range(6):
        change = drawn(t)
        total += change
        said.say(t, change.clone(), w, keyed(t))
        said.missed(t, 0, w)
        blocks = said.history[t]
        assert len(blocks) == coding.coder.blocks + 1
        coding.move(kept, wired(blocks))
        assert torch.equal(w, kept)
        np.testing.assert_array_equal(sparse.values(blocks[-1]), change[where])
        assert not said.rest[where].any()
        np.testing.assert_allclose(w - FLAT.initial + said.rest, total, rtol=0, atol=1e-4)
    assert not sent(coding, torch.zeros(FLAT.size)).any()


@each
def test_what_changes_leave_out_does_not_grow(words: str) -> None:
    """From change to change, as it does if a coding leaves out as much as there is, such as codes
    of a single bit.
    """
    said, norms = Words(changes(words), 1), []
    for t in range(400):
        change = drawn(t)
        change[FLAT.stat_positions] = 0
        said.say(t, change, torch.zeros(FLAT.size), keyed(t))
        norms.append(float(said.rest.norm()))
    assert 0 < np.mean(norms[300:]) < 1.2 * np.mean(norms[100:200])


@pytest.mark.parametrize("words", ["values=uniform scales=tensor", "values=sign scales=tensor"])
def test_blocks_of_another_network_are_refused(words: str) -> None:
    coding = changes(words)
    other = changes(words, Flat(nn.Sequential(nn.Linear(3, 3))))
    blocks = coding.encode(torch.ones(FLAT.size), keyed(0))
    with pytest.raises(WireError, match="wanted"):
        other.decode(blocks)
    with pytest.raises(WireError, match="wanted"):
        coding.decode(blocks[:1])


# ---- runs


LOSSY = ("devices.tiers=[{name='one'}]", "devices.dropouts=0.4")


@pytest.mark.parametrize(
    "beside", [(), LOSSY, ("method.name=topk", "control=mean", "aggregation.server=adam")], ids=str
)
@pytest.mark.parametrize("has_statistics", [False, True])
@each
def test_a_client_trains_on_the_very_model_of_the_server(
    words: str, has_statistics: bool, beside: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, however many rounds it has missed, and whatever was lost meanwhile."""
    if has_statistics:
        monkeypatch.setattr(models, "build", smooth)
    few = ("clients=8", "participation=0.3", "rounds=7", "evaluate.every=7", "epochs=1")
    engine = Engine(small(*down(words), *few, *beside))
    clients, gaps, last = engine.clients, set(), {}
    work, kinds, accept = clients.work, set(), clients.accept

    def hear(t: int, client: int, blocks: Sequence[Block]) -> None:
        kinds.update(block.kind for block in blocks)
        accept(t, client, blocks)
        assert torch.equal(clients.start, engine.server.w)

    def watch(t: int, some: tuple[int, ...]) -> Tensor:
        assert torch.equal(clients.start, engine.server.w)
        for client in some:
            gaps.add(t - last.get(client, t))
            last[client] = t
        return work(t, some)

    monkeypatch.setattr(clients, "accept", hear)
    monkeypatch.setattr(clients, "work", watch)
    list(play(engine))
    assert gaps >= {0, 1, 2}
    assert kinds == {Kind.MODEL, Kind.GRADIENT}


def tables(found: Run) -> dict[str, np.ndarray]:
    """What is measured, but for bytes and seconds."""
    names = ("accuracy", "loss", "personal_mean", "up", "shard_mean")
    return {name: found.tables["rounds"][name] for name in names}


@pytest.mark.parametrize(
    "beside",
    [
        ("method.name=fedavg",),
        ("method.name=scaffold", "momentum=0.5"),
        ("method.name=topk", "aggregation.server=yogi"),
        ("method.name=feddyn",),
        ("aggregation.rule=median",),
        LOSSY,
    ],
    ids=str,
)
def test_in_full_float32_it_is_the_plain_run(beside: tuple[str, ...]) -> None:
    """In every bit; the server then sends the model, which is no longer than its change."""
    words = (*beside, "participation=0.6", "rounds=4")
    found, wanted = run(small(*words, "codec.down.values=f4")), run(small(*words))
    assert found.sha256 == wanted.sha256
    for name, column in tables(wanted).items():
        np.testing.assert_array_equal(tables(found)[name], column)
    assert (found.tables["clients"]["down_model"] == 4 * found.engine.flat.size).all()


@wants_zstd
def test_a_whole_change_without_loss_is_all_of_it() -> None:
    """The model moves by it, and nothing is left for later; running statistics are apart."""
    said, w, where = Words(changes("values=zstd"), 1), FLAT.initial.clone(), FLAT.stat_positions
    wanted = w.clone()
    for t in range(3):
        change = drawn(t)
        said.say(t, change.clone(), w, keyed(t))
        wanted += change
        assert torch.equal(w, wanted)
        assert not said.rest.any()
        assert [block.coding for block in said.history[t]] == [Coding.ZSTD, Coding.F4]
        assert said.history[t][0].count == FLAT.size - len(where)


def test_who_has_missed_too_much_gets_the_model() -> None:
    few = ("clients=10", "participation=0.1", "rounds=40", "evaluate.every=40", "epochs=1")
    engine = Engine(small(*down("values=f4 sparsity=0.8"), *few))
    list(play(engine))
    words, server = engine.server.words, engine.server
    assert words.forgotten > 0
    assert sum(words.lengths.values()) < 4 * engine.flat.size
    words.knows[3] = words.forgotten
    assert {block.kind for block in server.send(40, 3)} == {Kind.GRADIENT}
    words.knows[3] = words.forgotten - 1
    (block,) = server.send(40, 3)
    assert (block.kind, block.coding) == (Kind.MODEL, Coding.F4)
    assert torch.equal(sparse.values(block), server.w)
    assert server.send(40, 3) == [], "it knows the latest now"


def test_a_round_whose_uploads_are_all_lost_sends_no_change() -> None:
    words = (*down("values=f4 sparsity=0.9"), "devices.tiers=[{name='one'}]")
    engine = Engine(small(*words, "devices.dropouts=0.7", "clients=3", "rounds=12", "epochs=1"))
    w, void = engine.server.w.clone(), 0
    for outcome in play(engine):
        t = int(outcome.tables["rounds"]["round"][0])
        if all(engine.population.is_lost(t, client) for client in range(3)):
            void += 1
            assert torch.equal(engine.server.w, w)
            assert t not in engine.server.words.history
        w = engine.server.w.clone()
    assert void


def test_the_run_is_judged_by_the_model_that_clients_hold() -> None:
    """Not by the one that the server would have without compression; newcomers get it, too."""
    words = (*down("values=sign sparsity=0.9"), "newcomers=2", "evaluate.final=evaluate")
    found = run(small(*words, "clients=7", "participation=0.5", "rounds=4"))
    engine = found.engine
    server, evaluation = engine.server, engine.evaluation
    kept = torch.from_numpy(found.model)
    assert torch.equal(kept, server.w)
    assert server.words.rest.any()
    last = [c for c in range(5) if server.words.knows[c] == 3]
    assert last
    verdict = evaluation.evaluate(server.w)
    assert found.tables["rounds"]["accuracy"][-1] == verdict.accuracy
    np.testing.assert_array_equal(found.tables["final"]["accuracy"], verdict.shards)
    assert server.words.knows[-2:].tolist() == [-1, -1]
    before = engine.clients.known.models[last[0]].clone()
    moved = server.words.history[3]
    engine.clients.known.changes.move(before, moved)
    assert torch.equal(before, server.w), "one change away from what clients of the last round hold"


def test_both_directions_together_cut_traffic_as_much_as_one() -> None:
    """Of 1 % of the values, and as many positions; the first model is dense."""
    sparse_up = ("method.name=topk", "method.sparsity=0.99", "rounds=6", "model.hidden=[200]")
    plain = run(small(*sparse_up[2:])).tables["rounds"]
    found = run(small(*sparse_up, *down("values=f4 sparsity=0.99"))).tables["rounds"]
    for way in ("up", "down"):
        assert plain[way][-1] > 45 * found[way][-1]


# ---- settings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sparsity=0.9", "codec.down.sparsity = 0.9: wanted codec.down.values other than 'none'"),
        ("bits=3", "codec.down.bits = 3: wanted codec.down.values = 'uniform', found 'none'"),
        (
            "values=f2 bits=3",
            "codec.down.bits = 3: wanted codec.down.values = 'uniform', found 'f2'",
        ),
        ("values=sign bits=3", "codec.down.bits = 3: wanted codec.down.values = 'uniform', found "),
        (
            "values=f2 rounding=stochastic",
            "codec.down.rounding = 'stochastic': wanted codec.down.values = 'uniform', found 'f2'",
        ),
        (
            "values=f2 scales=tensor",
            "codec.down.scales = 'tensor': wanted codec.down.values = 'uniform' or 'sign', ",
        ),
        (
            "values=sign bucket=9",
            "codec.down.bucket = 9: wanted codec.down.scales = 'bucket', found 'whole'",
        ),
        ("values=f2 spans=tensor", "codec.down.spans = 'tensor': wanted codec.down.sparsity above"),
        ("values=f2 positions=delta", "codec.down.positions = 'delta': wanted codec.down.sparsity"),
        (
            "values=sign sparsity=0.5 positions=dense",
            "codec.down.positions = 'dense': wanted codec.down.values with a zero for what is left "
            "out, found 'sign'",
        ),
        ("values=uniform bits=17", "codec.down.bits = 17: wanted a whole number from 2 to 16"),
        ("values=uniform bits=1", "codec.down.bits = 1: wanted a whole number from 2 to 16"),
        (
            "values=ternary",
            "codec.down.values = 'ternary': wanted 'none', 'f4', 'zstd', 'f2', 'bf16', 'uniform' "
            "or 'sign'",
        ),
    ],
)
def test_what_means_nothing_is_refused(words: str, said: str) -> None:
    assert refusal(*down(words)).startswith(said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stc", ", whose own way is set by method.sparsity_down"),
        ("spatl", ", whose own way is set by method.down"),
        ("splitfed", ""),
    ],
)
def test_methods_with_another_word_are_refused_by_name(name: str, said: str) -> None:
    assert refusal(f"method.name={name}", "codec.down.values=f2") == (
        "codec.down.values = 'f2': wanted a method whose server sends all clients its whole model, "
        f"found method.name = '{name}'{said}"
    )


def test_lossless_codings() -> None:
    for values, sparsity in (("none", 0.0), ("f4", 0.0)):
        assert Down(values=values, sparsity=sparsity).is_lossless
    for values, sparsity in (("f4", 0.1), ("zstd", 0.0), ("f2", 0.0), ("sign", 0.0)):
        assert not Down(values=values, sparsity=sparsity).is_lossless
