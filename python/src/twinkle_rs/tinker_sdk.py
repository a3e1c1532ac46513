"""Lets an installed `tinker` package talk to a Twinkle server, in any release from 0.16.1 on.

The server takes `tml-` keys and `tinker://` paths, so nothing of this is needed for those. It is for keys of another
form, for `twinkle://` paths, and for the environment variables that Twinkle's documents name.
"""

import functools
import os

from .connection import first_of, resolve_key

# Public methods of `ServiceClient` that take a checkpoint's path.
WITH_PATHS = (
    "create_sampling_client",
    "create_sampling_client_async",
    "create_training_client_from_state",
    "create_training_client_from_state_async",
    "create_training_client_from_state_with_optimizer",
    "create_training_client_from_state_with_optimizer_async",
)


class Key(str):
    """A key of any form. The package asks how a key begins, and would refuse most; the server does not care."""

    def startswith(self, prefix, *bounds) -> bool:
        return prefix == "tml-" or super().startswith(prefix, *bounds)


def init_tinker_client(**_options) -> None:
    """Prepares the installed `tinker`; afterwards `tinker.ServiceClient` is used as ever. Repeated calls do nothing."""
    try:
        import tinker
    except ImportError as error:
        raise ImportError("`init_tinker_client` prepares the package `tinker`: pip install tinker") from error
    if getattr(tinker.ServiceClient, "_prepared_for_twinkle", False):
        return
    client = tinker.ServiceClient
    client.__init__ = _with_defaults(client.__init__)
    for name in WITH_PATHS:
        if hasattr(client, name):
            setattr(client, name, _with_tinker_paths(getattr(client, name)))
    client._prepared_for_twinkle = True


# As the first documents called it.
init_tinker_compat_client = init_tinker_client


def _with_defaults(original):
    @functools.wraps(original)
    def init(self, *arguments, **options):
        options["api_key"] = Key(resolve_key(options.get("api_key")))
        if options.get("base_url") is None:
            # tinker's own default is another company's service.
            options["base_url"] = first_of(("TINKER_BASE_URL", "TWINKLE_SERVER_URL")) or "http://127.0.0.1:8000"
        options["base_url"] = options["base_url"].rstrip("/").removesuffix("/api/v1")
        # Tells its maker what it does; a server of one's own is nobody's business.
        os.environ.setdefault("TINKER_TELEMETRY", "0")
        original(self, *arguments, **options)

    return init


def _with_tinker_paths(original):
    def renamed(value):
        if isinstance(value, str) and value.startswith("twinkle://"):
            return "tinker://" + value.removeprefix("twinkle://")
        return value

    @functools.wraps(original)
    def method(self, *arguments, **options):
        options = {name: renamed(value) for name, value in options.items()}
        return original(self, *(renamed(value) for value in arguments), **options)

    return method
