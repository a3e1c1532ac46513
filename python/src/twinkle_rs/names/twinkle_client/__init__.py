"""`twinkle_client` without twinkle-kit."""

from twinkle_rs import (
    ServiceClient,
    TwinkleClient,
    init_tinker_client,
    init_tinker_compat_client,
    init_twinkle_client,
    types,
)

__all__ = [
    "ServiceClient",
    "TwinkleClient",
    "init_tinker_client",
    "init_tinker_compat_client",
    "init_twinkle_client",
    "types",
]
