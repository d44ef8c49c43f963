"""Messages reach whom they are for, in order, and are charged; whatever rooms have to grow."""

import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi import config
from fedmpi.clients.placement import Wave
from fedmpi.exchanges.star import Exchange
from fedmpi.messages import sparse
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.codec import EVERYONE, Kind, Message
from fedmpi.messages.ledger import UP, Ledger
from fedmpi.messages.wire import Wire
from tests.small import run, small

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.Get_rank(), COMM.Get_size()
WAVE = Wave((0, 2, 3, 4), tuple(client % SIZE for client in (0, 2, 3, 4)))

on_ranks = pytest.mark.parallel([1, 2, 3])


@pytest.fixture
def post() -> Exchange:
    """A post of all ranks."""
    clock = Clock()
    return Exchange(Wire(clock, COMM), clock, Ledger(5))


def message(client: int, size: int) -> Message:
    """As many times the client's number."""
    return Message(client, [sparse.block(Kind.GRADIENT, torch.full((size,), float(client)))], 2.5)


def check(found: list[Message], clients: tuple[int, ...], size: int) -> None:
    """Those are the clients' messages."""
    assert [some.client for some in found] == list(clients)
    for some in found:
        assert some.blocks[0].values.tolist() == [float(np.float32(some.client))] * size


@on_ranks
def test_messages_reach_their_clients(post: Exchange) -> None:
    """By the wire and by lines, small ones and large ones by turns."""
    mine, (line, other) = WAVE.on(RANK), post.wire.lines(2)
    for size in (1, 5000, 7, 6000):
        found = post.gather([message(client, size) for client in mine])
        check(found, WAVE.clients if post.wire.is_root else (), size)
        assert all(some.weight == 2.5 for some in found)
        answers = [message(client, size) for client in reversed(WAVE.clients)]
        told = post.scatter(WAVE, answers if post.wire.is_root else [])
        check(told, mine[::-1], size)
        post.send_up(line, [message(client, size) for client in mine])
        post.send_up(other, [message(client, 2 * size) for client in mine])
        for some, length in ((line, size), (other, 2 * size)):
            heard = post.recv_up(some)
            check(heard, WAVE.clients if post.wire.is_root else (), length)
            if post.wire.is_root:
                post.send_down(some, WAVE, [message(client, length) for client in WAVE.clients])
        for some, length in ((line, size), (other, 2 * size)):
            check(post.recv_down(some), mine, length)
    check(post.broadcast([message(EVERYONE, 3)] if post.wire.is_root else [], [1]), (EVERYONE,), 3)
    for some in (line, other):
        some.wait()


@on_ranks
def test_bytes_are_charged_to_clients_on_the_root(post: Exchange) -> None:
    (line,) = post.wire.lines(1)
    post.send_up(line, [message(client, 10) for client in WAVE.on(RANK)])
    post.recv_up(line)
    if post.wire.is_root:
        post.send_down(line, WAVE, [message(client, 5 * client) for client in WAVE.clients])
    post.recv_down(line)
    line.wait()
    post.broadcast([message(EVERYONE, 6)] if post.wire.is_root else [], [0, 1])
    up, down = post.ledger.bytes[:, :, Kind.GRADIENT].T
    root = post.wire.is_root
    assert up.tolist() == [40 * root if client in WAVE.clients else 0 for client in range(5)]
    wanted = [20 * c * (c in WAVE.clients) + 24 * (c < 2) for c in range(5)]
    assert down.tolist() == [length * root for length in wanted]
    assert post.ledger.messages.sum() == (4 + 4 + 2) * root


@on_ranks
def test_packing_is_charged_to_its_phase(post: Exchange) -> None:
    (line,) = post.wire.lines(1)
    post.send_up(line, [message(client, 10) for client in WAVE.on(RANK)])
    post.recv_up(line)
    if post.wire.is_root:
        post.send_down(line, WAVE, [])
    post.recv_down(line)
    line.wait()
    seconds = post.clock.seconds
    assert seconds[Phase.PACK] > 0
    assert seconds[Phase.TRANSFER] > 0
    assert seconds.sum() == pytest.approx(seconds[[Phase.WAIT, Phase.TRANSFER, Phase.PACK]].sum())
    assert np.isfinite(seconds).all()


@on_ranks
@pytest.mark.parametrize("name", config.exchanges())
@pytest.mark.parametrize("hosts", ["in turn", "the last rank"])
def test_thousands_of_messages_in_a_gather(name: str, hosts: str) -> None:
    """In client order where they arrive, and each is charged; a rank may have none, or all."""
    clock, clients = Clock(), range(4000)
    wire, ledger = Wire(clock, COMM), Ledger(4000)
    post = config.module("exchange", name).Exchange(wire, clock, ledger)
    mine = clients[RANK::SIZE] if hosts == "in turn" else clients if RANK == SIZE - 1 else []
    found = post.gather([message(client, 1 + client % 3) for client in reversed(mine)])
    counts = np.zeros(SIZE, np.int64)
    COMM.Allgather(np.array([len(found)]), counts)
    assert counts.sum() == 4000
    assert [some.client for some in found] == sorted(some.client for some in found)
    for some in found:
        values = some.blocks[0].values.tolist()
        assert values == [float(some.client)] * (1 + some.client % 3)
    if wire.is_root and name in ("star", "tree"):
        assert len(found) == 4000, "on one node"
    post.merge([np.zeros(8, np.float32), np.zeros(1)])
    if wire.is_root:
        wanted = [4 * (1 + client % 3) for client in clients]
        assert ledger.bytes[:, UP, Kind.GRADIENT].tolist() == wanted


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("server", ["dedicated", "shared"])
def test_the_roots_inbox_is_as_large_as_the_window(server: str) -> None:
    """Twelve uploads of 0.3 MiB: all at once, or in four waves by the window of 1 MiB."""
    words = ("clients=12", "rounds=2", "local_steps=1", "model.hidden=[1024]", f"server={server}")
    inbox = {}
    for window in (1, 256):
        found = run(small(*words, f"exchange.window={window}"), COMM)
        inbox[window] = len(found.engine.wire.buffers.get("ranks", ()))
        size = 4 * found.engine.flat.size
    if RANK > 0:
        assert inbox == {1: 0, 256: 0}
        return
    assert 3 * size < inbox[1] < 2**20 + 3 * 200
    assert 12 * size < inbox[256] < 12 * size + 12 * 200
