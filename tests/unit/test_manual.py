"""README and manual: built strictly, generated pages up to date, every example of a kind that something reads."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from nixery_snap.cli import cli
from nixery_snap.image_service.errors import status_of
from nixery_snap.settings import load_settings
from scripts.reference import PAGES as GENERATED
from scripts.reference import page as generated_page
from tests.integration.need import need
from tests.support.manual import PAGES, ROOT, Block, Command, blocks
from tests.unit.registry.test_errors import SAMPLES

BLOCKS = [block for page in PAGES for block in blocks(page)]
LANGUAGES = {"console", "ini", "json", "nix", "text", "toml", "yaml"}
# Of settings files, not of other programs; files of others begin with a comment that says whose.
OURS = re.compile(r"(?!# /etc/)|# /etc/nixery-snap/")


def name_of(block: Block) -> str:
    return f"{block.page.name}:{block.line}"


def of(language: str) -> list[Block]:
    found = [block for block in BLOCKS if block.language == language]
    assert found
    return found


def test_the_manual_is_built_and_asks_nobody_else(tmp_path: Path) -> None:
    # With --quiet it would not count the warnings that --strict is about.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = [*tmp_path.rglob("*.html")]
    assert len(pages) > len(PAGES)
    for page in pages:
        for tag in re.findall(r"<(?:link|script|img|iframe|source)\b[^>]*>", page.read_text()):
            # Icons of the theme hold the names of XML's namespaces.
            assert not re.search(r'\b(?:href|src)="?(?:https?:)?//', tag), f"{page}: {tag}"


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_what_follows_from_the_code_is_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == generated_page(name), "`make reference`"


def test_every_command_is_in_the_overview() -> None:
    overview = (ROOT / "docs/commands.md").read_text().partition("\n## ")[0]
    assert sorted(re.findall(r"\[`([\w-]+)`\]\(#", overview)) == sorted(cli.commands)


def test_what_the_kubelet_is_told() -> None:
    rows = re.findall(r"(?m)^\| `([A-Z_]+)` \| `(.+?)` \|", (ROOT / "docs/nodes.md").read_text())
    assert len(rows) > 10
    for status, words in rows:
        assert {status_of(error).name for error in SAMPLES if words in str(error)} == {status}, words


def test_every_link_of_the_readme_leads_somewhere() -> None:
    """mkdocs looks after those of the manual."""
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    for block in BLOCKS:
        assert block.language in LANGUAGES, name_of(block)
        assert re.fullmatch(r"|fails|in the background|not run: \w.{10,}", block.remark), name_of(block)
        assert not block.remark or block.language == "console", name_of(block)
    for page in PAGES:
        text = re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())
        # Four blanks, outside of a list, would be a block of no kind at all.
        assert not re.search(r"(?m)^(?! |- |\d\. ).+\n\n    \S", text), page.name
        assert text.count("```") == 0, page.name


@pytest.mark.parametrize("block", of("console"), ids=name_of)
def test_blocks_of_commands_have_some(block: Block) -> None:
    assert block.text.startswith("$ ")


@pytest.mark.parametrize("block", of("toml"), ids=name_of)
def test_settings_are_those_of_the_program(block: Block, tmp_path: Path) -> None:
    assert tomllib.loads(block.text)
    if OURS.match(block.text):
        (tmp_path / "settings.toml").write_text(block.text)
        assert load_settings(tmp_path / "settings.toml", {}, {})


@pytest.mark.parametrize("block", of("nix"), ids=name_of)
def test_nix_can_be_parsed(block: Block) -> None:
    need("nix-instantiate")
    text = block.text if block.text.startswith("{") else f"{{ {block.text} }}"
    done = subprocess.run(
        ["nix-instantiate", "--parse", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [*of("json"), *of("yaml")], ids=name_of)
def test_data_can_be_read(block: Block) -> None:
    found = [json.loads(block.text)] if block.language == "json" else [*yaml.safe_load_all(block.text)]
    assert all(found)
    for one in found:
        if one.get("apiVersion") == "v1":
            kubernetes_validate.validate(one, "1.37", strict=True)


@pytest.mark.parametrize("block", of("ini"), ids=name_of)
def test_systemd_takes_units(block: Block, tmp_path: Path) -> None:
    """Whole ones, and what is put into those of deploy/systemd."""
    need("systemd-analyze")
    kind = "socket" if "[Socket]" in block.text else "service"
    unit = tmp_path / f"nixery-snap.{kind}"
    whole = "[Unit]" in block.text
    text = block.text if whole else (ROOT / "deploy/systemd" / unit.name).read_text() + block.text
    true = shutil.which("true")
    unit.write_text(re.sub(r"(?m)^(Exec\w+=)/\S+", rf"\1{true}", text))
    for other in {"service", "socket"} - {kind}:
        shutil.copy(ROOT / f"deploy/systemd/nixery-snap.{other}", tmp_path)
        other_file = tmp_path / f"nixery-snap.{other}"
        other_file.write_text(re.sub(r"(?m)^(Exec\w+=)/\S+", rf"\1{true}", other_file.read_text()))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    env = {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if str(tmp_path) in line or "nixery" in line] == []


@pytest.mark.parametrize(
    ("expected", "said", "fits"),
    [
        ("", "whatever", True),
        ("ready", "ready\n", True),
        ("ready", "not yet\nready\n", True),
        ("ready", "refused\n", False),
        ("a\nb", "a\nb\n", True),
        ("a\nb", "b\na\n", False),
        ("a\n…\nb", "a\nx\ny\nb\n", True),
        ("/nix/store/…-hello-…", "/nix/store/0-hello-1\n", True),
        ("/nix/store/…-hello-…", "/nix/store/0-curl-1\n", False),
        ("a.c", "abc", False),
    ],
)
def test_what_output_matches(expected: str, said: str, fits: bool) -> None:
    assert Command("x", expected).matches(said) is fits
