"""What the documentation says is so: its commands, files, links, tables. (Its Python is run in ``tests/plugin``.)"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from meshlab import cli, pytest_plugin
from meshlab.testing.registry import MUTANTS, VARIANTS
from meshlab.topology import read, render_keys_page

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "tests/README.md"])
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text("utf-8")):
            if found[1] == language:
                yield page.relative_to(ROOT).as_posix(), found[2]


def _commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for _, block in _blocks("sh") for line in block.splitlines()]
    parts = [part.strip().partition(" > ")[0] for line in lines for part in line.split("&&")]
    return sorted({part for part in parts if part.removeprefix(".venv/bin/").startswith("meshlab ")})


@pytest.mark.parametrize("name", ["quickstart", "tests"])
def test_the_readmes_two_commands_are_the_files_that_ci_runs(name: str) -> None:
    text = (ROOT / f"docs/snippets/{name}.sh").read_text("utf-8")
    assert f"```sh\n{text}```\n" in (ROOT / "README.md").read_text("utf-8")
    assert f"docs/snippets/{name}.sh" in (ROOT / ".ci/run").read_text("utf-8")
    assert f"docs/snippets/{name}.sh" in (ROOT / "Vagrantfile").read_text("utf-8")


def test_ci_and_the_vagrantfile_are_shell_that_bash_can_read() -> None:
    vagrantfile = (ROOT / "Vagrantfile").read_text("utf-8")
    scripts = re.findall(r"<<~SHELL\n(.*?)^ *SHELL$", vagrantfile, re.MULTILINE | re.DOTALL)
    assert len(scripts) == 2
    for script in (*scripts, (ROOT / ".ci/run").read_text("utf-8")):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("command", _commands())
def test_every_command_has_options_that_exist(command: str) -> None:
    words = shlex.split(command)[1:]
    context = click.Context(cli.main)
    subcommand = cli.main.get_command(context, words[0])
    assert subcommand is not None
    subcommand.make_context(words[0], words[1:], parent=context)


def test_every_option_of_the_command_is_in_its_reference() -> None:
    text = (ROOT / "docs/reference/cli.md").read_text("utf-8")
    for name, command in cli.main.commands.items():
        section = re.search(rf"^## meshlab {name}\b.*?(?=^## )", text, re.MULTILINE | re.DOTALL)
        assert section, f"docs/reference/cli.md has no section '## meshlab {name}'"
        options = [option for param in command.params if isinstance(param, click.Option) for option in param.opts]
        assert [option for option in options if f"`{option}" not in section[0]] == [], name


def test_every_option_of_the_plugin_is_in_its_reference() -> None:
    text = (ROOT / "docs/reference/pytest-plugin.md").read_text("utf-8")
    for name in pytest_plugin.OPTIONS:
        assert f"| `--meshlab-{name}` | `MESHLAB_{name.upper()}` | `meshlab_{name}` |" in text


def test_mutants_and_variants_that_are_named_exist() -> None:
    named = {
        word
        for page in PAGES
        for word in re.findall(r"--(?:meshlab-)?(?:mutant|variant)[ =]([a-z-]+)", page.read_text("utf-8"))
    }
    assert named
    assert named <= {*MUTANTS, *VARIANTS}


def test_the_page_of_keys_is_made_from_the_table() -> None:
    page = (ROOT / "docs/reference/topology-keys.md").read_text("utf-8")
    assert page == render_keys_page(), "write render_keys_page() into it again"


@pytest.mark.parametrize("block", [text for _, text in _blocks("yaml") if text.startswith("apiVersion:")])
def test_every_topology_is_valid(block: str) -> None:
    reading = read(block, "<docs>")
    assert reading.topology.mesh.pods or "kind: Pod" not in block
    assert reading.unrunnable == ()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_anchor_is_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            text = (page.parent / target if target else page).read_text("utf-8")
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{target}#{anchor}"
