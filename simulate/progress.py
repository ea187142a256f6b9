"""One look for all long work: a progress bar with rate and time left, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:.3g}/s")


@contextmanager
def progress_bar(description: str, total: int, visible: bool = True) -> Iterator[Callable[..., None]]:
    """Show a bar while the block runs, if `visible`.

    Yields `advance(steps=1, note="")`; `note` appears after the description.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as progress:
        task = progress.add_task(description, total=total)

        def advance(steps: int = 1, note: str = "") -> None:
            text = f"{description} {note}" if note else description
            progress.update(task, advance=steps, description=text)

        yield advance
