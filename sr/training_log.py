"""What a training leaves for people to look at: one JSON row an interval, and the same for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from simulate.shards import write_text

LOG_NAME = "log.jsonl"


class TrainingLog:
    """Appends rows to FOLDER/log.jsonl and FOLDER/tensorboard, from step `start` on.

    Rows at or after `start` that a killed run left are dropped: a resumed log is as if never interrupted.
    """

    def __init__(self, folder: Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG_NAME
        self.rows = [row for row in read_log(folder) if row["step"] < start]
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_text(self.path, text)
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def add(self, row: dict[str, Any]) -> None:
        """`row` has a "step" and numbers."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, allow_nan=False) + "\n")
        for key, value in row.items():
            if key != "step":
                self._tensorboard.add_scalar(key, value, row["step"])

    def close(self) -> None:
        self._tensorboard.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last row that a killed run left incomplete is not one. No log, no rows."""
    path = folder / LOG_NAME
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
