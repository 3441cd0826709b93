"""A typed client of the service; `pip install 'deformer[serve]'` installs what it needs."""

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from deformer.api.service import wire
from deformer.data.times import plain, python
from deformer.errors import DeformerError, InputError

Row = Mapping[str, Any]
Answer = TypeVar("Answer", bound=BaseModel)


class ServiceError(DeformerError):
    """The service refused a request.

    Args:
        status: HTTP status.
        code: What is wrong, in one word.
        field: Path to the invalid value.
    """

    def __init__(self, status: int, code: str, message: str, field: Sequence[str | int] | None) -> None:
        super().__init__(message)
        self.status, self.code, self.field = status, code, field


def _sent(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Convert rows to what JSON can hold, NaN and the like to missing."""
    return [{str(name): _value(value) for name, value in row.items()} for row in rows]


def _value(value: Any) -> Any:
    value = python(value)
    if isinstance(value, float) and math.isinf(value):
        raise InputError("JSON knows no infinite numbers; send None where a value is missing.")
    return value if isinstance(value, list | dict) else plain(value)


class Client:
    """A client of the service. Rows are what a frame's `to_dict("records")` returns.

    Args:
        url: Its address, such as http://127.0.0.1:8000.
        token: The token that it requires.
        seconds: Timeout in seconds.
        http: Another HTTP client to use, for tests.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        *,
        seconds: float = 60.0,
        http: httpx.Client | None = None,
    ) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=seconds) if http is None else http

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def model(self) -> wire.ModelAnswer:
        """Describe the model."""
        return self._ask("GET", "model", wire.ModelAnswer)

    def score(self, rows: Sequence[Row], n_orders: int = 4, terms: bool = False) -> list[wire.Score]:
        """Return the log-likelihood of each row in nats; higher is more normal."""
        body = {"rows": _sent(rows), "n_orders": n_orders, "terms": terms}
        return self._ask("POST", "score", wire.ScoreAnswer, body).scores

    def impute(
        self, rows: Sequence[Row], strategy: str = "draw", n_imputations: int = 1, seed: int = 0
    ) -> list[list[wire.Row]]:
        """Fill in missing values `n_imputations` times."""
        body = {"rows": _sent(rows), "strategy": strategy, "n_imputations": n_imputations, "seed": seed}
        return self._ask("POST", "impute", wire.ImputeAnswer, body).imputations

    def sample(self, n: int = 1, given: Row | None = None, seed: int = 0) -> list[wire.Row]:
        """Draw rows, keeping the given values."""
        body = {"n": n, "given": None if given is None else _sent([given])[0], "seed": seed}
        return self._ask("POST", "sample", wire.SampleAnswer, body).rows

    def conditional(
        self, row: Row, targets: Sequence[str] | None = None, n_orders: int = 4
    ) -> dict[str, wire.Distribution]:
        """Return the distribution of any features, given the row's other values."""
        body = {"row": _sent([row])[0], "targets": targets, "n_orders": n_orders}
        return self._ask("POST", "conditional", wire.ConditionalAnswer, body).conditionals

    def explain(self, rows: Sequence[Row], n_orders: int = 8) -> list[list[wire.Explained]]:
        """Return how surprising each value is."""
        return self._ask("POST", "explain", wire.ExplainAnswer, {"rows": _sent(rows), "n_orders": n_orders}).rows

    def session(self, snapshot: str | None = None) -> "RemoteSession":
        """Open a session for values that arrive one by one, or continue from a snapshot."""
        return RemoteSession(self, self._ask("POST", "sessions", wire.SessionAnswer, {"snapshot": snapshot}).session)

    def drop(self, snapshot: str) -> None:
        """Delete a snapshot."""
        self.send("DELETE", f"snapshots/{snapshot}")

    def _ask(self, method: str, path: str, kind: type[Answer], body: Any = None) -> Answer:
        return kind.model_validate_json(self.send(method, path, body).content)

    def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Send a request.

        Raises:
            ServiceError: The request was refused.
        """
        answer = self._http.request(method, f"/v1/{path}", json=body)
        if answer.is_success:
            return answer
        try:
            error = wire.Failure.model_validate_json(answer.content).error
        except ValueError:
            raise ServiceError(answer.status_code, "http", answer.text[:200], None) from None
        raise ServiceError(answer.status_code, error.code, error.message, error.field)


class RemoteSession:
    """A session of the service; see `deformer.Session`."""

    def __init__(self, client: Client, name: str) -> None:
        self.client, self.name = client, name

    def _ask(self, what: str, kind: type[Answer], body: Any = None) -> Answer:
        return kind.model_validate_json(self.client.send("POST", f"sessions/{self.name}/{what}", body).content)

    def observe(self, name: str, value: Any) -> wire.SurpriseAnswer:
        """Observe one value and return how surprising it is."""
        return self._ask("observe", wire.SurpriseAnswer, {"name": name, "value": _value(value)})

    def predict(self, names: Sequence[str] | None = None) -> dict[str, wire.Distribution]:
        """Return the distribution of features given all other values so far; None: of those that may still arrive."""
        return self._ask("predict", wire.ConditionalAnswer, {"names": names}).conditionals

    def look(self) -> wire.SessionAnswer:
        """Return what the session has observed."""
        return wire.SessionAnswer.model_validate_json(self.client.send("GET", f"sessions/{self.name}").content)

    def save(self) -> str:
        """Save a snapshot and return its name."""
        return self._ask("snapshots", wire.SnapshotAnswer).snapshot

    def close(self) -> None:
        """Close the session."""
        self.client.send("DELETE", f"sessions/{self.name}")
