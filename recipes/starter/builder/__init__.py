"""Build a labelled dataset of real sounds from a manifest of files in Debian packages.

The sounds themselves are not part of bsdkit: `build_starter` fetches the packages that a
manifest names, takes the few files it needs out of them, decodes or renders each clip, and
writes a dataset folder with audio and metadata.

    manifest.py     reads and checks the manifest
    packages.py     fetches packages and unpacks the files that are needed
    containers.py   reads a file out of a game's own archive
    decode.py       turns shipped files into clips, and writes checked clips
    render.py       turns notes, tunes and sentences into clips with other programs
    build.py        runs all of it, keeping what is there already
"""

from recipes.starter.builder.build import BuildReport, build_starter

__all__ = ["BuildReport", "build_starter"]
