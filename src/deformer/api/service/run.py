"""Start the service: find the model, decide who may ask, and listen."""

import ipaddress
import math
import os
import socket
from pathlib import Path

import uvicorn

from deformer.api import tables
from deformer.api.files import is_table, make_folder, open_model
from deformer.api.service.app import make_app
from deformer.api.service.engine import Engine
from deformer.api.service.guard import LOOPBACK, Admission
from deformer.api.service.work import Limits
from deformer.api.table_commands import open_table
from deformer.api.tables import TableModel
from deformer.data.chunks import read_all
from deformer.errors import InputError

# Seconds that idle connections stay open: longer than clients keep theirs, lest one closes just as a request comes.
KEEP_ALIVE = 75


def open_engine(model: str, device: str, ordinary: Path | None = None, rate: float = 0.01) -> Engine:
    """Load a model of a table, or any other, and calibrate its alarms on ordinary rows if there are any."""
    table = open_table(model, device) if is_table(model) else TableModel.of(open_model(model, device))
    alarms = None if ordinary is None else tables.alarms(table, read_all(ordinary, table.codec.layout), rate)
    return Engine(table, Path(model).stem, alarms)


def choose_admission(host: str, no_auth: bool) -> Admission:
    """Take the token from the environment variable DEFORMER_TOKEN.

    Raises:
        InputError: There is none, though others than this machine can ask, or one that no header can hold.
    """
    token = os.environ.get("DEFORMER_TOKEN", "").strip() or None
    if token is not None and not (token.isascii() and token.isprintable()):
        raise InputError("DEFORMER_TOKEN must be printable ASCII, or no client could send it.")
    if no_auth or token is not None:
        return Admission(None if no_auth else token)
    if not _is_loopback(host):
        raise InputError(
            f"Whoever reaches {host} could ask; set DEFORMER_TOKEN, listen on 127.0.0.1, or pass --no-auth."
        )
    return Admission(None, tuple(dict.fromkeys((*LOOPBACK, host))))


def check_port(host: str, port: int) -> None:
    """Find out before a model is loaded whether an address can be listened on.

    Raises:
        InputError: It is taken, or not this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise InputError(f"Cannot listen on port {port} of {host}: {error.strerror}.") from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(engine: Engine, host: str, port: int, admission: Admission, limits: Limits, snapshots: Path | None) -> None:
    """Listen until SIGINT or SIGTERM; what was begun is answered first."""
    if snapshots is not None:
        make_folder(snapshots)
    app = make_app(engine, admission=admission, limits=limits, snapshots=snapshots)
    patience = math.ceil(limits.seconds) + 1
    uvicorn.run(
        app,
        host=host,
        port=port,
        http="h11",  # bounds headers, which httptools does not
        log_level="info",
        timeout_graceful_shutdown=patience,
        timeout_keep_alive=KEEP_ALIVE,
        ws_max_size=2**16,
    )
