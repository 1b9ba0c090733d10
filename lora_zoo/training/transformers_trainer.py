"""transformers' Trainer and its parts, imported without what that prints where WANDB_MODE=offline.

transformers has no setting for this line; `tracking` says where a run is tracked.
"""

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()):
    from transformers import Trainer
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks, rewrite_logs
    from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

__all__ = [
    "OPTIMIZER_NAME",
    "SCHEDULER_NAME",
    "TRAINER_STATE_NAME",
    "Trainer",
    "get_reporting_integration_callbacks",
    "rewrite_logs",
]
