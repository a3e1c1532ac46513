"""Starts a Twinkle server and trains on one. Pure Python, without dependencies.

    from twinkle_rs import ServiceClient, init_tinker_client, init_twinkle_client, launch_server

Modules are imported when they are first used, so that `import twinkle_rs` takes no time.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "ServiceClient": "service",
    "TrainingClient": "service",
    "SamplingClient": "service",
    "TwinkleClient": "manager",
    "init_twinkle_client": "manager",
    "init_tinker_client": "tinker_sdk",
    "init_tinker_compat_client": "tinker_sdk",
    "TwinkleServer": "launch",
    "launch_server": "launch",
    "TwinkleError": "connection",
    "RequestError": "connection",
    "OperationFailed": "futures",
}
_MODULES = ("types", "server")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name):
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module `twinkle_rs` has no attribute `{name}`")


def __dir__():
    return [*globals(), *__all__]
