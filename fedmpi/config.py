"""The schema of a run: one tree of settings, typed and frozen. `loading` reads and checks it.

A table of the tree that has a `name` is described by the module of that name: with
`method.name = "topk"` the settings in `[method]` are those of `fedmpi.methods.topk.Config`. There
is no registry; the file name is the name (a dash in a name is an underscore in the file's).
"""

import copy
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import pkgutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import pydantic
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictInt,
)

from fedmpi import inputs
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
Bits = Literal[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 32]
"""Bits of a value, as a setting; EXACT is a float32, not quantized."""
EXACT = 32
"""Bits of a value that is not quantized."""
Spans = Literal["whole", "tensor"]
"""Which values compete for being sent, or share one scale."""
Metres = Annotated[float, Field(gt=0, le=LARGEST, strict=True)]


READ, MACHINE, LATER = "read", "machine", "later"
"""In the metadata of a setting: it is the path of a file that the run reads; or it belongs to the
machine, so that results do not depend on it, and it is no part of a run's identity; or it came
later than results that people have, and is part of the identity where it is not at its default."""

BUDGET = r"^(up|down|total)_bytes:\d+(\.\d+)?(B|kB|MB|GB|TB)$"
TARGET = r"^(accuracy|shard_mean|personal_mean):(0?\.\d+|1(\.0+)?|[1-9](\.\d+)?[eE]-0*[1-9]\d*)$"
DEVICE = r"^(cpu|cuda(:\d+)?)$"
SHA256 = "^[0-9a-f]{64}$"
PLACE = r"^[^\x00]+$"
LABEL = "^[A-Za-z0-9._-]{1,16}$"
BITS = "^([2-9]|1[0-6])$"
"""Patterns of texts; `words.FORMS` says them in words."""
FewBits = Annotated[str, Field(pattern=BITS)]
Factor = Annotated[float, Field(ge=1, le=LARGEST, strict=True)]
Place = Annotated[str, Field(pattern=PLACE), AfterValidator(os.path.expanduser)]
"""The path of a file or folder; `~` is the user's home, as in shells."""


Label = Annotated[StrictInt, Field(ge=0, le=MOST)]
"""A class, as a setting."""
Share = Annotated[float, Field(ge=0, le=1, strict=True)]


class Only(Table):
    """A part of a data set, such as what a model is trained on beforehand, or all but that."""

    classes: tuple[Label, ...] = Field((), strict=False)
    """Classes whose samples are used, in training and tests; they are numbered from 0 in this
    order. If empty, all are."""
    share: tuple[Share, Share] = Field((0.0, 1.0), strict=False)
    """Training samples that are used: those between two shares of an order that is the same for
    every seed. [0.0, 0.5] and [0.5, 1.0] have none in common. Test samples are the same."""

    @property
    def is_all(self) -> bool:
        """Whether all samples are used."""
        return not self.classes and self.share == (0.0, 1.0)


class Data(Table):
    """The data set, and where its files are."""

    name: str = ""
    only: Annotated[Only, LATER] = Only()
    """Part of the data set that is used."""
    root: Annotated[Place | None, MACHINE] = None
    """Folder that holds the data set. If absent, $FEDMPI_DATA and the usual places are searched."""
    cache: Annotated[Place | None, MACHINE] = None
    """Folder for decoded data, shared by all runs. If absent, $FEDMPI_CACHE or the user's cache
    folder is used."""


Moments = tuple[float, ...]
"""A number for each channel."""


class Images(Data):
    """A data set of images in files."""

    pixels: Literal["normalised", "unit"] = "normalised"
    """Values of the pixels. normalised: (pixel / 255 - mean) / deviation in each channel, with
    those of the training set. unit: pixel / 255, from 0 to 1."""

    def moments(self, mean: Moments, std: Moments) -> tuple[Moments, Moments]:
        """What pixels from 0 to 1 are reduced by, and divided by, given the set's by channel."""
        if self.pixels == "normalised":
            return mean, std
        return (0.0,) * len(mean), (1.0,) * len(std)


class Partition(Table):
    """How samples are divided among the clients."""

    name: str = ""


class Skew(Table):
    """Feature and label skew: transformations of clients' samples, in training and test shards."""

    rotations: tuple[Literal[0, 90, 180, 270], ...] = Field((), strict=False)
    """Angles in degrees, counter-clockwise, by which clients' images are rotated. Each client has
    one angle. Every item of the list gets equally many clients, so that an angle listed twice gets
    twice as many. An empty list rotates nothing."""
    colour: float = Field(0.0, ge=0, lt=1)
    """Strength of a colour shift per client and channel: a factor from [1 - colour, 1 + colour] and
    an offset from [-colour, colour], applied to normalised images. 0 changes nothing."""
    noise: float = Field(0.0, ge=0, le=LARGEST)
    """Variance of the Gaussian noise in the last client's samples, added to normalised samples.
    Client k of K, counted from 1, has k / K of it. A sample's noise is the same in every epoch."""
    labels: float = Field(0.0, ge=0, le=1)
    """Share of each client's training labels that are replaced by another class, drawn
    uniformly."""
    labels_to: float | None = Field(None, ge=0, le=1)
    """If given, each client's share of wrong labels is drawn uniformly between labels and this
    value."""
    since: int = Field(0, ge=0, le=MOST)
    """Round from which samples have this skew; before it they have none. 0 is from the start, an
    agreement before the first round included."""

    def holds(self, t: int) -> bool:
        """Returns whether samples have the skew in round t."""
        return max(t, 0) >= self.since

    @property
    def changes_nothing(self) -> bool:
        """Whether samples and labels stay as they are, whatever the round."""
        is_turned = any(self.rotations)
        return not (is_turned or self.colour or self.noise or self.labels or self.labels_to)


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda one: [str(one)] if isinstance(one, str) else one),
    Field(strict=False),
]
"""Names, as a setting; a single one may stand without a list."""


class Lora(Table):
    """Low-rank products beside the weights of linear layers (LoRA): W + alpha / rank * B A."""

    rank: int = Field(0, ge=0, le=MOST)
    """Rank of the products. 0 is without. A is drawn from the seed, and B is zero at first."""
    alpha: float | None = Field(None, gt=0, le=LARGEST)
    """The product's factor times the rank. If absent, it is the rank: the factor is 1."""
    layers: Names = ()
    """Linear layers that have a product: names of stages, modules or layers, or ends of names. If
    empty, all linear layers but those of the last stage."""
    fixed: bool = False
    """Freeze A, so that B alone trains and travels, and averages of B are averages of products
    (FFA-LoRA)."""


class Bottleneck(Table):
    """Narrow pairs of layers behind linear layers, with a shortcut (adapters of Houlsby et al.)."""

    width: int = Field(0, ge=0, le=MOST)
    """Width of each pair's hidden layer. 0 is without."""
    layers: Names = ()
    """Linear layers that a pair follows, as in lora."""


class Model(Table):
    """The model that is trained."""

    name: str = ""

    train: Annotated[Names, LATER] = ("all",)
    """What trains; the rest is frozen: it stays as it is, never travels, and has no gradients. all:
    every parameter. head: the last stage. bias: all biases, and the head. adapters: those of lora
    or bottleneck, and the head. Others are names of stages, modules or tensors; several are a
    list."""
    lora: Annotated[Lora, LATER] = Lora()
    """Low-rank products beside linear layers, with train = adapters."""
    bottleneck: Annotated[Bottleneck, LATER] = Bottleneck()
    """Narrow layers behind linear layers, with train = adapters."""
    initial: Annotated[Place | None, READ, LATER] = None
    """File of initial weights: safetensors with the model's own names, as fedmpi export model
    writes them, or with those of torchvision's ResNets, of Hugging Face's BERT and ViT, or of
    timm's ViT; or a result that keeps a model. Every tensor must fit, except what fresh names. If
    absent, weights are drawn from the seed."""
    fresh: Annotated[Names, LATER] = ()
    """Stages, modules or tensors that are drawn from the seed although there is a file of initial
    weights, such as head for other classes."""

    @property
    def freezes(self) -> bool:
        """Whether some parameters never train."""
        return "all" not in self.train

    @property
    def pads(self) -> str:
        """The setting by which vectors of zeros between stages are padding; "" if none are."""
        return ""


Uploads = Literal["updates", "codes", "models", "nothing"]
"""What the clients of a method upload (see `Method.uploads`)."""


class Method(Table):
    """The method: what clients and server do with their models and messages.

    Every rank must know the facts below, but the server's half of a method exists on the root
    alone. So they follow from the settings. The defaults are those of FedAvg.

    Attributes:
        broadcasts: whether the server sends all participants the same message when a round begins;
            it holds the control variate, if there is one.
        sends: whether it also sends each participant a message of its own.
        sends_changes: whether the server sends changes of its model in place of the model, to each
            participant those that it missed (see `training.downlink`).
        can_send_changes: whether the settings can have it so (`codec.down`): whether the broadcast
            is the whole model, by which the clients' models begin the round, and each step of the
            server adds to the model what does not depend on it.
        own_changes: the setting that says how the server's word is compressed, in methods that have
            one of their own.
        is_global: whether the server has a whole model that can be evaluated.
        adds: whether uploads are added up by what both halves know: then any rank can add its
            clients' (see `fedavg.Half`), and the server needs no upload by itself.
        pools: whether every client uploads a whole update, as a median or trimmed mean needs it.
        keeps_state: whether clients keep state between rounds; they then stay on their rank.
        converses: whether clients and server exchange messages in each local step (split methods).
        in_halves: whether the server can serve one half of the clients while the other computes.
        in_turn: whether clients work one after the other, each starting where the last one ended.
        average_every: rounds between two averages. Between them clients go on from what they have,
            so that the same clients take part, and no budget ends the run.
        owns: whether each client has a whole model of its own between rounds, in a store `model`.
        owns_mask: whether that model has a mask of the client's own (`owned_mask`).
        slices: whether each client can say which channels of its model to keep if it is sliced.
        has_link: whether what happens to activations at a cut can be judged: whether it is other
            than nothing without randomness, too.
        keeps_zeros: whether zeros in a sample's activations arrive at the other side of a cut as
            zeros.
        optimizes: whether the server moves its model by the mean of updates, and by nothing else,
            so that a server optimizer (`aggregation.server`) can take the step instead.
        fits: whether the largest share of the model that fits a device can be found (`Tier.fit`).
        controls: whether control variates can correct its clients' gradients (`control`).
        chooses: whether a client uploads the largest values of an update, a number k of them that
            all ranks know, so that sums of uploads can be cut down to k values, too
            (`exchange.reselect`).
        uploads: what clients upload. A codec (`codec`) takes updates, that is values in float32,
            the first block of an upload. Codes are written as the method says; models are none.
        apart: whether running statistics travel in a block of their own, behind the update.
        travels: whether the positions of an update's values travel with them.
        loses: whether something is left out of an update.
        feedbacks: values of the setting `feedback` that are possible. Feedback needs updates of
            one vector, whose positions mean the same in every round.
        implies: settings of the run that the method's name stands for, by their paths: defaults of
            their own, for where nothing is written. So a name can stand for settings alone.
        reshapes: whether it trains networks of other shapes inside the model's, or layers of
            another form, so that all weights must train (`Model.train`).
        paper: the values of the method's paper, by the settings' paths, those of the training
            included; `paper:NAME` takes them. The module's docstring names the source. Methods that
            are built on this one have papers of their own (see `paper_of`).
    """

    name: str = ""

    implies: ClassVar[Mapping[str, Any]] = {}
    paper: ClassVar[Mapping[str, Any]] = {}
    broadcasts: ClassVar[bool] = True
    sends_changes: ClassVar[bool] = False
    can_send_changes: ClassVar[bool] = True
    own_changes: ClassVar[str] = ""
    is_global: ClassVar[bool] = True
    in_halves: ClassVar[bool] = True
    adds: ClassVar[bool] = True
    chooses: ClassVar[bool] = False
    in_turn: ClassVar[bool] = False
    converses: ClassVar[bool] = False
    controls: ClassVar[bool] = False
    uploads: ClassVar[Uploads] = "updates"
    apart: ClassVar[bool] = False
    feedbacks: ClassVar[tuple[str, ...]] = ("none", "classic", "ef21")
    fits: ClassVar[bool] = False
    owns: ClassVar[bool] = False
    owns_mask: ClassVar[bool] = False
    slices: ClassVar[bool] = False

    @property
    def sends(self) -> bool:
        return False

    @property
    def reshapes(self) -> bool:
        return False

    @property
    def pools(self) -> bool:
        return True

    @property
    def keeps_zeros(self) -> bool:
        return True

    @property
    def optimizes(self) -> bool:
        return True

    @property
    def keeps_state(self) -> bool:
        return False

    @property
    def travels(self) -> bool:
        return False

    @property
    def loses(self) -> bool:
        return False

    def turns(self, steps: int) -> int:
        """Returns how often a client talks to the server in so many local steps, if it does."""
        return steps

    @property
    def average_every(self) -> int:
        return 1

    @property
    def has_link(self) -> bool:
        return False

    def width(self, capacity: int, clients: int) -> int:
        """Number of clients that work and upload in one wave.

        Args:
            capacity: number of dense models that fit into `exchange.window`.
            clients: number of clients of the run.
        """
        return capacity

    def agreements(self, rounds: int) -> frozenset[int]:
        """The rounds in which clients agree on something, such as a mask, and none trains.

        All clients take part in them. Round -1 comes before the first one.

        Args:
            rounds: number of rounds of the run.
        """
        return frozenset()

    def network(self, network: Any) -> Any:
        """The network that the method trains in place of the model's; by default the model's."""
        return network

    def theirs(self, trainer: Any) -> Any:
        """The network whose values a client uploads; by default all of it.

        Args:
            trainer: has the network and the samples.
        """
        return trainer.flat

    def held(self, trainer: Any) -> Any:
        """What a kind of device trains that holds some share of the model, if the method `fits`.

        Args:
            trainer: has the network and the samples.

        Returns:
            A function of a tier and a share; it returns a network, and which positions of it are
            not pruned (see `burden.Burden`).
        """
        raise NotImplementedError

    def idle(self, settings: "Settings") -> dict[str, str]:
        """The method's settings that have no effect in this run, and what would give them one.

        `loading.load` refuses those that are not at their defaults: `method.NAME = VALUE: wanted`,
        and the text. A method that adds to another's settings adds to its answer, too.

        Args:
            settings: of the run; `settings.method` is this.
        """
        return {}

    def problems(self, settings: "Settings") -> list[str]:
        """Names what else cannot be run, as far as no network is needed to tell.

        Args:
            settings: of the run; `settings.method` is this.
        """
        return []

    def reserve(self) -> float:
        """Share of its training samples that each client does not train on."""
        return 0.0

    def reads(self) -> Mapping[str, Path]:
        """Files of the project that the run reads, by the method's settings that name none."""
        return {}


SPARSE = "method.sparsity above 0, found 0"
"""What settings want that say how something becomes sparse (see `Method.idle`)."""


Way = Literal["bcast", "node", "blocks"]
"""Ways of the server's messages to all clients: see `Exchange.down`."""


class Exchange(Table):
    """How messages travel between ranks.

    Attributes:
        adds: whether uploads are added up before they reach the server, so that it learns of their
            sum alone. The method must allow it (`Method.adds`).
        defers: whether it is no way itself, and another one is taken in its place (see
            `exchanges.auto`).
    """

    adds: ClassVar[bool] = False
    defers: ClassVar[bool] = False

    @property
    def reselects(self) -> bool:
        """Whether sums on the way are cut down to their largest values (see `Method.chooses`)."""
        return False

    name: str = ""
    window: Annotated[int, MACHINE] = Field(256, ge=1, le=MOST)
    """Memory in MiB for dense models on the server. If the uploads of a round need more, clients
    upload in waves. It may change rounding where uploads are added up
    on the way, or where rows stacks other networks than dense ones."""
    down: Annotated[Way, MACHINE] = "bcast"
    """How the server's messages to all clients travel. bcast: one MPI_Bcast. node: once to the
    first rank of each node, whose memory the node's other ranks read. blocks: in blocks, of which a
    rank passes on some while others arrive. The result is the same, bit for bit."""
    pipeline: bool = True
    """Overlap the two sides of a split method: the server works for one half of the clients while
    the other half computes. The result is the same, bit for bit on a CPU."""


class Aggregation(Table):
    """How the server combines the updates of a round.

    With any rule but the mean, or with a clip, all clients have equal weight, and the server holds
    all updates at once. Running statistics are averaged under every rule: they are not clipped,
    sorted or blurred.
    """

    rule: Literal["mean", "median", "trimmed"] = "mean"
    """How updates are combined, per coordinate. mean: weighted mean. median: median. trimmed: mean
    without the largest and smallest values."""
    weights: Literal["samples", "equal"] = "samples"
    """Weights of the mean. samples: by the number of training samples. equal: every client counts
    the same."""
    trim: float = Field(0.0, ge=0, lt=0.5)
    """Share of the values that a trimmed mean drops at each end, rounded down."""
    clip: float = Field(0.0, ge=0, le=LARGEST)
    """Largest Euclidean norm of a client's update; longer ones are scaled down by the server. 0
    disables clipping."""
    noise: float = Field(0.0, ge=0, le=LARGEST)
    """Standard deviation of the Gaussian noise added to the aggregate, in units of clip / number of
    updates. 0 adds none."""
    server: Literal["none", "momentum", "adam", "yogi", "adagrad", "fedexp"] = "none"
    """Optimizer of the server, which takes the aggregate as its gradient. none: the model moves by
    the aggregate times server_lr. momentum: heavy-ball momentum (FedAvgM). adam, yogi, adagrad:
    adaptive rates (FedOpt). fedexp: a rate of at least 1, the larger the more updates disagree
    (FedExP)."""
    server_lr: float | None = Field(None, gt=0, le=LARGEST)
    """Learning rate of the server. If absent, it is 1 with none and momentum, and 0.1 with adam,
    yogi and adagrad. fedexp chooses its own."""
    beta1: float | None = Field(None, ge=0, lt=1)
    """Momentum of the server, or decay rate of its mean update. If absent, it is 0.9, and 0 with
    adagrad."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Decay rate of the server's mean squared update, in adam and yogi."""
    tau: float = Field(1e-3, gt=0, le=1)
    """Adaptivity of adam, yogi and adagrad: added to the root of the mean squared update, which
    starts at tau^2. In fedexp it is added to the squared length of the mean update."""

    @property
    def rate(self) -> float:
        """The server's learning rate."""
        if self.server_lr is None:
            return 0.1 if self.server in ("adam", "yogi", "adagrad") else 1.0
        return self.server_lr

    @property
    def momentum(self) -> float:
        """The server's momentum, or the decay rate of its mean update."""
        return (0.0 if self.server == "adagrad" else 0.9) if self.beta1 is None else self.beta1

    @property
    def is_plain(self) -> bool:
        """Whether the server moves its model by the aggregate itself."""
        return self.server == "none" and self.rate == 1

    @property
    def is_mean(self) -> bool:
        """Whether it is the weighted mean of the updates as they are."""
        return self.rule == "mean" and not self.clip


LOSSLESS = ("none", "f4", "zstd")
"""Types of values that do not change on the way."""
OPTIONAL = {"zstd": "zstandard"}
"""Packages of the extra `codecs`, by the type of values that wants them."""


def missing(values: str) -> str | None:
    """Returns the package that such values want, if it is not installed; None if all is there."""
    wanted = OPTIONAL.get(values)
    return None if wanted is None or importlib.util.find_spec(wanted) else wanted


class Coded(Table):
    """How values are written in messages."""

    values: str
    bits: int = Field(8, ge=1, le=16)
    """Bits per value, with values = uniform."""
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    """Rounding with values = uniform. stochastic: up or down at random, so that a value is right on
    average. nearest: to the nearest code."""
    scales: Literal["whole", "tensor", "bucket"] = "whole"
    """Which values share one scale, where they are codes or signs. whole: all that are sent.
    tensor: those of each weight or bias. bucket: as many in a row as bucket says."""
    bucket: int = Field(512, ge=1, le=MOST)
    """Number of values that share one scale, with scales = bucket."""
    positions: Literal["auto", "uint32", "bitmap", "delta", "golomb", "dense"] = "auto"
    """Encoding of the positions of values, where some are left out. uint32: 32 bits each. bitmap: a
    bit for each that could be sent. auto: the shorter one of these two. delta: gaps between them,
    in one byte or more each. golomb: gaps in Golomb code, the shortest for positions at random.
    dense: none; values that were left out are sent as zeros."""

    @property
    def is_lossy(self) -> bool:
        """Whether values change on the way."""
        return self.values not in LOSSLESS

    @property
    def is_coarse(self) -> bool:
        """Whether the error of values can be larger than the values, in Euclidean norm."""
        return self.values == "ternary" or (self.values == "uniform" and self.bits == 1)

    @property
    def has_scales(self) -> bool:
        """Whether values are codes, which have a scale."""
        return self.values in ("uniform", "ternary", "sign")


class Down(Coded):
    """What the server sends of its model, in methods whose server sends all of it to every client.

    By default it is the model. Otherwise it is the model's change, compressed. What a change leaves
    out is added to the next one. All sides hold the same model, which moves by what is sent; it is
    the global model of the run. A client that takes part for the first time receives the whole
    model. One that missed rounds receives the changes that it missed, or the whole model if that is
    shorter. Running statistics are sent exactly.
    """

    values: Literal["none", "f4", "zstd", "f2", "bf16", "uniform", "sign"] = "none"
    """Type of the values of the model's change. none: the server sends its whole model in float32.
    The others are those of codec.values; ternary values at random and codes of a single bit are not
    possible, because what they leave out would grow from change to change."""
    bits: int = Field(8, ge=2, le=16)
    """Bits per value, with values = uniform."""
    rounding: Literal["stochastic", "nearest"] = "nearest"
    """Rounding with values = uniform. nearest: to the nearest code; what is lost is added to the
    next change. stochastic: up or down at random."""
    sparsity: float = Field(0.0, ge=0, lt=1)
    """Share of the change's values that are not sent: all but the largest. 0 sends all."""
    spans: Spans = "whole"
    """Which values compete for being sent. whole: those of all parameters. tensor: those of each
    weight or bias by itself, at least one of which is sent."""

    @property
    def is_lossless(self) -> bool:
        """Whether a change loses nothing and is no shorter than the model.

        The server then sends the model.
        """
        return self.values in ("none", "f4") and not self.sparsity


class Codec(Coded):
    """How the values of updates are written in messages, whatever the method chose to send.

    Running statistics are always sent exactly. The change of a control variate is written like an
    update.
    """

    values: Literal["f4", "zstd", "f2", "bf16", "uniform", "ternary", "sign"] = "f4"
    """Type of the values of an update. f4: float32, or what a method that has a coding of its own
    sends. zstd: float32, compressed without loss (wants the package zstandard). f2, bf16: 16-bit
    floats. uniform: codes of some bits between the least and the greatest value. ternary: minus,
    zero or plus the largest magnitude, drawn so that a value is right on average (TernGrad). sign:
    one bit, plus or minus the mean magnitude."""
    down: Down = Down()
    """What the server sends of its model: the model, or its change in some coding."""


class Evaluate(Table):
    """When accuracies are measured, and of which models. All of it is off the books: it adds no
    bytes, seconds or FLOPs.
    """

    every: int = Field(1, ge=1, le=MOST)
    """Rounds between two evaluations. The last of all rounds is always evaluated."""
    link: Literal["network", "link"] = "network"
    """What happens to activations at a cut when accuracies are measured. network: nothing. link:
    what the method does to them without randomness: quantization and top-k, but no dropout. It sees
    them in batches of the local steps' size."""
    final: Literal["none", "evaluate", "tune", "slice"] = "none"
    """A last measurement of every client on its test shard, after all rounds. evaluate: of the
    model that it has. tune: also of the same after final_epochs of local training from it, in which
    pruned weights stay zero; of newcomers after each epoch, and from the initial model besides.
    slice: also of the same without the channels that the client's selection leaves out, before and
    after final_epochs of training, with FLOPs and seconds of inference (spatl)."""
    final_epochs: int = Field(5, ge=1, le=MOST)
    """Epochs of that training, with final = tune or slice. Its learning rate is that of the last
    round."""
    theory: bool = False
    """Measure the terms of a bound on convergence at the averaged model: the squared gradient norm
    of the objective, the variance of minibatches, the drift of clients, and the errors of pruning
    and quantized gradients. It is done in evaluated rounds that end with an average, and takes a
    pass over all training samples."""


class State(Table):
    """Where clients' state lies between rounds, in methods whose clients keep any."""

    memory: Annotated[int, MACHINE] = Field(1024, ge=0, le=MOST)
    """Memory in MiB, per rank and kind of vector, for what clients keep between rounds. What
    exceeds it lies in a file."""
    folder: Annotated[Place | None, MACHINE] = None
    """Folder for that file. If absent, the system's temporary folder ($TMPDIR) is used, which may
    itself be in memory."""


class Checkpoint(Table):
    """When all that a run needs to go on is written beside its result."""

    every: Annotated[int, MACHINE] = Field(0, ge=0, le=MOST)
    """A checkpoint is written after every so many rounds. 0 writes none, except after a signal
    (SIGTERM or SIGUSR1)."""
    seconds: Annotated[int, MACHINE] = Field(0, ge=0, le=MOST)
    """A checkpoint is written after the first round that ends so many seconds after the last one. 0
    writes none by time."""
    memory: Annotated[int, MACHINE] = Field(1024, ge=0, le=MOST)
    """Memory in MiB, per rank, for a copy of what a checkpoint holds, so that it is written while
    the next round trains. What needs more is written before that round begins. 0
    copies nothing, and a round waits until its checkpoint is whole."""
    code: Annotated[Literal["same", "any"], MACHINE] = "same"
    """Whether a run goes on from a checkpoint if the source code of its method, model or data set
    has changed since. same: no, it is an error. any: yes."""


class Fixed(Table):
    """A link with fixed rates. The defaults are round numbers of our own."""

    kind: Literal["fixed"]
    """Type of the link: fixed rates."""
    up: float = Field(10.0, gt=0, le=LARGEST)
    """Uplink rate in Mbit/s."""
    down: float = Field(50.0, gt=0, le=LARGEST)
    """Downlink rate in Mbit/s."""
    latency: float = Field(0.02, ge=0, le=LARGEST)
    """Seconds added to each message, in either direction."""
    power: float = Field(1.0, ge=0, le=LARGEST)
    """Transmit power of the device in watts."""


class Wireless(Table):
    """A radio channel per device; its rate is the Shannon capacity."""

    kind: Literal["wireless"]
    """Type of the link: a radio channel."""
    bandwidth: float = Field(1.0, gt=0, le=LARGEST)
    """Bandwidth of the device's channel in MHz, the same in both directions. With
    devices.spectrum.bandwidth clients share one band instead."""
    power: float = Field(0.1, gt=0, le=LARGEST)
    """Transmit power of the device in watts."""
    server_power: float = Field(1.0, gt=0, le=LARGEST)
    """Transmit power of the server on the device's channel, in watts."""
    distance: tuple[Metres, Metres] = Field((10.0, 100.0), strict=False)
    """Smallest and largest distance to the server in metres. Devices are placed uniformly on that
    ring."""
    exponent: float = Field(3.0, ge=1, le=10)
    """Path loss exponent: 2 in free space, 3 to 5 in towns."""
    loss: float = Field(40.0, ge=0, le=LARGEST)
    """Path loss over the first metre in dB. 40 is free space at 2.4 GHz."""
    noise: float = Field(-174.0, ge=-250, le=0)
    """Noise power density in dBm/Hz. -174 is thermal noise at 290 K."""
    fading: bool = True
    """Rayleigh block fading: drawn per client and round, the same in both directions."""
    latency: float = Field(0.02, ge=0, le=LARGEST)
    """Seconds added to each message, in either direction."""


Compressor = Literal["prune", "width", "quant", "lowrank"]
"""How a model is made smaller for a device; see `methods.hetiot`."""


class Tier(Table):
    """A kind of device."""

    name: str = Field("device", pattern=LABEL)
    """Name of this kind of device in results; at most 16 letters, digits, dots, dashes or
    underscores."""
    share: float = Field(1.0, gt=0, le=1)
    """Share of the clients that have this kind of device. The shares of all tiers sum to 1."""
    gflops: float = Field(1.0, gt=0, le=LARGEST)
    """Sustained training speed of the device in GFLOP/s."""
    memory: float | None = Field(None, gt=0, le=LARGEST)
    """Memory for training in MiB. If absent, there is no limit."""
    keep: float | None = Field(None, gt=0, le=1)
    """Share of the model that the device takes, in methods that fit the model to the device; other
    methods ignore it. If some tiers have a value, those without one take the whole model. If none
    has, the method's own shares are used."""
    bits: Bits | None = None
    """Bits per magnitude of the gradients that the device computes, in methods that quantize the
    gradients of local steps (fedsl); other methods ignore it. If some tiers have a value, those
    without one do not quantize. If none has, the method's own bits are used."""
    speedup: dict[FewBits, Factor] = Field(default_factory=dict)
    """How many times as fast the device computes backward FLOPs with gradients of so many bits, as
    {8 = 2.0, 4 = 3.0}: of what a method quantizes (fedsl: the front). A number of bits that is not
    named computes as the next larger one that is; above all of them nothing is faster."""
    power: float = Field(5.0, ge=0, le=LARGEST)
    """Power of the device while it computes, in watts."""
    epochs: int | None = Field(None, ge=1, le=MOST)
    """Local epochs per round of clients with this kind of device. If absent, the settings epochs
    and epochs_to say it."""
    compressor: Compressor | None = None
    """How hetiot makes the model smaller for the device; other methods ignore it. If absent,
    method.compressor says it."""
    fit: bool = False
    """In place of keep: the device takes the largest share of the model, in steps of 0.05, whose
    training fits its memory and, with its messages, the deadline. Methods that do not fit the model
    to the device ignore it."""
    link: Fixed | Wireless = Field(Fixed(kind="fixed"), discriminator="kind")
    """Link between the device and the server; its kind is fixed or wireless."""

    def faster(self, bits: int) -> float:
        """How many times as fast backward FLOPs are with gradients of so many bits."""
        return max((self.speedup[name] for name in self.speedup if int(name) >= bits), default=1.0)


class Spectrum(Table):
    """What wireless links share: their band, and the chance that a transmission fails."""

    bandwidth: float | None = Field(None, gt=0, le=LARGEST)
    """Band in MHz that a round's clients with wireless links share, the same in both directions.
    Each has a share of it for the whole round, with the power density that its link's power has on
    the whole band: its rate is that share of the whole band's. Where clients train one after the
    other, each has the whole band. If absent, each link has a channel of its own."""
    sharing: Literal["equal", "bytes", "minmax"] = "equal"
    """How a round's clients share the band. equal: all have as much. bytes: in proportion to the
    bytes that they send and receive. minmax: so that all finish at the same time, which is the
    earliest at which the last one can."""
    outage: float = Field(0.0, ge=0, lt=1)
    """Probability that a transmission on a wireless link fails."""
    failed: Literal["repeat", "drop"] = "repeat"
    """What follows. repeat: the message is sent again until it arrives, in either direction; each
    time takes time, and energy if the device sends. drop: the client's upload at the end of the
    round is lost, as by dropouts; other messages arrive."""

    @property
    def drops(self) -> bool:
        """Whether uploads are lost by an outage."""
        return self.outage > 0 and self.failed == "drop"


class Devices(Table):
    """The simulated devices of the clients."""

    tiers: tuple[Tier, ...] = Field((), strict=False)
    """Kinds of devices. Clients are assigned to them once, at random, so that the shares are met.
    Without tiers no device is simulated."""
    server_gflops: float | None = Field(None, gt=0, le=LARGEST)
    """Training speed of the server in split methods, in GFLOP/s. If absent, its work takes no
    simulated time."""
    stragglers: float = Field(0.0, ge=0, le=1)
    """Share of the clients that compute slowly in a round, drawn at random."""
    slowdown: float = Field(5.0, ge=1, le=LARGEST)
    """Factor by which a straggler's computation takes longer."""
    deadline: float | None = Field(None, gt=0, le=LARGEST)
    """Simulated seconds of a round after which the server waits for no upload. A client takes only
    the local steps that fit in. Its messages are predicted to take as long as its uncompressed
    model both ways, twice with control variates. A client without time for a step takes one, and
    its upload is lost, because it comes too late. If absent, there is no deadline."""
    dropouts: float = Field(0.0, ge=0, le=1)
    """Share of the uploads that are lost, drawn at random. Their bytes, time and energy still
    count."""
    spectrum: Spectrum = Spectrum()
    """What the wireless links share: their band, and the chance that a transmission fails."""
    unfit: Literal["error", "rest"] = "error"
    """What happens with devices whose memory is too small for training. error: the run is refused.
    rest: they never take part, but their test shards count."""

    @property
    def can_lose(self) -> bool:
        """Whether uploads can be lost, or come too late."""
        return self.dropouts > 0 or self.deadline is not None or self.spectrum.drops

    @property
    def decide(self) -> bool:
        """Whether devices say which share of the model they take, and not the method."""
        return any(tier.keep is not None or tier.fit for tier in self.tiers)

    @property
    def quantize(self) -> bool:
        """Whether devices say with how many bits they compute gradients, and not the method."""
        return any(tier.bits is not None for tier in self.tiers)


class Settings(Table):
    """One run. The five named tables are narrowed to their modules' own settings by `load`."""

    seed: int = Field(1, ge=0, le=MOST)
    """Seed of every random number in the run."""
    rounds: int = Field(20, ge=1, le=MOST)
    """Number of communication rounds. A budget or a target can end the run earlier."""
    budget: str | None = Field(None, pattern=BUDGET)
    """Communication budget of all clients together. No further round begins once it is reached; a
    method that averages every several rounds finishes these first. Written as up_bytes:50MB, or
    with down_bytes or total_bytes, in B, kB, MB, GB or TB. Messages before the first round count,
    too."""
    target: str | None = Field(None, pattern=TARGET)
    """Accuracy at which the run ends: after the first round whose evaluation found no less. A
    method that averages every several rounds finishes these first. Written as accuracy:0.97 for the
    global model on the test set, or with shard_mean or personal_mean, the columns of the table
    rounds. The result says whether the run ended so."""
    clients: int = Field(10, ge=1, le=MOST)
    """Number of logical clients. One rank hosts many of them."""
    newcomers: int = Field(0, ge=0, le=MOST)
    """Number of clients, the last ones, that never take part. They are measured after the last
    round, with evaluate.final. Where a part of the model stays with the clients, theirs is the
    initial one, and with final = tune they train that part alone."""
    participation: float = Field(1.0, gt=0, le=1)
    """Share of the clients, without newcomers, that take part in a round; at least one does. A
    method that averages every several rounds has the same clients in all of these."""
    sampling: Literal["uniform", "samples", "trace"] = "uniform"
    """How a round's clients are drawn, without replacement. uniform: equal probability. samples:
    probability proportional to sample count; all uploads then have equal weight, as in FedProx,
    unless every client takes part. trace: uniform among available clients; all of them if there are
    too few."""
    trace: Annotated[Place | None, READ] = None
    """CSV file that says which clients are available when, for sampling = trace. Its columns are
    client, first and last: round numbers from 0, both included. It is repeated after its last
    round. An agreement before the first round has every client."""
    trace_sha256: str | None = Field(None, pattern=SHA256)
    """SHA-256 of the trace file. A run with another file is refused. If absent, any file is
    accepted."""
    batch: int = Field(16, ge=1, le=MOST)
    """Batch size of the local steps. The last batch of an epoch may be smaller."""
    epochs: int = Field(2, ge=1, le=MOST)
    """Local epochs per round."""
    epochs_to: int | None = Field(None, ge=1, le=MOST)
    """If given, each client draws its number of local epochs in every round, uniformly from epochs
    to this number, both included."""
    local_steps: int | None = Field(None, ge=1, le=MOST)
    """Local steps per round, the same for every client. If given, it replaces epochs."""
    augment: tuple[Literal["crop", "flip"], ...] = Field((), strict=False)
    """Random augmentation of training images. crop: shift by up to 4 pixels, padded with black.
    flip: mirror horizontally."""
    lr: float = Field(0.1, gt=0, le=LARGEST)
    """Learning rate of the local steps."""
    schedule: Literal["decay", "steps", "cosine", "restarts"] = "decay"
    """Learning rate in round t. decay: lr * lr_decay^t. steps: multiplied by lr_decay at each round
    in lr_steps. cosine: half a cosine from lr to lr_min over all rounds. restarts: the same within
    the local epochs of every round."""
    lr_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the learning rate: per round with schedule = decay, at each round in lr_steps with
    schedule = steps."""
    lr_steps: tuple[Annotated[StrictInt, Field(ge=1, le=MOST)], ...] = Field((), strict=False)
    """Rounds at which the learning rate is multiplied by lr_decay, for schedule = steps."""
    lr_min: float = Field(0.0, ge=0, le=LARGEST)
    """Final learning rate of a cosine schedule."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer of the local steps; its state is reset every round."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Heavy-ball momentum of SGD."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay rate of Adam's mean gradient."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay rate of Adam's mean squared gradient."""
    epsilon: float = Field(1e-8, ge=1e-30, le=1)
    """Added to the root of Adam's mean squared gradient."""
    weight_decay: float = Field(0.0, ge=0, le=LARGEST)
    """Weight decay: weight_decay * w is added to the gradient, after clipping."""
    clip: float = Field(0.0, ge=0, le=LARGEST)
    """Largest Euclidean norm of a client's gradient; longer ones are scaled down. 0 disables
    clipping."""
    proximal: float = Field(0.0, ge=0, le=LARGEST)
    """Weight mu of a proximal term in local training: mu / 2 * ||w - w_t||^2 is added to the loss,
    where w_t is the model that the client received (FedProx). 0 adds none."""
    control: Literal["none", "mean", "niid"] = "none"
    """Control variates, which correct the drift of clients' gradients by c - c_k (SCAFFOLD). They
    travel beside model and update. mean: c_k is the mean of the client's gradients in its last
    round; right for every optimizer. niid: as in the code of NIID-Bench, the correction is a step
    of its own behind the optimizer's, and c_k follows from the update."""
    feedback: Literal["none", "classic", "ef21"] = "none"
    """What becomes of the part of an update that its compression left out, by the method or by
    codec.values. none: it is lost. classic: the client adds it to its next update. ef21: client and
    server keep an estimate of the client's update; the client sends the difference to it, and the
    server averages estimates."""
    statistics: Literal["averaged", "local"] = "averaged"
    """BatchNorm's running statistics. averaged: sent and averaged like parameters. local: each
    client keeps its own and never sends them; the global model is then evaluated with the
    statistics of each batch. In split methods clients' own models are evaluated that way, too."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the training samples that is held out from all clients, to choose the best round."""
    server: Literal["dedicated", "shared"] = "dedicated"
    """Role of rank 0. dedicated: it serves only. shared: it hosts clients, too. A single rank
    always does both."""
    device: str = Field("cpu", pattern=DEVICE)
    """Device for training: cpu, cuda (a node's ranks are spread over its GPUs) or cuda:K."""
    rows: int | None = Field(None, ge=1, le=MOST)
    """Number of clients that train together. If absent: as many as fit into memory on a GPU; on a
    CPU up to 32 for small dense models (an mlp in float32; with up to 262,144 parameters together),
    and one for others. It changes no bit of a result for dense models on a CPU; elsewhere it
    changes rounding. In split methods all clients of a wave train together."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Precision of matrix products: float32, TF32 (GPU only) or bfloat16 by autocast. All other
    operations use float32."""
    threads: Annotated[int | None, MACHINE] = Field(None, ge=1, le=1024)
    """PyTorch threads per rank. If absent, it is the first number in rank 0's $OMP_NUM_THREADS, or
    1."""
    server_threads: Annotated[int | None, MACHINE] = Field(None, ge=1, le=1024)
    """Number of clients whose batches the server processes in parallel threads, in split methods.
    Each thread has as many PyTorch threads as a rank. If absent, idle cores of the node are
    used."""
    server_device: str | None = Field(None, pattern=DEVICE)
    """Device of the server's part in split methods, if rank 0 is dedicated. If absent, it is the
    setting device."""
    keep: Annotated[Literal["none", "last", "best"], MACHINE] = "last"
    """Which model is kept in the result. last: the one after the last round, with what clients have
    of their own: private parts, whole models, statistics. best: the global one after the round with
    the best accuracy on held-out samples, without what clients have. none: none."""
    keep_limit: Annotated[int, MACHINE] = Field(100, ge=1, le=MOST)
    """Largest size in MB of what is kept. If it is exceeded, what clients have of their own is left
    out, and then the model; both are said when the run ends."""
    data: Data
    partition: Partition
    skew: Skew = Skew()
    model: Model
    method: Method
    exchange: Exchange
    aggregation: Aggregation = Aggregation()
    codec: Codec = Codec()
    evaluate: Evaluate = Evaluate()
    state: State = State()
    checkpoint: Annotated[Checkpoint, MACHINE] = Checkpoint()
    devices: Devices = Devices()

    _paper: str | None = PrivateAttr(None)

    @property
    def paper(self) -> str | None:
        """The method whose paper's values stand where nothing was written; none if none do."""
        return self._paper

    def taking(self, paper: str | None) -> Self:
        """Returns a copy that knows whose paper's values it has taken; it is the same run."""
        found = self.model_copy()
        found._paper = paper
        return found

    @property
    def sends_changes(self) -> bool:
        """Whether the server sends changes of its model: see `Method.sends_changes`."""
        return self.method.sends_changes or self.codec.down.values != "none"

    @property
    def broadcasts(self) -> bool:
        """Whether the server sends its model to all participants alike."""
        return self.method.broadcasts and not self.sends_changes

    @property
    def sends(self) -> bool:
        """Whether the server sends each participant a message of its own."""
        return self.method.sends or self.sends_changes

    @property
    def can_add(self) -> bool:
        """Whether uploads can be added up on the way: the server needs no more than their sum."""
        return self.method.adds and self.aggregation.is_mean and self.feedback != "ef21"

    @property
    def keeps_state(self) -> bool:
        """Whether clients keep anything between rounds; they then stay on their rank."""
        local = self.statistics == "local"
        own = self.control != "none" or local or self.sends_changes or self.feeds_back
        return self.method.keeps_state or own

    def tree(self) -> Tree:
        """Every setting, defaults included, as plain values."""
        return self.model_dump(mode="json")

    @property
    def feeds_back(self) -> bool:
        """Whether clients compress their updates with feedback."""
        return self.feedback != "none" and (self.method.loses or self.codec.is_lossy)

    def is_spent(self, up: int, down: int) -> bool:
        """Whether a run with so many bytes has reached its budget."""
        if self.budget is None:
            return False
        what, _, text = self.budget.partition("_bytes:")
        number = text.rstrip("BkMGT")
        limit = float(number) * 1000 ** ("B", "kB", "MB", "GB", "TB").index(text[len(number) :])
        return {"up": up, "down": down, "total": up + down}[what] >= limit

    def is_reached(self, accuracies: Mapping[str, float]) -> bool:
        """Whether a run with such accuracies, by their columns, has reached its target."""
        if self.target is None:
            return False
        name, _, least = self.target.partition(":")
        return accuracies[name] >= float(least)

    def is_agreement(self, t: int) -> bool:
        """Returns whether all clients agree on something in round t and none trains.

        Every round before round 0 is one.
        """
        return t < 0 or t in self.method.agreements(self.rounds)

    def is_average(self, t: int) -> bool:
        """Returns whether the method averages what clients have at the end of round t."""
        return (t + 1) % self.method.average_every == 0 or t + 1 == self.rounds

    def contents(self) -> dict[str, str]:
        """The SHA-256 of each file that a setting names, by the setting's path.

        A file that cannot be read is left out; the run is refused where it is wanted.
        """
        found, tree = {}, self.tree()
        files = {path: _value(tree, path) for path in marked(type(self), READ)}
        files |= {f"method.{name}": str(path) for name, path in self.method.reads().items()}
        for path, file in files.items():
            if file is not None:
                with suppress(OSError):
                    found[path] = hashlib.sha256(inputs.plain(Path(file))).hexdigest()
        return found

    def identity(self) -> str:
        """The run's `identity`, of these settings and the files that they name."""
        return identity(self.tree(), self.contents())


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


def exchanges() -> list[str]:
    """The names of exchanges that are ways of messages themselves."""
    return [name for name in names("exchange") if not module("exchange", name).Config.defers]


def module(table: str, name: str) -> Any:
    """The module behind `[table] name = ...`."""
    return imported(AXES[table][0], name)


def paper_of(method: str) -> Mapping[str, Any]:
    """The values of a method's own paper, by the settings' paths; none if there are none."""
    return vars(module("method", method).Config).get("paper", {})


def imported(folder: str, name: str) -> Any:
    """The module of that name in a folder of the package."""
    return importlib.import_module(f"fedmpi.{folder}.{name.replace('-', '_')}")


def made(title: str, base: type[Any], **given: Any) -> type[Any]:
    """A table that adds to another what no source text says.

    Pydantic would look for docstrings of its settings in the files of all callers, which takes the
    longer the more of them there are.
    """
    unread = {"use_attribute_docstrings": False}
    return pydantic.create_model(title, __base__=base, __cls_kwargs__=unread, **given)


@functools.cache
def schema(table: str, name: str) -> type[Table]:
    """The settings of `[table]` under that name, with the name itself as their default."""
    field = (Literal[name], Field(name, description=f"There are: {', '.join(names(table))}."))
    base: type[Table] = module(table, name).Config
    narrowed: Any = {"name": field}
    return made("Config", base, __doc__=base.__doc__, **narrowed)


@functools.cache
def whole(chosen: tuple[str, ...]) -> type[Settings]:
    """All settings, with a name for each of `AXES`; building it takes longer than a check."""
    kinds = {table: schema(table, name) for table, name in zip(AXES, chosen, strict=True)}
    narrowed: Any = {table: (kind, Field(default_factory=kind)) for table, kind in kinds.items()}
    return made("Settings", Settings, **narrowed)


def kinds(annotation: Any) -> dict[str, type[Table]]:
    """The tables that a setting may be, by their `kind`; nothing if it is no such setting."""
    tables = [one for one in get_args(annotation) if is_table(one) and "kind" in one.model_fields]
    return {get_args(table.model_fields["kind"].annotation)[0]: table for table in tables}


def is_table(kind: Any) -> bool:
    """Whether a type is a table of settings."""
    return isinstance(kind, type) and issubclass(kind, Table)


@functools.cache
def marked(kind: type[Table], mark: str) -> tuple[str, ...]:
    """The paths of the settings of a table, and of the tables in it, that have a mark.

    Args:
        kind: the table.
        mark: `READ` or `MACHINE`.
    """
    found = []
    for name, field in kind.model_fields.items():
        if is_table(field.annotation):
            found += [f"{name}.{path}" for path in marked(field.annotation, mark)]  # type: ignore[arg-type]
        elif mark in field.metadata:
            found.append(name)
    return tuple(found)


def identity(tree: Mapping[str, Any], contents: Mapping[str, str]) -> str:
    """Sixteen hex digits that two runs share exactly if they have equal settings and files.

    Settings that belong to the machine do not count, nor do later ones at their defaults. Of a file
    its content counts and not its path. The data set is checked apart (see `runs.earlier`).

    Args:
        tree: every setting of a run, defaults included, as `Settings.tree` has them and as a
            result records them; of names that are unknown here, too.
        contents: the SHA-256 of the files that settings name, by the settings' paths.
    """
    found = portable(tree)
    for path, default in later(known(_chosen(found))):
        *tables, leaf = path.split(".")
        place = _at(found, tables)
        if place.get(leaf) == default:
            place.pop(leaf, None)
    for path, sha256 in contents.items():
        *tables, leaf = path.split(".")
        _at(found, tables)[leaf] = sha256
    text = json.dumps(found, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def portable(tree: Mapping[str, Any]) -> Tree:
    """Returns a copy of a run's settings without those that belong to the machine.

    Args:
        tree: as in `identity`.
    """
    found = copy.deepcopy(dict(tree))
    for path in marked(known(_chosen(found)), MACHINE):
        *tables, leaf = path.split(".")
        _at(found, tables).pop(leaf, None)
    for name, field in Settings.model_fields.items():
        if is_table(field.annotation) and MACHINE in field.metadata:  # nothing is left of it
            found.pop(name, None)
    return found


def _chosen(tree: Tree) -> tuple[str, ...]:
    """The names in a tree, for each of `AXES`."""
    return tuple(str(_value(tree, f"{table}.name")) for table in AXES)


@functools.cache
def later(kind: type[Table]) -> tuple[tuple[str, Any], ...]:
    """The settings that came later, by their paths, and their defaults as `Settings.tree` has them.

    Args:
        kind: the table that they are in.
    """
    found: list[tuple[str, Any]] = []
    for name, field in kind.model_fields.items():
        if LATER in field.metadata:
            default = field.get_default(call_default_factory=True)
            plain = default.model_dump(mode="json") if isinstance(default, Table) else default
            found.append((name, list(plain) if isinstance(plain, tuple) else plain))
        elif is_table(field.annotation):
            found += [(f"{name}.{path}", value) for path, value in later(field.annotation)]  # type: ignore[arg-type]
    return tuple(found)


@functools.cache
def known(chosen: tuple[str, ...]) -> type[Settings]:
    """All settings, with a name for each of `AXES`; those of every run, if a name is unknown."""
    known = all(name in names(table) for name, table in zip(chosen, AXES, strict=True))
    return whole(chosen) if known else Settings


def _at(tree: Tree, tables: Sequence[str]) -> Tree:
    """The table at a path; an empty one if there is none."""
    for name in tables:
        inner = tree.get(name)
        tree = inner if isinstance(inner, dict) else {}
    return tree


def _value(tree: Tree, path: str) -> Any:
    """The value of a setting in a tree; None if it has none."""
    *tables, leaf = path.split(".")
    return _at(tree, tables).get(leaf)


ABSENT = "absent"
"""Stands behind `key=` for a setting that is not there."""


def written(value: Any) -> str:
    """A setting's value as it is written behind `key=`."""
    if value is None:
        return ABSENT
    # Quotes around a text are left out where it is read.
    is_plain = isinstance(value, str) and value[:1] not in ("'", '"') and value != ABSENT
    return value if is_plain else _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = (f"{name} = {_toml(one)}" for name, one in value.items() if one is not None)
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, default=str)
