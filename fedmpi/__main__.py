"""The command line: `fedmpi`, or `python -m fedmpi`.

Exit codes: 0 done, 2 bad input, 75 stopped by a signal after a checkpoint, 1 anything else; 128 and
its number after a signal that ended ranks which this process had started. Whatever is slow to
import is imported when it is needed.
"""

import copy
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import click

from fedmpi.errors import BadInput, Failure, sentence

RANKS = click.option(
    "--ranks", type=click.IntRange(min=1), help="Number of ranks to start with mpiexec."
)

AGAIN = click.option(
    "--again", is_flag=True, help="Begin anew, without checkpoints, even what is finished."
)


WORDS = "[FILE] [KEY=VALUE]..."
"""How settings are given."""


class Place(click.Path):
    """The path of a file or folder; `~` is the user's home, as in shells."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As in click."""
        name = os.path.expanduser(os.fspath(value))
        if not name.strip():
            self.fail("Wanted a path, found nothing.", param, ctx)
        plain = name.rstrip(os.sep)
        if plain and plain != name and not os.path.isdir(name):
            is_file = not self.dir_okay or plain.lower().endswith((".h5", ".hdf5"))
            if is_file or os.path.lexists(plain):
                said = f"Wanted a folder that is there, or a file without a slash, found {name!r}."
                self.fail(said, param, ctx)
        return super().convert(name, param, ctx)


def be_open() -> None:
    """Opens standard streams that are closed, on nothing: a result's file would take their place,
    and what libraries write to standard error would end in it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # It gets the least number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def be_at_home() -> None:
    """Sets $HOME where it is missing, as in some containers: Open MPI does not start without."""
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)
        home = os.path.expanduser("~")  # as the system's list of users has it, if this one is in it
        os.environ["HOME"] = home if os.path.isabs(home) else tempfile.gettempdir()


def mends(command: Callable[..., None]) -> Callable[..., None]:
    """Makes a command end with one line per problem instead of a traceback.

    The exit code is 2 if its input is wrong, and 1 if the machine refuses what a run needs. After
    Ctrl-C it is that of a process that the signal ended.
    """

    @wraps(command)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except BadInput as error:
            if str(error):
                print(error, file=sys.stderr)
            sys.exit(2)
        except Failure as error:
            print(error, file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    return guarded


def alone(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command, in addition, refuse to do its work once in each rank of a launcher."""

    def guards(command: Callable[..., None]) -> Callable[..., None]:
        @mends
        @wraps(command)
        def guarded(*args: Any, **options: Any) -> None:
            from fedmpi.runs import launch

            launch.check_alone(name)
            command(*args, **options)

        return guarded

    return guards


def tree_of(words: tuple[str, ...]) -> dict[str, Any]:
    """The settings that `[FILE] [KEY=VALUE]...` gives; of a result without the machine's."""
    from fedmpi import config, loading

    tree: dict[str, Any] = {}
    if not words or loading.is_word(words[0]):
        loading.override(tree, words)
        return tree
    from fedmpi.results import record

    file, words = Path(words[0]), words[1:]
    if not record.is_result(file):
        tree = loading.read(file)
        loading.override(tree, words)
        return tree
    # Folders, threads and memory of the machine where it ran say nothing about this one.
    tree = config.portable(record.settings_of(file))
    loading.override(tree, words)
    if loading.PAPER in tree:
        raise config.ConfigError(
            f"{loading.PAPER}:{tree[loading.PAPER]}: wanted settings that leave something "
            f"open, found a result, {file}, which has a value for each"
        )
    paper = record.read(file, lambda found: record.paper_of(found.attrs))
    return tree if paper is None else {**tree, loading.PAPER: paper}


class Command(click.Command):
    """A command that says how settings are written, if one is written as an option."""

    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        """As in click."""
        try:
            return super().parse_args(context, words)
        except click.NoSuchOption as error:
            name = error.option_name.lstrip("-")
            is_taken = any(option.metavar == WORDS for option in self.params)
            if is_taken and name.partition(".")[0] in _settings():
                said = f"No such option: --{name}. A setting is written {name}=VALUE."
                raise click.UsageError(said, context) from None
            raise


def _settings() -> Collection[str]:
    """The names of settings, and of tables of them."""
    from fedmpi.config import Settings

    return Settings.model_fields


class Commands(click.Group):
    """The commands; the exit code is 1 if what they print cannot be written."""

    command_class = Command

    def main(self, *words: Any, **options: Any) -> Any:
        """As in click."""
        try:
            return super().main(*words, **options)
        except (OSError, SystemExit) as error:
            refused = _refused(again=isinstance(error, OSError))
            # In a job of several ranks, the hook for exceptions ends the others.
            if refused is None or (isinstance(error, OSError) and _is_rank()):
                raise
            with suppress(OSError):
                print(sentence("standard output", refused), file=sys.stderr)
            sys.exit(1)


def _refused(again: bool) -> OSError | None:
    """What the system says where standard output cannot be written, which is then given up.

    Args:
        again: something was refused already and is lost: whether it was output, another line tells.
    """
    try:
        if again:
            print()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads it has seen enough
        return None
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _is_rank() -> bool:
    from fedmpi.runs import launch

    return launch.launched() > 1


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fedmpi")
def main() -> None:
    """Compare methods of federated and federated split learning over MPI.

    fedmpi run runs an experiment; without settings it runs a small default one. fedmpi list methods
    shows the methods. fedmpi doctor checks this machine.
    """
    from fedmpi.terminal import letters

    be_open()
    letters.be_lenient()
    be_at_home()


@main.command()
@click.argument("words", nargs=-1, metavar=WORDS)
@RANKS
@click.option(
    "--out",
    type=Place(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Result file (.h5 or .hdf5), or a folder; the file is then named after the settings.",
)
@AGAIN
@mends
def run(words: tuple[str, ...], ranks: int | None, out: Path, again: bool) -> None:
    """Run one experiment and record its result.

    FILE is a settings file (TOML), or a result to be repeated. KEY=VALUE changes a setting, such as
    method.name=topk or lr=0.05; of several for one setting the last counts, and KEY=absent takes
    one back. fedmpi list settings shows all settings. paper:NAME takes that method with the values
    of its paper; KEY=VALUE and FILE win over it.

    Under mpirun or srun this process is one rank of the job. Otherwise --ranks N starts N ranks;
    the default is a single one. A finished run is skipped, and one that was cut off goes on from
    its newest checkpoint.

    At SIGTERM or SIGUSR1 the round is finished and a checkpoint written; the exit code is 75. A
    second signal, SIGINT and SIGHUP end the ranks that were started at once; the exit code is then
    128 and the signal's number.
    """
    _run(words, ["run", *words], ranks, out, again)


def _run(
    words: tuple[str, ...],
    command: list[str],
    ranks: int | None,
    out: Path,
    again: bool,
    file: Path | None = None,
) -> None:
    """Runs settings, in this process or on ranks that it starts.

    Args:
        words: the settings.
        command: words by which ranks do the same.
        ranks: how many to start; None for none.
        out: where the result is, or goes.
        again: whether it begins anew.
        file: the result that the settings are taken from as they are, if it goes on.
    """
    from fedmpi.loading import load
    from fedmpi.runs import launch

    def settings_of() -> Any:
        return load(tree_of(words) if file is None else _whole(file, words))

    if launch.launched() > 1 or ranks is None:
        from fedmpi.results.record import STOPPED
        from fedmpi.runs.job import Job

        job = Job(ranks)
        settings = job.check(settings_of)
        if job.run(settings, out, again=again) == STOPPED:
            job.wire.settle()  # a launcher ends all ranks with the first one that ends so
            sys.exit(launch.STOPPED)
        return
    from fedmpi.engine import Engine
    from fedmpi.results.record import FINISHED, begin, mark_failed
    from fedmpi.runs import earlier

    # What can be wrong is found here, where it is said without the launcher's noise; only devices
    # are left to the ranks, which may be on other machines.
    settings = settings_of()
    path = earlier.place(out, settings)
    state = earlier.state(path, settings)
    if state is not None and state in FINISHED and not again:
        earlier.tidy(path)
        print(f"{path}: {''.join(earlier.verdict(path, state))}", file=sys.stderr)
        return
    begin(path).release()
    Engine(settings.model_copy(update={"device": "cpu"}))
    more = ["--again"] if again else []
    code = launch.start(ranks, [*command, *more, *(() if file else ("--out", str(out)))])
    if code == launch.STOPPED:
        sys.exit(code)
    if code:
        mark_failed(path)
    elif earlier.state(path, settings) not in FINISHED:
        raise Failure(f"{path}: the launcher ended with exit code 0, but the run is not done")
    sys.exit(code if code in (0, 2) else 1)


def _whole(file: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a result, with the machine's, and with words for those on top."""
    from fedmpi import loading
    from fedmpi.results import record

    tree = record.settings_of(file)
    loading.override(tree, words)
    return tree


@main.command()
@click.argument("file", type=Place(path_type=Path, dir_okay=False))
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@RANKS
@mends
def resume(file: Path, words: tuple[str, ...], ranks: int | None) -> None:
    """Go on with the run whose result is FILE, from its newest checkpoint.

    It has the settings that FILE records. KEY=VALUE changes settings of the machine, such as
    threads; another run is refused. The number of ranks may be another one. Everything else is as
    for fedmpi run.
    """
    from fedmpi.results import checkpoint, record

    if record.state_of(file, record.read(file, lambda found: record.identity_of(found.attrs))) in (
        record.RUNNING,
        record.FAILED,
        record.STOPPED,
    ) and not checkpoint.there(file):
        raise BadInput(
            f"{file}: wanted a checkpoint, found none in {checkpoint.folder_of(file)}; fedmpi run "
            "begins anew"
        )
    _run(words, ["resume", str(file), *words], ranks, file, False, file)


@main.command()
@click.argument("file", type=Place(path_type=Path))
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--out",
    type=Place(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder for the results; files are named after the settings.",
)
@click.option(
    "--size",
    metavar="NAME",
    help="A smaller study that the file has beside its own: [sizes.NAME], such as small.",
)
@RANKS
@click.option("--dry-run", is_flag=True, help="Only list the runs and their states.")
@click.option("--count", is_flag=True, help="Only print the number of runs.")
@click.option(
    "--only",
    type=click.IntRange(min=0),
    multiple=True,
    help="Only the run with this number, as listed by --dry-run. Can be repeated.",
)
@AGAIN
@mends
def sweep(
    file: Path,
    words: tuple[str, ...],
    out: Path,
    size: str | None,
    ranks: int | None,
    dry_run: bool,
    count: bool,
    only: tuple[int, ...],
    again: bool,
) -> None:
    """Run all experiments of a sweep FILE (TOML) that are not finished.

    Table [base] has settings of all runs. In each [[grid]] every value is a list, and the runs are
    the product of the lists. Tables [sizes.NAME] change settings of all runs, with --size NAME.
    KEY=VALUE overrides a setting in all runs. Running an interrupted sweep again continues it; a
    run that was cut off goes on from its newest checkpoint. Signals and the exit code 75 are as for
    fedmpi run.
    """
    from fedmpi.runs import launch
    from fedmpi.runs.sweep import Sweep

    if not dry_run and not count and (launch.launched() > 1 or ranks is None):
        from fedmpi.runs.job import Job

        job = Job(ranks)
        plan = job.check(lambda: Sweep(file, out, only, words, size))
        code = job.sweep(plan, again)
        job.wire.settle()
        sys.exit(code)
    plan = Sweep(file, out, only, words, size)
    if count:
        print(len(plan.members))
    elif dry_run:
        for number, state in plan.states().items():
            print(f"{number:4}  {state:10}  {plan.members[number]}{plan.note(number, state)}")
    else:
        assert ranks is not None
        sys.exit(plan.supervise(ranks, again))


@main.command()
@click.argument("words", nargs=-1, metavar=WORDS)
@click.option(
    "--plot",
    type=Place(path_type=Path, dir_okay=False),
    help="Draw the partition into a file (.png or .svg).",
)
@click.option(
    "--freeze",
    type=Place(path_type=Path, dir_okay=False),
    help="Write the partition (.npz), for runs with partition.name=frozen partition.file=FILE.",
)
@alone("partition")
def partition(words: tuple[str, ...], plot: Path | None, freeze: Path | None) -> None:
    """Show how samples are divided among clients, and how heterogeneous clients are.

    FILE and KEY=VALUE are settings, as for fedmpi run. Nothing is trained.
    """
    from fedmpi.loading import load
    from fedmpi.terminal.survey import survey

    survey(load(tree_of(words)), plot, freeze)


@main.command("agent")
@click.argument("words", nargs=-1, metavar=WORDS)
@click.option(
    "--out",
    type=Place(path_type=Path, dir_okay=False),
    default=Path("agent.npy"),
    show_default=True,
    help="File of the agent, for runs with method.agent=FILE.",
)
@click.option(
    "--episodes",
    type=click.IntRange(min=25),
    default=1000,
    show_default=True,
    help="Number of selections that are tried out, in batches of 25.",
)
@alone("agent")
def agent_(words: tuple[str, ...], out: Path, episodes: int) -> None:
    """Train an agent that selects channels, for method.name=spatl.

    FILE and KEY=VALUE are settings, as for fedmpi run, or FILE is a sweep's, for several networks
    in turns. Each network is trained centrally on all samples. The agent learns which share of each
    layer's channels to keep, so that the network saves method.saved of its FLOPs, or what
    method.sparsity in every layer saves.
    """
    from fedmpi.methods.spatl.pretrain import pretrain
    from fedmpi.runs.sweep import members

    trees = [tree_of(words)]
    if "grid" in trees[0]:
        trees = [member.settings.tree() for member in members(Path(words[0]), words[1:])]
    print(pretrain(trees, episodes, out))


@main.command()
@click.argument("words", nargs=-1, metavar=WORDS)
@click.option(
    "--to",
    type=Place(path_type=Path, dir_okay=False),
    required=True,
    help="File of the model (.safetensors), for runs with model.initial=FILE.",
)
@AGAIN
@alone("pretrain")
def pretrain(words: tuple[str, ...], to: Path, again: bool) -> None:
    """Train a model centrally, for runs that begin with it.

    FILE and KEY=VALUE are settings, as for fedmpi run. A single client has all samples, or those
    that data.only says. Settings of clients, partitions, methods, messages and devices are ignored.
    The run is recorded beside the model, in a result of the same name that ends in .h5. Signals,
    checkpoints and the exit code 75 are as for fedmpi run.
    """
    from fedmpi.results.record import STOPPED
    from fedmpi.runs import launch, upstream

    line = upstream.train(tree_of(words), to, again)
    if line == STOPPED:
        sys.exit(launch.STOPPED)
    print(line)


@main.command("list")
@click.argument(
    "what", type=click.Choice(["methods", "data", "models", "partitions", "exchanges", "settings"])
)
@click.argument("name", required=False)
@mends
def list_(what: str, name: str | None) -> None:
    """List methods, data, models, partitions, exchanges or settings.

    With NAME, describe one of them with its settings and their defaults. For settings, NAME is a
    table or a setting, such as devices or method.sparsity.
    """
    from fedmpi.terminal.catalogue import show_list

    show_list(what, name)


@main.command()
@click.argument("path", type=Place(path_type=Path))
@mends
def show(path: Path) -> None:
    """Show the settings, provenance and results of the run in PATH, or list a folder's runs."""
    if os.path.isdir(path):
        from fedmpi.terminal.folder import show_folder

        show_folder(path)
        return
    from fedmpi.terminal.show import show_result

    show_result(path)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=Place(path_type=Path))
@click.option("--once", is_flag=True, help="Print all runs once, for a log.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between two looks.",
)
@mends
def watch(paths: tuple[Path, ...], once: bool, every: float) -> None:
    """Follow the runs in PATHS, results or folders, from another terminal or the login node.

    A line for each run: state, rounds, accuracy with its course, bytes, the time of a round and
    what is left. Runs under way come first. Files that have not changed are not read again. Ctrl-C
    ends it, and no run.
    """
    from fedmpi.terminal.watch import watch

    watch(paths, every, once)


@main.command()
@click.argument("file", type=Place(path_type=Path))
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@alone("evaluate")
def evaluate(file: Path, words: tuple[str, ...]) -> None:
    """Measure the model of the result FILE again, on the test set and on the clients' shards.

    Without KEY=VALUE the accuracies are those that the run recorded. KEY=VALUE changes a setting,
    such as skew.noise=0.1, or data.root=FOLDER on another machine; the network must stay as it is.
    """
    from fedmpi.terminal.measured import show_measured

    show_measured(file, words)


@main.group()
def export() -> None:
    """Write what a result holds in other formats."""


@export.command("model")
@click.argument("file", type=Place(path_type=Path))
@click.option(
    "--to",
    type=Place(path_type=Path, dir_okay=False),
    required=True,
    help="File of the model: .safetensors, or .pt for torch.load.",
)
@click.option("--client", type=click.IntRange(min=0), help="The model of this client.")
@click.option("--merged", is_flag=True, help="Put low-rank products (model.lora) into the weights.")
@mends
def export_model(file: Path, to: Path, client: int | None, merged: bool) -> None:
    """Write the model of the result FILE into a file of its own.

    Tensors are named as in the network. Without --client it is the server's model.
    """
    from fedmpi.results import kept

    print(f"{to}: {kept.export(file, to, client, merged)} tensors")


@main.command()
@click.argument(
    "check", required=False, type=click.Choice(["packages", "mpi", "torch", "hdf5", "data"])
)
@click.option(
    "--out",
    type=Place(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder for results, to be checked.",
)
def doctor(check: str | None, out: Path) -> None:
    """Check this machine, or run one CHECK, and say how to fix what is wrong.

    Two MPI ranks are started. The exit code is 0 if experiments can run here, else 1. Missing data
    sets are reported, but do not count as failures.
    """
    from fedmpi.terminal.doctor import examine

    sys.exit(examine(check, out))


@main.group()
def data() -> None:
    """Download data sets."""


@data.command("fetch")
@click.argument("name")
@click.option(
    "--to",
    type=Place(file_okay=False),
    help="Folder for data sets. Default: $FEDMPI_DATA, or ./data if it is not set.",
)
@alone("data fetch")
def data_fetch(name: str, to: str | None) -> None:
    """Download the data set NAME from its official source, unless it is there.

    An interrupted download is continued. Without a network it says which files to put where.
    fedmpi list data shows the names.
    """
    from fedmpi.data.fetch import fetch

    fetch(name, to)


class Benches(click.Group):
    """The benchmarks in `fedmpi.bench`: one is imported when it is called, none to list them."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Their names."""
        from fedmpi import bench

        return list(bench.summaries())

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of the benchmark of that name; None if there is none."""
        from fedmpi import bench

        if name not in bench.summaries():
            return None
        found = copy.copy(bench.command_of(name))
        assert found.callback is not None
        guard = mends if bench.is_on_ranks(name) else alone(f"bench {name}")
        found.callback = guard(found.callback)
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists them with the first sentences of their modules."""
        from fedmpi import bench

        with formatter.section("Commands"):
            formatter.write_dl(list(bench.summaries().items()))


@main.group(cls=Benches)
def bench() -> None:
    """Measure this program against reference implementations.

    Each benchmark first checks that the references compute the same.
    """


if __name__ == "__main__":
    main(prog_name="fedmpi")
