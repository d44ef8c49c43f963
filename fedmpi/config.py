"""The schema of a run: one tree of settings, typed and frozen. `loading` reads and checks it.

A table of the tree that has a `name` is described by the module of that name: with
`method.name = "topk"` the settings in `[method]` are those of `fedmpi.methods.topk.Config`. There
is no registry; the file name is the name (a dash in a name is an underscore in the file's).
"""

import functools
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from fedmpi.errors import BadInput

Tree = dict[str, Any]


class ConfigError(BadInput):
    """Settings that cannot be run; `problems` has one sentence for each thing that is wrong."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Table(BaseModel):
    """A table of settings: no unknown keys, no silent conversions, no changes afterwards."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


MOST, LARGEST = 2**31 - 1, 3e38
"""Bounds of counts, and of numbers that are float32 in the end."""
Width = Annotated[StrictInt, Field(ge=1, le=MOST)]
"""An item of a list of whole numbers, such as channels or units."""
Metres = Annotated[float, Field(gt=0, le=LARGEST, strict=True)]


BUDGET = r"^(up|down|total)_bytes:\d+(\.\d+)?(B|kB|MB|GB|TB)$"
"""What a budget looks like."""


class Data(Table):
    """Which data set, and where its files are."""

    name: str = ""
    root: str | None = None
    """Folder that holds the data set; if absent, `$FEDMPI_DATA` and the usual places are tried."""
    cache: str | None = None
    """Folder for what was decoded, for all runs; if absent, `$FEDMPI_CACHE` or the user's own."""


class Partition(Table):
    """Which client holds which samples."""

    name: str = ""


class Skew(Table):
    """What else tells clients' samples apart, in training and in their test shards: nothing."""

    rotations: tuple[Literal[0, 90, 180, 270], ...] = Field((), strict=False)
    """Degrees, counter-clockwise, by which clients' images are rotated: each client has one of
    them, drawn so that all have equally many clients, and one that is given twice twice as many."""
    colour: float = Field(0.0, ge=0, lt=1)
    """Each channel of a client's images, as a network sees them, is multiplied by a factor between
    1 - colour and 1 + colour and increased by a number between -colour and colour."""
    noise: float = Field(0.0, ge=0, le=LARGEST)
    """Variance of Gaussian noise in the last client's samples, as a network sees them; client k of
    K, k from 1, has k / K of it. A sample's noise is always the same."""
    labels: float = Field(0.0, ge=0, le=1)
    """Share of a client's training labels that are wrong: another class, all of them as likely."""
    labels_to: float | None = Field(None, ge=0, le=1)
    """Where given, each client has its own share, drawn between labels and this."""


class Model(Table):
    """The network."""

    name: str = ""


class Method(Table):
    """What clients and server do with their models and messages.

    The facts below are what every rank has to know of a method, though the server's half exists on
    the root alone. They follow from the settings, and are FedAvg's unless a method says otherwise.

    Attributes:
        broadcasts: whether the server tells all participants the same as a round begins.
        sends: whether it sends each participant something of its own besides.
        is_global: whether the server has a whole model that can be judged.
        pools: whether every client uploads a whole update, so that their median, say, has a sense.
        keeps_state: whether clients keep state between rounds, and therefore stay on their rank.
        converses: whether clients and server exchange messages in each local step.
        turns: how often clients ask the server something in a local step; only if it converses.
        in_halves: whether the server can serve one half of the clients while the other computes.
        in_turn: whether a client begins only when the one before it has ended.
    """

    name: str = ""

    broadcasts: ClassVar[bool] = True
    is_global: ClassVar[bool] = True
    in_halves: ClassVar[bool] = True
    in_turn: ClassVar[bool] = False
    converses: ClassVar[bool] = False

    @property
    def sends(self) -> bool:
        return False

    @property
    def pools(self) -> bool:
        return True

    @property
    def keeps_state(self) -> bool:
        return False

    @property
    def turns(self) -> int:
        return 1

    def width(self, room: int, clients: int) -> int:
        """Clients whose uploads the server takes in at a time.

        Args:
            room: as many as `exchange.window` has room for their models.
            clients: all of the run.
        """
        return room

    def agreements(self, rounds: int) -> frozenset[int]:
        """The rounds, from -1, in which all clients agree on something (a mask) and none trains.

        Args:
            rounds: of the run.
        """
        return frozenset()

    def network(self, network: Any) -> Any:
        """What the method trains for the model's network: by default that itself."""
        return network

    def idle(self, settings: "Settings") -> dict[str, str]:
        """The method's settings that have no effect in this run, and what would give them one.

        `loading.load` refuses those that are not at their defaults: `method.NAME = VALUE: wanted`,
        and the text. A method that adds to another's settings adds to its answer, too.

        Args:
            settings: of the run; `settings.method` is this.
        """
        return {}

    def problems(self, settings: "Settings") -> list[str]:
        """What else is wrong with the method's settings, as far as no network is needed to know.

        Args:
            settings: of the run; `settings.method` is this.
        """
        return []

    def reserve(self) -> float:
        """Share of its training samples that each client keeps out of its training."""
        return 0.0


class Exchange(Table):
    """How messages travel between the ranks."""

    name: str = ""
    window: int = Field(256, ge=1)
    """MiB of dense models that the server may hold at a time; more clients upload in waves."""
    pipeline: bool = True
    """In split methods: clients have their turns with the server in two halves, so that it works
    for one while the other works; the result is the same, bit for bit on a CPU."""


class Aggregation(Table):
    """What the server makes of a round's updates.

    Unless it is their weighted mean, all clients count alike, and the server holds all of them.
    """

    rule: Literal["mean", "median", "trimmed"] = "mean"
    """Of each coordinate: the mean, the median, or the mean without the ends."""
    weights: Literal["samples", "equal"] = "samples"
    """Of a mean: a client counts by its training samples, or all clients count alike."""
    trim: float = Field(0.0, ge=0, lt=0.5)
    """Share of the values that a trimmed mean leaves out at each end, rounded down."""
    clip: float = Field(0.0, ge=0, le=LARGEST)
    """Largest Euclidean norm of a client's update, as the server gets it; 0 leaves it alone."""
    noise: float = Field(0.0, ge=0, le=LARGEST)
    """Standard deviation of Gaussian noise on the result, in clip / number of updates."""

    @property
    def is_mean(self) -> bool:
        """Whether it is the weighted mean of the updates as they are."""
        return self.rule == "mean" and not self.clip


class State(Table):
    """Where clients' vectors wait between rounds, in methods whose clients keep any."""

    memory: int = Field(1024, ge=0, le=MOST)
    """MiB of waiting vectors of one kind that a rank holds in memory; others lie in a file."""
    folder: str | None = None
    """Folder for that file; if absent, the system's ($TMPDIR), which may itself be memory."""


class Fixed(Table):
    """A link of fixed rates."""

    kind: Literal["fixed"]
    """Of the link."""
    up: float = Field(10.0, gt=0, le=LARGEST)
    """Mbit/s from the device; the defaults of devices are round numbers of ours."""
    down: float = Field(50.0, gt=0, le=LARGEST)
    """Mbit/s to the device."""
    latency: float = Field(0.02, ge=0, le=LARGEST)
    """Seconds that each message takes besides, either way."""
    power: float = Field(1.0, ge=0, le=LARGEST)
    """Watts of the device while it sends."""


class Wireless(Table):
    """A radio channel of its own for each device, whose rate is Shannon's capacity."""

    kind: Literal["wireless"]
    """Of the link."""
    bandwidth: float = Field(1.0, gt=0, le=LARGEST)
    """MHz of the device's channel, the same both ways."""
    power: float = Field(0.1, gt=0, le=LARGEST)
    """Watts that the device radiates while it sends."""
    server_power: float = Field(1.0, gt=0, le=LARGEST)
    """Watts that the server radiates on the device's channel."""
    distance: tuple[Metres, Metres] = Field((10.0, 100.0), strict=False)
    """Metres to the server, nearest and farthest; devices are spread evenly over that ring."""
    exponent: float = Field(3.0, ge=1, le=10)
    """By which power of the distance the signal fades: 2 in free space, 3 to 5 in towns."""
    loss: float = Field(40.0, ge=0, le=LARGEST)
    """dB that the signal loses on the first metre; 40 is free space at 2.4 GHz."""
    noise: float = Field(-174.0, ge=-250, le=0)
    """dBm/Hz of noise; -174 is what 290 K give."""
    fading: bool = True
    """Rayleigh block fading: drawn for each client and round, the same both ways."""
    latency: float = Field(0.02, ge=0, le=LARGEST)
    """Seconds that each message takes besides, either way."""


class Tier(Table):
    """A kind of device."""

    name: str = Field("device", pattern=r"^[A-Za-z0-9._-]{1,16}$")
    """As it is called in results; at most 16 letters and digits."""
    share: float = Field(1.0, gt=0, le=1)
    """Of the clients; all shares together are 1."""
    gflops: float = Field(1.0, gt=0, le=LARGEST)
    """Billion floating-point operations a second that the device sustains in training."""
    memory: float | None = Field(None, gt=0, le=LARGEST)
    """MiB for training; if absent, enough."""
    keep: float | None = Field(None, gt=0, le=1)
    """Share of the model that the device takes, in methods that fit the model to the device;
    others leave it alone. If some say one, those that say none take all; if none does, the
    method's own shares hold."""
    power: float = Field(5.0, ge=0, le=LARGEST)
    """Watts of the device while it computes."""
    link: Fixed | Wireless = Field(Fixed(kind="fixed"), discriminator="kind")
    """Between the device and the server; `kind` is fixed or wireless."""


class Devices(Table):
    """What the clients' devices are simulated to be; nothing is simulated without tiers."""

    tiers: tuple[Tier, ...] = Field((), strict=False)
    """Kinds of devices; which client has which is drawn once, so that the shares are met."""
    server_gflops: float | None = Field(None, gt=0, le=LARGEST)
    """Billion operations a second of the server, which trains in split methods; if absent, it
    takes no time."""
    stragglers: float = Field(0.0, ge=0, le=1)
    """Share of the clients in each round that compute `slowdown` times as long, by chance."""
    slowdown: float = Field(5.0, ge=1, le=LARGEST)
    """How many times as long."""
    dropouts: float = Field(0.0, ge=0, le=1)
    """Share of the uploads that are lost on their way, by chance; what they cost is not."""
    unfit: Literal["error", "rest"] = "error"
    """Devices that cannot hold what the method trains: an error, or they rest: they never take
    part, though their test shards count."""

    @property
    def decide(self) -> bool:
        """Whether devices say which share of the model they take, and not the method."""
        return any(tier.keep is not None for tier in self.tiers)


class Settings(Table):
    """One run. The five named tables are narrowed to their modules' own settings by `load`."""

    seed: int = Field(1, ge=0, le=MOST)
    """Source of every random number in the run."""
    rounds: int = Field(20, ge=1, le=MOST)
    """Communication rounds, unless the budget ends the run before."""
    budget: str | None = Field(None, pattern=BUDGET)
    """Bytes of all clients together after which no further round begins, such as up_bytes:50MB (or
    down_bytes, total_bytes; B, kB, MB, GB or TB); what comes once before the first round counts."""
    clients: int = Field(10, ge=1, le=MOST)
    """Logical clients; a rank hosts many."""
    participation: float = Field(1.0, gt=0, le=1)
    """Share of the clients that are sampled each round (at least one client)."""
    sampling: Literal["uniform", "samples", "trace"] = "uniform"
    """How they are drawn, without replacement: all alike; or one after the other, each with
    probability proportional to its training samples among those that are left, whereupon all
    uploads count alike in averages, as in FedProx (see `Population.weight`); or all alike among
    those that are available in `trace`, everyone of these if there are fewer. If no client is left
    out, `samples` is the same as `uniform`: uploads count by their samples."""
    trace: str | None = None
    """File that says who is available when: a CSV with the columns client, first and last (rounds,
    from 0, both included), which starts again after its last round; only with sampling = trace.
    A round before the first has every client."""
    trace_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """That file's hash, as a result records it; if absent, any will do."""
    batch: int = Field(16, ge=1, le=MOST)
    """Samples in a local step; the last batch of a pass may be smaller."""
    epochs: int = Field(2, ge=1, le=MOST)
    """Local passes over a client's samples a round."""
    local_steps: int | None = Field(None, ge=1, le=MOST)
    """Local steps a round, the same for every client; replaces `epochs`."""
    augment: tuple[Literal["crop", "flip"], ...] = Field((), strict=False)
    """What happens to images at random: crop (with 4 black pixels on each side), flip."""
    lr: float = Field(0.1, gt=0, le=LARGEST)
    """Learning rate of the local steps."""
    schedule: Literal["decay", "steps", "cosine", "restarts"] = "decay"
    """Rate in round t: lr * lr_decay ** t; or ** the number of lr_steps up to t; or half a cosine
    from lr to lr_min over all rounds; or that over the local passes of each round."""
    lr_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the rate, each round or at each of lr_steps."""
    lr_steps: tuple[Annotated[StrictInt, Field(ge=1, le=MOST)], ...] = Field((), strict=False)
    """Rounds at which the rate is multiplied by lr_decay; only with schedule = steps."""
    lr_min: float = Field(0.0, ge=0, le=LARGEST)
    """Where a cosine ends."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Whose state starts afresh each round."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Heavy-ball momentum of SGD."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Adam's decay of the mean gradient."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Adam's decay of the mean square."""
    epsilon: float = Field(1e-8, ge=1e-30, le=1)
    """Adam's addition to the root of the mean square."""
    weight_decay: float = Field(0.0, ge=0, le=LARGEST)
    """Adds weight_decay * w to the gradient, after clipping."""
    clip: float = Field(0.0, ge=0, le=LARGEST)
    """Largest Euclidean norm of a client's gradient; 0 leaves it alone."""
    statistics: Literal["averaged", "local"] = "averaged"
    """BatchNorm's running statistics: averaged like parameters, or each client's own, never sent;
    the global model then normalises a batch by its own statistics when it is judged. In split
    methods nobody has the statistics of a client's whole model, and its own is judged likewise."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the training samples held out from all clients, to choose the best round by."""
    evaluate: int = Field(1, ge=1, le=MOST)
    """Accuracies are measured every so many rounds, and after the last."""
    server: Literal["dedicated", "shared"] = "dedicated"
    """`dedicated`: rank 0 serves only; `shared`: it hosts clients too, as it always does alone."""
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """Where models train: cpu, cuda (spread over a node's ranks) or cuda:K."""
    rows: int | None = Field(None, ge=1, le=MOST)
    """Clients that train at once, stacked; absent: one on a CPU, else what device memory holds. In
    split methods all of a wave train at once."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Of matrix products: float32, TF32 on a GPU, or bfloat16 by autocast; all else is float32."""
    threads: int = Field(1, ge=1, le=1024)
    """Torch threads a rank."""
    server_threads: int | None = Field(None, ge=1, le=1024)
    """In split methods, clients whose batches the server learns from at once, with as many Torch
    threads for each as a rank has; absent: what its node's cores allow beside its other ranks."""
    server_device: str | None = Field(None, pattern=r"^(cpu|cuda(:\d+)?)$")
    """In split methods, where the server's part trains if rank 0 serves only; absent: `device`."""
    data: Data
    partition: Partition
    skew: Skew = Skew()
    model: Model
    method: Method
    exchange: Exchange
    aggregation: Aggregation = Aggregation()
    state: State = State()
    devices: Devices = Devices()

    def tree(self) -> Tree:
        """Every setting, defaults included, as plain values."""
        return self.model_dump(mode="json")

    def is_spent(self, up: int, down: int) -> bool:
        """Whether a run with so many bytes has reached its budget."""
        if self.budget is None:
            return False
        what, _, text = self.budget.partition("_bytes:")
        number = text.rstrip("BkMGT")
        limit = float(number) * 1000 ** ("B", "kB", "MB", "GB", "TB").index(text[len(number) :])
        return {"up": up, "down": down, "total": up + down}[what] >= limit

    def identity(self) -> str:
        """Sixteen hex digits that two runs share exactly if all of their settings are equal."""
        text = json.dumps(self.tree(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


AXES = {
    "data": ("datasets", "digits"),
    "partition": ("partitions", "iid"),
    "model": ("models", "mlp"),
    "method": ("methods", "fedavg"),
    "exchange": ("exchanges", "star"),
}
"""For each named table, the folder of its modules and the name taken when none is given."""


def names(table: str) -> list[str]:
    """The names that `table` may have, without importing any of them."""
    folder = Path(__file__).parent / AXES[table][0]
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules([str(folder)]))


def module(table: str, name: str) -> Any:
    """The module behind `[table] name = ...`."""
    return importlib.import_module(f"fedmpi.{AXES[table][0]}.{name.replace('-', '_')}")


@functools.cache
def schema(table: str, name: str) -> type[Table]:
    """The settings of `[table]` under that name, with the name itself as their default."""
    field = (Literal[name], Field(name, description=f"There are: {', '.join(names(table))}."))
    base: type[Table] = module(table, name).Config
    narrowed: Any = {"name": field}
    return pydantic.create_model("Config", __base__=base, __doc__=base.__doc__, **narrowed)


@functools.cache
def whole(chosen: tuple[str, ...]) -> type[Settings]:
    """All settings, with a name for each of `AXES`; building it takes longer than a check."""
    kinds = {table: schema(table, name) for table, name in zip(AXES, chosen, strict=True)}
    narrowed: Any = {table: (kind, Field(default_factory=kind)) for table, kind in kinds.items()}
    return pydantic.create_model("Settings", __base__=Settings, **narrowed)


def kinds(annotation: Any) -> dict[str, type[Table]]:
    """The tables that a setting may be, by their `kind`; nothing if it is no such setting."""
    tables = [one for one in get_args(annotation) if is_table(one) and "kind" in one.model_fields]
    return {get_args(table.model_fields["kind"].annotation)[0]: table for table in tables}


def is_table(kind: Any) -> bool:
    """Whether a type is a table of settings."""
    return isinstance(kind, type) and issubclass(kind, Table)


def written(value: Any) -> str:
    """A setting's value as it is written behind `key=`; "absent" if it is not written at all."""
    if value is None:
        return "absent"
    return value if isinstance(value, str) else _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = (f"{name} = {_toml(one)}" for name, one in value.items() if one is not None)
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, default=str)
