"""What stands in for Gazebo in tests: its message types, and its programs on PATH."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

TEST = Path(__file__).resolve().parent
ROOT = TEST.parent
NAME = "ros_gz_interfaces"
FILES = {
    "package.xml": f"""<package format="3">
  <name>{NAME}</name>
  <version>0.0.0</version>
  <description>Two interfaces of {NAME}, for tests on hosts without it.</description>
  <maintainer email="maintainers@worldforge.invalid">worldforge_ros maintainers</maintainer>
  <license>Apache-2.0</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <buildtool_depend>rosidl_default_generators</buildtool_depend>
  <depend>geometry_msgs</depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
""",
    "CMakeLists.txt": f"""cmake_minimum_required(VERSION 3.20)
project({NAME})
find_package(ament_cmake REQUIRED)
find_package(rosidl_default_generators REQUIRED)
find_package(geometry_msgs REQUIRED)
rosidl_generate_interfaces({NAME} msg/Entity.msg srv/SetEntityPose.srv DEPENDENCIES geometry_msgs)
ament_package()
""",
    "msg/Entity.msg": "uint8 MODEL=2\nuint64 id\nstring name\nuint8 type\n",
    "srv/SetEntityPose.srv": f"{NAME}/Entity entity\ngeometry_msgs/Pose pose\n---\nbool success\n",
}


def with_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give processes that are started from now on the package ros_gz_interfaces: the installed one,
    else one that is built here (13 s of one core), once for all runs.
    """
    if importlib.util.find_spec(NAME) is not None:
        return
    content = repr((sorted(FILES.items()), sys.version, os.environ.get("ROS_DISTRO")))
    folder = ROOT / "build" / f"test_{NAME}" / hashlib.sha256(content.encode()).hexdigest()[:16]
    prefix = folder / "install"
    if not (folder / "done").is_file():
        for name, text in FILES.items():
            path = folder / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        settings = [f"-DPython3_EXECUTABLE={sys.executable}", f"-DCMAKE_INSTALL_PREFIX={prefix}"]
        source = ["-S", f"{folder / 'source'}", "-B", f"{folder / 'build'}"]
        build = ["cmake", "--build", f"{folder / 'build'}", "--target", "install", "-j2"]
        for command in (["cmake", *source, *settings, "-DBUILD_TESTING=OFF"], build):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        (folder / "done").touch()
    packages = sysconfig.get_path("purelib", vars={"base": str(prefix), "platbase": str(prefix)})
    monkeypatch.setenv("PYTHONPATH", packages, prepend=os.pathsep)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(prefix / "lib"), prepend=os.pathsep)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(prefix), prepend=os.pathsep)


def with_programs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put stand-ins for Gazebo and the bridge where the real ones would be found."""
    server = folder / "bin" / "gz"
    bridge = folder / "lib" / "ros_gz_bridge" / "parameter_bridge"
    for path, command in (
        (server, "exec sleep 600"),
        (bridge, f'exec {sys.executable} {TEST / "gazebo_stand_in.py"} "$@"'),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(server.parent), prepend=os.pathsep)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(folder), prepend=os.pathsep)
