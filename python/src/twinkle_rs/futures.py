"""Results that are on their way."""

import time

from .connection import Connection, TwinkleError

# Beyond this many results that nobody asked for, the next submission waits for the oldest.
MOST_UNASKED = 16


class OperationFailed(TwinkleError):
    """The server did not do an operation, and says why."""


class Future:
    """What an operation will give. `result()` waits; reading an attribute of the result waits, too.

    So both `future.result().sequences` and `future.sequences` work.
    """

    def __init__(self, connection: Connection, request_id: str, convert):
        self._connection, self._request_id, self._convert = connection, request_id, convert
        self._value = self._error = None
        self._done = False

    def result(self, timeout: float | None = None):
        """The outcome, once it is there. Raises `OperationFailed`, or `TimeoutError` after `timeout` seconds."""
        if not self._done:
            self._wait(timeout)
        if self._error is not None:
            raise self._error
        return self._value

    def _wait(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            answer = self._poll()
            if answer is not None:
                break
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"the operation `{self._request_id}` was not done after {timeout} s")
        self._done = True
        if "error" in answer:
            self._error = OperationFailed(answer["error"])
        else:
            self._value = self._convert(answer)

    def _poll(self) -> dict | None:
        """The server answers when it is done, or after a while that it is not."""
        answer = self._connection.post("retrieve_future", {"request_id": self._request_id})
        return None if answer.get("type") == "try_again" else answer

    def __getattr__(self, name):
        # Only for names that this class does not have.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.result(), name)


class Unasked:
    """Futures of a run whose results nobody has asked for: an error among them is raised by a later call."""

    def __init__(self):
        self._futures: list[Future] = []

    def add(self, future: Future) -> Future:
        self._futures = [other for other in self._futures if not other._done]
        self._futures.append(future)
        if len(self._futures) > MOST_UNASKED:
            self._futures.pop(0).result()
        return future

    def settle(self) -> None:
        """Waits for all of them. Whose outcome was asked for has told its error already."""
        while self._futures:
            future = self._futures.pop(0)
            if not future._done:
                future.result()
