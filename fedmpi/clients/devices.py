"""What the clients' devices are simulated to be: seconds and joules of what was really done.

A run's bytes and messages are measured and its FLOPs counted (`burden`); here they become what
they would take on other devices. Nothing here is measured, and no name of it is a measured one's.
Who has which device, how channels fade, who is slow and whose upload is lost depend on the seed,
the round and the client alone.

A client computes, hears and speaks one after the other, and waits for nobody: not for the others'
steps in a split method either. A round takes as long as its slowest client, lost or not, and then
what the server trains; where clients have their turns one after the other, as long as all of them.
Devices neither share their channels nor spend power on hearing.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fedmpi.clients.population import EVERYONE_ROUND
from fedmpi.config import Settings, Tier, Wireless
from fedmpi.streams import Purpose, stream

MEGA, GIGA = 1e6, 1e9


class Fleet:
    """The devices of a run's clients: the same on every rank.

    Attributes:
        tiers: the kinds of devices; none if nothing is simulated.
        kinds: int64 [clients], each client's place in `tiers`.
        distances: metres to the server, [clients]; NaN where the link is not wireless.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.devices = settings, settings.devices
        self.tiers = self.devices.tiers
        self.agreements = settings.method.agreements(settings.rounds)
        self.kinds = np.zeros(settings.clients, np.int64)
        self.distances = np.full(settings.clients, np.nan)
        if not self.tiers:
            return
        random = stream(settings.seed, Purpose.DEVICE)
        counts = shared_out(settings.clients, [tier.share for tier in self.tiers])
        self.kinds = random.permutation(np.repeat(np.arange(len(counts)), counts))
        # Drawn for all alike, so that one tier's link does not move another's devices.
        places = random.random(settings.clients)
        for client, place in enumerate(places.tolist()):
            link = self.tier(client).link
            if isinstance(link, Wireless):
                self.distances[client] = ring(*link.distance, place)

    def tier(self, client: int) -> Tier:
        """The client's kind of device."""
        return self.tiers[self.kinds[client]]

    def owners(self) -> Iterator[tuple[int, Tier]]:
        """Every client that has a device, and which."""
        if self.tiers:
            yield from ((client, self.tier(client)) for client in range(len(self.kinds)))

    def is_lost(self, t: int, client: int) -> bool:
        """Whether what the client uploads in round t gets lost; never in an agreement."""
        is_safe = t <= EVERYONE_ROUND or t in self.agreements
        return not is_safe and self._befalls(self.devices.dropouts, t, client, 0)

    def is_slow(self, t: int, client: int) -> bool:
        """Whether the client is a straggler in round t."""
        return self._befalls(self.devices.stragglers, t, client, 1)

    def _befalls(self, share: float, t: int, client: int, place: int) -> bool:
        """Whether the client is among such a share; among a larger one it is then, too."""
        if not share:
            return False
        return bool(stream(self.settings.seed, Purpose.FATE, t, client).random(2)[place] < share)

    def rates(self, t: int, client: int) -> tuple[float, float]:
        """Bits a second from and to the client in round t."""
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
        """What a round costs its clients: the columns `sim_*` of the table `clients`.

        Args:
            t: the round.
            clients: those that took part.
            moved: bytes up and down, [k, 2].
            messages: how many they were in, [k, 2].
            flops: [k].
        """
        rows = []
        for number, client in enumerate(clients):
            tier, rates = self.tier(client), self.rates(t, client)
            compute = float(flops[number]) / (GIGA * tier.gflops)
            if self.is_slow(t, client):
                compute *= self.devices.slowdown
            # On the air, without the latency, in which nobody spends power.
            up, down = (seconds(int(b), r) for b, r in zip(moved[number], rates, strict=True))
            waits = [tier.link.latency * int(count) for count in messages[number]]
            ends = compute, up + waits[0], down + waits[1]
            rows.append((*ends, sum(ends), tier.power * compute, tier.link.power * up))
        return dict(zip(COLUMNS, np.array(rows).reshape(-1, len(COLUMNS)).T, strict=True))

    def serve(self, flops: float) -> float:
        """Seconds that the server's own training takes."""
        speed = self.devices.server_gflops
        return 0.0 if speed is None else flops / (GIGA * speed)


COLUMNS = (
    *("sim_compute", "sim_up", "sim_down", "sim_seconds"),
    *("sim_compute_joules", "sim_transmit_joules"),
)
"""What `Fleet.cost` yields; see `tables.CLIENTS`."""


def shares(settings: Settings, name: str) -> list[float]:
    """Which share of the model each client takes, in methods that fit the model to the device.

    That is its device's `keep`, if any device's is below 1; else one of the method's own shares,
    over which clients are spread evenly.

    Args:
        settings: of the run.
        name: of the method's setting with its own shares.
    """
    if (found := keeps(settings)) is not None:
        return found
    own = getattr(settings.method, name)
    counts = shared_out(settings.clients, [1 / len(own)] * len(own))
    random = stream(settings.seed, Purpose.KEEP)
    return random.permutation(np.repeat(own, counts)).tolist()


def keeps(settings: Settings) -> list[float] | None:
    """The share that each client's device keeps of the model; None if no device says one."""
    if not settings.devices.decide:
        return None
    owners = Fleet(settings).owners()
    return [1.0 if tier.keep is None else tier.keep for _, tier in owners]


def instead(settings: Settings, name: str) -> dict[str, str]:
    """See `config.Method.idle`: the method's own setting, if devices say what it would say."""
    if not settings.devices.decide:
        return {}
    return {name: "the default beside devices.tiers with a `keep`, which say it, too"}


def shared_out(count: int, shares: Sequence[float]) -> np.ndarray:
    """`count` things by shares that sum to 1: rounded down, the rest to the largest remainders."""
    exact = count * np.array(shares)
    found = np.floor(exact + 1e-9).astype(np.int64)
    last = np.argsort(found - exact, kind="stable")[: count - found.sum()]
    found[last] += 1
    return found


def ring(near: float, far: float, place: float) -> float:
    """The distance below which lies that share, in [0, 1), of the ring's area."""
    return float(np.sqrt(near**2 + place * (far**2 - near**2)))


def seconds(count: int, rate: float) -> float:
    """How long so many bytes take at a rate in bits a second; nothing takes none."""
    if not count:
        return 0.0
    return count * 8 / rate if rate else np.inf


def watts(dbm: float) -> float:
    """Watts (or W/Hz) for dBm (or dBm/Hz)."""
    return 10 ** ((dbm - 30) / 10)


def path_gain(distance: float, exponent: float, loss: float) -> float:
    """Received power over radiated power: log-distance path loss beyond a first metre.

    Args:
        distance: metres.
        exponent: the power of the distance by which the signal fades.
        loss: dB on the first metre.
    """
    return 10 ** (-loss / 10) * distance**-exponent


def capacity(bandwidth: float, power: float, gain: float, noise: float) -> float:
    """Bits a second of a channel with Gaussian noise: C. E. Shannon, 1948, B log2(1 + P h / N B).

    Args:
        bandwidth: Hz.
        power: watts that are radiated.
        gain: received power over radiated power.
        noise: watts per Hz.
    """
    return float(bandwidth * np.log1p(power * gain / (noise * bandwidth)) / np.log(2))
