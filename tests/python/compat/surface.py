"""What a release offers, found by looking at it: nothing that a new release adds can be missed."""

import inspect
import typing
from dataclasses import dataclass

import tinker
from tinker import types


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    group: str
    # `ServiceClient.close`, `ServiceClient.close(detail)`, `loss "ppo"`, `tinker run list --limit`.
    name: str


def rows():
    found = []
    for cls in classes():
        found += methods(cls)
    found += [Row("Losses", f'loss "{name}"') for name in literals(types.LossFnType)]
    found += [Row("Optimizers", name) for name in optimizers()]
    found += [Row("Optimizers", f"AdamParams.{name}") for name in fields(types.AdamParams)]
    found += [Row("Sampling parameters", f"SamplingParams.{name}") for name in fields(types.SamplingParams)]
    found += [Row("Data", f"{cls.__name__}") for cls in members(types.ModelInputChunk)]
    found += [Row("Data", f"Datum.{name}") for name in inspect.signature(types.Datum).parameters]
    found += [Row("Data", f"TensorData.{name}") for name in inspect.signature(types.TensorData).parameters]
    found += commands()
    return found


def classes():
    from tinker.lib.public_interfaces import rest_client

    names = [
        "ServiceClient", "TrainingClient", "SamplingClient", "AdminClient",
        "BackcompatTrainingClientFuture", "BackcompatSamplingClientFuture", "APIFuture",
    ]
    found = [getattr(tinker, name) for name in names if hasattr(tinker, name)]
    return [*found[:3], rest_client.RestClient, *found[3:]]


def methods(cls):
    group = cls.__name__
    found = []
    if group in ("ServiceClient", "RestClient", "AdminClient"):
        # The others are made by these.
        found += optional(group, group, cls.__init__)
    for name in sorted(dir(cls)):
        if name.startswith("_"):
            continue
        found.append(Row(group, f"{group}.{name}"))
        member = inspect.getattr_static(cls, name)
        member = member.__func__ if isinstance(member, staticmethod) else member
        repeats = name.endswith("_async") or group.startswith("Backcompat") or group == "APIFuture"
        if callable(member) and not repeats:
            found += optional(group, f"{group}.{name}", member)
    return found


def optional(group, owner, function):
    """A row for each argument that may be left out; the others are given whenever the function is called."""
    parameters = inspect.signature(function).parameters.values()
    return [
        Row(group, f"{owner}({parameter.name})")
        for parameter in parameters
        if parameter.default is not inspect.Parameter.empty and not parameter.name.startswith("_")
    ]


def literals(annotation):
    return list(typing.get_args(annotation))


def members(annotation):
    """The classes of a union, which may carry notes."""
    arguments = typing.get_args(annotation)
    if arguments and typing.get_origin(arguments[0]) is not None:
        return members(arguments[0])
    return [one for one in arguments if inspect.isclass(one)]


def fields(model):
    return list(inspect.signature(model).parameters)


def optimizers():
    return sorted(name for name in dir(types) if name.endswith("OptimizerConfig") and name != "OptimizerConfig")


def commands():
    import click
    from tinker.cli.__main__ import main_cli

    found = []

    def visit(command, words):
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                visit(command.get_command(context, name), [*words, name])
            return
        found.append(Row("Command line", " ".join(words)))
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                longest = max(parameter.opts, key=len)
                found.append(Row("Command line", " ".join([*words, longest])))

    visit(main_cli, ["tinker"])
    return found
