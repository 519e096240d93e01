"""What a bring-up in Gazebo needs beside the nodes: world and bridge files, programs, environment.

``gz`` is Gazebo Harmonic and newer, ``ignition`` is Fortress, whose program, messages and plugins
have other names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from worldforge_ros.errors import ErrorCode, WorldForgeError, mismatch
from worldforge_ros.resources import PACKAGE, resolve_path

WORLD = "pusht"
BLOCK = "tee"
"""Model of the T."""
SET_POSE = f"/world/{WORLD}/set_pose"
"""Service of UserCommands, the same in Gazebo and in ROS."""
BLOCK_TOPIC = f"model/{BLOCK}/pose"
JOINT_TOPIC = "gazebo_pusht/joint_states"
"""Joint states as Gazebo has them."""

WORLD_FILE = f"package://{PACKAGE}/gazebo/worlds/pusht.sdf"
BRIDGE_FILE = f"package://{PACKAGE}/config/gazebo/bridge.yaml"
BRIDGE_PACKAGE, BRIDGE_PROGRAM = "ros_gz_bridge", "parameter_bridge"
INTERFACES = "ros_gz_interfaces"
LOCAL_ADDRESS = "127.0.0.1"

_SERVER = {"gz": ("gz", "sim"), "ignition": ("ign", "gazebo")}
FLAVOURS = tuple(_SERVER)
_FACTOR = re.compile(r"(<real_time_factor>)[^<]*(</real_time_factor>)")


def bridge_text(text: str, flavour: str) -> str:
    """The bridge file ``text`` with the message types of ``flavour``."""
    return text if flavour == "gz" else text.replace("gz.msgs.", "ignition.msgs.")


def paced_world(text: str, rate: float) -> str:
    """The world ``text`` that runs at ``rate`` times real time, where the machine can.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for a world that does not say how fast it runs.
    """
    paced, count = _FACTOR.subn(rf"\g<1>{rate:g}\g<2>", text)
    if count != 1:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT,
            "world",
            found=f"with {count} elements real_time_factor",
            expected="1, in physics",
        )
    return paced


def world_file(path: str, flavour: str, rate: float) -> Path:
    """The world at ``path`` for ``flavour`` at ``rate``: itself, or a copy in the cache folder.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` when it cannot be read.
    """
    # It needs numpy, and this module is read for every --help.
    from worldforge_ros.simulation.gazebo import world_text

    source = resolve_path(path)
    text = _read(source, "argument world")
    wanted = world_text(text, flavour)
    if rate != 1.0:
        wanted = paced_world(wanted, rate)
    return source if wanted == text else _cached(wanted, source.name)


def bridge_file(flavour: str) -> Path:
    """The bridge file for ``flavour``: the shipped one, or a copy in the cache folder."""
    source = resolve_path(BRIDGE_FILE)
    text = _read(source, "bridge file")
    wanted = bridge_text(text, flavour)
    return source if wanted == text else _cached(wanted, source.name)


def _read(path: Path, field: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, field, found=f"{path} ({error})", expected="a text file"
        ) from error


def _cached(text: str, name: str) -> Path:
    """A file with ``text``, named after its content, so that runs never change each other's."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / PACKAGE / "gazebo" / hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{name}.{os.getpid()}"
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    return path


def server_argv(flavour: str, world: Path, gui: bool) -> tuple[str, ...]:
    """The command line of Gazebo, running from the start; without ``gui`` it needs no display."""
    # Fortress renders with ogre here, which has no headless mode: it takes $DISPLAY.
    headless = () if gui else ("-s", "--headless-rendering") if flavour == "gz" else ("-s",)
    return (*_SERVER[flavour], "-r", *headless, str(world))


def local_environment(flavour: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What Gazebo and the bridge are given so that their messages stay on this host, and in one ROS
    domain; what ``environment`` sets already is left alone.
    """
    prefix = "GZ" if flavour == "gz" else "IGN"
    added = {f"{prefix}_IP": LOCAL_ADDRESS}
    if "ROS_DOMAIN_ID" in environment:
        added[f"{prefix}_PARTITION"] = f"ros_domain_{environment['ROS_DOMAIN_ID']}"
    return {name: value for name, value in added.items() if name not in environment}


def program_of(package: str, executable: str, environment: Mapping[str, str]) -> Path:
    """The program of another package, as ``ros2 run`` finds it.

    :raises WorldForgeError: ``DEPENDENCY_MISSING``.
    """
    for prefix in environment.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        path = Path(prefix) / "lib" / package / executable
        if prefix and os.access(path, os.X_OK):
            return path
    raise _missing(
        f"program {executable} of package {package}",
        "in no folder of AMENT_PREFIX_PATH",
        f"package {package}",
        package,
    )


def check_installed(flavour: str, environment: Mapping[str, str]) -> None:
    """Whether everything is there that a bring-up in Gazebo runs.

    :raises WorldForgeError: ``DEPENDENCY_MISSING`` naming the first thing that is not.
    """
    program = _SERVER[flavour][0]
    if shutil.which(program, path=environment.get("PATH")) is None:
        raise _missing(f"program {program}", "not on PATH", "Gazebo", "ros_gz_sim")
    program_of(BRIDGE_PACKAGE, BRIDGE_PROGRAM, environment)
    if importlib.util.find_spec(INTERFACES) is None:
        raise missing_interfaces("absent")


def missing_interfaces(found: str) -> WorldForgeError:
    """That the messages of ``ros_gz_interfaces`` are not there."""
    return _missing(f"python module {INTERFACES}", found, f"package {INTERFACES}", INTERFACES)


def _missing(field: str, found: str, expected: str, package: str) -> WorldForgeError:
    name = package.replace("_", "-")
    return mismatch(
        ErrorCode.DEPENDENCY_MISSING,
        field,
        found=found,
        expected=f"{expected}: apt install ros-$ROS_DISTRO-{name}, then source the distro "
        "(docs/gazebo.md); it is not among the Python wheels of ROS",
    )
