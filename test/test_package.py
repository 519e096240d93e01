"""What the package promises as a whole: its programs, its interfaces, its layering."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXECUTABLES = [
    line.split(" = ") for line in (ROOT / "executables.txt").read_text().splitlines() if "=" in line
]
ROS_MODULES = {
    "rclpy",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "trajectory_msgs",
    "geometry_msgs",
    "visualization_msgs",
    "diagnostic_msgs",
}


@pytest.mark.parametrize(("name", "target"), EXECUTABLES)
def test_every_program_has_its_entry_point(name: str, target: str) -> None:
    if ".nodes." in target:
        pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")
        assert target == f"worldforge_ros.nodes.{name}:main"
    module, function = target.split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_node_file_is_a_program() -> None:
    files = {path.stem for path in (ROOT / "worldforge_ros/nodes").glob("*_node.py")}
    assert files == {name for name, target in EXECUTABLES if ".nodes." in target}


def test_setup_py_offers_the_same_programs() -> None:
    # The colcon workspace holds metadata of the same name without entry points.
    found = [
        distribution
        for distribution in distributions(
            name="worldforge_ros", path=[sysconfig.get_path("purelib")]
        )
        if distribution.entry_points
    ]
    if not found:
        pytest.skip("worldforge_ros is not pip-installed: set up with make setup")
    installed = {f"{entry.name} = {entry.value}" for entry in found[0].entry_points}
    assert installed == {" = ".join(pair) for pair in EXECUTABLES}


def test_ros2_run_finds_every_program() -> None:
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    folders = [Path(prefix) / "lib/worldforge_ros" for prefix in prefixes if prefix]
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        pytest.skip("the colcon workspace is not sourced: run through make test")
    programs = {path.name for path in folder.iterdir() if os.access(path, os.X_OK)}
    assert {name for name, _ in EXECUTABLES} <= programs
    shown = subprocess.run(
        [str(folder / "worldforge"), "--help"], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "worldforge" in shown.stdout


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("msg/*.msg"), *ROOT.glob("srv/*.srv")]), ids=lambda path: path.name
)
def test_every_field_says_what_it_means(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# "), "the file says what the interface is for"
    for line in lines[1:]:
        if line.strip() and not line.startswith("#") and line.strip() != "---":
            assert re.search(r"#\s*\S", line), line


def test_only_nodes_and_ros_import_ros() -> None:
    offenders = []
    for path in (ROOT / "worldforge_ros").rglob("*.py"):
        if path.relative_to(ROOT / "worldforge_ros").parts[0] in ("nodes", "ros"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            if any(name.split(".")[0] in ROS_MODULES for name in names):
                offenders.append(str(path))
    assert not offenders


@pytest.mark.parametrize(
    "name", [name for name, target in EXECUTABLES if ".nodes." in target] + ["cli"]
)
def test_start_up_imports_nothing_heavy(name: str) -> None:
    pytest.importorskip("rclpy", reason="rclpy is missing: set up with make setup")
    module = "worldforge_ros.cli" if name == "cli" else f"worldforge_ros.nodes.{name}"
    code = (
        f"import sys, {module}; "
        "print(sorted({'torch', 'lerobot', 'stable_worldmodel', 'cv2', 'matplotlib', 'pymunk', "
        "'scipy', 'pandas', 'rerun', 'pyarrow'} & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "[]"


def test_package_xml_names_every_interface_package_that_is_imported() -> None:
    root = ElementTree.parse(ROOT / "package.xml").getroot()
    named = {element.text for tag in ("depend", "exec_depend") for element in root.iter(tag)}
    imported = set()
    for path in (ROOT / "worldforge_ros").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                top = node.module.split(".")[0]
                if top.endswith(("_msgs", "_srvs", "_interfaces")) or top == "rclpy":
                    imported.add(top)
    # rclpy depends on rcl_interfaces itself.
    assert imported - {"rcl_interfaces"} <= named


def test_versions_agree() -> None:
    root = ElementTree.parse(ROOT / "package.xml").getroot()
    version = root.findtext("version")
    assert f'version="{version}"' in (ROOT / "setup.py").read_text()
    assert f'__version__ = "{version}"' in (ROOT / "worldforge_ros/__init__.py").read_text()
    assert f'release = "{version}"' in (ROOT / "docs/conf.py").read_text()
    assert re.search(rf"^{version} ", (ROOT / "CHANGELOG.rst").read_text(), re.MULTILINE)
