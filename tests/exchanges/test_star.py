"""Messages reach whom they are for, in order, and are charged; whatever rooms have to grow."""

import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi.clients.placement import Wave
from fedmpi.exchanges.star import Exchange
from fedmpi.messages import sparse
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.codec import EVERYONE, Kind, Message
from fedmpi.messages.ledger import Ledger
from fedmpi.messages.wire import Wire

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
