"""Devices and threads of a rank; neither changes what comes out on a CPU."""

import threading

import pytest
import torch

from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.messages.wire import ALONE, Place
from fedmpi.training import hardware
from fedmpi.training.hardware import pick_device, pool, use_tf32
from fedmpi.training.rows import OneByOne
from tests.small import run, small


def test_a_device_that_is_not_there_is_refused() -> None:
    assert pick_device(small("device=cpu"), Place(3, 4, 3, 4)) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"^device = 'cuda:99'.*cpu is possible"):
        pick_device(small("device=cuda:99"), ALONE)
    if torch.cuda.device_count() == 0:
        with pytest.raises(ConfigError, match="there are 0 CUDA devices"):
            Engine(small("device=cuda"))


def test_ranks_of_a_node_share_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    places = [Place(local_rank + 5, 10, local_rank, 5) for local_rank in range(5)]
    assert [pick_device(small("device=cuda"), place).index for place in places] == [0, 1, 0, 1, 0]
    assert pick_device(small("device=cuda:1"), ALONE).index == 1
    assert chosen == [0, 1, 0, 1, 0, 1], "streams and graphs without a word belong to it"
    with pytest.raises(ConfigError, match="there are 2"):
        pick_device(small("device=cuda:2"), ALONE)


def test_a_server_that_only_serves_may_have_a_device_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    settings = small("method.name=splitfed", "server_device=cuda:1")
    assert pick_device(settings, Place(0, 3, 0, 3)) == torch.device("cuda", 1)
    assert pick_device(settings, Place(1, 3, 1, 3)) == torch.device("cpu"), "it hosts clients"
    assert pick_device(settings, ALONE) == torch.device("cpu"), "it hosts clients, too"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"^server_device = 'cuda:1': there are 1"):
        pick_device(settings, Place(0, 3, 0, 3))
    with pytest.raises(ConfigError, match=r"server_device = 'cpu': wanted .* found 'shared'"):
        small("method.name=splitfed", "server_device=cpu", "server=shared")


@pytest.mark.parametrize(
    ("words", "place", "wanted"),
    [
        ((), ALONE, 8),
        ((), Place(0, 3, 0, 3), 6),
        ((), Place(0, 3, 0, 1), 8),
        ((), Place(0, 40, 0, 40), 1),
        ((), Place(1, 3, 1, 3), 1),
        (("threads=3",), Place(0, 2, 0, 2), 1),
        (("threads=2",), Place(0, 2, 0, 2), 3),
        (("server_threads=5",), Place(0, 40, 0, 40), 5),
        (("server_threads=5",), Place(1, 40, 1, 40), 1),
    ],
)
def test_the_server_has_the_cores_that_others_leave(
    words: tuple[str, ...], place: Place, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight."""
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads, each = pool(small(*words), place)
    assert threads == wanted
    assert list(each(pow, [2, 3], [5, 2])) == [32, 9]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (None, 1),
        ("3", 3),
        ("4,2", 4),
        (" 2 ", 2),
        *((text, 1) for text in ("", "0", "-2", "many", ",3", "1.5")),
        ("99999999999999", 1024),
    ],
)
def test_threads_are_the_settings_or_the_environments(
    said: str | None, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert small().threads is None
    assert hardware.threads(small()) == wanted
    assert hardware.threads(small("threads=5")) == 5


def test_a_run_has_the_threads_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    before = torch.get_num_threads()
    try:
        assert Engine(small("method.name=splitfed")).threads == 4, "of two each"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_of_a_crew_are_like_the_first_from_their_first_product_on() -> None:
    """A thread that has not asked for it works with as many of Torch's as there are cores."""
    torch.set_num_threads(1)
    x, w = torch.randn(9, 32), torch.randn(24, 32)
    threads, each = pool(small("server_threads=4"), ALONE)
    assert threads == 4
    for found in each(lambda _: torch.nn.functional.linear(x, w), range(20)):
        assert torch.equal(found, torch.nn.functional.linear(x, w))


@pytest.mark.parametrize("batch", [5, 9])
def test_ragged_batches_do_not_depend_on_threads_either(batch: int) -> None:
    words = ("method.name=splitfed", "method.tail=head", f"batch={batch}", "model.hidden=[32,24]")
    found = {run(small(*words, f"server_threads={count}")).sha256 for count in (1, 2, 4, 4)}
    assert len(found) == 1


@pytest.mark.parametrize(
    "words", [(), ("method.version=v2",), ("method.tail=head",), ("precision=bf16",)], ids=" ".join
)
def test_the_number_of_threads_does_not_matter(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; and there are several only where clients have backs of their own."""
    used: set[tuple[str, int]] = set()
    gradient = OneByOne._gradient

    def noted(self: OneByOne, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        used.add((threading.current_thread().name, torch.get_num_threads()))
        return gradient(self, *given)

    monkeypatch.setattr(OneByOne, "_gradient", noted)
    given = ("method.name=splitfed", "momentum=0.9", "clip=1.0", "model.norm=batch", *words)
    model = ("model.name=cnn", "model.channels=[4,8]", "model.hidden=12")
    found = {}
    for count in (1, 3):
        used.clear()
        found[count] = run(small(*model, *given, f"server_threads={count}"))
        crews = {name for name, _ in used if name != "MainThread"}
        assert {threads for _, threads in used} == {1}
        assert bool(crews) == (count > 1 and "method.version=v2" not in words)
    assert found[1].sha256 == found[3].sha256
    losses = [each.tables["clients"]["loss"].tolist() for each in found.values()]
    assert losses[0] == losses[1]


def test_float32_means_float32_on_a_gpu_too() -> None:
    """Torch's convolutions round to TF32 by default."""
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    Engine(small())
    assert [flag.fp32_precision for flag in flags] == ["ieee", "ieee"]
    use_tf32(True)
    assert [flag.fp32_precision for flag in flags] == ["tf32", "tf32"]
    Engine(small())
    assert [flag.fp32_precision for flag in flags] == ["ieee", "ieee"]
