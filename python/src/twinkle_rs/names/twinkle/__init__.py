"""`twinkle` without twinkle-kit: the client's start and, below `twinkle.server`, the server's."""

from twinkle_rs import __version__, init_tinker_client, init_tinker_compat_client, init_twinkle_client

__all__ = ["__version__", "init_tinker_client", "init_tinker_compat_client", "init_twinkle_client"]
