"""Auto: the exchange whose uplink is predicted to take the least time on this machine.

Before the first round rank 0 predicts the seconds of a round's uplink by each exchange that serves
the method (`fedmpi.costs`): for the job's ranks and nodes, the clients of a round, the model's
parameters and the values of an upload. What the machine takes is read from a file that `fedmpi
bench predict` keeps, fitted to files of `fedmpi bench mpi`. The run takes the fastest exchange, and
of several that are as fast the first one by name. If only `star` serves the method, or if there is
a single rank, it is `star`, and no file is read.

All exchanges have the same sum to the rounding that `reduce` states, so results do not differ by
more than that between machines. The exchange is recorded in the result with the predicted seconds,
and a run that goes on from a checkpoint keeps it, also on another number of ranks.

Uploads in few bits, of sub-models, and of models that clients have pruned are not predicted, and
are refused: their bytes are not those of so many float32 values.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from fedmpi import config, costs
from fedmpi.config import MACHINE, Place, Settings
from fedmpi.costs import Load, Model, Step
from fedmpi.errors import BadInput, told


class Config(config.Exchange):
    defers: ClassVar[bool] = True

    costs: Annotated[Place | None, MACHINE] = None
    """File of what this machine takes, as fedmpi bench predict --model writes it. If absent: the
    one in your data folder. Only rank 0 reads it."""


def steps_of(name: str) -> Callable[[Load], list[Step]] | None:
    """Of what steps an exchange consists; None if its module does not say so."""
    found: Callable[[Load], list[Step]] | None = getattr(
        config.module("exchange", name), "steps", None
    )
    return found


def possible(settings: Settings) -> list[str]:
    """The exchanges that serve the method, by name, and whose seconds can be predicted."""
    return [
        name
        for name in config.exchanges()
        if steps_of(name) is not None
        and (settings.can_add or not config.module("exchange", name).Config.adds)
    ]


def read(path: str | None) -> Model:
    """Reads what a machine takes.

    Raises:
        BadInput: if there is no such file, or it is another one.
    """
    file = costs.place() if path is None else Path(path)
    mend = (
        "exchange.name = 'auto' needs what fedmpi bench predict keeps of files of fedmpi bench "
        "mpi; or name an exchange"
    )
    with told(file, mend):
        text = file.read_text(encoding="utf-8", errors="replace")
    try:
        return costs.parsed(text)
    except BadInput as error:
        raise BadInput(f"{file}: {error}; {mend}") from None


def predicted(model: Model, names: Sequence[str], load: Load) -> dict[str, float]:
    """Seconds of a round's uplink by each of some exchanges that say of what steps they consist.

    Raises:
        BadInput: if the model lacks what a step takes.
    """
    found = {}
    for name in names:
        steps = steps_of(name)
        assert steps is not None
        found[name] = sum(model.parts(name, steps(load), load.ranks).values())
    return found


def chosen(settings: Settings, load: Load) -> tuple[str, dict[str, float]]:
    """Returns the exchange of a run, and the predicted seconds by which it was chosen.

    There are none if there was no choice.

    Args:
        settings: of the run.
        load: a round's uplink.

    Raises:
        BadInput: if nothing is known of the machine, or not enough.
    """
    names = possible(settings)
    if names == ["star"] or load.ranks == 1:
        return "star", {}
    assert isinstance(settings.exchange, Config)
    model = read(settings.exchange.costs)
    try:
        seconds = predicted(model, names, load)
    except BadInput as error:
        raise BadInput(f"exchange.name = 'auto': {error}; or name an exchange") from None
    return min(names, key=seconds.__getitem__), seconds


def named(settings: Settings, name: str) -> config.Exchange:
    """The settings of the exchange that is taken; what all have is as it was.

    Raises:
        BadInput: if it does not serve the method.
    """
    if name not in possible(settings):
        raise BadInput(
            f"exchange.name = 'auto': wanted one of {', '.join(possible(settings))}, which serve "
            f"method.name = '{settings.method.name}', found {name!r}"
        )
    common = {key: getattr(settings.exchange, key) for key in config.Exchange.model_fields}
    found = config.schema("exchange", name)(**common | {"name": name})
    assert isinstance(found, config.Exchange)
    return found
