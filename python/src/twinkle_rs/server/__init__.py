"""The server under a name that no other distribution has: works beside an installed twinkle-kit."""

from ..launch import TwinkleServer, launch_server

__all__ = ["TwinkleServer", "launch_server"]
