"""What people see of results; on narrow and wide terminals and in pipes."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.lib.recfunctions as rfn
import pytest

from fedmpi import config
from fedmpi.messages.clock import Phase
from fedmpi.results import record, tables
from fedmpi.results.record import Record, RecordError
from fedmpi.terminal.show import show_result
from tests.small import small
from tests.terminal.printed import table, words

pytestmark = pytest.mark.usefixtures("here")


ABOUT = {
    **{"python": "3.11.7", "fedmpi": "0.1.0", "torch": "2.13.0", "cpu": "A CPU", "cores": 4},
    **{"system": "Linux", "slurm": "SLURM_JOB_ID=77\nSLURM_NTASKS=3", "command": "fedmpi run"},
    **{"commit": "c0ffee+", "mpi_library": "Open MPI 5", "ranks": 3, "hosts": ["n1", "n1", "n2"]},
    **{
        "threads_per_rank": 1,
        "device": "cpu",
        "parameters": 1234,
        "data_files": "official",
        "data_sha256": "da" * 32,
        "files_sha256": json.dumps({"trace": "12" * 32, "method.agent": "34" * 32}),
        "partition_sha256": "ab" * 32,
    },
}


def write(
    path: Path,
    rounds: int,
    status: str = record.DONE,
    ranks: int = 3,
    once: bool = False,
    setup: tuple[str, ...] = (),
) -> Path:
    """A result with numbers that are easily recognised: in round t everything is about t."""
    settings = small("rounds=20", *setup)
    file = Record(record.begin(path), settings.tree(), settings.identity(), ABOUT, tables.TABLES)
    for t in range(-1 if once else 0, rounds):
        found = {name: tables.empty(columns, 1) for name, columns in tables.OF_ROUNDS.items()}
        row = found["rounds"]
        row["round"], row["loss"], row["seconds"] = t, 10 - t, 0.001 * (t + 1)
        row["up"], row["down"] = 5 * 1000, 5 * 2000
        if t >= 0:
            row["accuracy"], row["validation"] = 0.1 + t / 100, 0.9 - t / 100
            row["shard_mean"], row["shard_std"], row["shard_min"] = 0.5, 0.25, 0.125
            row["personal_mean"] = 0.75
        clients = found["clients"] = tables.empty(tables.CLIENTS, 5)
        clients["round"], clients["client"] = t, range(5)
        clients["down_model"], clients["up_gradient"] = 1900, 900 if t >= 0 else 7000
        clients["down_header"] = clients["up_header"] = 100
        sent = found["ranks"] = tables.empty(tables.RANKS, ranks)
        sent["round"], sent["rank"] = t, range(ranks)
        sent["up"] = 1000 * sent["rank"]
        phases = found["phases"] = tables.empty(tables.PHASES, ranks * len(Phase))
        phases["round"], phases["rank"] = t, np.repeat(range(ranks), len(Phase))
        phases["phase"] = [phase.name.lower() for phase in Phase] * ranks
        phases["seconds"] = 99 if t <= 0 else 0.001 * t
        variants = found["variants"] = tables.empty(tables.VARIANTS, 2)
        variants["round"], variants["share"], variants["clients"] = t, [1, 0.25], [2, 3]
        variants["accuracy"], variants["bytes"] = [0.5, 0.375], [123456, 4000 + t]
        variants["flops"], variants["memory"] = [3e9, 5e5], [12, 0.125]
        masks = found["masks"] = tables.empty(tables.MASKS, 3)
        masks["round"], masks["kind"] = t, [b"clients", b"clients", b"oracle"]
        masks["client"], masks["other"] = [0, 0, -1], [1, 2, -1]
        masks["common"], masks["jaccard"] = [0.5, 0.25, 0.75], [0.25, 0.125, 0.5]
        file.append(found)
    if status == record.RUNNING:
        file.file.close()
        file.held.release()
    else:
        file.close(
            status,
            {"model_sha256": "cd" * 32, "kept_round": 19} if status != record.FAILED else None,
        )
    return path


@pytest.mark.parametrize(("ranks", "rounds"), [(3, 0), (1, 1), (40, 2), (3, 20)])
@pytest.mark.parametrize("status", [record.DONE, record.RUNNING, record.FAILED, record.DIVERGED])
def test_results_fit_and_are_plain(
    ranks: int, rounds: int, status: str, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(Path("a.h5"), rounds, status, ranks, once=ranks == 3)
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        found = said(show_result, path)
        assert max(map(len, found.splitlines())) <= columns
        assert "\x1b" not in found and "…" not in found and "nan" not in found
        assert f"\nstatus      {status}  " in found


def test_masks_of_the_last_agreement(said: Any) -> None:
    path = write(Path("a.h5"), 3)
    title = "share of the weights that two masks have in common, last agreement"
    assert table(said(show_result, path), title) == [
        ["masks", "in common", "least", "Jaccard"],
        ["of two clients alone", "0.375", "0.250", "0.188"],
        ["the same, and the one agreed on", "0.750", "0.750", "0.500"],
    ]


def test_shares_of_the_model_in_the_last_round(said: Any) -> None:
    path = write(Path("a.h5"), 3)
    title = "the model by the share that devices hold"
    assert table(said(show_result, path), title) == [
        ["share", "clients", "test set", "bytes", "MFLOP", "MiB"],
        ["1", "2", "0.500", "123,456", "3e+03", "12"],
        ["0.25", "3", "0.375", "4,002", "0.5", "0.125"],
        ["round 3; bytes as sent to a client, MFLOP of training on one sample"],
    ]
    with h5py.File(path, "r+") as file:  # a result of an earlier version
        del file["variants"]
    found = said(show_result, path)
    assert title not in found and "a client's bytes" in found


def test_where_a_result_comes_from(said: Any) -> None:
    setup = ("method.name=topk", "method.sparsity=0.5", "lr=0.2", "threads=3", "data.root=/x")
    path = write(Path("a.h5"), 20, setup=setup)
    found = words(said(show_result, path))
    settings = small("rounds=20", "method.name=topk", "method.sparsity=0.5", "lr=0.2")
    identity = config.identity(settings.tree(), {"trace": "12" * 32, "method.agent": "34" * 32})
    for part in (
        "a.h5 status done 20 rounds",
        "method.name=topk (not fedavg)",
        "method.sparsity=0.5 (not 0.9)",
        "lr=0.2 (not 0.1)",
        "partition.minimum=5 (not 10)",
        "machine threads=3 keep=last keep_limit=100 data.root=/x exchange.window=256 "
        "exchange.down=bcast "
        "state.memory=1024 checkpoint.every=0 checkpoint.seconds=0 checkpoint.memory=1024 "
        "checkpoint.code=same when",
        " UTC, 0:00:0",
        "A CPU, 4 cores for rank 0, Linux, SLURM job 77",
        "3: 2 on n1, 1 on n2, 1 thread each, device cpu",
        "python 3.11.7",
        "Open MPI 5",
        "command fedmpi run commit c0ffee, with changes",
        f"identity {identity} data files official data {'da' * 32} partition {'ab' * 32}",
        f"files trace {'12' * 32} method.agent {'34' * 32}",
        f"model {'cd' * 32} kept the model after round 20 parameters 1,234",
    ):
        assert part in found
    changed, default = found.split(" changed ")[1].split(" default ")
    assert "rounds=" not in changed, "20 rounds are the default"
    assert "feedback=classic" in default
    assert "absent" not in found


def test_how_it_went(said: Any) -> None:
    found = said(show_result, write(Path("a.h5"), 20, once=True))
    accuracies = table(found, "accuracy")
    assert accuracies == [
        ["round 20 (last)", "round 1 (best held out)"],
        ["global model, test set", "0.290", "0.100"],
        ["global model, held-out samples", "0.710", "0.900"],
        ["after the round, clients' test shards", "0.500 ± 0.250", "0.500 ± 0.250"],
        ["the worst of them", "0.125", "0.125"],
        ["after local training, the same", "0.750", "0.750"],
    ]
    assert table(found, "a client's bytes") == [
        ["up, a round", "down, a round", "up, once", "down, once", "share"],
        ["model", "0", "1,900", "0", "1,900", "63.3%"],
        ["gradient", "900", "0", "7,000", "0", "30.0%"],
        ["header", "100", "100", "100", "100", "6.7%"],
        ["all", "1,000", "2,000", "7,100", "2,000"],
        ["the whole run, 5 clients: 105 kB up, 210 kB down"],
    ]
    assert table(found, "bytes of a rank's buffers")[2] == ["1", "1,000", "0", "1,000", "0"]
    # Rounds 2 to 20 took 1 to 19 ms in every phase.
    phases = table(found, "milliseconds by phase, medians over rounds 2 to 20")
    assert phases[0] == ["rank", *(phase.name.lower() for phase in Phase)]
    assert phases[3] == ["2", *["10.00"] * len(Phase)]
    assert phases[4] == ["a round: 11.00; evaluate and record are no part of it"]
    trend = table(found, "rounds")
    assert [int(row[0]) for row in trend[1:]] == [1, 3, 5, 7, 9, 12, 14, 16, 18, 20]
    assert trend[2] == ["3", "8.000", "0.120", "0.880", "0.500", "0.750", "5 kB", "10 kB", "3 ms"]


def test_devices(said: Any) -> None:
    path = write(Path("a.h5"), 4, once=True)
    assert "devices" not in said(show_result, path).split("rounds\n")[-1]
    with h5py.File(path, "r+") as file:
        clients, rounds = file["clients"][:], file["rounds"][:]
        clients["tier"] = np.where(clients["client"] < 2, b"sensor", b"a-name-of-16-let")
        clients["lost"] = (clients["client"] == 0) & (clients["round"] > 1)
        file["clients"][:] = clients
    assert words("devices, mean over their clients' rounds\nnone; 2 of 20 uploads lost") in words(
        said(show_result, path)
    )
    with h5py.File(path, "r+") as file:
        for name, value in (("compute", 0.5), ("up", 2.0), ("down", 0.001)):
            clients[f"sim_{name}"] = np.where(clients["round"] < 0, 99, value)
        clients["sim_compute_joules"], clients["sim_transmit_joules"] = 3, clients["client"]
        clients["flops"], clients["memory"] = 5e6, np.where(clients["round"] < 0, 8, 4)
        rounds["sim_seconds"], rounds["sim_joules"] = 3, 25
        file["clients"][:], file["rounds"][:] = clients, rounds
    assert table(said(show_result, path), "simulated devices, mean over their clients' rounds") == [
        ["tier", "clients", "compute", "up", "down", "joules", "MFLOP", "MiB", "lost"],
        ["a-name-of-16-let", "3", "500 ms", "2 s", "1 ms", "6", "5", "8", "0.0%"],
        ["sensor", "2", "500 ms", "2 s", "1 ms", "3.5", "5", "8", "25.0%"],
        ["the whole run: 15 s simulated, 125 J, 2 of 20 uploads lost"],
    ]
    assert max(map(len, said(show_result, path).splitlines())) <= 80


def test_memory_by_part_of_the_client_that_needs_most(said: Any) -> None:
    path, title = write(Path("a.h5"), 3, once=True), "MiB of a client's training, the largest"
    assert title not in said(show_result, path)
    with h5py.File(path, "r+") as file:
        clients = file["clients"][:]
        clients["tier"] = np.where(clients["client"] < 2, b"sensor", b"phone")
        for factor, name in enumerate(tables.MEMORY, 1):
            clients[name] = factor * clients["client"]
        clients["memory"] = 15.0 * clients["client"]
        file["clients"][:] = clients
    assert table(said(show_result, path), title) == [
        ["tier", "weights", "gradients", "optimizer", "activations", "samples", "all"],
        ["phone", "4", "8", "12", "16", "20", "60"],
        ["sensor", "1", "2", "3", "4", "5", "15"],
    ]
    with h5py.File(path, "r+") as file:
        file["clients"]["tier"] = b""
    wanted = ["every client", "4", "8", "12", "16", "20", "60"]
    assert table(said(show_result, path), title)[1] == wanted


def test_frozen_weights_that_were_sent_once(said: Any) -> None:
    path = write(Path("a.h5"), 3)
    assert "frozen weights" not in said(show_result, path)
    with h5py.File(path, "r+") as file:
        rounds = file["rounds"][:]
        rounds["base"] = 0
        rounds["base"][:2] = 4_000_000, 2_000_000
        file["rounds"][:] = rounds
    text = " ".join(said(show_result, path).split())
    assert "base 6 MB of frozen weights, once to each client that took part" in text


def test_parts_of_memory_that_a_result_lacks(said: Any) -> None:
    """As earlier versions wrote it: without what is kept of samples, and without any."""
    path, title = write(Path("a.h5"), 3, once=True), "MiB of a client's training, the largest"
    for lacking in (1, len(tables.MEMORY)):
        with h5py.File(path, "r+") as file:
            clients = file["clients"][:]
            clients["memory"] = 1.0
            names = [n for n in clients.dtype.names if n not in tables.MEMORY[-lacking:]]
            del file["clients"]
            file["clients"] = rfn.repack_fields(clients[names])
        text = said(show_result, path)
        if lacking == 1:
            heads = ["tier", "weights", "gradients", "optimizer", "activations", "all"]
            assert table(text, title)[0] == heads
        else:
            assert title not in text


def test_a_split_model_beside_the_whole_one(said: Any) -> None:
    path = write(Path("a.h5"), 3, once=True)
    title = "a split model, mean over the clients' rounds"
    assert title not in said(show_result, path)
    with h5py.File(path, "r+") as file:
        clients, rounds = file["clients"][:], file["rounds"][:]
        clients["flops"], clients["memory"] = 5e6 + 1e6 * clients["client"], clients["client"]
        clients["whole_flops"], clients["whole_memory"] = 40e6, 2.0 * clients["client"]
        clients["flops"][clients["round"] < 0] = np.nan
        rounds["server_flops"] = np.where(rounds["round"] < 0, np.nan, 165e6)
        rounds["server_seconds"] = np.where(rounds["round"] <= 0, 9, 0.012)
        file["clients"][:], file["rounds"][:] = clients, rounds
    assert table(said(show_result, path), title) == [
        ["trained by a client", "MFLOP", "MiB"],
        ["its part", "7", "4"],
        ["the whole model, as in FedAvg", "40", "8"],
        ["the server, a round: 165 MFLOP, 12 ms"],
    ]


def test_many_ranks_are_summed_up(said: Any) -> None:
    found = said(show_result, write(Path("a.h5"), 3, ranks=41))
    assert table(found, "bytes of a rank's buffers")[1:] == [
        ["0", "0", "0"],
        ["1 to 40, least", "1,000", "0"],
        ["1 to 40, median", "20,500", "0"],
        ["1 to 40, most", "40,000", "0"],
    ]
    assert len(table(found, "milliseconds by phase")) == 6


def test_bytes_between_nodes(said: Any) -> None:
    """Nothing of them on a single node, nor in a result of before they were counted."""
    path, title = write(Path("a.h5"), 3, once=True), "those for and from other nodes"
    assert title not in said(show_result, path)
    with h5py.File(path, "r+") as file:
        rows = file["ranks"][:]
        rows["down_between"][rows["rank"] == 2] = 512
        file["ranks"][:] = rows
    assert table(said(show_result, path), title)[1:] == [
        ["0", "0", "0", "0", "0"],
        ["1", "0", "0", "0", "0"],
        ["2", "0", "512", "0", "512"],
    ]
    with h5py.File(path, "r+") as file:
        rows = file["ranks"][:]
        del file["ranks"]
        file["ranks"] = rows[["round", "rank", "up", "down"]].copy()
    found = said(show_result, path)
    assert title not in found
    assert table(found, "bytes of a rank's buffers")[2] == ["1", "1,000", "0", "1,000", "0"]


def test_a_run_that_is_cut_short(said: Any) -> None:
    """A round that was only begun to be written does not count."""
    path = write(Path("a.h5"), 3, record.RUNNING)
    with h5py.File(path, "r+") as file:
        for name in ("clients", "ranks", "phases"):
            rows = file[name][-2:]
            rows["round"] = 3
            file[name].resize(len(file[name]) + 2, axis=0)
            file[name][-2:] = rows
    found = said(show_result, path)
    assert "status      running  running or cut short: 3 of 20 rounds are recorded" in found
    assert " UTC, no end\n" in found
    assert "model       no hash before the end" in found
    assert "milliseconds by phase, medians over rounds 2 to 3" in found


@pytest.mark.parametrize("once", [False, True])
def test_a_run_without_a_round(once: bool, said: Any) -> None:
    found = said(show_result, write(Path("a.h5"), 0, record.RUNNING, once=once))
    assert "running or cut short: 0 of 20 rounds are recorded" in found
    assert found.endswith("\nNo round is finished.")


def test_a_run_that_has_only_warmed_up(said: Any) -> None:
    found = said(show_result, write(Path("a.h5"), 1, record.FAILED))
    assert "failed  the job died after 1 of 20 rounds" in found
    assert "seconds by phase, in the first round, which warms up" in found


def test_a_run_that_diverged(said: Any) -> None:
    path = write(Path("a.h5"), 4, record.DIVERGED)
    with h5py.File(path, "r+") as file:
        rows = file["rounds"][:]
        rows["loss"][-1] = np.nan
        file["rounds"][:] = rows
    found = said(show_result, path)
    assert "diverged  the model was not finite after 4 of 20 rounds" in found
    assert table(found, "rounds")[-1][:2] == ["4", "-"]


def test_without_validation_and_with_few_evaluations(said: Any) -> None:
    """Accuracies are those of the last round that has them."""
    path = write(Path("a.h5"), 4)
    with h5py.File(path, "r+") as file:
        del file.attrs["best_round"]
        rows = file["rounds"][:]
        rows["validation"] = np.nan
        for name in ("accuracy", "shard_mean", "personal_mean"):
            rows[name][-1] = np.nan
        file["rounds"][:] = rows
    found = said(show_result, path)
    accuracies = table(found, "accuracy")
    assert accuracies[0] == ["round 3 (last)"]
    assert accuracies[2] == ["global model, held-out samples", "-"]
    assert accuracies[-1] == ["best round: unknown, for nothing was judged on held-out samples"]

    with h5py.File(path, "r+") as file:
        for name in ("accuracy", "shard_mean", "personal_mean"):
            rows[name] = np.nan
        file["rounds"][:] = rows
    assert "no round was evaluated" in said(show_result, path)


@pytest.mark.parametrize("absent", [("accuracy",), ("accuracy", "shard_mean")])
def test_without_a_global_model(absent: tuple[str, ...], said: Any) -> None:
    path = write(Path("a.h5"), 4)
    with h5py.File(path, "r+") as file:
        del file.attrs["best_round"]
        rows = file["rounds"][:]
        for name in ("validation", "shard_std", *absent):
            rows[name] = np.nan
        file["rounds"][:] = rows
    head, test, _, shards, _, local, _ = table(said(show_result, path), "accuracy")
    assert head == ["round 4 (last)"]
    assert test[-1] == "-" and local[-1] == "0.750"
    assert shards[-1] == ("- ± -" if "shard_mean" in absent else "0.500 ± -")


def test_a_last_measurement(said: Any) -> None:
    path = write(Path("a.h5"), 2)
    assert "every client after" not in words(said(show_result, path))
    with h5py.File(path, "r+") as file:
        rows = tables.empty(tables.FINAL, 4)
        rows["client"], rows["newcomer"] = range(4), [False, False, False, True]
        rows["accuracy"], rows["tuned"] = [0.5, 0.7, np.nan, 0.25], [0.875, 0.625, np.nan, 0.375]
        file["final"].resize(4, axis=0)
        file["final"][:] = rows
    lines = said(show_result, path).splitlines()
    (old,) = (line.split() for line in lines if line.split()[:1] == ["clients"])
    (new,) = (line.split() for line in lines if line.split()[:1] == ["newcomers"])
    assert old[1:] == ["0.600", "±", "0.100", "0.500", "0.750", "±", "0.125", "0.625"]
    assert new[1:] == ["0.250", "±", "0.000", "0.250", "0.375", "±", "0.000", "0.375"]


def test_newcomers_by_epoch(said: Any) -> None:
    path = write(Path("a.h5"), 2)
    assert "new clients" not in words(said(show_result, path))
    with h5py.File(path, "r+") as file:
        rows = tables.empty(tables.NEWCOMERS, 48)
        rows["client"], rows["start"] = (
            [8] * 24 + [9] * 24,
            ([b"model"] * 12 + [b"scratch"] * 12) * 2,
        )
        rows["epoch"] = list(range(12)) * 4
        rows["accuracy"] = np.repeat([0.25, 0.0, 0.75, 0.0], 12)
        rows["accuracy"][rows["epoch"] == 11] = [0.5, 0.125, 1.0, 0.375]
        file["newcomers"].resize(48, axis=0)
        file["newcomers"][:] = rows
    head, *lines, remark = table(said(show_result, path), "new clients over epochs of training")
    assert head[0] == "epochs"
    assert [int(line[0]) for line in lines] == [0, 1, 2, 4, 5, 6, 7, 9, 10, 11]
    assert lines[0][1:] == ["0.500", "0.000", "-"]
    assert lines[-1][1:] == ["0.750", "0.250", "3.00"]
    assert "2 newcomers" in " ".join(remark)


def test_slices(said: Any) -> None:
    """Means over clients that took part, and what is saved of the FLOPs."""
    path = write(Path("a.h5"), 2)
    assert "leave out" not in words(said(show_result, path))
    with h5py.File(path, "r+") as file:
        rows = tables.empty(tables.SLICES, 3)
        rows["client"], rows["newcomer"], rows["batch"] = range(3), [False, False, True], 32
        rows["channels"] = [0.5, 0.25, 1]
        for name, values in {
            "whole_accuracy": [0.75, 0.25, 0],
            "accuracy": [0.5, np.nan, 0],
            "tuned": [0.625, 0.875, 0],
            "whole_flops": [4e6, 4e6, 1],
            "flops": [1e6, 2e6, 1],
            "whole_seconds": [2e-3, 4e-3, 1],
            "seconds": [1e-3, 2e-3, 1],
            "whole_batch_seconds": [0.02, 0.04, 1],
            "batch_seconds": [0.01, 0.04, 1],
        }.items():
            rows[name] = values
        file["slices"].resize(3, axis=0)
        file["slices"][:] = rows
        file.attrs["threads_per_rank"] = 3
    shown = said(show_result, path)
    whole, cut = (
        next(line.split() for line in shown.splitlines() if line.split()[:1] == [name])
        for name in ("whole", "sliced")
    )
    assert whole[1:] == ["0.500", "-", "4", "3", "30"]
    assert cut[1:] == ["0.500", "0.750", "1.5", "1.5", "25"]
    for text in ("2 clients: 62.5% of the FLOPs saved", "37.5% of the encoder", "with 3 threads"):
        assert text in words(shown)


def test_a_result_of_another_version(said: Any) -> None:
    """Settings and names that this version does not know are shown as they are."""
    path = write(Path("a.h5"), 2)
    with h5py.File(path, "r+") as file:
        tree = json.loads(file.attrs["settings"])
        tree["method"] = {"name": "fedfuture", "beta": 2}
        tree["moon"] = "full"
        file.attrs["settings"] = json.dumps(tree)
        for name in ABOUT:
            del file.attrs[name]
    found = words(said(show_result, path))
    assert "method.name=fedfuture (not fedavg)" in found
    assert "method.beta=2" in found and "moon=full" in found


def test_files_that_are_no_results() -> None:
    with pytest.raises(RecordError, match=r"a\.h5: no such file; wanted a result"):
        show_result(Path("a.h5"))
    path = write(Path("a.h5"), 1)
    with h5py.File(path, "r+") as file:
        del file["phases"]
    with pytest.raises(RecordError, match=r"a\.h5: a damaged result: "):
        show_result(path)
