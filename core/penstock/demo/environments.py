"""The two environments of the demo: made once with venv and pip, pinned, each with this very Penstock as a wheel."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

from penstock.demo.processes import HostFailed

HOSTS = ("airflow", "prefect")
PIP_SECONDS = 900.0
Say = Callable[[str], None]


def constraints(host: str) -> Path:
    """The pins of a host's environment: plain `name==version` lines."""
    return Path(__file__).parent / f"constraints-{host}.txt"


def build_wheel(folder: Path) -> Path:
    """The wheel of the Penstock that runs now. Raises HostFailed when it was installed from where it cannot be had."""
    record = distribution("penstock").read_text("direct_url.json")
    origin = json.loads(record) if record else {}
    path = Path(unquote(urlparse(origin.get("url", "")).path))
    if "dir_info" in origin and (path / "pyproject.toml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.whl"):
            old.unlink()
        builder = folder.parent / "builder"  # an environment need not have pip itself
        if not (builder / "bin" / "pip").exists():
            venv.create(builder, with_pip=True, clear=True)
        _pip(builder / "bin" / "python", "wheel", "--no-deps", "--wheel-dir", str(folder), str(path))
        (wheel,) = folder.glob("*.whl")
        return wheel
    if path.suffix == ".whl" and path.exists():
        return path
    raise HostFailed(
        "the demo installs this Penstock beside each host, but the folder or wheel that it was installed from is gone; "
        "install it again from a checkout (`pip install .`) or from a wheel that stays"
    )


def make_environment(host: str, folder: Path, wheel: Path, say: Say) -> Path:
    """The bin folder of the host's environment, made now or reused. Raises HostFailed with pip's own words."""
    pins = constraints(host)
    wanted = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:12]
    home = folder / f"{host}-{wanted}"
    python = home / "bin" / "python"
    ready = home / "ready"
    wheel_digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if not ready.exists():
        say(f"{host}: making an environment in {home}, once")
        venv.create(home, with_pip=True, clear=True)
        _pip(python, "install", "--constraint", str(pins), f"{wheel}[{host}]")
    elif ready.read_text() != wheel_digest:
        say(f"{host}: putting this Penstock into {home}")
        _pip(python, "install", "--no-deps", "--force-reinstall", str(wheel))
    else:
        say(f"{host}: the environment is there")
    ready.write_text(wheel_digest)
    return python.parent


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise HostFailed(f"pip did not end within {PIP_SECONDS:g} s: {' '.join(command)}") from error
    if done.returncode != 0:
        raise HostFailed(
            "the environment cannot be made; is the package index reachable?\n"
            f"{' '.join(command)}\n{done.stderr[-3000:]}"
        )
