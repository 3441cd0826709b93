"""What goes over the wire: requests and answers of the service, with examples for its description."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field

LONGEST = 4096  # characters of a value: what a session was told is kept
WIDEST = 2**14  # values of a row


def _sound(value: Any) -> Any:
    """Refuse text that is too long to keep, or that no answer could repeat."""
    if isinstance(value, str):
        if len(value) > LONGEST:
            raise ValueError(f"A text may have {LONGEST} characters.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("A text must be UTF-8.") from error
    return value


def _of_bounded_width(row: Any) -> Any:
    """Refuse, before every entry gives an error of its own, what is no row of any model."""
    if isinstance(row, dict) and len(row) > WIDEST:
        raise ValueError(f"A row may have {WIDEST} values.")
    return row


AnyValue = bool | int | float | str | None
AnyRow = dict[str, AnyValue]
Value = Annotated[AnyValue, AfterValidator(_sound)]
Name = Annotated[str, Field(max_length=1000), AfterValidator(_sound)]
Row = Annotated[dict[Name, Value], BeforeValidator(_of_bounded_width)]
Names = Annotated[list[Name], Field(max_length=WIDEST)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1, description="Of all that is drawn.")]
Orders = Annotated[int, Field(ge=1, le=256, description="Orders, over which answers are averaged.")]
A_ROW: AnyRow = {"a": 1, "b": None}


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Rows(Request):
    """Rows by feature name; null, or an absent name, is a missing value."""

    rows: Annotated[list[Row], FailFast(), Field(min_length=1, examples=[[A_ROW]])]


class ScoreRequest(Rows):
    n_orders: Orders = 4
    terms: Annotated[bool, Field(description="Whether to give each value's part of the score.")] = False


class Score(BaseModel):
    """ln p(row) in nats: higher is more normal."""

    mean_over_orders: float
    ensemble_over_orders: float
    order_spread: float
    terms: Annotated[
        dict[str, float] | None, Field(description="-ln p of each value, averaged over orders; they add up to -mean.")
    ] = None


class ScoreAnswer(BaseModel):
    scores: list[Score]


class ImputeRequest(Rows):
    strategy: Annotated[
        Literal["draw", "mean", "mode"], Field(description="draw: jointly; mean, mode: each on its own.")
    ] = "draw"
    n_imputations: Annotated[int, Field(ge=1, le=100)] = 1
    seed: Seed = 0


class ImputeAnswer(BaseModel):
    imputations: list[list[AnyRow]]


class SampleRequest(Request):
    n: Annotated[int, Field(ge=1, description="Rows to draw.")] = 1
    given: Annotated[Row | None, Field(description="Evidence that all rows keep.", examples=[A_ROW])] = None
    seed: Seed = 0


class SampleAnswer(BaseModel):
    rows: list[AnyRow]


class ConditionalRequest(Request):
    row: Annotated[Row, Field(examples=[A_ROW])]
    targets: Annotated[Names | None, Field(description="None: whatever the row lacks.")] = None
    n_orders: Orders = 4


class Distribution(BaseModel):
    """Probabilities of labels or levels; or mean, deviation (of moments in days) and quantiles.

    Numbers with a point mass have its probability as well.
    """

    kind: Literal["discrete", "number", "moment"]
    probabilities: dict[str, float] | None = None
    mean: float | str | None = None
    std: float | None = None
    quantiles: dict[str, float | str | None] | None = None


class ConditionalAnswer(BaseModel):
    conditionals: dict[str, Distribution]


class ExplainRequest(Rows):
    n_orders: Orders = 8


class Explained(BaseModel):
    feature: str
    value: AnyValue
    expected: AnyValue
    surprise: Annotated[float | None, Field(description="-ln p(value | all others), in nats.")]
    excess: Annotated[float | None, Field(description="How far the surprise lies above what was expected, in nats.")]
    share: Annotated[float | None, Field(description="Its part of -ln p(row), averaged over orders, in nats.")]


class ExplainAnswer(BaseModel):
    rows: list[list[Explained]]


class SessionRequest(Request):
    snapshot: Annotated[str | None, Field(description="Go on from this one.", max_length=64)] = None


class SessionAnswer(BaseModel):
    session: str
    observed: AnyRow
    running_nats: float
    excess_nats: float


class Observation(Request):
    name: Annotated[Name, Field(examples=["a"])]
    value: Annotated[Value, Field(examples=[1])]


class SurpriseAnswer(BaseModel):
    """What a value tells: nats are -ln p, higher is stranger."""

    name: str
    nats: float
    running_nats: float
    excess_nats: float
    tail: float
    n_observed: int
    alarm: bool | None


class PredictRequest(Request):
    names: Annotated[Names | None, Field(description="None: whatever has not arrived.")] = None


class SnapshotAnswer(BaseModel):
    snapshot: str


class Feature(BaseModel):
    name: str
    kind: Literal["label", "level", "number", "moment"]
    values: list[AnyValue] | None


class ModelAnswer(BaseModel):
    name: str
    parameters: int
    features: list[Feature]
    image_shape: tuple[int, int] | None
    rows: Annotated[int, Field(description="That one request may hold.")]


class Problem(BaseModel):
    code: str
    message: str
    field: Annotated[list[str | int] | None, Field(description="Where in the request.")] = None


class Failure(BaseModel):
    error: Problem


FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": text}
    for status, text in {
        400: "Not what the model can take",
        401: "No token, or a wrong one",
        403: "Asked by a name, or from a page, that is not the service's",
        404: "Not there",
        408: "Did not arrive in time",
        409: "The session has that value already",
        413: "Too large",
        415: "Neither JSON nor CSV nor Parquet",
        422: "Not the shape of a request",
        429: "Too many sessions",
        503: "Busy; try again",
        504: "Out of time",
        507: "No room to keep it",
    }.items()
}
