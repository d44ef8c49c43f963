"""From text to settings: all that is wrong is found at once, all that is right is filled in."""

import copy
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from fedmpi import config, loading
from fedmpi.__main__ import tree_of
from fedmpi.config import AXES, ConfigError
from fedmpi.methods import fedprox, topk
from fedmpi.words import FORMS

CHOICES = [(table, name) for table in AXES for name in config.names(table)]
"""Every name of every table."""

every_choice = pytest.mark.parametrize(("table", "name"), CHOICES, ids="-".join)


def problems(tree: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as found:
        loading.load(tree)
    assert str(found.value).split("\n") == list(found.value.problems)
    return found.value.problems


def problem(tree: dict[str, Any]) -> str:
    (only,) = problems(tree)
    return only


def overridden(*words: str, tree: dict[str, Any] | None = None) -> dict[str, Any]:
    tree = {} if tree is None else tree
    loading.override(tree, words)
    return tree


def tier(**settings: Any) -> dict[str, Any]:
    """A tree with one kind of devices."""
    return {"devices": {"tiers": [settings]}}


@every_choice
def test_every_choice_loads_and_comes_back(table: str, name: str) -> None:
    settings = loading.load({table: {"name": name}})
    assert getattr(settings, table).name == name
    tree = settings.tree()
    again = loading.load(tree)
    assert again.tree() == tree
    assert again.identity() == settings.identity()


@every_choice
def test_every_tree_can_be_written_as_text(table: str, name: str) -> None:
    """As JSON it is recorded; as words it can be given again."""
    settings = loading.load({table: {"name": name}})
    words = []
    for key, value in settings.tree().items():
        leaves = value.items() if isinstance(value, dict) else [(None, value)]
        for leaf, one in leaves:
            if one is not None:
                words.append(f"{key}{f'.{leaf}' if leaf else ''}={config.written(one)}")
    assert loading.load(overridden(*words)).identity() == settings.identity()


@pytest.mark.parametrize("text", ["a b", "2024", "absent", "'", '"', "'x'", '"x"', "[1]", "é", "="])
def test_every_text_can_be_written_as_a_word(text: str) -> None:
    assert loading.load(overridden(f"data.root={config.written(text)}")).data.root == text
    assert config.written(None) == "absent"


def test_every_error_at_once() -> None:
    found = problems(
        {
            "lr": -1,
            "rounds": "three",
            "mood": 1,
            "method": {"name": "topk", "sparsty": 0.5},
            "model": {"name": "cnm", "hidden": "ignored, because the model is not known"},
            "partition": {"name": "dirichlet", "alpha": 0},
        }
    )
    assert len(found) == 6
    starts = ["lr = -1: ", "rounds = 'three': ", "no setting 'mood'", "no setting 'sparsty' in"]
    starts += ["model.name = 'cnm': no such model", "partition.alpha = 0"]
    for start in starts:
        assert sum(text.startswith(start) for text in found) == 1, start


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"round": 1}, "no setting 'round' (did you mean 'rounds'?); there are: seed, rounds,"),
        ({"xyzzy": 1}, "no setting 'xyzzy'; there are: seed,"),
        (
            {"method": {"name": "ditto", "pul": 1}},
            "no setting 'pul' in [method] (did you mean 'pull'?); there are: name, pull",
        ),
        ({"method": {"mu": 1}}, "no setting 'mu' in [method]; there are: name"),
        ({"exchange": {"windw": 3}}, "no setting 'windw' in [exchange] (did you mean 'window'?)"),
        (
            {"method": {"name": "fedprx"}},
            "method.name = 'fedprx': no such method (did you mean 'fedprox'?); there are: ",
        ),
        ({"data": {"name": "xyzzy"}}, "data.name = 'xyzzy': no such data; there are: cifar10,"),
        ({"data": {"name": "__init__"}}, "data.name = '__init__': no such data; there are: "),
        ({"data": {"name": "../models/mlp"}}, "data.name = '../models/mlp': no such data; there"),
        ({"partition": {"name": "dirichlet_balanced"}}, "(did you mean 'dirichlet-balanced'?)"),
        (tier(gflop=1), "no setting 'gflop' in [devices.tiers.0] (did you mean 'gflops'?); there"),
        (
            tier(link={"kind": "fixed", "bandwidth": 1}),
            "no setting 'bandwidth' in [devices.tiers.0.link]; there are: kind, up, down, latency,",
        ),
        (
            {"method": {"name": 3}},
            "method.name = 3: no such method; there are: ",
        ),
        ({"method": {"name": ["topk"]}}, "method.name = ['topk']: no such method"),
    ],
)
def test_what_is_unknown(tree: dict[str, Any], text: str) -> None:
    """The sentence says what was found, what is possible, and what may have been meant."""
    assert text in problem(tree)


def test_sentences() -> None:
    """The path as it is given, the value that was found, and what is wanted."""
    for tree, sentence in (
        ({"lr": -1.0}, "lr = -1.0: wanted a number above 0"),
        ({"rounds": "3"}, "rounds = '3': wanted a whole number of at least 1"),
        (
            {"model": {"hidden": 8}},
            "model.hidden = 8: wanted a list of whole numbers of at least 1",
        ),
        (
            {"data": "digits"},
            "data = 'digits': wanted a table; its name is set by data.name=digits",
        ),
        ({"state": 5}, "state = 5: wanted a table, such as state.memory"),
        (tier(link=5), "devices.tiers.0.link = 5: wanted a table with kind = fixed or wireless"),
        (
            tier(link={"kind": "x"}),
            "devices.tiers.0.link = {kind = 'x'}: wanted a table with kind = fixed or wireless",
        ),
        (
            tier(link={"kind": "fixed", "up": 0.0}),
            "devices.tiers.0.link.up = 0.0: wanted a number above 0",
        ),
        (
            tier(link={"kind": "wireless", "distance": [1, "2"]}),
            "devices.tiers.0.link.distance.1 = '2': wanted a number above 0",
        ),
        (tier(gflops="1"), "devices.tiers.0.gflops = '1': wanted a number above 0"),
        ({"devices": {"tiers": [7]}}, "devices.tiers.0 = 7: wanted a table, such as {name = ...}"),
        ({"devices": {"tiers": 7}}, "devices.tiers = 7: wanted a list of tables"),
        ({"devices": 7}, "devices = 7: wanted a table, such as devices.tiers"),
    ):
        assert problem(tree) == sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "optimizer=adam momentum=0.9",
            "momentum = 0.9: wanted optimizer = 'sgd', found 'adam'",
        ),
        ("beta1=0.5", "beta1 = 0.5: wanted optimizer = 'adam', found 'sgd'"),
        ("beta2=0.5", "beta2 = 0.5: wanted optimizer = 'adam', found 'sgd'"),
        ("epsilon=0.1", "epsilon = 0.1: wanted optimizer = 'adam', found 'sgd'"),
        (
            "schedule=cosine lr_decay=0.9",
            "lr_decay = 0.9: wanted schedule = 'decay' or schedule = 'steps', found 'cosine'",
        ),
        ("trace=a.csv", "trace = 'a.csv': wanted sampling = 'trace', found 'uniform'"),
        (
            f"trace_sha256={'0' * 64} sampling=samples",
            f"trace_sha256 = '{'0' * 64}': wanted sampling = 'trace', found 'samples'",
        ),
        ("sampling=trace", "trace: wanted a file, found none, because sampling = 'trace'"),
        (
            "skew.labels=0.3 skew.labels_to=0.2",
            "skew.labels_to = 0.2: wanted at least skew.labels = 0.3",
        ),
        ("lr_steps=[3]", "lr_steps = [3]: wanted schedule = 'steps', found 'decay'"),
        (
            "schedule=steps lr_decay=0.1",
            "lr_steps = []: wanted rounds, because schedule = 'steps'",
        ),
        (
            "schedule=steps lr_steps=[3]",
            "lr_decay = 1.0: wanted a factor below 1, because schedule = 'steps'",
        ),
        ("augment=['flip','flip']", "augment = ['flip', 'flip']: wanted each at most once"),
        (
            "lr_min=0.01",
            "lr_min = 0.01: wanted schedule = 'cosine' or schedule = 'restarts', found 'decay'",
        ),
        ("schedule=restarts lr=0.1 lr_min=0.2", "lr_min = 0.2: wanted at most lr = 0.1"),
        (
            "devices.tiers=[{share=0.3},{name='b',share=0.3}]",
            "devices.tiers have shares 0.3, 0.3: wanted a sum of 1, found 0.6",
        ),
        (
            "devices.tiers=[{share=0.5},{share=0.5}]",
            "devices.tiers have names device, device: wanted each at most once",
        ),
        (
            "devices.tiers=[{link={kind='wireless',distance=[5,1]}}]",
            "devices.tiers.0.link.distance = [5.0, 1.0]: wanted the nearest, then the farthest",
        ),
        ("devices.stragglers=0.1", "devices.stragglers = 0.1: wanted devices.tiers, found none"),
        (
            "devices.server_gflops=2.0",
            "devices.server_gflops = 2.0: wanted devices.tiers, found none",
        ),
        (
            "devices.tiers=[{}] devices.slowdown=2.0",
            "devices.slowdown = 2.0: wanted devices.stragglers above 0",
        ),
        (
            "precision=tf32",
            "precision = 'tf32': wanted device = 'cuda'; on a CPU float32 or bf16",
        ),
    ],
)
def test_settings_that_do_not_go_together(words: str, sentence: str) -> None:
    """What would have no effect is an error; defaults may always be said."""
    assert problem(overridden(*words.split(" "))) == sentence
    loading.load(
        overridden("momentum=0.0", "beta1=0.9", "lr_decay=1.0", "lr_steps=[]", "lr_min=0.0")
    )


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ("rounds=2.0", "rounds"),
        ("rounds=true", "rounds"),
        ("rounds='2'", "rounds"),
        ("lr='0.1'", "lr"),
        ("lr=[0.1]", "lr"),
        ("server=1", "server"),
        ("data=digits", "data"),
        ("data=['digits']", "data"),
        ("model.hidden=8", "model.hidden"),
        ("model.hidden=[8.0]", "model.hidden.0"),
        ("model.hidden=[8, true]", "model.hidden.1"),
        ("method={name='sgcfl', cut_feedback=1}", "method.cut_feedback"),
        ("model={name='cnn', channels=[1, 2, 3]}", "model.channels"),
    ],
)
def test_wrong_types_are_not_converted(words: str, path: str) -> None:
    assert problem(overridden(words)).startswith(f"{path} = ")


@pytest.mark.parametrize(
    "word",
    [
        *("seed=-1", "rounds=0", "clients=0", "participation=0.0", "participation=1.01"),
        *("batch=0", "epochs=0", "local_steps=0", "lr=0.0", "lr=-0.1", "lr=nan", "lr=inf"),
        *("lr_decay=0.0", "lr_decay=1.1", "momentum=1.0", "momentum=-0.1", "weight_decay=-1.0"),
        *("weight_decay=inf", "clip=-1.0", "validation=1.0", "validation=-0.1", "evaluate.every=0"),
        *("server=both", "device=gpu", "device=cuda:", "device=xcpu", "threads=0"),
        *("exchange.window=0", "exchange.name=ring", "model.hidden=[0]"),
        *("skew.rotations=[45]", "skew.rotations=90", "skew.colour=1.0", "skew.noise=-0.1"),
        *("skew.labels=1.1", "skew.labels=-0.1", "skew.labels_to=1.1"),
        *("sampling=all", "trace_sha256=abc"),
        *("state.memory=-1", "state.memory=0.5", "state.folder="),
        *("method={name='topk', sparsity=1.0}", "method={name='ssfl', sparsity=-0.1}"),
        *("method={name='ditto', pull=-1.0}", "method={name='splitfed', version='v3'}"),
    ],
)
def test_out_of_range(word: str) -> None:
    assert " = " in problem(overridden(word))


BORDERS = [
    *("device=cuda", "device=cuda:3", "lr=1", "lr=1e-9", "seed=0", "rounds=1", "clients=1"),
    *("participation=1.0", "batch=1", "epochs=1", "local_steps=1", "lr_decay=1.0", "momentum=0.0"),
    *("momentum=0.999", "weight_decay=0.0", "clip=0.0", "validation=0.0", "evaluate.every=1"),
    *("threads=1", "exchange.window=1", "model.hidden=[1]"),
    *("state.memory=0", "state.folder=/x", "skew.labels=1.0", "skew.labels_to=0.0"),
    *("skew.rotations=[0]", "skew.rotations=[0, 90, 90]", "skew.colour=0.99", "skew.noise=1e9"),
]


@pytest.mark.parametrize("word", BORDERS)
def test_in_range(word: str) -> None:
    loading.load(overridden(word))


def test_loading_leaves_the_tree_alone() -> None:
    tree = {"lr": 0.5, "method": {"name": "topk"}, "model": {"name": "no such"}}
    before = copy.deepcopy(tree)
    problems(tree)
    assert tree == before


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        # Numbers, as people write them.
        *((f"lr={text}", "lr", 0.1) for text in ("0.1", ".1", "+0.1", "1e-1", "0.1_0", " 0.1 ")),
        *((f"lr={text}", "lr", 2.0) for text in ("2", "2.", "2.0", "2e0")),
        *((f"rounds={text}", "rounds", 1000) for text in ("1000", "1_000", "+1000", "01000")),
        ("rounds=0x10", "rounds", 16),
        ("model={name='resnet', depth=8}", "model.depth", 8),
        ("model.name=resnet model.depth=8", "model.depth", 8),
        # Switches.
        *((f"exchange.pipeline={text}", "exchange.pipeline", True) for text in ("true", "True")),
        *((f"exchange.pipeline={text}", "exchange.pipeline", False) for text in ("false", "FALSE")),
        # Texts, as they stand, or in quotes.
        ("method.name=topk", "method.name", "topk"),
        ("method.name='topk'", "method.name", "topk"),
        ('method.name="topk"', "method.name", "topk"),
        *(
            (f"{path}={text}", path, text)
            for path in ("data.root", "data.cache", "state.folder")
            for text in ("2024", "2024-05-01", "1.5", "true", "/a/b=c", "[1]", "{a=1}", "'x", "#1")
        ),
        ('data.root="2024"', "data.root", "2024"),
        ("data.root=' 07:30'", "data.root", " 07:30"),
        ("data.root='absent'", "data.root", "absent"),
        ("sampling=trace trace=1", "trace", "1"),
        ("device=cuda:0", "device", "cuda:0"),
        ("optimizer='adam'", "optimizer", "adam"),
        # Lists and tables, as in TOML; items need no quotes.
        ("model.hidden=[12, 8]", "model.hidden", (12, 8)),
        ("model.hidden=[]", "model.hidden", ()),
        ("augment=['flip', 'crop']", "augment", ("flip", "crop")),
        ("augment=[flip,crop]", "augment", ("flip", "crop")),
        ("augment=[flip, ]", "augment", ("flip",)),
        ("skew.rotations=[0, 090]", "skew.rotations", (0, 90)),
        ("data={name='mnist',root='x'}", "data.root", "x"),
        ("data={name='synthetic',samples=9} data.samples=8", "data.samples", 8),
        ("devices.tiers=[{name='a'}] devices.tiers.0.gflops=.5", "devices.tiers.0.name", "a"),
        # What need not be there.
        ("local_steps=5 local_steps=absent", "local_steps", None),
        ("data.root=x data.root=absent", "data.root", None),
    ],
)
def test_words_are_read_as_what_their_setting_wants(word: str, path: str, value: Any) -> None:
    words = re.split(r"(?<!,) (?=[\w.]+=)", word)
    found: Any = loading.load(overridden(*words))
    for step in path.split("."):
        found = found[int(step)] if step.isdecimal() else getattr(found, step)
    assert found == value
    assert type(found) is type(value)


def test_the_home_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in shells, which leave it to the program behind most of the settings."""
    monkeypatch.setenv("HOME", "/home/me")
    words = ("data.root=~/a", "state.folder=~", "sampling=trace", "trace=b/~/c")
    found = loading.load(overridden(*words))
    assert (found.data.root, found.state.folder, found.trace) == ("/home/me/a", "/home/me", "b/~/c")
    named = ("partition.name=frozen", "partition.file=~/p.npz")
    assert loading.load(overridden(*named)).tree()["partition"]["file"] == "/home/me/p.npz"


def test_blanks_around_the_equals_sign_belong_to_neither_side() -> None:
    assert loading.load(overridden("lr = 0.2", "data.root = a b ")).tree()["lr"] == 0.2
    assert loading.load(overridden("data.root = a b ")).data.root == "a b"
    assert loading.load(overridden("data.root= a b ")).data.root == " a b "


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("lr=fast", "lr = fast: wanted a number above 0"),
        ("lr='0.1'", "lr = '0.1': wanted a number above 0"),
        ("lr=", "lr = '': wanted a number above 0"),
        ("lr=nan", "lr = nan: wanted a number above 0 and of at most 3e+38"),
        ("lr=1e308", "lr = 1e+308: wanted a number above 0 and of at most 3e+38"),
        ("lr=absent", "lr = absent: wanted a number above 0"),
        ("epochs=1.5", "epochs = 1.5: wanted a whole number of at least 1"),
        ("epochs=1e2", "epochs = 1e2: wanted a whole number of at least 1"),
        ("seed=true", "seed = true: wanted a whole number of at least 0"),
        ("momentum=1", "momentum = 1.0: wanted a number of at least 0 and below 1"),
        ("threads=5000", "threads = 5000: wanted a whole number from 1 to 1024"),
        ("local_steps=none", "local_steps = none: wanted a whole number of at least 1, or absent"),
        ("exchange.pipeline=yes", "exchange.pipeline = yes: wanted true or false"),
        ("optimizer=SDG", "optimizer = 'SDG': wanted 'sgd' or 'adam'"),
        ("augment=[flop]", "augment.0 = 'flop': wanted 'crop' or 'flip' (did you mean 'flip'?)"),
        ("augment=flip", "augment = flip: wanted a list of 'crop' or 'flip'"),
        ("skew.rotations=[45]", "skew.rotations.0 = 45: wanted 0, 90, 180 or 270"),
        ("model.hidden=[a\nb]", "model.hidden.0 = a\\nb: wanted a whole number of at least 1"),
        (
            "data.shape=[]",
            "data.shape = []: wanted a list of at least 1 whole numbers of at least ",
        ),
        ("method=topk", "method = topk: wanted a table; its name is set by method.name=topk"),
        ("method=5", "method = 5: wanted a table, such as method.name"),
        (
            "method={name=topk, sparsity=0.9}",
            "method = {name=topk, sparsity=0.9}: wanted a table, such as method.name; not TOML "
            "(invalid value): texts in a list or table need quotes",
        ),
        (
            "devices.tiers=[{name=a}]",
            "devices.tiers = [{name=a}]: wanted a list of tables; not TOML (invalid value): texts",
        ),
        ("seed=99999999999999999999", "seed = 99999999999999999999: wanted a whole number"),
        ("device=gpu", "device = 'gpu': wanted cpu, cuda or cuda:K"),
        ("state.folder=", "state.folder = '': wanted a path, or absent"),
        ("data.root=a\udcff", "data.root = 'a\\udcff': wanted a text in UTF-8"),
        (
            "budget=5MB",
            "budget = '5MB': wanted bytes such as up_bytes:50MB, down_bytes:2.5GB or "
            "total_bytes:1TB, or absent",
        ),
        ("trace_sha256=ABC", "trace_sha256 = 'ABC': wanted 64 hexadecimal digits in lower case, "),
    ],
)
def test_sentences_on_words(word: str, sentence: str) -> None:
    """As it was written, in plain English, on one line."""
    named = ["data.name=synthetic"] if word.startswith("data.shape") else []
    assert problem(overridden(*named, word)).startswith(sentence)


def test_tables_that_are_too_deep(tmp_path: Path) -> None:
    deep, file = ".".join("x" * 3000), tmp_path / "deep.toml"
    for text in (f"{deep} = 1", f"{'x.' * 40}y = [1]"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="tables in tables, more than 32 deep"):
            loading.read(file)
    with pytest.raises(ConfigError, match=r"x\.x\.x.* \.\.\.: 2999 dots; wanted less than 32"):
        loading.override({}, (f"{deep}=1",))


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, str(2**63), f"-{2**63 + 1}"])
def test_numbers_beyond_64_bits(number: str, tmp_path: Path) -> None:
    """Python cannot print one of more than 4,300 digits, which hexadecimal ones may have."""
    file = tmp_path / "large.toml"
    for text in (f"seed = {number}", f"[[grid]]\nseed = [{{a = [{number}]}}]", f"a.b = {number}"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="a whole number beyond 64 bits, which is not TOML"):
            loading.read(file)
    file.write_text(f"a = [{2**63 - 1}, -{2**63}]")
    assert loading.read(file) == {"a": [2**63 - 1, -(2**63)]}


def test_absent_in_a_file() -> None:
    """Of what need not be there it says the same as in a word, but not where texts are wanted."""
    found = loading.load({"local_steps": "absent", "data": {"root": "absent"}})
    assert (found.local_steps, found.data.root) == (None, "absent")


def test_absent_takes_back_what_another_module_lacks() -> None:
    """But says nothing for what was not there, such as a misspelled name."""

    def given(*words: str) -> dict[str, Any]:
        tree: dict[str, Any] = {"method": {"name": "splitfed", "cut": "a"}, "model": {"size": "x"}}
        loading.override(tree, words)
        return tree

    found = loading.load(given("method.name=fedavg", "method.cut=absent", "model.size=absent"))
    assert (found.method.name, found.model.name) == ("fedavg", "mlp")
    assert loading.load(given("method.cut=absent", "model.size=absent")).method.cut is None
    said = problems(given("method.name=fedavg", "method.ctu=absent", "model.size=absent"))
    assert [one.partition(";")[0] for one in said] == [
        f"no setting '{name}' in [method]" for name in ("cut", "ctu")
    ]


def test_names_that_are_no_text() -> None:
    """As in the settings of a damaged result."""
    assert "wanted names of settings in UTF-8" in problem({"lr": 1.0, "a\udcff": 2})


def test_what_belongs_to_a_sweep_or_needs_no_quotes() -> None:
    assert "are a sweep's: fedmpi sweep FILE" in problem({"base": {"lr": 1}})
    assert "a path stands without quotes" in problem({"method.name": "topk"})


def test_long_values_are_not_repeated_whole() -> None:
    for value in ("9" * 5000, int("9" * 4000), "[" + "1," * 3000 + "]", 16**9999):
        given = f"seed={value}" if isinstance(value, str) else None
        found = problem(overridden(given) if given else {"seed": value})
        assert found.startswith("seed = ")
        assert len(found) < 200


def test_texts_in_files_want_quotes() -> None:
    tree = tomllib.loads("data.root = 2024-05-01")
    assert problem(tree) == "data.root = 2024-05-01: wanted a path, or absent; put it in quotes"


@every_choice
def test_every_pattern_has_words(table: str, name: str) -> None:
    """So that no sentence shows a regular expression."""
    kinds: list[Any] = [config.schema(table, name), config.Settings]
    seen: set[Any] = set()
    while kinds:
        kind = kinds.pop()
        fields = getattr(kind, "model_fields", {}).values()
        kinds += [one for field in fields for one in (field.annotation, *field.metadata)]
        kinds += [*get_args(kind), *getattr(kind, "metadata", ())]
        seen |= {kind.pattern} if getattr(kind, "pattern", None) else set()
    assert seen <= set(FORMS)
    assert len(seen) >= len(FORMS)


def test_later_overrides_win_and_the_rest_stays() -> None:
    tree = {"lr": 0.1, "method": {"name": "topk", "sparsity": 0.5}}
    overridden("lr=0.2", "method.sparsity=0.7", "lr=0.3", tree=tree)
    assert tree == {"lr": "0.3", "method": {"name": "topk", "sparsity": "0.7"}}


@pytest.mark.parametrize(
    ("text", "is_word"),
    [
        ("lr=0.1", True),
        ("data.root=/a/b=c", True),
        ("rouds=3", True),
        ("lr = 0.1", True),
        ("=3", True),
        ("paper:topk", True),
        ("exp/lr=0.05/run.toml", False),
        ("./lr=0.05.toml", False),
        ("/a/b=c.toml", False),
        ("run.toml", False),
        ("is=here.toml", False),
        ("paper:file", False),
    ],
)
def test_what_is_a_setting_and_what_a_file(
    text: str, is_word: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file if there is one of that name, or if what stands before the `=` can be no setting."""
    monkeypatch.chdir(tmp_path)
    for name in ("is=here.toml", "paper:file"):
        Path(name).touch()
    Path("lr=0.1").mkdir()
    assert loading.is_word(text) == is_word


@pytest.mark.parametrize("word", ["lr", "", "=3", "topk", "a/b=3", "a..b=3"])
def test_overrides_are_key_and_value(word: str) -> None:
    with pytest.raises(ConfigError, match=f"'{word}' is not a setting; wanted key=value"):
        overridden(word)


def test_assign_makes_tables_but_not_of_settings() -> None:
    tree: dict[str, Any] = {"lr": 0.1}
    loading.assign(tree, "model.hidden", [3])
    loading.assign(tree, "model.name", "mlp")
    assert tree == {"lr": 0.1, "model": {"hidden": [3], "name": "mlp"}}
    with pytest.raises(ConfigError, match="'lr' is a setting, not a table"):
        loading.assign(tree, "lr.decay", 1)


def test_assign_reaches_into_lists_of_tables() -> None:
    tree: dict[str, Any] = tier(name="a")
    loading.assign(tree, "devices.tiers.0.link.up", 3)
    loading.assign(tree, "devices.tiers.0.name", "b")
    assert tree == tier(name="b", link={"up": 3})
    for path in ("devices.tiers.1.name", "devices.tiers.a.name", "devices.tiers.1"):
        with pytest.raises(ConfigError, match=f"{path}: wanted a number below 1, found '.'"):
            loading.assign(tree, path, 1)
    loading.assign(tree, "devices.tiers.0", {})
    assert tree == tier()


def test_read(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    text = "lr = 0.5\n[method]\nname = 'topk'\nsparsity = 0.75\n"
    file.write_text(text)
    assert loading.read(file) == tomllib.loads(text)
    assert loading.load(loading.read(file)).method.model_dump()["sparsity"] == 0.75


@pytest.mark.parametrize("content", [b"lr == 0.5", b"lr = 0.1\nlr = 0.2", b"\xff\xfe"])
def test_read_names_the_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml: (not TOML|UTF-16)"):
        loading.read(file)


def test_read_names_the_file_that_is_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(ConfigError, match=path.name):
            loading.read(path)


def test_a_methods_settings_that_have_no_effect_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless they are at their defaults; what else a method finds wrong stands beside them."""
    idle = {"spans": "never said, for it is at its default", "sparsity": "another one"}
    monkeypatch.setattr(topk.Config, "idle", lambda self, settings: idle)
    monkeypatch.setattr(topk.Config, "problems", lambda self, s: [f"none with lr = {s.lr}"])
    assert problems({"lr": 0.5, "method": {"name": "topk", "sparsity": 0.5}}) == (
        "method.sparsity = 0.5: wanted another one",
        "none with lr = 0.5",
    )


@pytest.mark.parametrize("name", config.names("method"))
def test_methods_hooks_name_settings_that_there_are(name: str) -> None:
    for word in ("", "devices.tiers=[{keep=0.5}]"):
        settings = loading.load(overridden(*filter(None, [f"method.name={name}", word])))
        assert settings.method.idle(settings).keys() <= type(settings.method).model_fields.keys()


@pytest.fixture
def papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Top-k with values of a paper, and a name that stands for settings."""
    paper = {"lr": 0.03, "momentum": 0.5, "local_steps": 3, "clients": 100}
    paper |= {"method.sparsity": 0.999, "partition.name": "dirichlet", "partition.alpha": 0.7}
    monkeypatch.setattr(topk.Config, "paper", paper)
    monkeypatch.setattr(fedprox.Config, "implies", {"aggregation.clip": 2.0, "lr": 0.5})


@pytest.mark.usefixtures("papers")
def test_a_name_stands_for_settings() -> None:
    """Where nothing is written, and before the defaults."""
    loaded = loading.load({"method": {"name": "fedprox"}})
    assert (loaded.aggregation.clip, loaded.lr) == (2.0, 0.5)
    written = loading.load(overridden("method.name=fedprox", "aggregation.clip=0.0", "lr=0.1"))
    assert (written.aggregation.clip, written.lr) == (0.0, 0.1)
    assert loading.load({}).aggregation.clip == 0


@pytest.mark.usefixtures("papers")
@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("", "method.name=topk method.sparsity=0.999 lr=0.03 momentum=0.5 local_steps=3"),
        ("lr=0.2", "lr=0.2 momentum=0.5 clients=100"),
        ("clients=10 method.sparsity=0.5", "clients=10 method.sparsity=0.5 local_steps=3"),
        # What a paper says of one module is not said of another.
        ("method.name=stc", "method.name=stc lr=0.03 clients=100 partition.alpha=0.7"),
        ("method.name=topk", "method.sparsity=0.999"),
        ("partition.name=iid", "method.sparsity=0.999 partition.name=iid"),
        ("partition.minimum=3", "partition.name=dirichlet partition.alpha=0.7"),
        # Nor are values taken that would mean nothing, or undo what is written.
        ("optimizer=adam", "momentum=0.0 lr=0.03"),
        ("epochs=4", "epochs=4 lr=0.03"),
        # A paper comes before what a name implies.
        ("method.name=fedprox", "lr=0.03 aggregation.clip=2.0"),
    ],
)
def test_a_papers_values_are_taken_where_nothing_is_written(words: str, values: str) -> None:
    found = []
    for order in (["paper:topk", *words.split()], [*words.split(), "paper:topk"]):
        found.append(loading.load(overridden(*order)))
    assert found[0].tree() == found[1].tree()
    for word in values.split():
        path, _, value = word.partition("=")
        assert config.written(loading.at(found[0].tree(), path, None)) == value
    assert (found[0].local_steps is None) == ("epochs=" in words)
    assert loading.load(tree_of(("paper:topk", *words.split()))).tree() == found[0].tree()


@pytest.mark.usefixtures("papers")
def test_papers_without_values_are_refused() -> None:
    possible = ", ".join(name for name in config.names("method") if config.paper_of(name))
    start = "paper:topkk: no values of such a paper (did you mean 'topk'?); there are: "
    assert problem({"paper": "topkk"}) == start + possible
    assert problem({"paper": "fedrolex"}).endswith(f"there are: {possible}")
    assert len(problems({"paper": ["topk"], "lr": -1.0})) == 2


@pytest.mark.parametrize(
    ("words", "idle", "wanted"),
    [
        ("staticmask sparsity=0.0 mask='layerwise'", "mask = 'layerwise'", config.SPARSE),
        ("ssfl sparsity=0.0 batches=3", "batches = 3", config.SPARSE),
        ("dispfl sparsity=0.0 share=0.3", "share = 0.3", config.SPARSE),
        ("dispfl sparsity=0.0 growth='random'", "growth = 'random'", config.SPARSE),
        ("dispfl share=0.0 growth='random'", "growth = 'random'", "method.share above 0, found 0"),
        (
            "dispfl topology='ring' neighbours=4",
            "neighbours = 4",
            "method.topology = 'random', found 'ring'",
        ),
        ("feddst sparsity=0.0 share=0.3", "share = 0.3", config.SPARSE),
        ("feddst sparsity=0.0 end=0.3", "end = 0.3", config.SPARSE),
        ("feddst share=0.0 every=3", "every = 3", "method.share above 0, found 0"),
        (
            "federated-dropout assignment='dynamic'",
            "assignment = 'dynamic'",
            "several method.rates, found [0.75]",
        ),
    ],
)
def test_what_says_how_something_becomes_sparse_is_refused_if_nothing_does(
    words: str, idle: str, wanted: str
) -> None:
    """What switches it off is not."""
    name, *others = words.split()
    given = [f"method.name={name}", *(f"method.{word}" for word in others)]
    assert problem(overridden(*given)) == f"method.{idle}: wanted {wanted}"
    loading.load(overridden(*given[:-1]))


@pytest.mark.parametrize("name", [n for n in config.names("method") if config.paper_of(n)])
def test_papers_can_be_run(name: str) -> None:
    """Every value is that of a setting there is, and all go together."""
    paper = config.paper_of(name)
    loaded = loading.load({"paper": name})
    assert loaded.method.name == name
    for path, value in paper.items():
        assert config.written(loading.at(loaded.tree(), path, None)) == config.written(value)


def test_papers_are_worth_a_word() -> None:
    """Something differs from the defaults, and papers on which others are built are not theirs."""
    for name in config.names("method"):
        if config.paper_of(name):
            plain = loading.load({"method": {"name": name}})
            assert loading.load({"paper": name}).identity() != plain.identity()
    assert not config.paper_of("federated-dropout")


@pytest.mark.parametrize("name", ["scaffold", "fedprox", "spatl", "powersgd"])
def test_beside_another_method_a_paper_gives_its_training_alone(name: str) -> None:
    """Not what makes it another method: control variates, a term in the loss, the server's step."""
    found, plain = (
        loading.load(tree_of((*words, "method.name=topk", "data.name=digits", "model.name=mlp")))
        for words in ((f"paper:{name}",), ())
    )
    assert (found.control, found.proximal) == ("none", 0.0)
    assert found.aggregation == plain.aggregation
    assert found.method == plain.method
    assert found.tree() != plain.tree()


TOPK = {"method.name": "fedavg", "method.sparsity": 0.9}


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ([], {}),
        (["threads=3", "data.root=/x"], {}),
        (["momentum=0.9", "lr=0.1"], {"momentum": 0.0}),
        (["local_steps=3"], {"local_steps": None}),
        (["method.name=topk", "method.sparsity=0.5"], TOPK),
        (["method.name=scaffold"], {"method.name": "fedavg"}),  # implies control
        (["method.name=scaffold", "control=niid"], {"method.name": "fedavg", "control": "mean"}),
        (["paper:ssfl"], {}),
        (["paper:ssfl", "lr=0.5"], {"lr": 0.1}),
        (["paper:ssfl", "optimizer=adam", "momentum=0"], {"optimizer": "sgd"}),
        (["paper:ssfl", "method.name=topk"], {"method.name": "ssfl"}),
        (["paper:ssfl", "local_steps=4"], {"local_steps": None}),  # epochs mean nothing then
    ],
)
def test_what_a_run_changes(words: list[str], changed: dict[str, Any]) -> None:
    """Of the defaults, of what the method's name implies, and of what the paper says."""
    tree: config.Tree = {}
    loading.override(tree, tuple(words))
    settings = loading.load(tree)
    assert loading.changes(settings.tree(), settings.paper) == changed
    assert settings.paper == ("ssfl" if "paper:ssfl" in words else None)


def test_names_that_are_unknown_change_what_nobody_knows() -> None:
    tree = loading.load({}).tree()
    with pytest.raises(config.ConfigError, match="no such method"):
        loading.changes(tree | {"method": {"name": "fedfuture"}})


@pytest.mark.parametrize("kept", ["feedback=classic", "feedback=ef21", "control=mean"])
@pytest.mark.parametrize(
    ("codec", "found"),
    [
        ("codec.values=ternary", "found 'ternary'"),
        ("codec.values=uniform codec.bits=1", "found codec.bits = 1"),
    ],
)
def test_codes_whose_error_would_grow_are_refused(kept: str, codec: str, found: str) -> None:
    """What clients keep would be fed back larger than it was."""
    with pytest.raises(ConfigError, match=r"wanted codec[.]values = 'sign'") as raised:
        loading.load(overridden(kept, *codec.split(" ")))
    assert found in str(raised.value)
