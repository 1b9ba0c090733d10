"""Messages and exit codes of the small commands (`merge`, `export`, `load`): one line, no secrets."""

import argparse
import contextlib
import pickle
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn

from lora_zoo.core.errors import in_one_line
from lora_zoo.core.user_files import run_files
from lora_zoo.runs.processes import wait_passively
from lora_zoo.runs.redact import redacted


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add `--file FILE.py`, whose values are for `on_the_terminal`; `--variant` is its former name."""
    parser.add_argument(
        "--file",
        "--variant",
        action="append",
        default=[],
        metavar="FILE.py",
        dest="files",
        help="run this file first, which registers the adapter's variant or init; may be given again",
    )


@contextlib.contextmanager
def on_the_terminal(files: Sequence[str] = ()) -> Iterator[None]:
    """Run the Python `files` and then the commands inside.

    A warning is one line, libraries are silent, and an error ends the process with one line. Exit codes: 2
    for unusable arguments or files, 1 for errors of the disk, 130 for ^C, 143 for SIGTERM and 129 for
    SIGHUP, which clean up as ^C does.
    """
    wait_passively()
    import transformers
    from safetensors import SafetensorError

    from lora_zoo.models.saving import Unwritten

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    told = [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else [])]
    before = {number: signal.signal(number, lambda n, _: sys.exit(128 + n)) for number in told}
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            run_files(files)
            yield
        except Unwritten as refusal:
            _leave(refusal, 1)
        except (ValueError, OSError, SafetensorError, pickle.UnpicklingError) as mistake:
            _leave(mistake, 2)
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def say(text: str) -> None:
    """Print one line to the standard error, as `lora_zoo: …`."""
    print(f"lora_zoo: {redacted(in_one_line(text))}", file=sys.stderr)


def _leave(mistake: Exception, code: int) -> NoReturn:
    say(str(mistake))
    sys.exit(code)
