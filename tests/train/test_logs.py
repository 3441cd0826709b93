from pathlib import Path

import pytest

from deformer.errors import InputError
from deformer.train.history import Point
from deformer.train.logs import Log

POINT = Point(1, 0.5, 10, 3.0, 2.5)


class FullDisk:
    """A board whose events no disk takes."""

    def add_scalar(self, *_: object) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_folder_without_room_for_events_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(InputError, match="Cannot write .*tensorboard"), Log(tmp_path):
        pass


def test_events_that_cannot_be_written_do_not_end_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(tmp_path) as log:
        log.board.close()
        log.board = FullDisk()
        for _ in range(2):
            log.write(POINT, [POINT])
    assert capsys.readouterr().err == "TensorBoard's events end here: No space left on device.\n"
    assert (tmp_path / "metrics.csv").read_text().endswith("1,0.5,10,3.0,2.5\n")
    with Log(tmp_path) as log:
        log.board.close()
        log.board = FullDisk()
    assert "events end here" in capsys.readouterr().err
