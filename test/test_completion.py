"""Completion of the command line, asked of the shell itself."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from worldforge_ros.cli import main
from worldforge_ros.completion import SHELLS

pytest.importorskip("shtab", reason="shtab is missing: pip install shtab")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The script for every shell."""
    folder = tmp_path_factory.mktemp("completion")
    found = {}
    for shell in SHELLS:
        found[shell] = folder / shell
        with found[shell].open("w", encoding="utf-8") as file, redirect_stdout(file):
            assert main(["completion", shell]) == 0
    return found


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of ``words``."""
    quoted = " ".join(f"'{word}'" for word in ("worldforge", *words))
    program = f"""
    source {script}
    function=$(complete -p worldforge | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; COMPREPLY=()
    $function worldforge "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("sco",), {"score"}),
        (("score", "--cand"), {"--candidates"}),
        (("replay", "--fail"), {"--fail-if"}),
        (("evaluate", "pusht", "--prot"), {"--protocol"}),
        (("up", "al"), {"aloha"}),
        (("up", "pusht", "--num"), {"--num-candidates"}),
        (("up", "pusht", "--source", "cem"), {"cem", "cem+policy"}),
        (("gate", "w"), {"watch"}),
        (("train", "key"), {"keypoints"}),
        (("completion", "z"), {"zsh"}),
    ],
)
def test_bash_offers_what_the_command_takes(
    scripts: dict[str, Path], words: tuple[str, ...], offered: set[str]
) -> None:
    assert set(completed(scripts["bash"], *words)) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_can_read_it(scripts: dict[str, Path], shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is missing: apt-get install {shell}")
    done = subprocess.run([shell, "-n", str(scripts[shell])], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
