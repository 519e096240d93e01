#!/usr/bin/env bash
# Sets up everything that the demo and the tests need, and builds the package with colcon.
# With a ROS 2 distro sourced it uses that one; without, it installs ROS 2 from wheels:
#   WORLDFORGE_ROS_DISTRO=jazzy (default) or kilted, WORLDFORGE_PYTHON=python3.11
#   WORLDFORGE_WHEELS=1 takes the wheels although a distro is sourced (env.sh sets it for itself)
# Running it again changes nothing and takes seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv
say() { printf 'setup: %s\n' "$*"; }

if [ -n "${ROS_DISTRO:-}" ] && [ -n "${AMENT_PREFIX_PATH:-}" ] && [ -z "${WORLDFORGE_WHEELS:-}" ]; then
  source_of_ros=distro distro=$ROS_DISTRO python=${WORLDFORGE_PYTHON:-/usr/bin/python3}
  requirements=(requirements/run.txt requirements/test.txt)
else
  source_of_ros=wheels distro=${WORLDFORGE_ROS_DISTRO:-jazzy} python=${WORLDFORGE_PYTHON:-python3}
  requirements=("requirements/ros-$distro.txt" requirements/build.txt requirements/run.txt requirements/test.txt)
  if [ ! -f "requirements/ros-$distro.txt" ]; then
    echo "setup: WORLDFORGE_ROS_DISTRO is '$distro'; expected jazzy or kilted" >&2
    exit 2
  fi
fi
"$python" - <<'PY'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"setup: python is {sys.version.split()[0]}; expected 3.11 to 3.13 (set WORLDFORGE_PYTHON)")
PY

wanted=$( { echo "$source_of_ros $distro"; "$python" --version; cat scripts/setup.sh scripts/fix_wheel_paths.py "${requirements[@]}"; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$venv/.setup-stamp" 2>/dev/null)" != "$wanted" ]; then
  say "installing into .venv: ROS 2 $distro from $source_of_ros, LeRobot, stable-worldmodel, simulator (about 8 GB)"
  if [ "$source_of_ros" = distro ]; then
    "$python" -m venv --clear --system-site-packages "$venv"
  else
    "$python" -m venv --clear "$venv"
  fi
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
  VIRTUAL_ENV=$venv "$venv/bin/uv" pip install --quiet "${requirements[@]/#/--requirement=}"
  if [ "$source_of_ros" = wheels ]; then
    "$venv/bin/python" scripts/fix_wheel_paths.py "$venv"
  fi
  rm -rf build install log
  echo "$wanted" > "$venv/.setup-stamp"
fi

if [ "$source_of_ros" = wheels ]; then
  cat > env.sh <<ENV
# Written by scripts/setup.sh; source it in bash: . ./env.sh
export ROS_DISTRO=$distro ROS_VERSION=2 ROS_PYTHON_VERSION=3 WORLDFORGE_WHEELS=1
export ROS_AUTOMATIC_DISCOVERY_RANGE=\${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}
. "$venv/bin/activate"
export AMENT_PREFIX_PATH="$venv" CMAKE_PREFIX_PATH="$venv"
export LD_LIBRARY_PATH="$venv/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
if [ -f "$root/install/local_setup.bash" ]; then . "$root/install/local_setup.bash"; fi
ENV
else
  distro_setup=$(printf '%s' "$AMENT_PREFIX_PATH" | tr ':' '\n' | grep -v "^$root/" | tail -n 1)
  cat > env.sh <<ENV
# Written by scripts/setup.sh; source it in bash: . ./env.sh
if [ -z "\${AMENT_PREFIX_PATH:-}" ]; then . "$distro_setup/setup.bash"; fi
. "$venv/bin/activate"
if [ -f "$root/install/local_setup.bash" ]; then . "$root/install/local_setup.bash"; fi
ENV
fi

built=$( { cat CMakeLists.txt package.xml executables.txt cmake/*.in msg/*.msg srv/*.srv; find worldforge_ros launch config models gazebo -type f -not -name '*.pyc' | LC_ALL=C sort; } | sha256sum | cut -d' ' -f1)
if [ "$(cat install/.build-stamp 2>/dev/null)" != "$built" ]; then
  say "building with colcon"
  # colcon's own files read variables that may be unset.
  set +u; . ./env.sh; set -u
  # Installed again with every build, so that new programs are there outside of colcon too.
  VIRTUAL_ENV=$venv "$venv/bin/uv" pip install --quiet --no-deps --no-build-isolation \
    --config-settings editable_mode=compat --editable .
  mkdir -p log
  if ! colcon --log-base log build --symlink-install --event-handlers console_cohesion- \
      --cmake-args -DBUILD_TESTING=OFF -DPython3_EXECUTABLE="$venv/bin/python" > log/setup-build.txt 2>&1; then
    tail -n 60 log/setup-build.txt >&2
    echo "setup: colcon build failed; the whole output is in log/setup-build.txt" >&2
    exit 1
  fi
  echo "$built" > install/.build-stamp
fi
say "ready (ROS 2 $distro from $source_of_ros); '. ./env.sh' puts ros and worldforge on your path"
