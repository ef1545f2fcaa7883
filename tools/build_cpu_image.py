"""The CPU target of launch/container/Dockerfile without Docker: its instructions, one by one, in a directory as root.

    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm ROOT
    python -m tools.build_cpu_image ROOT --bind /etc/pip.conf
    python -m tools.build_cpu_image ROOT --run hcmegatron train quickstart --training.steps=3

ROOT stands for the base image: Debian's own Python 3.11 is in the place of Docker's. ARG, ENV, WORKDIR, COPY, RUN and
USER are done as the Dockerfile says, .dockerignore included; LABEL, HEALTHCHECK, ENTRYPOINT and CMD change no file, and
--run goes by way of the entrypoint. Needs root (chroot, bind mounts in a namespace of its own).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
DOCKERFILE = TREE / "launch/container/Dockerfile"
_NOTHING = ("LABEL", "HEALTHCHECK", "ENTRYPOINT", "CMD")
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"


def instructions(text: str, target: str) -> list[tuple[str, str]]:
    """(word, rest) of each instruction of a target's stage, without comments and with lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    found, stage = [], None
    for line in joined:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.rpartition(" AS ")[2]
        elif stage == target:
            found.append((word, rest.strip()))
    return found


def ignored(name: str, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves a file out: the last pattern decides that fits it or a folder it is in."""
    parts = Path(name).parts
    names = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    out = False
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        if any(fnmatch.fnmatch(f"./{each}" if "/" in plain else each, plain) for each in names):
            out = not pattern.startswith("!")
    return out


class Image:
    """A directory that instructions are carried out in."""

    def __init__(self, root: Path, binds: list[Path], arguments: dict[str, str]) -> None:
        self.root, self.binds, self.arguments = root, binds, arguments
        self.environment = {"PATH": _PATH}
        self.folder, self.user = "/", "0:0"
        patterns = (TREE / ".dockerignore").read_text().splitlines()
        self.patterns = [line for line in patterns if line and not line.startswith("#")]

    def perform(self, word: str, rest: str) -> None:
        """One instruction; CalledProcessError where a RUN fails."""
        if word == "ARG":
            name, _, value = rest.partition("=")
            self.arguments.setdefault(name, value)
        elif word == "ENV":
            self.environment |= dict(pair.split("=", 1) for pair in rest.split())
        elif word == "WORKDIR":
            self.folder = rest
            if not self._inside(rest).exists():
                self._inside(rest).mkdir(parents=True)
        elif word == "COPY":
            *sources, place = rest.split()
            for source in sources:
                self._copy(source, self._inside(os.path.join(self.folder, place)), place.endswith("/"))
        elif word == "RUN":
            self.run(["/bin/sh", "-c", rest], self.arguments)
        elif word == "USER":
            self.user = rest
        elif word not in _NOTHING:
            raise ValueError(f"{word} {rest}: this program does not know that instruction")

    def run(self, command: list[str], more: dict[str, str] | None = None) -> None:
        """A command in the image, as its user, with /proc, /dev and the bound paths mounted while it runs."""
        mounts = ["mount -t proc proc proc", "mount --rbind /dev dev"]
        for path in (Path("/etc/resolv.conf"), *self.binds):
            there = self._inside(str(path))
            if path.is_dir():
                there.mkdir(parents=True, exist_ok=True)
            else:
                there.parent.mkdir(parents=True, exist_ok=True)
                there.touch()
            mounts.append(f'mount --rbind "{path}" "{there}"')
        inside = 'cd "$0" && exec "$@"'
        script = " && ".join([f'cd "{self.root}"', *mounts, f'exec chroot --userspec={self.user} . "$@"'])
        home = "/root" if self.user.startswith("0") else "/home/trainer"
        subprocess.run(
            ["unshare", "--mount", "bash", "-ec", script, "bash", "sh", "-c", inside, self.folder, *command],
            check=True,
            env={**self.environment, **(more or {}), "HOME": home},
        )

    def _inside(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _copy(self, source: str, place: Path, into: bool) -> None:
        start = TREE / source
        files = (
            [start]
            if start.is_file()
            else [path for path in start.rglob("*") if not path.is_dir() or path.is_symlink()]
        )
        for path in files:
            if ignored(str(path.relative_to(TREE)), self.patterns):
                continue
            there = (
                place / (path.name if into else "") if start.is_file() else place / path.relative_to(start)
            )
            there.parent.mkdir(parents=True, exist_ok=True)
            there.unlink(missing_ok=True)
            shutil.copy2(path, there, follow_symlinks=False)  # a link stays one, as in Docker's COPY


def size(root: Path) -> int:
    """Bytes on disk below a directory, its own file system only."""
    return int(subprocess.check_output(["du", "-xsk", str(root)]).split()[0]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "root", type=Path, metavar="ROOT", nargs="?", help="a root file system, as debootstrap makes it"
    )
    parser.add_argument(
        "--bind", type=Path, action="append", default=[], help="a path of this machine that RUN sees"
    )
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as docker build has it"
    )
    parser.add_argument("--run", nargs=argparse.REMAINDER, help="of a built image: what its container runs")
    options = parser.parse_args()
    if options.root is None:
        parser.error("ROOT is missing: a root file system, as debootstrap makes it")
    image = Image(
        options.root.resolve(), options.bind, dict(text.split("=", 1) for text in options.build_arg)
    )
    steps = instructions(DOCKERFILE.read_text(), "cpu")
    if options.run is not None:
        for word, rest in steps:
            if word in ("ENV", "USER", "WORKDIR"):
                image.perform(word, rest)
        entry = json.loads(next(rest for word, rest in steps if word == "ENTRYPOINT"))
        try:
            image.run([*entry, *options.run])
        except subprocess.CalledProcessError as error:
            return error.returncode
        return 0
    before = size(image.root)
    print(f"{before / 1e6:10.1f} MB          base", flush=True)
    for word, rest in steps:
        began = time.monotonic()
        image.perform(word, rest)
        after = size(image.root)
        print(
            f"{(after - before) / 1e6:10.1f} MB {time.monotonic() - began:6.1f} s {word} {rest[:80]}",
            flush=True,
        )
        before = after
    print(f"{before / 1e6:10.1f} MB          together")
    return 0


if __name__ == "__main__":
    sys.exit(main())
