"""Simulated devices: the seconds and joules that a run's real work would cost on them.

Bytes and messages of a run are measured, and its FLOPs counted (`burden`). This module converts
them to costs on simulated devices. Nothing here is a measurement, and no name is that of a measured
quantity. The assignment of devices, fading, stragglers and lost uploads depend on the seed, the
round and the client alone.

A client computes, receives and sends one after the other, and waits for no other client, not even
in the steps of a split method. A round takes as long as its slowest client, lost or not, plus the
server's training; if clients train one after the other, it takes the sum of all. For a client that
is too late for the deadline the server waits until the deadline. Receiving costs no energy.

Each radio has a channel of its own, or with `devices.spectrum` a share of one band. A client on the
share s of the band sends with the same power density as on all of it, and so with s times the
power. Its rate is s times that of the whole band, and its energy what the whole band would take.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar

import numpy as np

from fedmpi.config import EXACT, ConfigError, Settings, Tier, Wireless
from fedmpi.streams import Purpose, stream

MEGA, GIGA = 1e6, 1e9
BISECTIONS = 100
"""Halvings of an interval of seconds, after which nothing is left of it."""

Value = TypeVar("Value", float, str)
Share = TypeVar("Share", bound=float | tuple[float, str])


class Fleet:
    """The devices of a run's clients, the same on every rank.

    Attributes:
        tiers: the kinds of devices; empty if nothing is simulated.
        can_lose: whether uploads can be lost, or come too late.
        kinds: each client's index in `tiers`, int64 [clients].
        fitted: shares of the model that fit the devices, by the name of their kind, where the
            settings want the largest (see `burden.fitted`).
        distances: metres to the server, [clients]; NaN if the link is not wireless.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.devices = settings, settings.devices
        self.tiers, self.can_lose = self.devices.tiers, self.devices.can_lose
        self.fitted: dict[str, float] = {}
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

    def shares(self, name: str) -> list[float]:
        """Returns each client's share of the model, for methods that fit the model to the device.

        The share is that of the client's device, if any device has one. Otherwise clients are
        spread evenly over the method's own shares.

        Args:
            name: the method's setting with its own shares.
        """
        settings = self.settings
        if self.devices.decide:
            return [self.keep(tier) for _, tier in self.owners()]
        return spread(settings, getattr(settings.method, name))

    def keep(self, tier: Tier) -> float:
        """Returns the share of the model that a kind of device holds, if devices decide."""
        if tier.fit:
            return self.fitted.get(tier.name, 1.0)
        return 1.0 if tier.keep is None else tier.keep

    def seconds(self, tier: Tier, client: int, flops: float, length: float) -> float:
        """Returns the predicted seconds of a client's round without fading or slow computation.

        Args:
            tier: its kind of device.
            client: the client.
            flops: FLOPs of its training.
            length: bytes of the download, and of the upload.
        """
        moves = (seconds(int(length), rate) for rate in self._capacities(tier, client, 1.0))
        return flops / (GIGA * tier.gflops) + sum(moves) + 2 * tier.link.latency

    def is_lost(self, t: int, client: int) -> bool:
        """Whether the client's upload in round t is lost; never in an agreement."""
        if self.settings.is_agreement(t):
            return False
        spectrum = self.devices.spectrum
        fails = spectrum.outage if spectrum.drops and self.is_radio(client) else 0.0
        return self._befalls(self.devices.dropouts, t, client, 0) or self._befalls(
            fails, t, client, 2
        )

    def is_radio(self, client: int) -> bool:
        """Whether the client has a wireless link."""
        return bool(self.tiers) and isinstance(self.tier(client).link, Wireless)

    def is_slow(self, t: int, client: int) -> bool:
        """Whether the client is a straggler in round t."""
        return self._befalls(self.devices.stragglers, t, client, 1)

    def _befalls(self, share: float, t: int, client: int, place: int) -> bool:
        """Whether an event of probability `share` happens; if so, also at any larger share."""
        if not share:
            return False
        return bool(stream(self.settings.seed, Purpose.FATE, t, client).random(3)[place] < share)

    def rates(self, t: int, client: int) -> tuple[float, float]:
        """Returns the rates from and to the client in round t, in bits per second.

        If the band is shared, they are those of the whole band.
        """
        tier, faded = self.tier(client), 1.0
        if isinstance(tier.link, Wireless) and tier.link.fading:
            # The power of a Rayleigh amplitude is exponential, of mean 1.
            faded = stream(self.settings.seed, Purpose.CHANNEL, t, client).exponential()
        return self._capacities(tier, client, faded)

    def _capacities(self, tier: Tier, client: int, faded: float) -> tuple[float, float]:
        """The rates at which the channel's power is multiplied by `faded`."""
        link = tier.link
        if not isinstance(link, Wireless):
            return MEGA * link.up, MEGA * link.down
        gain = path_gain(float(self.distances[client]), link.exponent, link.loss) * faded
        shared, noise = self.devices.spectrum.bandwidth, watts(link.noise)
        bandwidth = MEGA * (link.bandwidth if shared is None else shared)
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
        computes = np.zeros(len(clients))
        # Transmission times without latency, since latency costs no energy.
        sends, waits = np.zeros((len(clients), 2)), np.zeros((len(clients), 2))
        repeats = np.zeros((len(clients), 2), np.int64)
        for number, client in enumerate(clients):
            tier, rates = self.tier(client), self.rates(t, client)
            computes[number] = float(flops[number]) / (GIGA * tier.gflops)
            if self.is_slow(t, client):
                computes[number] *= self.devices.slowdown
            repeats[number] = self.repeats(t, client, messages[number])
            for way, rate in enumerate(rates):
                count, more = int(messages[number][way]), int(repeats[number][way])
                often = 1 + more / count if count else 1.0
                sends[number, way] = often * seconds(int(moved[number][way]), rate)
                waits[number, way] = tier.link.latency * (count + more)
        shares = self.band_shares(clients, moved, computes + waits.sum(1), sends.sum(1))
        rows = []
        for number, client in enumerate(clients):
            tier, share, compute = self.tier(client), float(shares[number]), float(computes[number])
            up, down = (
                float(send / share + wait) if send else float(wait)
                for send, wait in zip(sends[number], waits[number], strict=True)
            )
            ends = compute, up, down, compute + up + down
            joules = tier.power * compute, tier.link.power * float(sends[number, 0])
            rows.append((*ends, *joules, share, float(repeats[number].sum())))
        return dict(zip(COLUMNS, np.array(rows).reshape(-1, len(COLUMNS)).T, strict=True))

    def repeats(self, t: int, client: int, messages: Sequence[int]) -> tuple[int, int]:
        """Returns how many transmissions up and down fail and are repeated in round t.

        Each fails with the same probability, again and again: as many as failures before the last
        of so many successes.

        Args:
            t: the round.
            client: the client.
            messages: number of messages up and down.
        """
        spectrum = self.devices.spectrum
        if not spectrum.outage or spectrum.drops or not self.is_radio(client):
            return 0, 0
        random = stream(self.settings.seed, Purpose.OUTAGE, t, client)
        up, down = (
            int(random.negative_binomial(count, 1 - spectrum.outage)) if count else 0
            for count in map(int, messages)
        )
        return up, down

    def band_shares(
        self, clients: Sequence[int], moved: np.ndarray, others: np.ndarray, sends: np.ndarray
    ) -> np.ndarray:
        """Returns each client's share of the band in a round, [k]; 1 on a channel of its own.

        Args:
            clients: the clients that took part.
            moved: bytes up and down, [k, 2].
            others: seconds in which a client does not use the band, [k].
            sends: seconds for which it would use the whole band, [k].
        """
        found, spectrum = np.ones(len(clients)), self.devices.spectrum
        radios = np.array([self.is_radio(client) for client in clients], bool)
        if spectrum.bandwidth is None or self.settings.method.in_turn or not radios.any():
            return found
        parts = np.ones(int(radios.sum()))
        if spectrum.sharing == "bytes":
            parts = moved[radios].sum(1).astype(float)
        elif spectrum.sharing == "minmax":
            parts = earliest(others[radios], sends[radios])
        if not (np.isfinite(parts).all() and parts.sum() > 0):  # nothing is sent, or for ever
            parts = np.ones(len(parts))
        found[radios] = parts / parts.sum()
        return found

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
    *("sim_compute_joules", "sim_transmit_joules", "sim_share", "sim_repeats"),
)
"""Columns that `Fleet.cost` returns (see `tables.CLIENTS`)."""


def holders(shares: Sequence[Share], excluded: Collection[int]) -> list[tuple[Share, list[int]]]:
    """Returns each share with the clients that have it, the largest share first.

    Args:
        shares: each client's share, or a tuple that begins with it.
        excluded: clients that never take part.
    """
    found: dict[Share, list[int]] = {}
    for client, share in enumerate(shares):
        if client not in excluded:
            found.setdefault(share, []).append(client)
    return sorted(found.items(), reverse=True)


def keeps(settings: Settings) -> list[float] | None:
    """Returns the share of the model that each device keeps; None if no device sets one.

    Raises:
        ConfigError: if the share of some device is to be found out, which `Fleet.shares` knows.
    """
    if not settings.devices.decide:
        return None
    for place, tier in enumerate(settings.devices.tiers):
        if tier.fit:
            raise ConfigError(
                f"devices.tiers.{place}.fit = true: wanted a method whose memory and FLOPs follow "
                f"from the share alone, found method.name = '{settings.method.name}'; possible is "
                "keep"
            )
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
    tiers = settings.devices.tiers
    is_fitted = of_tier == "keep" and any(tier.fit for tier in tiers)
    if not is_fitted and all(getattr(tier, of_tier) is None for tier in tiers):
        return {}
    return {name: f"the default beside devices.tiers with a `{of_tier}`, which say it, too"}


def spread(settings: Settings, values: Sequence[Value]) -> list[Value]:
    """Spreads clients evenly over some values, at random; returns the value of each client."""
    counts = shared_out(settings.clients, [1 / len(values)] * len(values))
    random = stream(settings.seed, Purpose.KEEP)
    return random.permutation(np.repeat(np.array(values), counts)).tolist()


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


def earliest(others: np.ndarray, sends: np.ndarray) -> np.ndarray:
    """Returns the shares of a band with which all that send end at the same time, [k].

    A client with the share s ends after others + sends / s. The last one ends as early as it can if
    all end at T, with sum sends / (T - others) = 1. That sum falls in T, so that bisection finds T.

    Args:
        others: seconds in which a client does not use the band, [k].
        sends: seconds for which it would use the whole band, [k]; a client with 0 has no share.

    Returns:
        The shares; NaN if there is no such T.
    """
    busy = sends > 0
    if not busy.any() or not np.isfinite(sends + others).all():
        return np.full(len(sends), np.nan)
    others, left = others[busy], sends[busy]
    low, high = float((others + left).max()), float(others.max() + left.sum())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if (left / (middle - others)).sum() > 1:
            low = middle
        else:
            high = middle
    found = np.zeros(len(sends))
    found[busy] = left / (high - others)
    return found


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
