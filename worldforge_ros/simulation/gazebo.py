"""The Gazebo world of the PushT task, in the words of each Gazebo.

``gazebo/worlds/pusht.sdf`` is written for Harmonic and Jetty (flavour ``gz``). Fortress (flavour
``ignition``) wants other plugin names and another render engine, and that engine takes colours as
they appear on the screen where ogre2 takes linear ones. Source of the names:
``src/systems/*/CMakeLists.txt`` of gz-sim, branches ign-gazebo6, gz-sim8 and gz-sim10; of the
colours: ``Ogre2RenderTarget.cc`` of gz-rendering draws into ``PFG_RGBA8_UNORM_SRGB``,
``OgreMaterial.cc`` does not.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import numpy.typing as npt

from worldforge_ros.errors import ErrorCode, mismatch

FloatArray = npt.NDArray[np.float64]

FLAVOURS = ("gz", "ignition")
SYSTEMS = {
    "Physics": "physics",
    "UserCommands": "user-commands",
    "SceneBroadcaster": "scene-broadcaster",
    "Sensors": "sensors",
    "JointStatePublisher": "joint-state-publisher",
    "JointTrajectoryController": "joint-trajectory-controller",
    "PosePublisher": "pose-publisher",
}
"""The only systems a world may load: class, and its part of the library's name."""

_PLUGINS = {
    (f"gz-sim-{library}-system", f"gz::sim::systems::{system}"): (
        f"ignition-gazebo-{library}-system",
        f"ignition::gazebo::systems::{system}",
    )
    for system, library in SYSTEMS.items()
}
_ENGINES = {"ogre2": "ogre"}
_EMISSIVE = re.compile(r"(<emissive>)([^<]*)(</emissive>)")


def world_text(text: str, flavour: str) -> str:
    """``text`` of a world written for ``gz``, for ``flavour``; comments and layout stay.

    :raises WorldForgeError: ``INVALID_ARGUMENT`` for an unknown flavour, text that is not XML, a
        plugin that is not one of :data:`SYSTEMS`, or another render engine than ogre2.
    """
    if flavour not in FLAVOURS:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "flavour", found=repr(flavour), expected=FLAVOURS
        )
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise mismatch(
            ErrorCode.INVALID_ARGUMENT, "world", found=f"not XML ({error})", expected="SDF"
        ) from error
    for plugin in root.iter("plugin"):
        found = (plugin.get("filename", ""), plugin.get("name", ""))
        if found not in _PLUGINS:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "plugin",
                found=f"{found[0]!r} {found[1]!r}",
                expected=f"one of gz-sim's systems {sorted(SYSTEMS)}",
            )
    for engine in root.iter("render_engine"):
        if engine.text not in _ENGINES:
            raise mismatch(
                ErrorCode.INVALID_ARGUMENT,
                "render_engine",
                found=repr(engine.text),
                expected=sorted(_ENGINES),
            )
    if flavour == "gz":
        return text
    for (filename, name), (old_filename, old_name) in _PLUGINS.items():
        text = text.replace(f'filename="{filename}"', f'filename="{old_filename}"')
        text = text.replace(f'name="{name}"', f'name="{old_name}"')
    for engine_name, old_engine in _ENGINES.items():
        text = text.replace(
            f"<render_engine>{engine_name}</render_engine>",
            f"<render_engine>{old_engine}</render_engine>",
        )
    return _EMISSIVE.sub(_screen_colours, text)


def to_screen(linear: npt.ArrayLike) -> FloatArray:
    """Linear colour values as the screen shows them, both 0 to 1 (IEC 61966-2-1, sRGB)."""
    values = np.asarray(linear, dtype=np.float64)
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1.0 / 2.4) - 0.055)


def _screen_colours(match: re.Match[str]) -> str:
    *colours, alpha = match.group(2).split()
    shown = " ".join(f"{colour:.4f}" for colour in to_screen([float(value) for value in colours]))
    return f"{match.group(1)}{shown} {alpha}{match.group(3)}"
