"""Lends the names `twinkle` and `twinkle_client` to this package, where no other distribution has them.

The documents write `from twinkle.server import launch_server` and `from twinkle_client import ServiceClient`. The
distribution `twinkle-kit` owns both names. So this one installs nothing under them: a finder at the end of
`sys.meta_path` is asked only when everything else has failed, and an installed `twinkle-kit` is never hidden, not even
in part.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

FOLDER = str(Path(__file__).parent)
NAMES = ("twinkle", "twinkle_client")


class Lender:
    """Finds the lent packages; last in `sys.meta_path`."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name in NAMES:
            return PathFinder.find_spec(name, [FOLDER])
        owner = name.partition(".")[0]
        if owner in NAMES and path is not None and is_lent(owner):
            raise ModuleNotFoundError(
                f"no module named `{name}`: `{owner}` is lent by `twinkle-rs`, which has the server's start and a small "
                "client; data sets, templates and the native client come with `pip install twinkle-kit`",
                name=name,
            )
        return None


def is_lent(name: str) -> bool:
    """Whether the imported package `name` is the one in this folder."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and str(spec.origin or "").startswith(FOLDER)


def lend() -> None:
    """Puts the finder in its place, once."""
    if Lender not in sys.meta_path:
        sys.meta_path.append(Lender)
