"""Settings: frozen, named by their values, and explained where they are declared."""

import hashlib
import inspect
import json
from pathlib import Path

import numpy as np
import pydantic
import pytest

from fedmpi import config, loading
from fedmpi.config import AXES, ConfigError, Settings
from fedmpi.errors import BadInput


def loaded(*words: str) -> Settings:
    """Settings by `key=value` words."""
    tree: config.Tree = {}
    loading.override(tree, words)
    return loading.load(tree)


def test_nothing_is_enough() -> None:
    settings = loading.load({})
    assert isinstance(settings, Settings)
    for table, (_, default) in AXES.items():
        assert getattr(settings, table).name == default


def test_tables_with_a_name_are_made_without_a_look_at_their_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What they add has no source text; to search for it takes the longer the deeper the call."""
    chosen = tuple(name for _, name in AXES.values())
    known = config.schema("method", "topk"), config.whole(chosen)
    looks: list[object] = []
    find = inspect.getmodule
    monkeypatch.setattr(inspect, "getmodule", lambda *at: (looks.append(at), find(*at))[1])
    made = config.schema.__wrapped__("method", "topk"), config.whole.__wrapped__(chosen)
    assert not looks
    for one, other in zip(made, known, strict=True):
        assert one is not other and one.__doc__ == other.__doc__
        assert {name: field.description for name, field in one.model_fields.items()} == {
            name: field.description for name, field in other.model_fields.items()
        }
    assert made[0].model_fields["sparsity"].description


def test_devices_can_be_written_as_text() -> None:
    words = (
        "devices.tiers=[{name='a', share=0.4, memory=2}, "
        "{name='b', share=0.6, link={kind='wireless', fading=false}}]"
    )
    settings = loaded(words)
    text = config.written(settings.tree()["devices"]["tiers"])
    assert text.startswith('[{name = "a", share = 0.4, ')
    again = loaded(f"devices.tiers={text}")
    assert again.identity() == settings.identity() != loading.load({}).identity()
    for place, change in ((0, "memory=3.0"), (1, "link.fading=true"), (1, "keep=0.5")):
        changed = loaded(words, f"devices.tiers.{place}.{change}")
        assert changed.identity() != settings.identity()


def test_config_errors_are_bad_input() -> None:
    assert issubclass(ConfigError, BadInput)


def test_settings_are_frozen() -> None:
    settings = loading.load({"method": {"name": "topk"}})
    for part, name in ((settings, "lr"), (settings.method, "sparsity"), (settings, "new")):
        with pytest.raises((pydantic.ValidationError, ValueError)):
            setattr(part, name, 0.5)
    assert settings.identity() == loading.load({"method": {"name": "topk"}}).identity()


def test_identity_does_not_depend_on_how_settings_were_given() -> None:
    one = loading.load({"lr": 1, "seed": 3, "model": {"hidden": [5], "name": "mlp"}})
    other = loading.load({"model": {"name": "mlp", "hidden": (5,)}, "seed": 3, "lr": 1.0})
    assert one.identity() == other.identity()
    assert (
        loading.load({}).identity() == loading.load({"rounds": loading.load({}).rounds}).identity()
    )
    assert len(one.identity()) == 16
    assert int(one.identity(), 16) >= 0


def test_identity_depends_on_every_setting_but_those_of_the_machine() -> None:
    words = [
        *("augment=['flip']", "schedule=cosine", "optimizer=adam", "statistics=local", "rows=9"),
        *(
            "schedule=steps lr_steps=[9] lr_decay=0.5",
            "schedule=cosine lr_min=0.01",
            "precision=bf16",
        ),
        *("optimizer=adam beta1=0.8", "optimizer=adam beta2=0.8", "optimizer=adam epsilon=0.1"),
        *("seed=9", "rounds=9", "clients=9", "participation=0.9", "batch=9", "epochs=9"),
        *("epochs_to=9", "devices.tiers=[{epochs=9}]", "devices.tiers=[{}] devices.deadline=9.0"),
        *("local_steps=9", "lr=0.9", "lr_decay=0.9", "momentum=0.9", "weight_decay=0.9"),
        *("clip=0.9", "validation=0.9", "evaluate.every=9", "server=shared", "device=cuda"),
        *("evaluate.final=tune", "evaluate.final=tune evaluate.final_epochs=9"),
        *("method.name=fedlite evaluate.link=link", "newcomers=9 evaluate.final=evaluate"),
        *("server_device=cuda", "exchange.pipeline=false", "model.hidden=[9]", "method.name=topk"),
        *("partition.name=shards", "data.name=synthetic", "model.name=cnn"),
        *("sampling=samples", "sampling=trace trace=a.csv"),
        f"sampling=trace trace=a.csv trace_sha256={'0' * 64}",
        *("skew.rotations=[90]", "skew.colour=0.9", "skew.noise=0.9", "skew.labels=0.9"),
        *("skew.labels_to=0.9", "devices.dropouts=0.9", "budget=up_bytes:9kB"),
        "target=accuracy:0.9",
        *("aggregation.rule=median", "aggregation.clip=9.0"),
        "aggregation.rule=trimmed aggregation.trim=0.1",
        "aggregation.clip=9.0 aggregation.noise=9.0",
        *("aggregation.server=adam", "aggregation.server_lr=0.9", "proximal=0.9", "control=mean"),
        *("codec.values=f2", "codec.values=f2 feedback=ef21", "codec.values=uniform codec.bits=9"),
        *("codec.down.values=f2", "codec.down.values=uniform codec.down.bits=9"),
        "codec.values=f2 feedback=classic",
        "codec.down.values=uniform codec.down.rounding=stochastic",
        "codec.down.values=sign codec.down.scales=tensor",
        "codec.down.values=f2 codec.down.sparsity=0.9",
        "codec.down.values=f2 codec.down.sparsity=0.9 codec.down.spans=tensor",
    ]
    own = {
        *("threads=9", "server_threads=9", "data.root=/x", "data.cache=/x", "exchange.window=9"),
        "exchange.down=node",
        *("state.memory=9", "state.folder=/x", "keep=none", "keep_limit=9"),
        *(
            "checkpoint.every=9",
            "checkpoint.seconds=9",
            "checkpoint.memory=9",
            "checkpoint.code=any",
        ),
    }
    assert {word.partition("=")[0] for word in own} == set(config.marked(Settings, config.MACHINE))
    said = {one.partition("=")[0].partition(".")[0] for word in words for one in word.split(" ")}
    said |= {word.partition("=")[0].partition(".")[0] for word in own}
    assert said == set(Settings.model_fields), "a new setting needs a word here"
    found = {loaded(*word.split(" ")).identity() for word in ["seed=1", *words]}
    assert len(found) == len(words) + 1
    assert {loaded(word).identity() for word in own} == {loaded().identity()}


def test_identity_is_that_of_what_a_result_records(tmp_path: Path) -> None:
    """Computed here from plain values alone, without settings of the machine and later defaults."""
    trace = tmp_path / "a.csv"
    trace.write_text("client,first,last\n")
    settings = loaded("sampling=trace", f"trace={trace}", "threads=3", "state.memory=7", "lr=0.3")
    tree, contents = json.loads(json.dumps(settings.tree())), settings.contents()
    assert contents == {"trace": hashlib.sha256(trace.read_bytes()).hexdigest()}
    assert config.identity(tree, contents) == settings.identity()
    assert (tree["threads"], tree["state"]["memory"]) == (3, 7), "the tree stays as it was"
    del tree["threads"], tree["server_threads"], tree["state"]["memory"], tree["state"]["folder"]
    del tree["data"]["root"], tree["data"]["cache"], tree["exchange"]["window"]
    del tree["exchange"]["down"], tree["keep"], tree["keep_limit"]
    del tree["checkpoint"]  # all of it
    for name in ("train", "lora", "bottleneck", "initial", "fresh"):  # later, and at their defaults
        del tree["model"][name]
    del tree["data"]["only"]
    tree["trace"] = contents["trace"]
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    assert settings.identity() == hashlib.sha256(text.encode()).hexdigest()[:16]
    # A later version may have other names and settings.
    tree["method"]["name"], tree["new"] = "no-such-method", {"threads": 1}
    whole = tree | {"threads": 5, "data": {**tree["data"], "root": "/x"}}
    assert config.identity(whole, {}) == config.identity(tree, {}) != settings.identity()


def test_of_a_file_its_content_counts_and_not_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    for name, text in (("a.csv", "1"), ("b/c.csv", "1"), ("d.csv", "2")):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    files = ("a.csv", f"{tmp_path}/a.csv", "b/../b/c.csv", "d.csv")
    found = [loaded("sampling=trace", f"trace={file}").identity() for file in files]
    assert found[0] == found[1] == found[2] != found[3]


@pytest.mark.parametrize(
    ("budget", "up", "down", "spent"),
    [
        ("up_bytes:50MB", 49_999_999, 10**9, False),
        ("up_bytes:50MB", 50_000_000, 0, True),
        ("down_bytes:1.5kB", 10**9, 1499, False),
        ("down_bytes:1.5kB", 0, 1500, True),
        ("total_bytes:7B", 3, 3, False),
        ("total_bytes:7B", 3, 4, True),
        ("up_bytes:2GB", 2 * 10**9, 0, True),
        ("up_bytes:2TB", 2 * 10**9, 0, False),
    ],
)
def test_budgets(budget: str, up: int, down: int, spent: bool) -> None:
    assert loading.load({"budget": budget}).is_spent(up, down) == spent
    assert not loading.load({}).is_spent(up, down)


@pytest.mark.parametrize(
    ("target", "found", "reached"),
    [
        ("accuracy:0.97", 0.97, True),
        ("accuracy:1e-3", 0.001, True),
        ("accuracy:9.7E-01", 0.96, False),
        ("accuracy:.97", 0.9699, False),
        ("accuracy:1", 1.0, True),
        ("shard_mean:0.97", 0.5, True),
        ("personal_mean:0.97", 0.99, False),
    ],
)
def test_targets(target: str, found: float, reached: bool) -> None:
    """What is unknown has not been reached."""
    row = {"accuracy": found, "shard_mean": 0.98, "personal_mean": np.nan}
    assert loading.load({"target": target}).is_reached(row) == reached
    assert not loading.load({}).is_reached(row)


NO_TARGETS = ("0.9", "loss:0.9", "accuracy:9", "accuracy:", "shard_min:0.5", "accuracy:50e-1")


@pytest.mark.parametrize("target", NO_TARGETS)
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(ConfigError, match=r"target = '.*': wanted an accuracy such as accuracy:0"):
        loading.load({"target": target})


@pytest.mark.parametrize(
    "budget", ["50MB", "bytes:50MB", "up_bytes:50", "up_bytes:5 MB", "up_bytes:-1B"]
)
def test_what_is_no_budget(budget: str) -> None:
    with pytest.raises(ConfigError, match=r"budget = '.*': wanted bytes such as up_"):
        loading.load({"budget": budget})
