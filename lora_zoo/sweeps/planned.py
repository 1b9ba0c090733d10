"""A sweeper of Hydra's whose jobs follow from those before them: the base of our own."""

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from lora_zoo.sweeps.progress import expect


class PlannedSweeper(BasicSweeper):
    """Launches batches of jobs one after the other, as a plan asks for them."""

    def __init__(self) -> None:
        super().__init__(max_batch_size=None)
        self.launched = 0

    def _launch(self, jobs: Sequence[Sequence[str]], later: int = 0) -> None:
        """Run the jobs, after which so many more are to come as far as the plan knows."""
        assert self.launcher is not None and self.config is not None
        first, self.launched = self.launched, self.launched + len(jobs)
        expect(Path(str(self.config.hydra.sweep.dir)), self.launched + later)
        for returned in self.launcher.launch(jobs, initial_job_idx=first):
            _ = returned.return_value  # raises what broke the job
