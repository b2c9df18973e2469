"""Fetch Debian packages and take single files out of them, without root and without installing.

A package store is a folder with two parts: debs/ holds packages as apt-get downloads them,
unpacked/<package>/ holds the files that were taken out. Both are filled by renaming finished
files into place, so that whatever is there under its own name is whole.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from bsdkit.errors import StarterError

__all__ = ["PackageError", "PackageStore", "default_cache", "partial_name", "remove_leftovers"]

logger = logging.getLogger(__name__)

_APT_LISTS = Path("/var/lib/apt/lists")
_LEFTOVER_SECONDS = 24 * 60 * 60
_TAR_BLOCK = 1 << 20
_COPY_BLOCK = 1 << 20


class PackageError(Exception):
    """A package that cannot be fetched or unpacked; others may still be."""


def default_cache() -> Path:
    """The folder for packages: $BSDKIT_CACHE, else bsdkit in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("BSDKIT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bsdkit"


def partial_name(path: Path) -> Path:
    """The name under which this process writes `path` until it is whole."""
    # The process id keeps two builds that share a folder apart.
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what interrupted builds left half written, but not what another one is writing."""
    for path in list(folder.glob(pattern)):
        try:
            old = time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS
        except FileNotFoundError:  # the other one has finished it
            continue
        if old and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif old:
            path.unlink(missing_ok=True)


class PackageStore:
    """The packages and the unpacked files in one cache folder."""

    def __init__(self, cache: Path) -> None:
        """Open the store in `cache`, which need not exist yet."""
        self._debs = cache.absolute() / "debs"
        self._unpacked = cache.absolute() / "unpacked"

    @property
    def unpacked(self) -> Path:
        """The folder with one folder of unpacked files for each package."""
        return self._unpacked

    def missing(self, package: str, paths: Iterable[str]) -> list[str]:
        """Those of the package's files that are not unpacked yet, sorted."""
        folder = self._unpacked / package
        return sorted(path for path in paths if not (folder / path).is_file())

    def find(self, package: str, version: str | None) -> Path | None:
        """The package's .deb in the store, of this version where there is one, or None."""
        if version:
            # apt-get writes the colon of an epoch like this.
            stem = f"{package}_{version.replace(':', '%3a')}_"
            for path in sorted(self._debs.glob(f"{_literal(stem)}*.deb")):
                return path
        # A name holds no underscore, so this cannot match a longer name.
        found = sorted(self._debs.glob(f"{_literal(package)}_*.deb"))
        return found[-1] if found else None

    def require_tools(self, *, fetch: bool) -> None:
        """Check that the programs of a Debian machine are here.

        Args:
            fetch: Whether packages must be fetched too, not only unpacked.

        Raises:
            StarterError: A program is missing; the message says where to go instead.
        """
        programs = ("apt-get", "dpkg-deb") if fetch else ("dpkg-deb",)
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            raise StarterError(
                f"{' and '.join(missing)} not found, so the starter sounds cannot be built here; "
                "build them on any Debian or Ubuntu machine or container (docker run --rm -it "
                '-v "$PWD:/bsdkit" -w /bsdkit debian:12) and copy the output folder here, or use '
                "the committed embeddings in cache/starter, which need no audio"
            )

    def fetch(self, package: str, version: str | None) -> Path:
        """The package's .deb, downloaded with apt-get.

        The pinned version is tried first; a Debian release that has moved on still gives its
        own version of the package, which most often ships the same sounds.

        Args:
            package: The package's name.
            version: The version that the manifest was made with, if known.

        Raises:
            StarterError: apt has no package lists at all, so no package can be fetched.
            PackageError: This package cannot be fetched.
        """
        self._debs.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._debs, ".fetch-*")
        reason = ""
        for spec in [f"{package}={version}", package] if version else [package]:
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=self._debs) as folder:
                reason = _apt_download(spec, Path(folder))
                for path in Path(folder).glob("*.deb"):
                    target = self._debs / path.name
                    os.replace(path, target)
                    logger.info("fetched %s", target.name)
                    return target
            logger.info("apt-get download %s: %s", spec, reason)
        if not any(_APT_LISTS.glob("*_Packages*")):
            raise StarterError(
                "apt has no package lists, so nothing can be fetched; "
                "type `sudo apt-get update`, then run this again"
            )
        raise PackageError(
            f"cannot fetch package {package}: {reason}; try `sudo apt-get update`, "
            f"or put the .deb into {self._debs}"
        )

    def unpack(self, package: str, deb: Path, paths: Iterable[str]) -> list[str]:
        """Take files out of a package; gives those that it does not have, sorted.

        Args:
            package: The package's name.
            deb: The package.
            paths: Paths inside the package of regular files.

        Raises:
            PackageError: The package is damaged.
        """
        wanted = set(paths)
        remove_leftovers(self._unpacked / package, "**/.*.part")
        with (
            tempfile.TemporaryFile() as complaints,
            subprocess.Popen(
                ["dpkg-deb", "--fsys-tarfile", str(deb)],
                stdout=subprocess.PIPE,
                stderr=complaints,
            ) as process,
        ):
            assert process.stdout is not None
            problem = ""
            try:
                _unpack_stream(process.stdout, wanted, self._unpacked / package)
            except tarfile.TarError as error:
                problem = str(error)
            finally:
                if wanted and not problem:
                    # Only a stream that was read to its end can tell what the package lacks.
                    while process.stdout.read(_TAR_BLOCK):
                        pass
                    if process.wait():
                        problem = f"dpkg-deb ended with {process.returncode}"
                # What follows the last wanted file need not be decompressed.
                process.kill()
            if problem:
                process.wait()
                complaints.seek(0)
                said = _last_line(complaints.read().decode(errors="replace")) or problem
                raise PackageError(
                    f"cannot unpack {deb.name}: {said}; delete {deb} and run this again"
                )
        return sorted(wanted)


def _apt_download(spec: str, folder: Path) -> str:
    """Download a package into an empty folder; gives what apt-get complained of."""
    done = subprocess.run(
        ["apt-get", "download", "-q", "-o", "Acquire::Retries=2", spec],
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        for path in folder.glob("*.deb"):
            path.unlink()
    return _last_line(done.stderr) or f"apt-get ended with {done.returncode}"


def _unpack_stream(stream: IO[bytes], wanted: set[str], folder: Path) -> None:
    """Write the wanted files of a tar stream below `folder`, removing each from `wanted`."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_TAR_BLOCK) as archive:
        for entry in archive:
            path = entry.name.removeprefix("./")
            if path in wanted and entry.isreg():
                _save(archive, entry, folder / path)
                wanted.remove(path)
                if not wanted:
                    return


def _save(archive: tarfile.TarFile, entry: tarfile.TarInfo, target: Path) -> None:
    """Write the entry of a tar stream as `target`, which appears only when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = archive.extractfile(entry)
    assert source is not None
    partial = partial_name(target)
    try:
        with partial.open("wb") as sink:
            shutil.copyfileobj(source, sink, _COPY_BLOCK)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _last_line(text: str) -> str:
    """The last line of a program's complaints, without apt's "E: " in front."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^[EW]: ", "", lines[-1]) if lines else ""


def _literal(text: str) -> str:
    """A glob pattern that matches `text` itself."""
    return re.sub(r"([*?[])", r"[\1]", text)
