"""README and docs say what is there: links, commands, files, parameters, topics, codes."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from worldforge_ros import bringup, cli
from worldforge_ros.errors import ErrorCode
from worldforge_ros.safety.reasons import ReasonCode

ROOT = Path(__file__).resolve().parent.parent
CARDS = sorted(ROOT.glob("models/*/*/README.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), *CARDS]
READER = MarkdownIt("commonmark").enable("table")
FOLDERS = (
    *(".ci/", ".github/", "benchmarks/", "config/", "docs/", "gazebo/", "launch/", "models/"),
    *("msg/", "requirements/", "scripts/", "srv/", "test/", "worldforge_ros/"),
)
"""Of the repository; what is below other names is written by commands."""
GENERATED = ("parameters", "interfaces", "errors", "reasons", "cli")
DELEGATING = ("up", "train", "evaluate", "quality", "own_module")
"""Commands whose runner only finds out who parses the rest."""
PLACEHOLDERS = {"TASK": "pusht", "TASK.launch.py": "pusht.launch.py"}
NODES = {"safety_gate": "safety_gate_node"} | {
    f"{name}": f"{name}_node" for name in ("pusht_sim", "aloha_sim", "mock_robot")
}
"""Names of nodes that their program is not called by."""
OUTSIDE_OF_THE_PROFILES = {
    "action_chunk/candidate",
    "camera/front/image_raw/compressed",
}
"""Topics that no profile of SROS 2 has."""
NO_CODES = {"FULLY_CONNECTED"}


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    """Blocks and what is in them, flat."""
    found: list[Token] = []
    for token in READER.parse(page.read_text(encoding="utf-8")):
        found += [token, *(token.children or ())]
    return tuple(found)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def inline_code(page: Path) -> list[str]:
    return [token.content for token in tokens(page) if token.type == "code_inline"]


def fences(page: Path, language: str) -> list[str]:
    return [t.content for t in tokens(page) if t.type == "fence" and t.info.strip() == language]


@cache
def anchors(page: Path) -> frozenset[str]:
    """Of the headings of ``page``, as GitHub and MyST make them."""
    found: list[str] = []
    for opened, text in zip(tokens(page), tokens(page)[1:], strict=False):
        if opened.type == "heading_open":
            words = "".join(c.content for c in text.children or ()) or text.content
            slug = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
            count = sum(1 for other in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other))
            found.append(f"{slug}-{count}" if count else slug)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = [
        str(token.attrs.get("href") or token.attrs.get("src"))
        for token in tokens(page)
        if token.type in ("link_open", "image")
    ]
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_contents() -> None:
    listed = [
        name
        for content in fences(ROOT / "docs/index.md", "{toctree}")
        for name in content.splitlines()
        if name and not name.startswith(":")
    ]
    assert sorted(listed) == sorted({p.stem for p in ROOT.glob("docs/*.md")} - {"index"})


@pytest.mark.parametrize("name", GENERATED)
def test_the_reference_is_what_the_code_says(name: str) -> None:
    if name == "parameters":
        pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")
    if name == "cli":
        pytest.importorskip("torch", reason="torch is missing: set up with make setup")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/reference.py"), "--check", name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def lines(script: str) -> Iterator[str]:
    """Lines of a script, continued ones joined, without here documents."""
    script = re.sub(r"<<'?(\w+)'?\n.*?\n\1\n", "\n", script, flags=re.DOTALL)
    for line in script.replace("\\\n", " ").splitlines():
        yield from re.split(r" && | \| (?!scored|first|random)", line)


def words_of(line: str) -> list[str]:
    """One command, without comments, variables before it and redirection behind it."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)
    redirected = next((i for i, word in enumerate(words) if re.match(r"\d?[<>]", word)), None)
    words = words[:redirected]
    return [word for word in words if word not in ("...", "[--json]", "name:=value")]


def alternatives(words: list[str]) -> list[list[str]]:
    """``train demos|policy pusht`` as two commands."""
    result: list[list[str]] = [[]]
    for word in words:
        choices = word.split("|") if re.fullmatch(r"[\w-]+(\|[\w-]+)+", word) else [word]
        result = [[*found, PLACEHOLDERS.get(c, c)] for found in result for c in choices]
    return result


def commands(page: Path, program: str) -> list[list[str]]:
    """Every command of ``program`` in scripts and in the text of ``page``, without its name."""
    written = [line for script in fences(page, "bash") for line in lines(script)]
    written += [code for code in inline_code(page) if code != "worldforge_ros"]
    size = len(program.split())
    found = []
    for line in written:
        if line.strip().startswith(f"{program} "):
            found += alternatives(words_of(line)[size:])
    return found


def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command parses everything and then does nothing."""

    def supervise(task: str, arguments: dict[str, str], **_: Any) -> int:
        bringup.parse_arguments(bringup.find_task(task).arguments, arguments)
        return 0

    def run_module(name: str, prog: str, rest: list[str], epilog: str = "") -> int:
        cli.module_parser(name, prog, epilog)[1].parse_args(rest)
        return 0

    def parsed(_: Any, rest: list[str]) -> int:
        cli._no_rest(rest)
        return 0

    for name in dir(cli):
        command = name.removeprefix("_run_")
        if name.startswith("_run_") and command not in DELEGATING and command != "module":
            monkeypatch.setattr(cli, name, parsed)
    monkeypatch.setattr(cli, "_run_module", run_module)
    monkeypatch.setattr(cli, "_supervise", supervise)


def status(words: list[str]) -> int:
    try:
        return cli.main(words)
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_worldforge_command_parses(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parse_only(monkeypatch)
    wrong = {}
    for words in commands(page, "worldforge"):
        if words and status(words) != 0 and not is_group(words):
            wrong[shlex.join(words)] = capsys.readouterr().err.strip().splitlines()[-1:]
        capsys.readouterr()
    assert not wrong


def is_group(words: list[str]) -> bool:
    """The name of a command alone, which stands for all that it does."""
    parser = cli._parser()
    for word in words:
        below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not below or word not in below[0].choices:
            return False
        parser = below[0].choices[word]
    return True


def test_a_wrong_command_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_only(monkeypatch)
    for line in ("up pusht planer:=first", "train policy chess", "replay --plans scored", "demo x"):
        assert status(line.split()) != 0
    for line in ("up pusht planner:=first", "train policy pusht --steps 3", "gate watch --once"):
        assert status(line.split()) == 0


def launch_arguments(file: str) -> set[str]:
    if file == "replay.launch.py":
        return {argument.name for argument in bringup.REPLAY_ARGUMENTS}
    task = bringup.find_task(file.removesuffix(".launch.py"))
    return {argument.name for argument in task.arguments}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_launch_file_takes_what_it_is_given(page: Path) -> None:
    for file, *rest in filter(None, commands(page, "ros2 launch worldforge_ros")):
        assert (ROOT / "launch" / file).is_file()
        given = {word.split(":=")[0] for word in rest if not word.startswith("--")}
        assert given <= launch_arguments(file)


@cache
def declared() -> dict[str, frozenset[str]]:
    """Parameters of each program, from the reference that a test compares with the nodes."""
    reference = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    sections = [section.partition("\n") for section in reference.split("\n## ")[1:]]
    return {
        name: frozenset(re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)) | {"use_sim_time"}
        for name, _, body in sections
    }


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_program_has_the_parameters_that_it_is_given(page: Path) -> None:
    for program, *rest in filter(None, commands(page, "ros2 run worldforge_ros")):
        given = {word.split(":=")[0] for flag, word in pairwise(rest) if flag in ("-p", "--param")}
        assert given <= declared()[program]
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"<<'?(END)'?\n(.*?)\nEND\n", text, re.DOTALL)
    for content in [*fences(page, "yaml"), *(body for _, body in files)]:
        if "ros__parameters" in content:
            for node, section in yaml.safe_load(content).items():
                known = declared()[NODES.get(node, node)]
                assert set(section["ros__parameters"]) <= known


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    written = [*inline_code(page), *fences(page, "bash")]
    names = {
        word.rstrip(".,:;)").split("::")[0]
        for text in written
        for word in re.split(r"[\s'\"=]+", text)
        if word.startswith(FOLDERS) and not re.search(r"[<>{}$]|TASK|\b[A-Z]{4,}\b", word)
    }
    interfaces = {f"worldforge_ros/{p.stem}" for p in [*ROOT.glob("msg/*"), *ROOT.glob("srv/*")]}
    missing = {
        name
        for name in names - interfaces
        if not re.match(r"worldforge_ros/(msg|srv)/", name) and not list(ROOT.glob(name))
    }
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_make_target_is_there(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {words[0] for words in commands(page, "make") if words and "=" not in words[0]}
    assert used <= targets


@cache
def names_on_the_graph() -> frozenset[str]:
    """Topics and services of all nodes, from the profiles that a test holds against them."""
    root = ElementTree.parse(ROOT / "config/security/policy.xml").getroot()
    found = set()
    for profile in root.iter("profile"):
        for element in [*profile.iter("topic"), *profile.iter("service")]:
            found.add(str(element.text).replace("~", str(profile.get("node"))).lstrip("/"))
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_topic_and_service_that_is_named_is_there(page: Path) -> None:
    prefixes = {name.split("/")[0] for name in names_on_the_graph() if "/" in name}
    used = {
        code.lstrip("/")
        for code in inline_code(page)
        if re.fullmatch(r"/?\w+(/[a-z_]+)+", code) and code.lstrip("/").split("/")[0] in prefixes
    }
    for verb in ("topic echo", "topic pub", "topic info", "topic hz", "service call"):
        for words in commands(page, f"ros2 {verb}"):
            used |= {
                word.lstrip("/")
                for word in [w for w in words if re.fullmatch(r"/?[a-z_]+(/[a-z_]+)*", w)][:1]
            }
    assert used - OUTSIDE_OF_THE_PROFILES <= names_on_the_graph()


@pytest.mark.parametrize("page", [p for p in PAGES if p not in CARDS], ids=named)
def test_every_code_that_is_named_is_there(page: Path) -> None:
    codes = set(ErrorCode.__members__) | set(ReasonCode.__members__)
    prefixes = {code.split("_")[0] for code in codes}
    used = {
        code
        for code in inline_code(page)
        if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", code) and code.split("_")[0] in prefixes
    }
    assert used <= codes | NO_CODES
