"""What a run is: one tree of settings, typed, frozen and checked before anything else happens.

A table of the tree that has a `name` is described by the module of that name: with
`method.name = "topk"` the settings in `[method]` are those of `fedmpi.methods.topk.Config`. There
is no registry; the file name is the name (a dash in a name is an underscore in the file's).
"""

import copy
import difflib
import functools
import hashlib
import importlib
import json
import pkgutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

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

    def refuse(self, idle: Mapping[str, str]) -> None:
        """Refuses settings that mean nothing here, unless they are at their defaults.

        Args:
            idle: the settings, and beside what they would mean something.

        Raises:
            ConfigError: naming all that are not.
        """
        fields = type(self).model_fields
        found = {name: value for name, value in self if name in idle}
        wrong = [name for name, value in found.items() if value != fields[name].default]
        if wrong:
            texts = (f"{name} = {written(found[name])}: wanted {idle[name]}" for name in wrong)
            raise ConfigError(*(f"method.{text}" for text in texts))

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
def _whole(chosen: tuple[str, ...]) -> type[Settings]:
    """All settings, with a name for each of `ROOMS`; building it takes longer than a check."""
    kinds = {table: schema(table, name) for table, name in zip(AXES, chosen, strict=True)}
    narrowed: Any = {table: (kind, Field(default_factory=kind)) for table, kind in kinds.items()}
    return pydantic.create_model("Settings", __base__=Settings, **narrowed)


def load(tree: Tree) -> Settings:
    """Checks a tree of settings and fills in the defaults.

    Raises:
        ConfigError: with every problem at once, each with its path, what was found and what is
            possible.
    """
    tree, problems = copy.deepcopy(dict(tree)), []
    chosen = []
    for table, (_, default) in AXES.items():
        given = tree.get(table, {})
        name = given.get("name", default) if isinstance(given, Mapping) else default
        if name not in names(table):
            close = difflib.get_close_matches(str(name), names(table), 1)
            guess = f" (did you mean '{close[0]}'?)" if close else ""
            possible = ", ".join(names(table))
            problems.append(
                f"{table}.name = {name!r}: no such {table}{guess}; there are: {possible}"
            )
            tree[table], name = {}, default
        chosen.append(name)
    whole = _whole(tuple(chosen))
    try:
        settings = whole.model_validate(tree)
        problems += _contradictions(settings)
    except pydantic.ValidationError as error:
        problems += [_sentence(whole, problem) for problem in error.errors()]
    if problems:
        raise ConfigError(*problems)
    return settings


BELONGS = {
    "trace": ("sampling", ("trace",)),
    "trace_sha256": ("sampling", ("trace",)),
    "lr_decay": ("schedule", ("decay", "steps")),
    "lr_steps": ("schedule", ("steps",)),
    "lr_min": ("schedule", ("cosine", "restarts")),
    "momentum": ("optimizer", ("sgd",)),
    "beta1": ("optimizer", ("adam",)),
    "beta2": ("optimizer", ("adam",)),
    "epsilon": ("optimizer", ("adam",)),
}
"""Settings that mean something only beside certain values of another one."""


def _contradictions(settings: Settings) -> list[str]:
    """What is wrong with settings that are right one by one."""
    found = []
    for name, (other, possible) in BELONGS.items():
        value, choice = getattr(settings, name), getattr(settings, other)
        if choice not in possible and value != Settings.model_fields[name].default:
            means = " or ".join(f"{other} = '{one}'" for one in possible)
            found.append(f"{name} = {written(value)}: wanted {means}, found '{choice}'")
    if settings.sampling == "trace" and settings.trace is None:
        found.append("trace: wanted a file, found none, because sampling = 'trace'")
    pooled = settings.aggregation
    if (pooled.rule == "trimmed") != (pooled.trim > 0):
        found.append(
            f"aggregation.trim = {pooled.trim}: wanted a share above 0 beside aggregation.rule = "
            f"'trimmed', and 0 beside others; found '{pooled.rule}'"
        )
    if pooled.weights == "equal" and (pooled.rule != "mean" or pooled.clip):
        found.append(
            "aggregation.weights = 'equal': wanted aggregation.rule = 'mean' and no clip, beside "
            f"which all count alike; found '{pooled.rule}' and {pooled.clip}"
        )
    if settings.server_device is not None and settings.server == "shared":
        found.append(
            f"server_device = '{settings.server_device}': wanted a rank that serves only, server = "
            "'dedicated'; found 'shared'"
        )
    if pooled.noise and not pooled.clip:
        found.append(
            f"aggregation.noise = {pooled.noise}: wanted a bound of norms, aggregation.clip"
        )
    if settings.schedule == "steps" and not settings.lr_steps:
        found.append("lr_steps = []: wanted rounds, because schedule = 'steps'")
    if settings.schedule == "steps" and settings.lr_decay == 1:
        found.append("lr_decay = 1.0: wanted a factor below 1, because schedule = 'steps'")
    if len(set(settings.augment)) < len(settings.augment):
        found.append(f"augment = {list(settings.augment)}: wanted each at most once")
    if settings.lr_min > settings.lr:
        found.append(f"lr_min = {settings.lr_min}: wanted at most lr = {settings.lr}")
    if settings.skew.labels_to is not None and settings.skew.labels_to < settings.skew.labels:
        found.append(
            f"skew.labels_to = {settings.skew.labels_to}: wanted at least skew.labels = "
            f"{settings.skew.labels}"
        )
    if settings.precision == "tf32" and settings.device == "cpu":
        found.append("precision = 'tf32': wanted device = 'cuda'; on a CPU float32 or bf16")
    return found + _impossible(settings.devices)


def _impossible(devices: Devices) -> list[str]:
    """What is wrong with the devices of a run."""
    found = []
    names, total = [tier.name for tier in devices.tiers], sum(tier.share for tier in devices.tiers)
    if names and abs(total - 1) > 1e-6:
        shares = ", ".join(str(tier.share) for tier in devices.tiers)
        found.append(f"devices.tiers have shares {shares}: wanted a sum of 1, found {total:.6g}")
    if len(set(names)) < len(names):
        found.append(f"devices.tiers have names {', '.join(names)}: wanted each at most once")
    for place, tier in enumerate(devices.tiers):
        if isinstance(tier.link, Wireless) and tier.link.distance[0] > tier.link.distance[1]:
            path, value = f"devices.tiers.{place}.link.distance", written(tier.link.distance)
            found.append(f"{path} = {value}: wanted the nearest, then the farthest")
    for name in ("stragglers", "server_gflops"):
        value = getattr(devices, name)
        if value and not names:
            found.append(f"devices.{name} = {value}: wanted devices.tiers, found none")
    if devices.unfit == "rest" and not any(tier.memory for tier in devices.tiers):
        found.append("devices.unfit = 'rest': wanted the memory of some devices, found none")
    if devices.slowdown != Devices().slowdown and not devices.stragglers:
        found.append(f"devices.slowdown = {devices.slowdown}: wanted devices.stragglers above 0")
    return found


def _sentence(whole: type[Table], problem: Mapping[str, Any]) -> str:
    """What pydantic found wrong, as one sentence in the words of the settings."""
    steps = [str(step) for step in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        table, path = _walk(whole, steps[:-1])
        names, path = list(table.model_fields), [*path, steps[-1]]
        close = difflib.get_close_matches(path[-1], names, 1)
        guess = f" (did you mean '{close[0]}'?)" if close else ""
        where = f" in [{'.'.join(path[:-1])}]" if path[:-1] else ""
        return f"no setting '{path[-1]}'{where}{guess}; there are: {', '.join(names)}"
    table, path = _walk(whole, steps)
    said = f"{'.'.join(path)} = {problem['input']!r}"
    if problem["type"] == "model_type":
        first = next(iter(table.model_fields))
        example = f"{{{first} = ...}}" if path[-1].isdigit() else f"{path[-1]}.{first}"
        return f"{said}: wanted a table, such as {example}"
    if problem["type"].startswith(("union_tag", "model_attributes")):
        return f"{said}: wanted a table with kind = {' or '.join(_kinds(table))}"
    wanted = {"tuple_type": "wanted a list"}
    message = wanted.get(problem["type"], problem["msg"][0].lower() + problem["msg"][1:])
    return f"{said}: {message}"


def _walk(whole: type[Table], steps: Sequence[str]) -> tuple[Any, list[str]]:
    """The type of the settings at a path of pydantic's, and the path as people write it."""
    kind: Any = whole
    path = []
    for step in steps:
        if _kinds(kind):  # pydantic names the kind, too, that the table says it is of
            kind = _kinds(kind)[step]
            continue
        path.append(step)
        if get_origin(kind) is tuple:
            kind = get_args(kind)[0]
        elif step in getattr(kind, "model_fields", ()):
            kind = kind.model_fields[step].annotation
    return kind, path


def _kinds(annotation: Any) -> dict[str, type[Table]]:
    """The tables that a setting may be, by their `kind`; nothing if it is no such setting."""
    tables = [one for one in get_args(annotation) if _is_table(one) and "kind" in one.model_fields]
    return {get_args(table.model_fields["kind"].annotation)[0]: table for table in tables}


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Table)


def read(path: Path) -> Tree:
    """The tree in a TOML file.

    Raises:
        ConfigError: if there is no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; wanted a file of settings (TOML)") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def assign(tree: Tree, path: str, value: Any) -> None:
    """Sets `tree[a][b] = value` for the path `a.b`, making tables on the way.

    In a list of tables a step is a number: `devices.tiers.0.memory`.

    Raises:
        ConfigError: if a step of the path is a value, not a table, or beyond the end of a list.
    """
    *steps, leaf = path.split(".")
    place: Any = tree
    for step in steps:
        place = place.setdefault(step, {}) if isinstance(place, dict) else _item(place, path, step)
        if not isinstance(place, dict | list):
            raise ConfigError(f"{path}: '{step}' is a setting, not a table")
    if isinstance(place, list):
        _item(place, path, leaf)
        place[int(leaf)] = value
    else:
        place[leaf] = value


def _item(items: list[Any], path: str, step: str) -> Any:
    if not step.isdecimal() or int(step) >= len(items):
        raise ConfigError(f"{path}: wanted a number below {len(items)}, found '{step}'")
    return items[int(step)]


def override(tree: Tree, words: tuple[str, ...]) -> None:
    """Applies `key=value` words to a tree; values are read as TOML, or else as plain text.

    Raises:
        ConfigError: if a word has no `=` or no key.
    """
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise ConfigError(f"'{word}' is not a setting; wanted key=value, such as lr=0.1")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = text
        assign(tree, path, value)


def describe(kind: type[Table]) -> list[tuple[str, str, str, str]]:
    """The settings of a table as rows: name, type, default, explanation."""
    rows = []
    for name, field in kind.model_fields.items():
        text = _type(field.annotation, field.metadata)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, Table):
            default = default.model_dump(exclude_defaults=True)
        rows.append((name, text, written(default), " ".join((field.description or "").split())))
    return rows


def inner(kind: type[Table], path: str) -> Iterator[tuple[str, str, type[Table]]]:
    """The tables inside of the table at that path, at any depth: heading, path and settings."""
    for name, field in kind.model_fields.items():
        below, (item, *_) = f"{path}.{name}", (*get_args(field.annotation), None)
        if get_origin(field.annotation) is tuple and _is_table(item):
            yield f"[[{below}]]", below, item
            yield from inner(item, below)
        for choice, table in _kinds(field.annotation).items():
            yield f"[{below}] with kind = {choice}", below, table


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


def _runs(values: Sequence[Any]) -> list[str]:
    """Values as text; whole numbers, three or more of which follow each other, as a range."""
    found: list[list[Any]] = []
    for value in values:
        if found and type(value) is int and value - 1 == found[-1][-1]:
            found[-1].append(value)
        else:
            found.append([value])
    ranges = [[f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run) for run in found]
    return [text for texts in ranges for text in texts]


def _type(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    """A setting's type and range, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(_runs(inner))
    if origin is Annotated:
        # A bound stands there as it is, or inside of what pydantic's `Field` gives.
        return _type(inner[0], [b for one in inner[1:] for b in getattr(one, "metadata", [one])])
    if _kinds(annotation):
        return f"table: {' | '.join(_kinds(annotation))}"
    if origin in (Union, UnionType):
        return " | ".join(_type(one, bounds) for one in inner if one is not type(None))
    if origin is tuple:
        if _is_table(inner[0]):
            return "list of tables"
        length = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"list of {length}{_type(inner[0])}"
    text = getattr(annotation, "__name__", str(annotation))
    limits = {name: getattr(b, name) for b in bounds for name in SIGNS if hasattr(b, name)}
    if limits.get("le") in (MOST, LARGEST):  # what hardly anybody reaches is no news
        del limits["le"]
    low = next((name for name in ("gt", "ge") if name in limits), None)
    high = next((name for name in ("lt", "le") if name in limits), None)
    if low and high:
        return f"{limits[low]} {SIGNS[low].replace('>', '<')} {text} {SIGNS[high]} {limits[high]}"
    return " ".join([text, *(f"{SIGNS[name]} {limits[name]}" for name in limits)])


SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
