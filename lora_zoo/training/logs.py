"""A run's log: its own file, and the warnings that the terminal shows."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from lora_zoo.runs.redact import RedactingFormatter, redacted

_log = logging.getLogger("lora_zoo")


class WarningsHandler(logging.Handler):
    """Shows our own warnings; errors are said elsewhere, in one line."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console
        self.addFilter(lambda record: record.levelno == logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        text = redacted(record.getMessage())
        self.console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def logging_to(path: Path, console: Console) -> Iterator[None]:
    """Send log records and warnings to the run's own file; of them, the terminal shows our warnings alone."""
    import transformers

    handler = logging.FileHandler(path)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level, others, raising = root.level, root.handlers, logging.raiseExceptions
    logging.raiseExceptions = False  # a disk that is full costs the log its lines, and the terminal nothing
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    transformers.utils.logging.disable_progress_bar()
    logging.captureWarnings(True)
    _log.addHandler(shown := WarningsHandler(console))
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.captureWarnings(False)
        _log.removeHandler(shown)
        root.handlers = others
        root.setLevel(level)
        logging.raiseExceptions = raising
        with contextlib.suppress(OSError):
            handler.close()
