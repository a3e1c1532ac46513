"""`twinkle.server` without twinkle-kit: starts the program `twinkle-server`."""

from twinkle_rs.launch import TwinkleServer, launch_server

__all__ = ["TwinkleServer", "launch_server"]
