"""What ``--ztunnel`` may say, and what it then means."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from meshlab.errors import UsageError
from meshlab.implementations import Binary, Implementation, Launch, NodeSlot, Reference, available, resolve
from meshlab.implementations.resolve import GROUP

PLUG_IN = """
from meshlab.implementations import Implementation, Launch

api_version = {api_version}

def describe():
    return Implementation(name="mine", version="7")

def {launch}(slot):
    return Launch(argv=("mine", slot.node))
"""
SLOT = NodeSlot(node="node-1", xds_address="100.64.0.1:15012", ca_root_pem="PEM", token="t", instance_ip="100.64.1.2")  # noqa: S106


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> EntryPoint:
    """A plug-in named ``mine`` in an installed package, whose source a test may give as the parameter."""
    module = f"plug_in_of_{abs(hash(request.node.nodeid))}"
    source = getattr(request, "param", PLUG_IN.format(api_version=1, launch="launch"))
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return EntryPoint("mine", module, GROUP)


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "ztunnel"
    path.write_bytes(b"\x7fELF")
    path.chmod(0o755)
    return path


def _refusal(text: str, *points: EntryPoint) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(text, points)
    return str(caught.value)


def test_reference_and_none_need_nothing_installed() -> None:
    assert resolve("reference", ()).proxy == Reference()
    assert resolve("none", ()).proxy is None


def test_a_slash_makes_a_path_and_the_file_gives_the_name(binary: Path) -> None:
    choice = resolve(str(binary))
    assert choice.name == "ztunnel"
    assert choice.proxy == Binary("ztunnel", binary)


def test_a_path_can_be_given_a_name(binary: Path) -> None:
    assert resolve(f"istio={binary}").name == "istio"


def test_an_equals_sign_inside_a_path_gives_no_name(tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    path = folder / "z=1"
    path.write_bytes(b"")
    path.chmod(0o755)
    assert resolve(str(path)).proxy == Binary("z=1", path)


def test_a_relative_path_is_made_absolute(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(binary.parent)
    assert resolve("./ztunnel").proxy == Binary("ztunnel", binary)


def test_a_tilde_is_the_home_folder_also_after_a_name(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(binary.parent))
    assert resolve("istio=~/ztunnel").proxy == Binary("istio", binary)


def test_a_missing_file_is_refused_with_its_neighbour(binary: Path) -> None:
    assert _refusal(f"{binary.parent}/ztunel").endswith("ztunel' does not exist. Did you mean 'ztunnel'?")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in _refusal(f"{tmp_path}/")


def test_a_file_that_cannot_run_is_refused_with_the_command_that_mends_it(binary: Path) -> None:
    binary.chmod(0o644)
    assert f"chmod +x {binary}" in _refusal(str(binary))


def test_a_name_with_a_path_without_a_slash_is_told_to_add_one() -> None:
    assert "istio=./ztunnel" in _refusal("istio=ztunnel")


def test_an_unknown_name_is_refused_with_the_choices_and_the_nearest(installed: EntryPoint) -> None:
    message = _refusal("refrence", installed)
    assert "mine, none, reference" in message
    assert message.endswith("Did you mean 'reference'?")


def test_a_file_given_without_a_slash_is_recognised(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(binary.parent)
    assert _refusal("ztunnel").endswith("There is a file of that name here: ./ztunnel")


def test_an_entry_point_is_a_plug_in_by_its_name(installed: EntryPoint) -> None:
    choice = resolve("mine", [installed])
    assert choice.name == "mine"
    assert choice.proxy is not None
    assert choice.proxy.describe() == Implementation(name="mine", version="7")
    assert choice.proxy.launch(SLOT) == Launch(argv=("mine", "node-1"))


@pytest.mark.parametrize(
    ("installed", "complaint"),
    [
        pytest.param(
            "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'", id="import fails"
        ),
        pytest.param(PLUG_IN.format(api_version=1, launch="start"), "has no launch", id="incomplete"),
        pytest.param(PLUG_IN.format(api_version=2, launch="launch"), "api_version 2", id="of another version"),
    ],
    indirect=["installed"],
)
def test_an_entry_point_that_is_no_plug_in_is_refused_by_name(installed: EntryPoint, complaint: str) -> None:
    message = _refusal("mine", installed)
    assert "'mine'" in message
    assert complaint in message


def test_no_entry_point_can_take_the_name_of_a_built_in_one(installed: EntryPoint) -> None:
    impostor = EntryPoint("reference", installed.value, GROUP)
    assert resolve("reference", [impostor]).proxy == Reference()
    assert [choice.name for choice in available([impostor])] == ["reference", "none"]


def test_available_lists_the_built_in_ones_first(installed: EntryPoint) -> None:
    assert [choice.name for choice in available([installed])] == ["reference", "none", "mine"]


HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "plug-in-your-ztunnel.md"


def _snippet(language: str) -> str:
    return HOW_TO.read_text().split(f"```{language}\n", 1)[1].split("```", 1)[0]


@pytest.mark.parametrize("installed", [_snippet("python")], indirect=True, ids=["how-to"])
def test_the_plug_in_of_the_how_to_is_one(installed: EntryPoint) -> None:
    choice = resolve("mine", [installed])
    assert choice.describe().name == "mine"
    assert choice.launch(SLOT).argv == ("/opt/mine/proxy", "--node", "node-1")


def test_the_how_to_registers_it_in_the_group_that_is_looked_in() -> None:
    assert tomllib.loads(_snippet("toml"))["project"]["entry-points"] == {GROUP: {"mine": "my_package.meshlab_plugin"}}
