"""Editable install of the Python modules; colcon builds the messages and installs the rest."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
EXECUTABLES = [
    line.strip() for line in (ROOT / "executables.txt").read_text().splitlines() if "=" in line
]

setup(
    name="worldforge_ros",
    version="0.1.0",
    description="Policies propose, world models score, the planner chooses, the gate decides.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["worldforge_ros", "worldforge_ros.*"]),
    install_requires=["numpy", "pyyaml", "pillow", "rich"],
    extras_require={"rerun": ["rerun-sdk>=0.26"]},
    entry_points={"console_scripts": EXECUTABLES},
)
