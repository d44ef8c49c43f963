"""Simulated devices: the seconds and joules that a run's real work would cost on them.

Bytes and messages of a run are measured, and its FLOPs counted (`burden`). This module converts
them to costs on simulated devices. Nothing here is a measurement, and no name is that of a measured
quantity. The assignment of devices, fading, stragglers and lost uploads depend on the seed, the
round and the client alone.

A client computes, receives and sends one after the other, and waits for no other client, not even
in the steps of a split method. A round takes as long as its slowest client, lost or not, plus the
server's training; if clients train one after the other, it takes the sum of all. For a client that
is too late for the deadline the server waits until the deadline. Devices do not share their
channels, and receiving costs no energy.
"""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from fedmpi.config import Settings, Tier, Wireless
from fedmpi.streams import Purpose, stream

MEGA, GIGA = 1e6, 1e9
EXACT = 32
"""Bits of a value that is not quantized."""


class Fleet:
    """The devices of a run's clients, the same on every rank.

    Attributes:
        tiers: the kinds of devices; empty if nothing is simulated.
        kinds: each client's index in `tiers`, int64 [clients].
        distances: metres to the server, [clients]; NaN if the link is not wireless.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.devices = settings, settings.devices
        self.tiers = self.devices.tiers
        self.kinds = np.zeros(settings.clients, np.int64)
        self.distances = np.full(settings.clients, np.nan)
        if not self.tiers:
            return
        random = stream(settings.seed, Purpose.DEVICE)
        counts = shared_out(settings.clients, [tier.share for tier in self.tiers])
        self.kinds = random.permutation(np.repeat(np.arange(len(counts)), counts))
        # Drawn for all clients, so that one tier's link does not change another's distances.
        places = random.random(settings.clients)
        for client, place in enumerate(places.tolist()):
            link = self.tier(client).link
            if isinstance(link, Wireless):
                self.distances[client] = ring(*link.distance, place)

    def tier(self, client: int) -> Tier:
        """Returns the client's kind of device."""
        return self.tiers[self.kinds[client]]

    def owners(self) -> Iterator[tuple[int, Tier]]:
        """Yields each client that has a device, and its kind."""
        if self.tiers:
            yield from ((client, self.tier(client)) for client in range(len(self.kinds)))

    def is_lost(self, t: int, client: int) -> bool:
        """Whether the client's upload in round t is lost; never in an agreement."""
        return not self.settings.is_agreement(t) and self._befalls(
            self.devices.dropouts, t, client, 0
        )

    def is_slow(self, t: int, client: int) -> bool:
        """Whether the client is a straggler in round t."""
        return self._befalls(self.devices.stragglers, t, client, 1)

    def _befalls(self, share: float, t: int, client: int, place: int) -> bool:
        """Whether an event of probability `share` happens; if so, also at any larger share."""
        if not share:
            return False
        return bool(stream(self.settings.seed, Purpose.FATE, t, client).random(2)[place] < share)

    def rates(self, t: int, client: int) -> tuple[float, float]:
        """Returns the rates from and to the client in round t, in bits per second."""
        link = self.tier(client).link
        if not isinstance(link, Wireless):
            return MEGA * link.up, MEGA * link.down
        gain = path_gain(float(self.distances[client]), link.exponent, link.loss)
        if link.fading:
            # The power of a Rayleigh amplitude is exponential, of mean 1.
            gain *= stream(self.settings.seed, Purpose.CHANNEL, t, client).exponential()
        bandwidth, noise = MEGA * link.bandwidth, watts(link.noise)
        up, down = (
            capacity(bandwidth, power, gain, noise) for power in (link.power, link.server_power)
        )
        return up, down

    def cost(
        self,
        t: int,
        clients: Sequence[int],
        moved: np.ndarray,
        messages: np.ndarray,
        flops: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Returns the simulated costs of a round: the columns `sim_*` of the table `clients`.

        Args:
            t: the round.
            clients: the clients that took part.
            moved: bytes up and down, [k, 2].
            messages: number of messages up and down, [k, 2].
            flops: FLOPs of training, [k]; those of faster ways count as so many fewer (see
                `burden.Meter.work`).
        """
        rows = []
        for number, client in enumerate(clients):
            tier, rates = self.tier(client), self.rates(t, client)
            compute = float(flops[number]) / (GIGA * tier.gflops)
            if self.is_slow(t, client):
                compute *= self.devices.slowdown
            # Transmission times without latency, since latency costs no energy.
            up, down = (seconds(int(b), r) for b, r in zip(moved[number], rates, strict=True))
            waits = [tier.link.latency * int(count) for count in messages[number]]
            ends = compute, up + waits[0], down + waits[1]
            rows.append((*ends, sum(ends), tier.power * compute, tier.link.power * up))
        return dict(zip(COLUMNS, np.array(rows).reshape(-1, len(COLUMNS)).T, strict=True))

    def fitting(self, t: int, client: int, flops: float, length: float) -> int:
        """Returns the number of steps that fit between download and upload before the deadline.

        It depends on the seed, the round and the client alone, like rates and stragglers.

        Args:
            t: the round.
            client: the client.
            flops: FLOPs of a step.
            length: bytes of the download, and of the upload.
        """
        assert self.devices.deadline is not None
        tier, moved = self.tier(client), int(length)
        apart = sum(seconds(moved, rate) + tier.link.latency for rate in self.rates(t, client))
        step = flops / (GIGA * tier.gflops)
        if self.is_slow(t, client):
            step *= self.devices.slowdown
        left = self.devices.deadline - apart
        return max(0, int(min(left / step + 1e-9, 2.0**31))) if left > 0 else 0

    def serve(self, flops: float) -> float:
        """Returns the seconds of the server's own training."""
        speed = self.devices.server_gflops
        return 0.0 if speed is None else flops / (GIGA * speed)


COLUMNS = (
    *("sim_compute", "sim_up", "sim_down", "sim_seconds"),
    *("sim_compute_joules", "sim_transmit_joules"),
)
"""Columns that `Fleet.cost` returns (see `tables.CLIENTS`)."""


def shares(settings: Settings, name: str) -> list[float]:
    """Returns each client's share of the model, for methods that fit the model to the device.

    The share is the `keep` of the client's device, if any device has one. Otherwise clients are
    spread evenly over the method's own shares.

    Args:
        settings: settings of the run.
        name: the method's setting with its own shares.
    """
    if (found := keeps(settings)) is not None:
        return found
    own = getattr(settings.method, name)
    counts = shared_out(settings.clients, [1 / len(own)] * len(own))
    random = stream(settings.seed, Purpose.KEEP)
    return random.permutation(np.repeat(own, counts)).tolist()


def holders(shares: Sequence[float], excluded: Collection[int]) -> list[tuple[float, list[int]]]:
    """Returns each share with the clients that have it, the largest share first.

    Args:
        shares: each client's share.
        excluded: clients that never take part.
    """
    found: dict[float, list[int]] = {}
    for client, share in enumerate(shares):
        if client not in excluded:
            found.setdefault(share, []).append(client)
    return sorted(found.items(), reverse=True)


def keeps(settings: Settings) -> list[float] | None:
    """Returns the share of the model that each device keeps; None if no device sets one."""
    if not settings.devices.decide:
        return None
    owners = Fleet(settings).owners()
    return [1.0 if tier.keep is None else tier.keep for _, tier in owners]


def bits(settings: Settings, own: int) -> list[int]:
    """Returns with how many bits each client computes the gradients that its method quantizes.

    Args:
        settings: settings of the run.
        own: the method's bits, which hold if no device says its own.
    """
    if not settings.devices.quantize:
        return [own] * settings.clients
    owners = Fleet(settings).owners()
    return [EXACT if tier.bits is None else tier.bits for _, tier in owners]


def instead(settings: Settings, name: str, of_tier: str = "keep") -> dict[str, str]:
    """Names the method's own setting as one without effect, if devices set it.

    Args:
        settings: settings of the run.
        name: the method's setting.
        of_tier: that of tiers which takes its place.
    """
    if all(getattr(tier, of_tier) is None for tier in settings.devices.tiers):
        return {}
    return {name: f"the default beside devices.tiers with a `{of_tier}`, which say it, too"}


def shared_out(count: int, shares: Sequence[float]) -> np.ndarray:
    """Divides `count` things by shares that sum to 1.

    Numbers are rounded down, and the rest goes to the largest remainders.
    """
    exact = count * np.array(shares)
    found = np.floor(exact + 1e-9).astype(np.int64)
    last = np.argsort(found - exact, kind="stable")[: count - found.sum()]
    found[last] += 1
    return found


def ring(near: float, far: float, place: float) -> float:
    """Returns the distance within which lies the share `place`, in [0, 1), of the ring's area."""
    return float(np.sqrt(near**2 + place * (far**2 - near**2)))


def seconds(count: int, rate: float) -> float:
    """Returns the seconds that `count` bytes take at a rate in bits per second; 0 for no bytes."""
    if not count:
        return 0.0
    return count * 8 / rate if rate else np.inf


def watts(dbm: float) -> float:
    """Converts dBm to watts (or dBm/Hz to W/Hz)."""
    return 10 ** ((dbm - 30) / 10)


def path_gain(distance: float, exponent: float, loss: float) -> float:
    """Returns received power over radiated power: log-distance path loss beyond a first metre.

    Args:
        distance: metres.
        exponent: path-loss exponent.
        loss: loss in dB on the first metre.
    """
    return 10 ** (-loss / 10) * distance**-exponent


def capacity(bandwidth: float, power: float, gain: float, noise: float) -> float:
    """Returns the capacity of a Gaussian channel, in bits per second.

    C. E. Shannon, 1948: B log2(1 + P h / (N B)).

    Args:
        bandwidth: B, Hz.
        power: radiated power P, watts.
        gain: received power over radiated power, h.
        noise: noise density N, watts per Hz.
    """
    return float(bandwidth * np.log1p(power * gain / (noise * bandwidth)) / np.log(2))
