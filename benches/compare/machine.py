"""Describes this machine, the use of its cores, and the versions that are compared."""

import os
import pathlib
import platform
import shutil
import subprocess

from processes import TICKS_PER_SECOND

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The directories of setup.sh and of cargo.
TOOLS = ROOT / "target" / "bench"
BUILT = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
PROXY_CORE, GENERATOR_CORE = 0, 1


def facts(found):
    """Returns the facts as plain data, in the order in which they are shown."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "system": _system(),
        "versions": {proxy.title: proxy.version() for proxy in found},
        "generators": {name: _version(name) for name in ("wrk", "h2load") if shutil.which(name)},
        "compiler": _output(["rustc", "--version"]),
        "commit": _commit(),
    }


def busy_seconds():
    """Returns for each core the time since boot in which it was busy, with any process."""
    seconds = []
    for line in pathlib.Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _waiting, interrupt, soft_interrupt, stolen = map(int, ticks[:8])
            busy = user + nice + system + interrupt + soft_interrupt + stolen
            seconds.append(busy / TICKS_PER_SECOND)
    return seconds


def _version(program):
    ran = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    return " ".join((ran.stdout + ran.stderr).split()[:2])


def _processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _system():
    for line in pathlib.Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _commit():
    """Returns the commit, and whether sources differ from it. Results of earlier runs do not count."""
    commit = _output(["git", "rev-parse", "--short", "HEAD"])
    changed = _output(["git", "status", "--porcelain", "--", *(ROOT / name for name in ("src", "demo", "Cargo.toml", "Cargo.lock"))])
    return f"{commit} with changes" if changed else commit


def _output(command):
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, cwd=pathlib.Path(__file__).parent
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return ran.stdout.strip()
