"""What people see of modules and settings; on narrow and wide terminals and in pipes."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedmpi import config
from fedmpi.config import AXES, ConfigError, Settings
from fedmpi.terminal.catalogue import describe, inner, paragraphs, show_list
from tests.terminal.printed import squeezed, table, words

FOLDERS = {"data": "data", "methods": "method", "models": "model", "partitions": "partition"}
ENTRIES = [(folder, name) for folder, table in FOLDERS.items() for name in config.names(table)]
pytestmark = pytest.mark.usefixtures("here")

every_choice = pytest.mark.parametrize(
    ("table", "name"),
    [(table, name) for table in AXES for name in config.names(table)],
    ids="-".join,
)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("what", [*FOLDERS, "settings"])
def test_lists_fit_and_are_plain(
    what: str, columns: int, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    found = said(show_list, what, None)
    assert max(map(len, found.splitlines())) <= columns
    assert "\x1b" not in found
    assert "…" not in found, "nothing is cut off"


NESTED = ("model.lora", "model.bottleneck", "data.only")
"""Settings that are tables; theirs are described in their place."""


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(("what", "name"), ENTRIES)
def test_one_entry(
    what: str, name: str, columns: int, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the docstring, and each setting with its path, default and explanation."""
    monkeypatch.setenv("COLUMNS", str(columns))
    found = said(show_list, what, name)
    assert max(map(len, found.splitlines())) <= columns
    module = config.module(FOLDERS[what], name)
    assert module.__doc__ is not None
    for paragraph in module.__doc__.split("\n\n"):
        assert squeezed(paragraph) in squeezed(found)
    paper = config.paper_of(name) if what == "methods" else {}
    folder = FOLDERS[what]
    schema = config.schema(folder, name)
    rows = [row for row in describe(schema, f"{folder}.")[1:] if row.path not in NESTED]
    rows += [row for _, path, one in inner(schema, folder) for row in describe(one, f"{path}.")]
    for path, kind, default, _ in rows:
        said = re.escape(config.written(paper.get(path)))
        own = rf"(?:  +|\n    paper: ){said}" if path in paper else ""
        row = rf"^{re.escape(path)}  +{re.escape(kind)}  +{re.escape(default)}{own}$"
        assert re.search(row, found, re.M)
    if paper:
        assert f"paper:{name}" in words(found)
    for path, value in paper.items():
        if not path.startswith("method."):
            assert squeezed(f"{path}={config.written(value)}") in squeezed(found)


@pytest.mark.parametrize("what", FOLDERS)
def test_a_list_has_every_entry(what: str, said: Any) -> None:
    """Its name and the first paragraph of its docstring."""
    table = FOLDERS[what]
    found = said(show_list, what, None)
    for name in config.names(table):
        default = " (the default)" if name == config.AXES[table][1] else ""
        assert re.search(rf"^{name}  +\S", found, re.M)
        assert f"{paragraphs(config.module(table, name))[0]}{default}" in words(found)
    assert f"fedmpi list {what} NAME" in found


def test_settings_stand_in_columns_unless_a_line_is_too_long(said: Any) -> None:
    """A setting's path, type and default are on one line; what it does is indented below."""
    found = said(show_list, "settings", "lr").splitlines()
    assert found[:2] == ["settings of every run", "setting  type       default"]
    assert found[2] == "lr       float > 0  0.1"
    assert found[3].startswith("    Learning rate")
    found = said(show_list, "settings", "schedule").splitlines()
    assert found[2] == "schedule  decay | steps | cosine | restarts  decay"


def test_settings_of_the_machine_say_so(said: Any) -> None:
    says = "It belongs to the machine and is no part of a run's identity."
    for name in config.marked(config.Settings, config.MACHINE):
        assert says in words(said(show_list, "settings", name))
    assert says not in words(said(show_list, "settings", "lr"))


def test_models_have_split_points_and_sizes(said: Any) -> None:
    found = words(said(show_list, "models", "cnn"))
    assert "split points: conv1, conv2, dense (with the default settings)" in found
    assert "1,663,370 for 1x28x28 samples" in found
    assert "in front of" not in said(show_list, "models", None)


def test_models_are_cut_into_parts(said: Any) -> None:
    found = said(show_list, "models", "cnn")
    assert table(found, "a 1x28x28 sample") == [
        ["in front of", "parameters", "FLOPs", "floats there"],
        ["cut conv1", "832", "1,254,400", "6,272"],
        ["cut conv2", "52,096", "21,324,800", "3,136"],
        ["cut dense", "1,658,240", "24,536,064", "512"],
        ["the output", "1,663,370", "24,546,304", "10"],
    ]
    assert table(found, "a 3x32x32 sample")[-1][1] == "2,156,490"
    assert "a multiplication and an addition being two" in words(found)
    assert "a 6x128 sample" not in found, "cnn wants images"
    assert table(said(show_list, "models", "cnn1d"), "a 6x128 sample")[1] == [
        *("cut conv1", "19,012", f"{2 * 6 * 16 * 196 * 113:,}", "5,488"),
    ]
    text = said(show_list, "models", "rnn")
    assert table(text, "a text sample")[-1] == ["the output", "819,920", "127,180,800", "80"]
    assert "819,920 for text samples of 80 classes" in words(text)
    assert "a 1x28x28 sample" not in text, "images are no symbols"
    assert "FLOPs" not in said(show_list, "methods", "fedavg")


def test_data_sets_are_found_or_not(said: Any, here: Path) -> None:
    assert "found" not in said(show_list, "data", "synthetic")
    assert "needs no files" in said(show_list, "data", "synthetic")
    found = words(said(show_list, "data", None))
    assert "not here; fedmpi list data mnist says how to get it" in found
    assert f"{here}/data(nosuchfolder)" in squeezed(said(show_list, "data", "mnist"))
    folder = here / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").touch()
    assert f"foundin{folder}" in squeezed(said(show_list, "data", None))


TABLES = ("skew", "aggregation", "codec", "state", "checkpoint", "devices", "evaluate")
"""Those without a name of a module."""


def test_settings_are_all_there(said: Any) -> None:
    found = said(show_list, "settings", None)
    for key, kind, default, _ in describe(config.Settings):
        if key not in {*config.AXES, *TABLES}:
            assert re.search(rf"^{key}  +{re.escape(kind)}  +{re.escape(default)}$", found, re.M)
    for axis in (*config.AXES, "exchange"):
        assert f"\n[{axis}]\n" in found
        assert f"\n{axis}.name " in found
    assert "\n[state]\n" in found
    assert "\n[method] with name = topk\n" in found
    assert f"There are: {', '.join(config.names('method'))}" in words(found)
    assert "tuple" not in found and "typing" not in found


@pytest.mark.parametrize(
    ("name", "there", "elsewhere"),
    [
        ("lr", "Learning rate", "lr_decay"),
        ("method", "method.spans", "lr_decay"),
        ("method.sparsity", "with name = ssfl", "spans"),
        ("exchange", "exchange.window", "lr_decay"),
        ("devices", "devices.tiers.link.exponent", "exchange"),
        ("devices.tiers.link", "with kind = wireless", "gflops"),
        ("devices.dropouts", "Share of the uploads", "tiers"),
    ],
)
def test_some_settings(name: str, there: str, elsewhere: str, said: Any) -> None:
    found = said(show_list, "settings", name)
    assert there in found
    assert elsewhere not in found


@pytest.mark.parametrize(
    ("what", "name", "problem"),
    [
        (
            "methods",
            "fedpro",
            "no method 'fedpro' (did you mean 'fedprox'?); there are: ",
        ),
        ("data", "x", "no data 'x'; there are: cifar10,"),
        ("models", "cnm", "no model 'cnm' (did you mean 'cnn'?); there are: bert, cnn, cnn1d"),
        ("partitions", "x", "no partition 'x'; there are: classes,"),
        ("settings", "round", "no setting 'round' (did you mean 'rounds'?); there are: seed,"),
        ("settings", "method.m", "no setting 'method.m' (did you mean 'method."),
        ("settings", "lr.x", "no setting 'lr.x'"),
    ],
)
def test_unknown_names(what: str, name: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        show_list(what, name)
    assert str(caught.value).startswith(problem)


def test_paragraphs_keep_remarks_on_their_lines() -> None:
    module: Any = SimpleNamespace(
        __doc__="""Title.

        One line
        and another.
        Differs from the paper: here
        and there.
        Reconstruction: none.
        """
    )
    assert paragraphs(module) == [
        "Title.",
        "One line and another.\nDiffers from the paper: here and there.\nReconstruction: none.",
    ]


def test_describe() -> None:
    rows = {row[0]: row[1:] for row in describe(config.schema("method", "topk"))}
    assert rows["sparsity"][:2] == ("0 <= float < 1", "0.9")
    assert rows["spans"][1] == "whole"
    assert rows["name"][:2] == ("topk", "topk")
    assert "fedavg" in rows["name"][2]
    rows = {row[0]: row[1:] for row in describe(Settings)}
    assert rows["lr"][:2] == ("float > 0", "0.1")
    assert rows["server"][:2] == ("dedicated | shared", "dedicated")
    assert rows["local_steps"][:2] == ("int >= 1", "absent")
    rows = {row[0]: row[1:] for row in describe(config.schema("model", "mlp"))}
    assert rows["hidden"][0] == "list of int >= 1"
    rows = {row[0]: row[1:] for row in describe(config.schema("model", "cnn"))}
    assert rows["channels"][0].startswith("list of 2 int")
    rows = {row[0]: row[1:] for row in describe(config.schema("model", "resnet"))}
    assert rows["depth"][0] == "8 | 14 | 18 | 20 | 32 | 50 | 56"
    rows = {row[0]: row[1:] for row in describe(config.schema("method", "sgcfl"))}
    assert rows["bits"][:2] == ("2 to 16 | 32", "8")


ABSENT = ("kind", "memory", "keep", "bits", "epochs", "compressor", "bandwidth")
"""Settings of devices that need not be there."""


def test_describe_tables_inside_of_tables() -> None:
    rows = {row[0]: row[1:] for row in describe(config.Devices)}
    assert rows["tiers"][:2] == ("list of tables", "[]")
    found = list(inner(config.Devices, "devices"))
    assert [(title, path) for title, path, _ in found] == [
        ("[[devices.tiers]]", "devices.tiers"),
        ("[devices.tiers.link] with kind = fixed", "devices.tiers.link"),
        ("[devices.tiers.link] with kind = wireless", "devices.tiers.link"),
        ("[devices.spectrum]", "devices.spectrum"),
    ]
    rows = {row[0]: row[1:] for row in describe(found[0][2])}
    assert rows["link"][:2] == ("table: fixed | wireless", '{kind = "fixed"}')
    for _, _, kind in found:
        for setting, form, default, text in describe(kind):
            assert form and text.endswith("."), setting
            assert default != "absent" or setting in ABSENT


@every_choice
def test_every_setting_is_explained_and_has_a_default(table: str, name: str) -> None:
    kind = config.schema(table, name)
    for setting, form, default, text in describe(kind):
        assert form, setting
        assert default, setting
        assert text.endswith("."), setting
        assert "\n" not in text, setting
    assert not any(field.is_required() for field in kind.model_fields.values())


def test_every_setting_of_a_run_is_explained() -> None:
    for setting, form, _, text in describe(Settings):
        assert form
        assert text.endswith(".") or setting in (*AXES, *TABLES), setting
