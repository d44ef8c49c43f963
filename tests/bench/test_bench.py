"""Benchmarks: the harness's arithmetic, and that references do the same work as we do."""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mpi4py import MPI

from fedmpi import bench, config, loading
from fedmpi.__main__ import main
from fedmpi.bench import checkpoint as checkpoints
from fedmpi.bench import client, codec, converse, exchange, peer, scale, train
from fedmpi.bench import round as rounds
from fedmpi.bench import slice as slices
from fedmpi.bench.textbook import Textbook
from fedmpi.config import ConfigError, Evaluate
from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.clock import Clock
from fedmpi.messages.codec import BLOCK, BUFFER, MESSAGE, Block, Message
from fedmpi.messages.sums import Sum
from fedmpi.messages.wire import Wire
from fedmpi.methods import fedavg
from fedmpi.networks.slicing import Channels
from fedmpi.runs import memory
from fedmpi.runs.launch import Launcher
from fedmpi.training.dense import Dense
from fedmpi.training.rows import OneByOne
from tests.coded import wants_zstd
from tests.small import run


def test_compare_takes_medians_and_drops_the_first_turn() -> None:
    ours, theirs = iter([90.0, 1.0, 5.0, 3.0]), iter([90.0, 8.0, 2.0, 4.0])
    turns = {"ours": partial(next, ours), "theirs": partial(next, theirs)}
    found = bench.compare("some", {"size": 1}, turns, repeats=3, unit=10)
    assert found.seconds == pytest.approx(0.3)
    assert found.spread == pytest.approx((0.1, 0.5))
    assert found.against == {"theirs": pytest.approx(3 / 4)}


def test_turns_are_taken_one_by_one() -> None:
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        return 1.0

    bench.compare("some", {}, {name: partial(turn, name) for name in "abc"}, repeats=2)
    assert "".join(order) == "abcabcabc"


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    bench.Result("some", {"size": 1}, 0.5, (0.25, 1.0), {"theirs": 0.75}).say(as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "bench": "some",
        "case": {"size": 1},
        "seconds": 0.5,
        "spread": [0.25, 1.0],
        "against": {"theirs": 0.75},
        "also": {},
    }


@pytest.mark.parametrize(("seconds", "wanted"), [(2.5e-4, "250.000 us"), (0.25, "250.000 ms")])
def test_times_are_said_in_fitting_units(
    seconds: float, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spread, also = (seconds / 2, 4 * seconds), {"limit_us": 200.0}
    bench.Result("some", {"size": 1}, seconds, spread, {"theirs": 0.75}, also).say(as_json=False)
    number, unit = wanted.split()
    low, high = f"{float(number) / 2:.3f}", f"{float(number) * 4:.3f}"
    said = f"some  size=1  {number} {unit} ({low} to {high})  0.750 x theirs  limit_us=200\n"
    assert capsys.readouterr().out == said


def test_unknown_cases_are_refused() -> None:
    assert bench.chosen((), ["a", "b"]) == ("a", "b")
    assert bench.chosen(("b",), ["a", "b"]) == ("b",)
    with pytest.raises(ConfigError, match="'c': no such case; there are: a, b"):
        bench.chosen(("c",), ["a", "b"])


@pytest.mark.parametrize("model", ["logistic", "mlp"])
@pytest.mark.parametrize("rows", [1, 3])
def test_training_is_measured(model: str, rows: int) -> None:
    found = train.measure(model, batch=10, rows=rows, device="cpu", repeats=1)
    assert found.case["model"] == model
    assert set(found.against) == {"textbook", "bare", "eager"}
    assert all(ratio > 0 for ratio in found.against.values())


def test_a_wrong_training_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.Textbook, "train", lambda *_: {"w": train.torch.zeros(7850)})
    with pytest.raises(AssertionError, match="not those of the textbook"):
        train.measure("logistic", batch=10, rows=1, device="cpu", repeats=1)


def test_the_textbooks_rounds_are_fedavg() -> None:
    tree = rounds.tree_of("many") | {"rounds": 3, "clients": 6, "evaluate": {"every": 3}}
    tree["data"] = tree["data"] | {"samples": 6 * 32}
    settings = loading.load(tree)
    textbook = Textbook(Engine(settings))
    for t in range(3):
        textbook.round(t, range(6))
    np.testing.assert_allclose(run(settings).model, textbook.vector().numpy(), 1e-4, 1e-6)


def test_the_peers_rounds_are_fedavg() -> None:
    """Several batches a client, in the order of each round."""
    pytest.importorskip("pfl", reason="pip install pfl")
    tree = rounds.tree_of("many") | {"rounds": 3, "clients": 6, "batch": 16, "epochs": 1}
    tree |= {"evaluate": {"every": 3}, "data": tree["data"] | {"samples": 6 * 32}}
    settings = loading.load(tree)
    seconds, model = peer.simulate(Engine(settings), Wire(Clock(), MPI.COMM_SELF))
    assert len(seconds) == 3 and min(seconds) > 0
    np.testing.assert_allclose(run(settings).model, model.numpy(), 1e-4, 1e-6)


def test_a_peer_that_is_not_there_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "find_spec", lambda name: None)
    found = CliRunner().invoke(main, ["bench", "round", "--workload", "comm", "--peer"])
    assert found.exit_code == 2
    assert "--peer: wanted the package pfl, found none; pip install pfl" in found.output


@pytest.mark.parametrize(
    ("workload", "parameters"), [("small", 582_026), ("many", 7_850), ("comm", 9_991_920)]
)
def test_workloads_have_the_stated_models(workload: str, parameters: int) -> None:
    assert Engine(loading.load(rounds.tree_of(workload))).flat.size == parameters


def test_without_a_gpu_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.torch.cuda, "is_available", lambda: False)
    found = CliRunner().invoke(main, ["bench", "train", "--device", "cuda"])
    assert (found.exit_code, found.output) == (0, "no device: torch sees no GPU here\n")


def test_the_eager_reference_is_the_same_training() -> None:
    engine = train.engine_for("logistic", 10, 3, "cpu")
    start = engine.server.w.clone()
    together = engine.trainer.train(0, (0, 1, 2), start).clone()
    single = train.one_by_one(engine)
    assert (type(engine.trainer.rows), type(single.rows)) == (Dense, OneByOne)
    for row in range(3):
        assert torch.equal(together[row], single.train(0, (row,), start)[0])


@pytest.mark.parametrize(
    "words",
    [
        ["round", "--workload", "none"],
        ["checkpoint", "--workload", "none"],
        ["checkpoint", "moo=1"],
        ["converse", "--workload", "none"],
        ["converse", "--ranks", "1"],
        ["train", "--model", "none"],
        ["client", "--size", "none"],
        ["client", "--clients", "0"],
        ["scale", "--clients", "0"],
        ["slice", "--model", "none"],
        ["codec", "--values", "none"],
        ["codec", "--sparsity", "1"],
    ],
)
def test_commands_name_what_there_is(words: list[str]) -> None:
    found = CliRunner().invoke(main, ["bench", *words])
    assert found.exit_code == 2


def test_every_module_with_a_command_is_a_benchmark() -> None:
    folder, parts = Path(bench.__file__).parent, ("__init__", "gloo", "peer", "textbook")
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem not in parts)
    assert list(bench.summaries()) == modules
    for name, summary in bench.summaries().items():
        assert summary.endswith("."), name
        assert isinstance(bench.command_of(name), click.Command)
        found = CliRunner().invoke(main, ["bench", name, "--help"], prog_name="fedmpi")
        assert found.output.startswith(f"Usage: fedmpi bench {name} [OPTIONS]")
    found = CliRunner().invoke(main, ["bench", "none"])
    assert (found.exit_code, "No such command 'none'" in found.output) == (2, True)


def test_benchmarks_are_listed_without_importing_torch() -> None:
    program = (
        "import sys; from fedmpi.__main__ import main\n"
        "main(['bench', '--help'], standalone_mode=False)\n"
        "sys.exit('imported torch' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in bench.summaries():
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize(("clients", "count"), [(1, 1), (10, 1), (100, 10), (10_000, 1000)])
def test_crowds_differ_in_nothing_but_their_number(clients: int, count: int) -> None:
    tree = scale.tree_of(clients)
    settings = loading.load(tree)
    assert scale.sampled(clients) == count
    assert (settings.rounds - 1) * count >= scale.CLIENT_ROUNDS
    assert settings.rounds > scale.ROUNDS
    assert tree["data"]["samples"] == clients * scale.SAMPLES
    alike = ("clients", "rounds", "evaluate", "data")
    assert {k: v for k, v in tree.items() if k not in alike} == {
        k: v for k, v in scale.tree_of(20).items() if k not in alike
    }


@pytest.mark.parallel([1, 2])
def test_a_crowds_turn_leaves_what_it_found(tmp_path: Path) -> None:
    world, out = MPI.COMM_WORLD, tmp_path / "found.json"
    scale.main(30, out)
    assert out.exists() == (world.rank == 0)
    if world.rank == 0:
        found = json.loads(out.read_text())
        assert found["seconds"] > 0
        assert found["setup"] > 0
        assert found["samples"] == 30 * 32 * 784 * 4
        assert len(found["peaks"]) == world.size
        assert min(found["peaks"]) > found["samples"]


def test_another_work_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"10 clients: 1 took part, in steps \[79\]"):
        scale.main(10, tmp_path / "found.json", ["local_steps=79"])
    assert not list(tmp_path.iterdir())


def test_crowds_are_set_against_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are medians, memory is the most; the first turn of each counts for memory alone."""
    launched: list[int] = []

    def start(self: Launcher, ranks: int, words: Sequence[str]) -> int:
        assert ranks == scale.RANKS
        clients, out = int(words[-2]), Path(words[-1])
        launched.append(clients)
        turn = launched.count(clients)
        peaks = [(100 + turn) * scale.MIB, (200 - turn) * scale.MIB]
        found = {"seconds": clients * turn, "setup": turn, "peaks": peaks, "samples": scale.MIB}
        found["model"] = 3 * scale.MIB
        out.write_text(json.dumps(found))
        return 0

    monkeypatch.setattr(Launcher, "run", start)
    few, many = scale.measure((10, 40), repeats=3)
    assert launched == [10, 40] * 4
    assert (few.case["clients"], few.seconds, few.against) == (10, 30, {"40": 0.25})
    assert (many.case["clients"], many.seconds, many.against) == (40, 120, {"10": 4.0})
    assert many.also == {
        "setup_s": 2.5,
        "server_MiB": 104.0,
        "host_MiB": 199.0,
        "samples_MiB": 1.0,
        "model_MiB": 3.0,
    }


def test_the_peak_holds_what_was_held() -> None:
    held = np.ones(1 << 26, np.uint8)
    peak = memory.peak()
    assert held.nbytes < peak < 1 << 40
    del held
    assert memory.peak() >= peak


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("10k", 9_550), ("100k", 100_180), ("1M", 993_760), ("10M", 9_991_920)],
)
def test_sizes_have_the_stated_models(size: str, parameters: int) -> None:
    assert client.Lone(client.SIZES[size], 1).engine.flat.size == parameters


def test_the_fixed_cost_of_a_client_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ROUNDS", (1, 3))
    found = list(client.measure("10k", 2, repeats=1))
    assert [result.case["half"] for result in found] == ["client", "server"]
    for result in found:
        assert result.also["limit_us"] > 150
        limit = 1e-6 * result.also["limit_us"]
        assert result.against == {"limit": pytest.approx(result.seconds / limit)}


def test_steps_are_no_part_of_the_fixed_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves only in some hooks: 7 a step, 100 an upload, 30 when it is absorbed."""
    now = 0.0

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Timed(client.Timed):
        def adjust(self, *given: object) -> None:
            pass_by(7)
            super().adjust(*given)

        def upload(self, *given: object) -> list[Block]:
            pass_by(100)
            return super().upload(*given)

    class Server(fedavg.Server):
        def absorb(self, t: int, message: Message) -> None:
            pass_by(30)
            super().absorb(t, message)

    monkeypatch.setattr(client, "perf_counter", lambda: now)
    monkeypatch.setattr(client, "Timed", Timed)
    monkeypatch.setattr(fedavg, "Server", Server)
    lone = client.Lone([12], 3)
    assert [lone.round() for _ in range(2)] == [(100, 30)] * 2


def test_a_rank_that_is_alone_computes_what_any_rank_does() -> None:
    lone = client.Lone([12], 3)
    for _ in range(4):
        lone.round()
    update = {"rounds": 4, "evaluate": Evaluate(every=4)}
    settings = lone.engine.settings.model_copy(update=update)
    assert run(settings).sha256 == lone.engine.model_sha256()


def test_slices_are_measured_against_masks() -> None:
    found = slices.measure("cnn", 2, 0.5, 1)
    assert found.case == {"model": "cnn", "batch": 2, "sparsity": 0.5}
    assert found.seconds > 0
    # 5x5 windows on 28x28 and 14x14 pixels, and 7x7 pixels to 512 units to 10.
    whole = 784 * 32 * 25 + 196 * 64 * 25 * 32 + 49 * 64 * 512 + 512 * 10
    half = 784 * 16 * 25 + 196 * 32 * 25 * 16 + 49 * 32 * 256 + 256 * 10
    assert found.also == {"mflops": 2 * half / 1e6, "masked_mflops": 2 * whole / 1e6}


def test_a_slice_that_says_another_thing_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    masked = Channels.masked
    monkeypatch.setattr(Channels, "masked", lambda *given: 2 * masked(*given))
    monkeypatch.setattr(slices, "sliced", lambda flat, w, *_: flat.network(w).train(False))
    with pytest.raises(AssertionError):
        slices.measure("cnn", 1, 0.5, 1)


@pytest.mark.parametrize("workload", converse.WORKLOADS)
def test_what_converses_differs_in_nothing_but_the_pipeline(workload: str) -> None:
    trees = [converse.tree_of(workload, pipeline) for pipeline in (True, False)]
    assert [tree.pop("exchange") for tree in trees] == [{"pipeline": True}, {"pipeline": False}]
    assert trees[0] == trees[1]
    settings = loading.load(trees[0])
    assert settings.data.samples == settings.clients * settings.local_steps * settings.batch


@pytest.mark.parallel([1, 2])
def test_a_conversations_turn_leaves_what_it_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree = {"clients": 2, "local_steps": 1, "model": {"name": "lenet"}, "cut": "conv1"}
    monkeypatch.setitem(converse.WORKLOADS, "small", tree)
    world, found = MPI.COMM_WORLD, []
    for side in ("pipelined", "in turn"):
        out = tmp_path / f"{side}.json"
        converse.main("small", side, out)
        assert out.exists() == (world.rank == 0)
        if world.rank == 0:
            found.append(json.loads(out.read_text()))
    if world.rank == 0:
        assert found[0]["model"] == found[1]["model"]
        for each in found:
            assert each["step"] > each["server"] > 0
            assert each["clients"] > 0


def converses(models: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """In place of launched turns, each longer than the last: which ranks and sides they are."""
    launched: list[tuple[int, str]] = []

    def start(self: Launcher, ranks: int, words: Sequence[str]) -> int:
        side, out = words[-2], Path(words[-1])
        launched.append((ranks, side))
        turn = sum(side == other for _, other in launched)
        times = {"pipelined": 12.0, "in turn": 20.0, "alone": 30.0}
        found = {"step": times[side] * turn, "clients": 18.0, "server": 10.0}
        out.write_text(json.dumps(found | {"model": models[len(launched) % len(models)]}))
        return 0

    monkeypatch.setattr(Launcher, "run", start)
    return launched


@pytest.mark.parametrize(("ranks", "bound"), [(2, 18.0), (3, 10.0)])
def test_conversations_are_set_against_their_bounds(
    ranks: int, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The larger of the clients' work, shared among their ranks, and the server's."""
    launched = converses(["same"], monkeypatch)
    found = converse.measure("lenet", ranks, repeats=3)
    assert launched == [(ranks, "pipelined"), (1, "alone"), (ranks, "in turn")] * 4
    assert (found.seconds, found.case["ranks"]) == (36.0, ranks)
    assert found.against == {"bound": pytest.approx(36 / bound), "in turn": pytest.approx(36 / 60)}
    assert found.also == {"clients_ms": 18e3, "server_ms": 10e3}


def test_another_model_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    converses(["one", "another"], monkeypatch)
    with pytest.raises(AssertionError, match="lenet: pipelined, alone end at different models"):
        converse.measure("lenet", 2, repeats=1)


@pytest.mark.parametrize(
    "values", [pytest.param(v, marks=wants_zstd if v == "zstd" else ()) for v in codec.VALUES]
)
@pytest.mark.parametrize("positions", codec.POSITIONS)
def test_every_codec_is_measured(values: str, positions: str) -> None:
    """Bytes are those of the formulas; the bound is below them."""
    found = codec.measure("XS", 4000, 0.9, positions, values, 1)
    assert found.case == {"size": "XS", "sparsity": 0.9, "positions": positions, "values": values}
    assert found.seconds > 0 and found.against["copy"] > 0 and found.also["decode_copies"] > 0
    bits = {"f4": 32, "zstd": 32, "f2": 16, "bf16": 16, "ternary": 2, "sign": 1}
    width = bits.get(values) or int(values.split()[0])
    heads, count = BUFFER.size + MESSAGE.size + BLOCK.size, 400
    sent = round(found.also["bytes_per_value"] * count)
    places = {"agreed": 0, "uint32": 4 * count, "bitmap": 500}.get(positions)
    if values == "zstd":  # of a length that no formula gives
        places = None
        assert found.also["bytes_per_value"] < measured_in_float32(positions)
    if places is not None:
        assert sent == heads + sum(-(-length // 8) * 8 for length in (places, width * count // 8))
    least = -(0.1 * np.log2(0.1) + 0.9 * np.log2(0.9)) / 0.1 / 8 if positions != "agreed" else 0
    bound = found.also["bound_bytes_per_value"]
    assert least < bound <= least + width / 8 + 1e-9 and bound * count < sent
    assert (found.also["break_even_mbit_per_s"] > 0) == (sent < 16_000)


def measured_in_float32(positions: str) -> float:
    """Bytes of a value without compression."""
    return codec.measure("XS", 4000, 0.9, positions, "f4", 1).also["bytes_per_value"]


def test_a_coding_without_its_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "missing", lambda name: "some" if name == "zstd" else None)
    words = ["--size", "S", "--sparsity", "0.5", "--positions", "agreed", "--repeats", "1"]
    words += ["--values", "zstd", "--values", "f2", "--json"]
    found = CliRunner().invoke(codec.command, words)
    assert found.stderr == "zstd: left out, because some is not installed\n"
    (line,) = found.stdout.splitlines()
    assert json.loads(line)["case"]["values"] == "f2"


def test_a_codec_that_loses_a_value_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    add = sparse.add
    monkeypatch.setattr(
        sparse, "add", lambda target, block, weight, *at: add(target, block, 2 * weight, *at)
    )
    with pytest.raises(AssertionError, match="another vector"):
        codec.measure("XS", 100, 0.9, "uint32", "f4", 1)


def test_entropy_is_that_of_shares() -> None:
    assert codec.entropy(torch.tensor([5, 0, 5])) == 1
    assert codec.entropy(torch.tensor([1, 1, 2])) == pytest.approx(1.5)
    assert codec.entropy(codec.counted(np.array([7, 7], np.uint16))) == 0


GIVEN = {"clients": 3, "parameters": 1000, "sparsity": 0.9, "repeats": 2}


@pytest.mark.parallel([1, 2, 3])
def test_exchanges_do_the_same_work_as_their_references(tmp_path: Path) -> None:
    """Every sum is that of the updates; bytes are those of what all ranks handed over."""
    world, out = MPI.COMM_WORLD, tmp_path / "found.json"
    given = GIVEN | {"exchanges": list(config.exchanges())}
    exchange.main(given, out)
    assert out.exists() == (world.rank == 0)
    if world.rank > 0:
        return
    found = json.loads(out.read_text())
    ours = {f"{n} {p}" for n in given["exchanges"] for p in exchange.POSITIONS}
    wanted = ours | {*exchange.DENSE, "transfer", "dense transfer"}
    assert found["seconds"].keys() == found["bytes"].keys() == wanted
    assert all(len(each) == 2 and min(each) > 0 for each in found["seconds"].values())
    clients = 3 * (16 + 32 + 4 * 100)
    assert found["bytes"]["star agreed"] == 24 * world.size + clients
    # A bitmap is shorter than 100 positions.
    assert found["bytes"]["star own"] == 24 * world.size + clients + 3 * 128
    assert found["bytes"]["reduce agreed"] == (world.size - 1) * (4 * 100 + 8)
    assert found["bytes"]["reduce own"] == (world.size - 1) * (4 * 1000 + 8)


@pytest.mark.parametrize("name", ["star own", "star agreed", "gatherv"])
def test_an_exchange_that_adds_up_something_else_is_not_measured(name: str) -> None:
    uplink = exchange.Uplink(bench.rank(), 2, 100, 0.9)
    work = uplink.candidates(("star",))[name]
    uplink.check(name, work())
    found = work()
    vector = found.total.numpy() if isinstance(found, Sum) else found
    vector *= np.float32(1.001)
    with pytest.raises(AssertionError, match=f"{name}: not the sum of the updates"):
        uplink.check(name, found)


def test_exchanges_are_set_against_dense_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Launcher, ranks: int, words: Sequence[str]) -> int:
        given = json.loads(words[-2])
        assert (ranks, given) == (4, GIVEN | {"exchanges": ["reduce"]})
        seconds = {"pickled": 4.0, "gatherv": 2.0, "dense reduce": 1.0, "transfer": 0.5}
        seconds |= {"reduce own": 3.0, "reduce agreed": 0.5, "dense transfer": 2.0}
        found = {"seconds": {name: [one] for name, one in seconds.items()}}
        found["bytes"] = dict.fromkeys(seconds, 2**20)
        Path(words[-1]).write_text(json.dumps(found))
        return 0

    monkeypatch.setattr(Launcher, "run", start)
    own, agreed, bare = exchange.measure(GIVEN | {"exchanges": ["reduce"]}, 4)
    assert own.against == {"pickled": 0.75, "gatherv": 1.5, "dense reduce": 3.0}
    assert agreed.against == {"pickled": 0.125, "gatherv": 0.25, "dense reduce": 0.5}
    assert (agreed.case["positions"], agreed.also) == ("agreed", {"mib": 1.0})
    assert bare.against == {"dense transfer": 0.25}


@pytest.mark.parallel([1, 2])
def test_a_round_with_a_checkpoint_is_set_against_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, words = MPI.COMM_WORLD, ("model.hidden=[4]", "data.samples=40")
    folder = Path(world.bcast(str(tmp_path)))
    out = folder / "found.json"
    checkpoints.main("comm", 2, out, words)
    world.Barrier()
    found = json.loads(out.read_text())
    settings = loading.load(checkpoints.changed("comm", words, 2))
    assert settings.rounds == 3 * checkpoints.EVERY
    assert found["bytes"] > 4 * Engine(settings).flat.size
    assert len(found["seconds"]) == 2 * checkpoints.EVERY
    assert min(found["seconds"]) > 0
    world.Barrier()
    if world.rank == 0:
        assert [path.name for path in folder.iterdir()] == ["found.json"]

    def start(self: Launcher, ranks: int, given: Sequence[str]) -> int:
        workload, repeats, out, *rest = given[-5:]
        assert (ranks, workload, repeats, tuple(rest)) == (2, "comm", "1", words)
        seconds = [0.25, 0.2, 0.1, 0.3]
        Path(out).write_text(json.dumps({"seconds": seconds, "bytes": 2**21}))
        return 0

    monkeypatch.setattr(Launcher, "run", start)
    result = checkpoints.measure("comm", words, 2, tmp_path, 1)
    assert result.against == {"without": pytest.approx(1.25)}
    assert (result.seconds, result.also) == (pytest.approx(0.25), {"mib": 2.0})


@pytest.mark.parametrize("name", config.exchanges())
def test_rounds_are_measured_with_every_exchange(name: str) -> None:
    for workload in rounds.WORKLOADS:
        settings = loading.load(rounds.tree_of(workload, name, "shared"))
        assert (settings.exchange.name, settings.server) == (name, "shared")
