"""From what is written to the settings of a run: TOML, `key=value` words, checks and sentences.

All that is wrong with a tree of settings is found at once, and before anything else happens. A
sentence says which setting it is, what was found, and what is possible.
"""

import copy
import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import pydantic

from fedmpi import config
from fedmpi.config import ABSENT, ConfigError, Devices, Settings, Table, Tree, Wireless
from fedmpi.words import Gone, Word, decoded, either, meant, opened, said, unread, want


def read(path: Path) -> Tree:
    """The tree in a TOML file.

    Raises:
        ConfigError: if there is no such file, or it is not TOML.
    """
    wanted = "wanted a file of settings (TOML)"
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        hint = "" if path.suffix else ", or key=value without blanks"
        raise ConfigError(f"{path}: no such file; {wanted}{hint}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', error)}; {wanted}") from None
    if len(content) > LARGEST:
        raise ConfigError(f"{path}: more than {LARGEST >> 20} MiB; {wanted}")
    try:
        tree = tomllib.loads(decoded(content))
    except UnicodeError as error:
        raise ConfigError(f"{path}: {error}; {wanted}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    level: list[Any] = [tree]
    for _ in range(DEEPEST):
        inner = [i for one in level for i in (one.values() if isinstance(one, dict) else one)]
        # Python reads such numbers, but cannot print them all.
        if any(isinstance(one, int) and not -(2**63) <= one < 2**63 for one in inner):
            raise ConfigError(f"{path}: a whole number beyond 64 bits, which is not TOML; {wanted}")
        level = [one for one in inner if isinstance(one, dict | list)]
    if level:
        raise ConfigError(f"{path}: tables in tables, more than {DEEPEST} deep; {wanted}")
    return tree


LARGEST = 1 << 24
"""Bytes of a file of settings; what has more, such as a device without end, is none."""
DEEPEST = 32
"""Tables and lists inside of each other; no setting is as deep."""


def assign(tree: Tree, path: str, value: Any) -> None:
    """Sets `tree[a][b] = value` for the path `a.b`, making tables on the way.

    In a list of tables a step is a number: `devices.tiers.0.memory`.

    Raises:
        ConfigError: if a step of the path is a value, not a table, or beyond the end of a list, or
            if there are too many.
    """
    *steps, leaf = path.split(".")
    if len(steps) >= DEEPEST:
        raise ConfigError(f"{said(Word(path))}: {len(steps)} dots; wanted less than {DEEPEST}")
    place: Any = tree
    for step in steps:
        key = _key(place, path, step)
        if isinstance(place, dict):
            place.setdefault(key, {})
        if isinstance(place[key], Word):
            place[key] = opened(place[key])
        place = place[key]
        if not isinstance(place, dict | list):
            raise ConfigError(f"{path}: '{step}' is a setting, not a table")
    place[_key(place, path, leaf)] = value


def _key(place: dict[str, Any] | list[Any], path: str, step: str) -> Any:
    """What a step of a path is in a table, or in a list, where it is a number."""
    if isinstance(place, dict):
        return step
    if not (step.isdecimal() and len(step) < 10 and int(step) < len(place)):
        raise ConfigError(f"{path}: wanted a number below {len(place)}, found '{step}'")
    return int(step)


PAPER = "paper"
"""What names, in a tree, the method whose paper's values it wants."""


KEY = re.compile(r"[\w-]+(\.[\w-]+)*")
"""What can stand before the `=` of a setting."""


def is_word(text: str) -> bool:
    """Whether it is one for `override`, and not a file.

    It is a file if there is one of that name, or if what stands before its `=` can be no setting,
    such as `exp/lr=0.05/run.toml`.
    """
    key, equals, _ = text.partition("=")
    is_setting = equals != "" and "/" not in key
    return (is_setting or text.startswith(f"{PAPER}:")) and not os.path.isfile(text)


def override(tree: Tree, words: tuple[str, ...]) -> None:
    """Applies `key=value` words to a tree; the last one of a key wins.

    The values stay `Word`s, which `load` reads as what the setting wants. The word `paper:NAME`
    asks for the values of that method's paper (see `complete`).

    Raises:
        ConfigError: if a word has no `=` or no key.
    """
    for word in words:
        if word.startswith(f"{PAPER}:"):
            tree[PAPER] = word.removeprefix(f"{PAPER}:")
            continue
        path, equals, text = word.partition("=")
        if not equals or not KEY.fullmatch(path.strip()):
            raise ConfigError(f"{said(word)} is not a setting; wanted key=value, such as lr=0.1")
        # Blanks around the `=` belong to neither side.
        path, text = path.strip(), text if path == path.rstrip() else text.strip()
        is_written = at(tree, path, None) is not None
        assign(tree, path, Gone(text) if text == ABSENT and is_written else Word(text))


OF_METHODS = (
    *("method.", "control", "feedback", "codec.", "proximal", "aggregation.", "evaluate."),
)
"""Prefixes of the settings by which a method differs from another one, and not its training."""


def complete(tree: Tree) -> None:
    """Adds to a tree what a paper says, and what the name of its method stands for, in place.

    What is written in the tree stays. A paper's values come before those that the method's name
    implies, and both before the defaults (`config.Method.paper` and `implies`). A paper's values
    include the name of its method. If the tree names another method, the values of the training
    are taken alone, for a comparison.

    Raises:
        ConfigError: if there is no such method, or no values of its paper.
    """
    if (name := meant(str, tree.pop(PAPER, None))) is not None:
        values = _paper(name)
        if at(tree, "method.name", name) != name:
            values = {
                path: value for path, value in values.items() if not path.startswith(OF_METHODS)
            }
        fill(tree, {"method.name": name, **values})
    name = at(tree, "method.name", config.AXES["method"][1])
    if name in config.names("method"):
        fill(tree, {"method.name": name, **config.module("method", name).Config.implies})


def _paper(name: Any) -> Mapping[str, Any]:
    """The values of a method's paper."""
    papers = {one: config.paper_of(one) for one in config.names("method")}
    possible = [one for one, values in papers.items() if values]
    if name not in possible:
        close = difflib.get_close_matches(str(name), possible, 1)
        guess = f" (did you mean '{close[0]}'?)" if close else ""
        raise ConfigError(
            f"{PAPER}:{said(Word(name))}: no values of such a paper{guess}; there are: "
            f"{', '.join(possible)}"
        )
    return papers[name]


def fill(tree: Tree, values: Mapping[str, Any]) -> None:
    """Sets what a tree lacks, in place.

    What is written wins, and so does what it means: a value is left out if it belongs to another
    module than the tree's, or if it means nothing beside the tree's choices (`BELONGS`,
    `REPLACES`).

    Args:
        tree: of settings.
        values: by their paths.
    """
    written, absent = copy.deepcopy(tree), object()

    def meant(path: str, default: Any) -> Any:
        return at(written, path, values.get(path, default))

    for path, value in values.items():
        table, _, leaf = path.partition(".")
        if table in config.AXES and leaf != "name":
            name, default = f"{table}.name", config.AXES[table][1]
            if meant(name, default) != values.get(name, default):
                continue
        if path in BELONGS:
            other, possible = BELONGS[path]
            if meant(other, Settings.model_fields[other].default) not in possible:
                continue
        is_replaced = path in REPLACES and REPLACES[path] in written
        if not is_replaced and at(written, path, absent) is absent:
            assign(tree, path, copy.deepcopy(value))


def at(tree: Any, path: str, absent: Any) -> Any:
    """What a tree has at a path, or on the way there if that is no table; else `absent`."""
    for step in path.split("."):
        if not isinstance(tree, Mapping):
            break
        if step not in tree:
            return absent
        tree = tree[step]
    return tree


def load(tree: Tree) -> Settings:
    """Checks a tree of settings and fills in what is implied, and the defaults.

    Raises:
        ConfigError: with every problem at once, each with its path, what was found and what is
            possible.
    """
    # What does not depend on names is read first, because names and papers depend on it.
    tree = meant(Settings, copy.deepcopy(dict(tree)))
    paper, problems = meant(str, tree.get(PAPER)), list[str]()
    try:
        complete(tree)
    except ConfigError as error:
        problems += error.problems
    chosen = []
    for table, (_, default) in config.AXES.items():
        given = tree.get(table, {})
        name = given.get("name", default) if isinstance(given, Mapping) else default
        if name not in config.names(table):
            close = difflib.get_close_matches(str(name), config.names(table), 1)
            guess = f" (did you mean '{close[0]}'?)" if close else ""
            possible = ", ".join(config.names(table))
            problems.append(
                f"{table}.name = {said(name)}: no such {table}{guess}; there are: {possible}"
            )
            tree[table], name = {}, default
        chosen.append(name)
    for table, name in zip(config.AXES, chosen, strict=True):
        fields, given = config.module(table, name).Config.model_fields, tree.get(table)
        if isinstance(given, Mapping):  # what is taken back is nothing to another module
            rest = {k: v for k, v in given.items() if k in fields or not isinstance(v, Gone)}
            tree[table] = rest
    whole = config.whole(tuple(chosen))
    try:
        settings = whole.model_validate(meant(whole, tree))
        problems += _contradictions(settings)
    except pydantic.ValidationError as error:
        problems += [_sentence(whole, problem) for problem in error.errors()]
    if problems:
        raise ConfigError(*problems)
    return settings.taking(paper)


def changes(tree: Mapping[str, Any], paper: str | None = None) -> dict[str, Any]:
    """Returns what a run has otherwise than by itself: for each such setting the value instead.

    By itself a setting has the value of the run's paper, or else what the names in the tree imply,
    or else its default. Settings of the machine do not count.

    Args:
        tree: every setting of the run, as `Settings.tree` has them.
        paper: the method whose paper's values the run takes; none if it takes none.

    Raises:
        ConfigError: if there is no module of a name, or no such paper.
    """
    chosen = {table: str(at(tree, f"{table}.name", None)) for table in config.AXES}
    for table, name in chosen.items():
        if name not in config.names(table):
            raise ConfigError(f"{table}.name = {said(name)}: no such {table}")
    named: Tree = {table: {"name": name} for table, name in chosen.items()}
    stated: Tree = {}
    for one in (named, stated):
        if paper is not None:
            one[PAPER] = paper
        complete(one)
    whole = config.whole(tuple(chosen.values()))
    alone = dict(leaves(whole.model_validate(meant(whole, named)).tree()))
    alone |= {
        path: at(stated, path, default)
        for path, default in ((f"{table}.name", name) for table, (_, name) in config.AXES.items())
    }
    own = config.marked(whole, config.MACHINE)
    return {
        path: alone.get(path)
        for path, value in leaves(tree)
        if path not in own and value != alone.get(path) and not _is_idle(tree, path)
    }


def _is_idle(tree: Mapping[str, Any], path: str) -> bool:
    """Whether a setting means nothing beside others of the same run."""
    if path in BELONGS:
        other, possible = BELONGS[path]
        return at(tree, other, None) not in possible
    others = [other for other, replaced in REPLACES.items() if replaced == path]
    return any(at(tree, other, None) is not None for other in others)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the settings in a tree by their paths."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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
REPLACES = {"local_steps": "epochs"}
"""Settings beside which another one means nothing."""


def _contradictions(settings: Settings) -> list[str]:
    """Names settings that contradict each other, although each is valid by itself."""
    found = []
    for name, (other, possible) in BELONGS.items():
        value, choice = getattr(settings, name), getattr(settings, other)
        if choice not in possible and value != Settings.model_fields[name].default:
            means = " or ".join(f"{other} = '{one}'" for one in possible)
            found.append(f"{name} = {said(value)}: wanted {means}, found '{choice}'")
    if settings.sampling == "trace" and settings.trace is None:
        found.append("trace: wanted a file, found none, because sampling = 'trace'")
    pooled = settings.aggregation
    if (pooled.rule == "trimmed") != (pooled.trim > 0):
        found.append(
            f"aggregation.trim = {pooled.trim}: wanted a share above 0 beside aggregation.rule = "
            f"'trimmed', and 0 beside others; found '{pooled.rule}'"
        )
    found += _server_optimizer(settings)
    if settings.proximal and (settings.method.converses or not settings.method.is_global):
        found.append(
            f"proximal = {settings.proximal}: wanted a method whose clients train the global model "
            f"alone, found method.name = '{settings.method.name}'"
        )
    if settings.model.pads and not settings.method.keeps_zeros:
        found.append(
            f"{settings.model.pads}: wanted a method that sends zeros as zeros at the cut, "
            "because they tell padding there; found method.name = "
            f"'{settings.method.name}', which quantizes activations"
        )
    if (settings.target or "").startswith("accuracy:") and not settings.method.is_global:
        found.append(
            f"target = '{settings.target}': wanted a method with a global model, found method.name "
            f"= '{settings.method.name}'; possible are shard_mean and personal_mean"
        )
    if settings.control != "none" and not settings.method.controls:
        found.append(
            f"control = '{settings.control}': wanted a method whose clients train the server's "
            "model without a correction of their own and upload updates of it, found method.name = "
            f"'{settings.method.name}'"
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
            f"aggregation.noise = {pooled.noise}: wanted aggregation.clip above 0, found 0"
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
    skew = settings.skew
    if skew.since and skew.changes_nothing:
        found.append(f"skew.since = {skew.since}: wanted a skew, found none")
    if skew.since >= settings.rounds:
        found.append(
            f"skew.since = {skew.since}: wanted less than rounds = {settings.rounds}, after which "
            "nobody would see the skew"
        )
    judged = settings.evaluate
    trains = judged.final in ("tune", "slice")
    if not trains and judged.final_epochs != config.Evaluate().final_epochs:
        found.append(
            f"evaluate.final_epochs = {judged.final_epochs}: wanted evaluate.final = 'tune' or "
            f"'slice', found '{judged.final}'"
        )
    if judged.final == "slice" and not settings.method.slices:
        found.append(
            "evaluate.final = 'slice': wanted a method whose clients select channels, which is "
            f"spatl, found method.name = '{settings.method.name}'"
        )
    if judged.final == "slice" and settings.statistics == "local":
        found.append(
            "evaluate.final = 'slice': wanted statistics = 'averaged', found 'local': clients that "
            "have not trained have none of their own"
        )
    if judged.theory and not settings.method.is_global:
        found.append(
            "evaluate.theory = true: wanted a method with a global model, at which the gradient is "
            f"measured, found method.name = '{settings.method.name}'"
        )
    if settings.keep == "best" and not (settings.method.is_global and settings.validation):
        found.append(
            "keep = 'best': wanted a method with a global model, and validation above 0, by which "
            f"a round is chosen; found method.name = '{settings.method.name}' and validation = "
            f"{settings.validation}; possible are 'last' and 'none'"
        )
    if judged.link == "link" and not settings.method.has_link:
        found.append(
            "evaluate.link = 'link': wanted a method that changes activations at a cut, without "
            f"randomness, too, found method.name = '{settings.method.name}' with its settings"
        )
    if settings.newcomers >= settings.clients:
        found.append(
            f"newcomers = {settings.newcomers}: wanted less than clients = {settings.clients}"
        )
    if settings.newcomers and judged.final == "none":
        found.append(
            f"newcomers = {settings.newcomers}: wanted evaluate.final = 'evaluate', 'tune' or "
            "'slice', found 'none', which never measures them"
        )
    if settings.precision == "tf32" and settings.device == "cpu":
        found.append("precision = 'tf32': wanted device = 'cuda'; on a CPU float32 or bf16")
    found += _parts(settings)
    found += [*_codec(settings), *_feedback(settings), *_down(settings), *_added_up(settings)]
    found += _predicted(settings)
    if settings.exchange.down != "bcast" and not settings.broadcasts:
        found.append(
            f"exchange.down = '{settings.exchange.down}': wanted a server that sends all clients "
            f"its model, found method.name = '{settings.method.name}' and codec.down.values = "
            f"'{settings.codec.down.values}'"
        )
    return [*found, *_work(settings), *_impossible(settings.devices), *_idle(settings)]


def _parts(settings: Settings) -> list[str]:
    """Names settings of what trains that have no effect or cannot be."""
    model, method, found = settings.model, settings.method, []
    train, lora, bottleneck = said(list(model.train)), model.lora, model.bottleneck
    kinds = {"lora.rank": lora.rank, "bottleneck.width": bottleneck.width}
    if not model.train:
        found.append("model.train = []: wanted all, head, bias, adapters or names, found none")
    if "all" in model.train and len(model.train) > 1:
        found.append(f"model.train = {train}: wanted all by itself, or none of it")
    if "adapters" in model.train and not any(kinds.values()):
        found.append(
            f"model.train = {train}: wanted model.lora.rank or model.bottleneck.width above 0, "
            "found 0"
        )
    for name, size in kinds.items():
        if size and "adapters" not in model.train:
            found.append(f"model.{name} = {size}: wanted model.train = 'adapters', found {train}")
    if all(kinds.values()):
        found.append(
            f"model.bottleneck.width = {bottleneck.width}: wanted one kind of adapters, found "
            f"model.lora.rank = {lora.rank}"
        )
    for table, name in ((lora, "lora.rank"), (bottleneck, "bottleneck.width")):
        for key, value in table:
            is_own = key == name.partition(".")[2]
            if not (is_own or kinds[name]) and value != type(table).model_fields[key].default:
                path = f"model.{name.partition('.')[0]}.{key}"
                found.append(f"{path} = {said(value)}: wanted model.{name} above 0, found 0")
    if model.fresh and model.initial is None:
        found.append(f"model.fresh = {said(list(model.fresh))}: wanted model.initial, found none")
    if method.reshapes and (model.freezes or any(kinds.values())):
        found.append(
            f"model.train = {train}: wanted a method that leaves the model's layers as they are, "
            f"found method.name = '{method.name}'; possible is 'all'"
        )
    return found


def _coded(coded: config.Coded, path: str) -> list[str]:
    """Names settings of a coding of values that have no effect, where values are coded at all."""
    fields, found = type(coded).model_fields, []
    possible = get_args(fields["values"].annotation)
    codes = [f"'{name}'" for name in ("uniform", "ternary", "sign") if name in possible]
    is_uniform = coded.values == "uniform"
    wanted = {
        "bits": (is_uniform, f"{path}.values = 'uniform'", coded.values),
        "rounding": (is_uniform, f"{path}.values = 'uniform'", coded.values),
        "scales": (coded.has_scales, f"{path}.values = {either(codes)}", coded.values),
        "bucket": (coded.scales == "bucket", f"{path}.scales = 'bucket'", coded.scales),
    }
    for key, (has, other, value) in wanted.items():
        given = getattr(coded, key)
        if given != fields[key].default and not has:
            found.append(f"{path}.{key} = {said(given)}: wanted {other}, found '{value}'")
    package = config.missing(coded.values)
    if package is not None:
        found.append(
            f"{path}.values = '{coded.values}': wanted the package {package}, found none; "
            f"pip install {package}"
        )
    if coded.positions == "dense" and coded.values == "sign":
        found.append(
            f"{path}.positions = 'dense': wanted {path}.values with a zero for what is left out, "
            "found 'sign'"
        )
    return found


def _down(settings: Settings) -> list[str]:
    """Names settings of the server's word that have no effect or cannot be."""
    down, method = settings.codec.down, settings.method
    found = _coded(down, "codec.down")
    if down.sparsity and down.values == "none":
        found.append(
            f"codec.down.sparsity = {down.sparsity}: wanted codec.down.values other than 'none', "
            "such as 'f4'"
        )
    for key in ("spans", "positions"):
        value = getattr(down, key)
        if value != config.Down.model_fields[key].default and not down.sparsity:
            found.append(
                f"codec.down.{key} = {said(value)}: wanted codec.down.sparsity above 0, found 0"
            )
    if down.values != "none" and not method.can_send_changes:
        own = f", whose own way is set by {method.own_changes}" if method.own_changes else ""
        found.append(
            f"codec.down.values = '{down.values}': wanted a method whose server sends all clients "
            f"its whole model, found method.name = '{method.name}'{own}"
        )
    return found


UPLOADS = {
    "codes": "has a coding of its own",
    "models": "uploads models, not updates",
    "nothing": "uploads nothing",
}
"""What keeps a codec from a method, by `Method.uploads`."""


def _codec(settings: Settings) -> list[str]:
    """Names settings of the codec that have no effect or cannot be."""
    codec, method, found = settings.codec, settings.method, []
    name, default = f"method.name = '{method.name}'", type(codec)()
    given = {k: v for k, v in codec if k != "down" and v != getattr(default, k)}
    if method.uploads in UPLOADS:
        return [
            f"codec.{key} = {said(value)}: wanted a method that uploads updates in float32, found "
            f"{name}, which {UPLOADS[method.uploads]}"
            for key, value in given.items()
        ]
    found += _coded(codec, "codec")
    if "positions" in given and not method.travels:
        found.append(
            f"codec.positions = '{codec.positions}': wanted a method that sends the positions of "
            f"an update's values, found {name} with its settings"
        )
    return found


def _feedback(settings: Settings) -> list[str]:
    """Names a kind of feedback that the method does not have, or that has no effect.

    Also what would let residuals, estimates or control variates grow without limit.
    """
    method, kind, codec = settings.method, settings.feedback, settings.codec
    kept = {"feedback": kind, "control": settings.control}
    for name, value in kept.items() if codec.is_coarse else ():
        if value != "none":
            found = "'ternary'" if codec.values == "ternary" else "codec.bits = 1"
            return [
                f"{name} = '{value}': wanted codec.values = 'sign', or 'uniform' with 2 bits or "
                f"more, found {found}; its error can be larger than what is sent, so that what "
                "clients keep would grow from round to round"
            ]
    if kind not in method.feedbacks:
        return [
            f"feedback = '{kind}': wanted {either(list(method.feedbacks))}, which method.name = "
            f"'{method.name}' can have"
        ]
    implied = method.implies.get("feedback", "none")
    if kind not in ("none", implied) and not settings.feeds_back:
        return [
            f"feedback = '{kind}': wanted codec.values other than 'f4' and 'zstd', which lose "
            "nothing, or a method that leaves out something of its updates, found method.name = "
            f"'{method.name}' with its settings"
        ]
    return []


def _added_up(settings: Settings) -> list[str]:
    """Names what does not allow an exchange that adds up uploads on their way."""
    found, pooled = [], settings.aggregation
    what = f"exchange.name = '{settings.exchange.name}'"
    if not settings.exchange.adds:
        return []
    if not settings.method.adds:
        found.append(
            f"{what}: wanted a method whose server needs only the sum of uploads, found "
            f"method.name = '{settings.method.name}'; possible is 'star'"
        )
    if not pooled.is_mean:
        found.append(
            f"{what}: wanted aggregation.rule = 'mean' and no clip, found '{pooled.rule}' and "
            f"{pooled.clip}; possible is 'star'"
        )
    if settings.feedback == "ef21":
        found.append(
            f"{what}: wanted a feedback without clients' estimates on the server, found 'ef21'; "
            "possible is 'star'"
        )
    return found + _reselected(settings)


def _predicted(settings: Settings) -> list[str]:
    """Names uploads of which it cannot be predicted what exchanges take, where one is chosen so."""
    method, codec = settings.method, settings.codec
    if not (settings.exchange.defers and settings.can_add):
        return []
    what = f"exchange.name = '{settings.exchange.name}'"
    possible = f"possible are {', '.join(config.exchanges())}"
    if method.uploads != "updates" or method.reshapes:
        return [
            f"{what}: wanted a method whose clients all upload equally many values of an update in "
            f"float32, as far as known before a run, found method.name = '{method.name}'; "
            f"{possible}"
        ]
    if (codec.values, codec.positions) != ("f4", "auto"):
        return [
            f"{what}: wanted codec.values = 'f4' and codec.positions = 'auto', whose bytes are "
            f"known before a run, found '{codec.values}' and '{codec.positions}'; {possible}"
        ]
    return []


def _reselected(settings: Settings) -> list[str]:
    """Names what does not allow sums that are cut down to their largest values."""
    method, found = settings.method, []
    if not settings.exchange.reselects:
        return []
    what = "exchange.reselect = true"
    if not method.chooses:
        found.append(
            f"{what}: wanted a method whose clients send the largest values of an update, topk, "
            f"dgc or stc; found method.name = '{method.name}'"
        )
    elif not method.loses:
        found.append(f"{what}: wanted method.sparsity above 0, found 0.0")
    elif settings.feedback != "classic":
        found.append(
            f"{what}: wanted feedback = 'classic', which takes what is left out, found "
            f"'{settings.feedback}'"
        )
    if settings.control != "none":
        found.append(
            f"{what}: wanted control = 'none', found '{settings.control}': its change would have "
            "to be cut down with the update"
        )
    if settings.aggregation.server == "fedexp":
        found.append(
            f"{what}: wanted an aggregation.server that needs no lengths of updates, found 'fedexp'"
        )
    return found


def _work(settings: Settings) -> list[str]:
    """Names settings of clients' numbers of local steps that have no effect or cannot be."""
    found, tiers = [], settings.devices.tiers
    own = {f"devices.tiers.{place}.epochs": tier.epochs for place, tier in enumerate(tiers)}
    given = {"epochs_to": settings.epochs_to, **own}
    for name, value in given.items():
        if value is not None and settings.local_steps is not None:
            found.append(f"{name} = {value}: wanted no local_steps, found {settings.local_steps}")
    if settings.epochs_to is not None and settings.epochs_to < settings.epochs:
        found.append(
            f"epochs_to = {settings.epochs_to}: wanted at least epochs = {settings.epochs}"
        )
    if settings.epochs_to is not None and tiers and None not in own.values():
        found.append(
            f"epochs_to = {settings.epochs_to}: wanted a kind of devices without epochs of its "
            "own, found none"
        )
    if settings.devices.deadline is not None and settings.method.converses:
        found.append(
            f"devices.deadline = {settings.devices.deadline}: wanted a method whose clients train "
            f"alone, found method.name = '{settings.method.name}', whose clients and server take "
            "each step together"
        )
    return found


def _server_optimizer(settings: Settings) -> list[str]:
    """Names settings of the server's optimizer that have no effect or cannot be combined."""
    pooled, found = settings.aggregation, []
    belongs = {
        "server_lr": ("none", "momentum", "adam", "yogi", "adagrad"),
        "beta1": ("momentum", "adam", "yogi", "adagrad"),
        "beta2": ("adam", "yogi"),
        "tau": ("adam", "yogi", "adagrad", "fedexp"),
    }
    for name, rules in belongs.items():
        value = getattr(pooled, name)
        if value != type(pooled).model_fields[name].default and pooled.server not in rules:
            found.append(
                f"aggregation.{name} = {said(value)}: wanted aggregation.server = "
                f"{' or '.join(map(repr, rules))}, found '{pooled.server}'"
            )
    what = f"aggregation.server = '{pooled.server}'"
    if pooled.server_lr is not None:
        what += f", server_lr = {pooled.server_lr}"
    if not (pooled.is_plain or settings.method.optimizes):
        found.append(
            f"{what}: wanted a method whose server moves its model by the mean of updates alone, "
            f"found method.name = '{settings.method.name}'; possible is 'none' with a rate of 1"
        )
    if pooled.server == "fedexp" and not pooled.is_mean:
        found.append(
            f"{what}: wanted aggregation.rule = 'mean' and no clip, found '{pooled.rule}' and "
            f"{pooled.clip}"
        )
    return found


def _idle(settings: Settings) -> list[str]:
    """Names the method's settings that have no effect, and what else it refuses."""
    method, found = settings.method, []
    for name, wanted in method.idle(settings).items():
        value = getattr(method, name)
        if value != type(method).model_fields[name].default:
            found.append(f"method.{name} = {said(value)}: wanted {wanted}")
    return found + method.problems(settings)


def _impossible(devices: Devices) -> list[str]:
    """Names contradictions in the settings of devices."""
    found = []
    names, total = [tier.name for tier in devices.tiers], sum(tier.share for tier in devices.tiers)
    if names and abs(total - 1) > 1e-6:
        shares = ", ".join(str(tier.share) for tier in devices.tiers)
        found.append(f"devices.tiers have shares {shares}: wanted a sum of 1, found {total:.6g}")
    if len(set(names)) < len(names):
        found.append(f"devices.tiers have names {', '.join(names)}: wanted each at most once")
    for place, tier in enumerate(devices.tiers):
        if isinstance(tier.link, Wireless) and tier.link.distance[0] > tier.link.distance[1]:
            path, value = f"devices.tiers.{place}.link.distance", config.written(tier.link.distance)
            found.append(f"{path} = {value}: wanted the nearest, then the farthest")
    for place, tier in enumerate(devices.tiers):
        if tier.fit and tier.keep is not None:
            found.append(
                f"devices.tiers.{place}.fit = true: wanted no keep beside it, found {tier.keep}"
            )
        if tier.fit and tier.memory is None and devices.deadline is None:
            found.append(
                f"devices.tiers.{place}.fit = true: wanted the device's memory, or "
                "devices.deadline, found neither"
            )
    for name in ("stragglers", "server_gflops", "deadline"):
        value = getattr(devices, name)
        if value and not names:
            found.append(f"devices.{name} = {value}: wanted devices.tiers, found none")
    if devices.unfit == "rest" and not any(tier.memory for tier in devices.tiers):
        found.append("devices.unfit = 'rest': wanted the memory of some devices, found none")
    found += _spectrum(devices)
    if devices.slowdown != Devices().slowdown and not devices.stragglers:
        found.append(f"devices.slowdown = {devices.slowdown}: wanted devices.stragglers above 0")
    return found


def _spectrum(devices: Devices) -> list[str]:
    """Names contradictions in the settings of what wireless links share."""
    found, spectrum = [], devices.spectrum
    radios = {
        place: tier.link
        for place, tier in enumerate(devices.tiers)
        if isinstance(tier.link, Wireless)
    }
    given = {"bandwidth": spectrum.bandwidth, "outage": spectrum.outage}
    for name, value in given.items():
        if value and not radios:
            found.append(
                f"devices.spectrum.{name} = {value}: wanted devices.tiers with a link of kind = "
                "'wireless', found none"
            )
    if spectrum.sharing != "equal" and spectrum.bandwidth is None:
        found.append(
            f"devices.spectrum.sharing = '{spectrum.sharing}': wanted devices.spectrum.bandwidth, "
            "found none"
        )
    if spectrum.failed == "drop" and not spectrum.outage:
        found.append("devices.spectrum.failed = 'drop': wanted an outage above 0, found 0")
    for place, link in radios.items():
        if spectrum.bandwidth is not None and link.bandwidth != 1.0:
            found.append(
                f"devices.tiers.{place}.link.bandwidth = {link.bandwidth}: wanted the default "
                "beside devices.spectrum.bandwidth, which takes its place"
            )
    is_repeated = spectrum.outage > 0 and spectrum.failed == "repeat"
    if devices.deadline is not None and (spectrum.bandwidth is not None or is_repeated):
        found.append(
            f"devices.deadline = {devices.deadline}: wanted links whose rates are known before the "
            "round, found devices.spectrum with a shared bandwidth or with repeated messages"
        )
    return found


def _sentence(whole: type[Table], problem: Mapping[str, Any]) -> str:
    """Returns an error of pydantic as one sentence in the words of the settings."""
    steps, found = list(problem["loc"]), problem["input"]
    if problem["type"] == "extra_forbidden" and steps[-2:] == ["method", "error_feedback"]:
        kinds = either(["none", "classic", "ef21"])
        return f"no setting 'error_feedback' in [method]; it is feedback now, which is {kinds}"
    if problem["type"] == "extra_forbidden":
        table, _, path = _walk(whole, steps[:-1])
        names, last = list(table.model_fields), str(steps[-1])
        close = difflib.get_close_matches(last, names, 1)
        guess = f" (did you mean '{close[0]}'?)" if close else ""
        where = f" in [{'.'.join(path)}]" if path else ""
        if last in ("base", "grid", "sizes", "claim") and not path:
            return f"no setting '{last}'; [base] and [[grid]] are a sweep's: fedmpi sweep FILE"
        if "." in last:
            guess = "; in a file of settings a path stands without quotes"
        return f"no setting {said(last)}{where}{guess}; there are: {', '.join(names)}"
    if problem["type"] == "missing":  # of a list with too few items; no setting has to be given
        steps.pop()
    kind, bounds, path = _walk(whole, steps)
    if not path:  # pydantic does not say where in the tree
        return f"{said(found)}: wanted names of settings in UTF-8"
    what = f"{'.'.join(path)} = {said(found)}"
    if config.is_table(kind):
        first = next(iter(kind.model_fields))
        example = f"{{{first} = ...}}" if path[-1].isdigit() else f"{path[-1]}.{first}"
        if path[-1] in config.AXES and found in config.names(path[-1]):
            return f"{what}: wanted a table; its name is set by {path[-1]}.name={found}"
        return f"{what}: wanted a table, such as {example}{unread(found)}"
    if config.kinds(kind):
        kinds = either(list(config.kinds(kind)))
        return f"{what}: wanted a table with kind = {kinds}{unread(found)}"
    if problem["type"] == "string_unicode":
        return f"{what}: wanted a text in UTF-8"
    mend = "; put it in quotes" if problem["type"] == "string_type" else ""
    return f"{what}: wanted {want(kind, bounds, found)}{unread(found) or mend}"


def _walk(whole: type[Table], steps: Sequence[str | int]) -> tuple[Any, Sequence[Any], list[str]]:
    """The type and the bounds of the settings at a path of pydantic's, and the path as written."""
    kind: Any = whole
    key: Any = str
    bounds: Sequence[Any] = ()
    path: list[str] = []
    for step in steps:
        if config.kinds(kind):  # pydantic names the kind, too, that the table says it is of
            kind = config.kinds(kind)[str(step)]
            continue
        if step == "[key]":  # of pydantic: the name just before it is wrong
            path.pop()
            kind, bounds = key, ()
            continue
        path.append(str(step))
        if get_origin(kind) is dict:
            key, kind = get_args(kind)
            bounds = ()
        elif get_origin(kind) is tuple:
            inner = get_args(kind)
            kind, bounds = inner[0 if inner[-1] is Ellipsis else int(step)], ()
        elif field := getattr(kind, "model_fields", {}).get(step):
            kind, bounds = field.annotation, field.metadata
    return kind, bounds, path
