"""For people: how a run's samples are divided, as a table, a picture and a file."""

from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from fedmpi import config, datasets
from fedmpi.clients import heterogeneity
from fedmpi.clients.population import Population
from fedmpi.clients.skew import Traits
from fedmpi.config import ConfigError, Settings
from fedmpi.draft import PICTURES, try_out
from fedmpi.errors import fitting
from fedmpi.partitions import frozen
from fedmpi.terminal.style import console, grid, number

CROWD = 20
"""Most clients that are listed one by one."""
OUTERMOST = 3
"""Of more than these, so many stand at each end."""
Peculiar = dict[str, tuple[str, list[str] | None]]
"""Skews by name: a text about all clients, and one for each of them if it fits into a column."""
HEADS = ("samples", "test", "classes", "effective", "distance")
LEGEND = """\
distance: total variation between the client's labels and those of all clients; 0 is no difference
effective: as many classes in equal parts would be as uncertain; exp of the entropy of the labels"""


@fitting()
def survey(settings: Settings, plot: Path | None, freeze: Path | None) -> None:
    """Prints how samples are divided, and draws or freezes it if a file is given.

    Args:
        settings: a run's.
        plot: where to draw it (.png or .svg).
        freeze: where to keep it for `partition.name=frozen` (.npz).

    Raises:
        BadInput: if the settings do not fit together, data are missing, or a file cannot be
            written.
    """
    if plot is not None:
        if plot.suffix.lower() not in PICTURES:
            raise ConfigError(f"--plot {plot}: wanted a name that ends in {' or '.join(PICTURES)}")
        try_out(plot, "--plot", PICTURES[plot.suffix.lower()])
    if freeze is not None:
        frozen.try_out(freeze)
    data = datasets.load(settings)
    population, traits = Population(settings, data), Traits(settings, data)
    counts = population.counts
    tests = np.array([len(shard) for shard in population.test_shards])
    peculiar = _peculiar(traits, population.sizes)
    out = console()
    out.print(_whole(settings, population, counts, tests, peculiar), "", sep="\n")
    out.print(_clients(counts, tests, peculiar))
    out.print("", Text(LEGEND, "dim"), sep="\n")
    if freeze is not None:
        parts = population.held_out, population.shards, population.test_shards
        frozen.freeze(freeze, *parts, data.train_y, data.test_y)
        out.print(Text(f"\nfrozen: partition.name=frozen partition.file={freeze}"), soft_wrap=True)
    if plot is not None:
        # Here, because matplotlib takes a second that the table should not cost.
        from fedmpi.terminal.picture import draw

        draw(counts, _name(settings), plot)
        out.print(Text(f"\ndrawn: {plot}"), soft_wrap=True)


def _name(settings: Settings) -> str:
    """The partition's settings, as they are written on the command line."""
    given = settings.partition.model_dump(exclude_none=True, exclude={"name"})
    words = [f"{key}={config.written(value)}" for key, value in given.items()]
    return "  ".join([settings.partition.name, *words])


def _whole(
    settings: Settings,
    population: Population,
    counts: np.ndarray,
    tests: np.ndarray,
    peculiar: Peculiar,
) -> Table:
    """Returns the table of the whole partition and its heterogeneity."""
    table = grid("", "", left=(0, 1))
    table.show_header = False
    table.columns[0].style = "dim"
    table.columns[1].no_wrap, table.columns[1].overflow = False, "fold"
    found, classes = heterogeneity.measures(counts), len(counts)
    mean, most = (number(found[f"partition_tv_{which}"]) for which in ("mean", "max"))
    for name, text in {
        "partition": _name(settings),
        "data": f"{settings.data.name}: {counts.sum():,} training samples of {classes} classes, "
        f"{len(population.held_out):,} more held out; {tests.sum():,} test samples",
        "clients": f"{len(tests):,}",
        "distance": f"mean {mean}, largest {most}: total variation from the labels of all",
        "sizes": f"Gini coefficient {number(found['partition_gini'])}",
        "effective": f"mean {found['partition_classes']:.2f} of {classes} classes",
        "sha256": population.fingerprint,
        **{name: text for name, (text, _) in peculiar.items()},
    }.items():
        table.add_row(name, text)
    return table


def _peculiar(traits: Traits, sizes: np.ndarray) -> Peculiar:
    """Returns the sentences on the skew of clients' samples."""
    found: Peculiar = {}
    skew, angles = traits.skew, traits.angles
    if skew.rotations:
        counts = (f"{angle}° {(angles == angle).sum():,}" for angle in sorted(set(skew.rotations)))
        text = f"clients by angle: {', '.join(counts)}"
        found["rotated"] = (text, [f"{angle}°" for angle in angles])
    if skew.colour:
        text = f"contrast {_range(traits.contrasts)}, brightness {_range(traits.brightnesses)}"
        found["colour"] = (text, None)
    if skew.noise:
        cells = [number(value) for value in traits.variances]
        found["noise"] = (f"variance {_range(traits.variances)}", cells)
    if traits.shares.any():
        wrong = [traits.replaced(client, size) for client, size in enumerate(sizes.tolist())]
        text = f"{sum(wrong):,} training labels, {_range(traits.shares)} of a client's"
        found["wrong"] = (f"{text}; distances are of true ones", [f"{n:,}" for n in wrong])
    if skew.since:
        found["since"] = (f"from round {skew.since} on; before it all samples are clean", None)
    return found


def _range(values: np.ndarray) -> str:
    return f"{values.min():.2f} to {values.max():.2f}"


def _clients(counts: np.ndarray, tests: np.ndarray, peculiar: Peculiar) -> Table:
    """A row for each client; of many, quartiles of each column and the clients at the ends."""
    sizes, distances = counts.sum(axis=0), heterogeneity.total_variation(counts)
    effective = heterogeneity.effective_classes(counts)
    columns = np.stack([sizes, tests, (counts > 0).sum(axis=0), effective, distances])
    if len(sizes) <= CROWD:
        theirs = {name: cells for name, (_, cells) in peculiar.items() if cells is not None}
        table = grid("client", *HEADS, *theirs)
        for client, values in enumerate(columns.T):
            row = (*_cells(values), *(cells[client] for cells in theirs.values()))
            table.add_row(str(client), *row)
        return table
    table = grid(f"of {len(sizes):,} clients", *HEADS)
    for name, share in (("least", 0), ("quarter", 25), ("median", 50), ("", 75), ("most", 100)):
        values = np.percentile(columns, share, axis=1, method="nearest")
        table.add_row(name or "three quarters", *_cells(values))
    for names, values in (("smallest", "largest"), sizes), (("nearest", "furthest"), distances):
        order = np.argsort(values, kind="stable")
        for name, some in zip(
            names, (order[:OUTERMOST], order[: -OUTERMOST - 1 : -1]), strict=True
        ):
            table.add_row()
            for client in some:
                table.add_row(f"{name}: {client}", *_cells(columns[:, client]))
    return table


def _cells(values: np.ndarray) -> list[str]:
    whole, (effective, distance) = values[:3], values[3:]
    return [*(f"{int(value):,}" for value in whole), f"{effective:.2f}", number(float(distance))]
