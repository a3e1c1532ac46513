"""What is done for each row, and what counts as which outcome.

    works         the scenario went through, its expectations included
    refused       the server refused it, with the text that is reported
    local         the SDK refused it by itself, before it asked the server
    not driven    the scenario says why it cannot be driven here
    differs       anything else: an expectation that did not hold, a type the SDK cannot read, no answer in time
    no scenario   nobody has written one: the report is not complete
"""

import asyncio
import inspect
import re
import threading

import tinker
from blackbox import Failure

# A refusal that the SDK retries for minutes is no refusal.
LIMIT = 60.0

_SCENARIOS = {}


class NotDriven(Exception):
    """Why a row cannot be driven."""


class Local(Exception):
    """The text with which the SDK itself refuses."""


def scenario(*names):
    """Registers what drives these rows: `scenario("RestClient.whoami", "RestClient.whoami(argument)")`.

    A scenario of `Class.method` also drives `Class.method_async`, and the same method of the future of a client.
    """

    def register(function):
        for name in names:
            assert name not in _SCENARIOS, f"two scenarios of `{name}`"
            _SCENARIOS[name] = function
        return function

    return register


def find(row):
    """The scenario's name and how the method is called: at once, with `await`, or on the future of its client."""
    mode = "sync"
    for future, cls in (("BackcompatTrainingClientFuture", "TrainingClient"), ("BackcompatSamplingClientFuture", "SamplingClient")):
        if row.startswith(f"{future}.") and row not in _SCENARIOS:
            row, mode = row.replace(future, cls), "future"
    if row not in _SCENARIOS and row.endswith("_async"):
        return row.removesuffix("_async"), f"{mode} async"
    return row, mode


def drive(row, world):
    """The outcome of a row and its text."""
    name, mode = find(row.name)
    function = _SCENARIOS.get(name)
    if function is None:
        return "no scenario", ""
    trial = Trial(world, row.name, mode)
    result = []
    thread = threading.Thread(target=lambda: result.append(attempt(function, trial)), daemon=True)
    thread.start()
    thread.join(LIMIT)
    outcome, text = result[0] if result else ("differs", f"no answer within {LIMIT:.0f} s")
    return outcome, world.plain(text)


def attempt(function, trial):
    try:
        function(trial)
        return "works", ""
    except NotDriven as reason:
        return "not driven", str(reason)
    except Local as refusal:
        return "local", str(refusal)
    except Failure as failure:
        return "differs", str(failure)
    except BaseException as error:
        return classified(error)


def classified(error):
    if isinstance(error, tinker.APIStatusError):
        body = error.body
        detail = body.get("detail") if isinstance(body, dict) else None
        return "refused", f"{error.status_code}: {detail or error.message}"
    if isinstance(error, tinker.RequestFailedError):
        # Behind the text of the server the message names the request, which differs every time.
        text = re.sub(r"^Request failed: |,? for self\.request_id=.*$", "", str(error), flags=re.S)
        return "refused", f"failed: {text}"
    if type(error).__name__ == "AuthApiError" or str(error).startswith("Trace export failed"):
        # The SDK's words for what the server said.
        return "refused", str(error)
    if type(error) is ValueError and "status code" in str(error).lower():
        return "refused", str(error)
    return "differs", f"{type(error).__name__}: {error}"


class Trial:
    """One row being driven: calling it calls the method of the row."""

    def __init__(self, world, row, mode):
        self.world, self.row, self.mode = world, row, mode
        self.method = re.sub(r"\(.*", "", row).rpartition(".")[2]

    def __call__(self, target, *arguments, **named):
        """Calls the row's method on `target` as the row says, and waits for its result."""
        if self.mode.startswith("future"):
            target = self.world.as_future(target)
        return resolve(getattr(target, self.method), *arguments, asynchronous="async" in self.mode, **named)

    def local(self, kind, target, *arguments, **named):
        """Expects that the SDK itself refuses the call with an exception of this kind."""
        try:
            self(target, *arguments, **named)
        except kind as error:
            if isinstance(error, tinker.APIError):
                raise
            raise Local(str(error)) from error


def resolve(function, *arguments, asynchronous=False, **named):
    """The value behind a function, whichever of the SDK's kinds of future it returns."""
    if asynchronous:
        async def wait():
            value = function(*arguments, **named)
            while inspect.isawaitable(value):
                value = await value
            return value

        return asyncio.run(asyncio.wait_for(wait(), LIMIT))
    value = function(*arguments, **named)
    while hasattr(value, "result"):
        value = value.result(timeout=LIMIT)
    return value
