"""The line by which a sweep tells how far it is, and for how long it still goes on."""

from pathlib import Path

import pytest

from lora_zoo.sweeps import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    return now


@pytest.mark.parametrize("workers", [1, 2])
def test_the_time_left_is_that_of_the_runs_made_whoever_makes_them(
    tmp_path: Path, clock, workers: int
) -> None:
    """Jobs of 60 s each, `workers` at a time, after four that were finished before."""
    progress.expect(tmp_path, 10)
    for job in range(4):
        progress.note(tmp_path, job, 0)
    assert progress.progress(tmp_path) == "4 of 10"  # no run has been made: nothing is known of the others
    said = []
    for first in range(4, 10, workers):
        began, clock[0] = clock[0], clock[0] + 60
        for job in range(first, first + workers):
            progress.note(tmp_path, job, int(job == 5), began)
        said.append(progress.progress(tmp_path))
    left = {1: ["5 min", "4 min", "3 min", "2 min", "60 s"], 2: ["2 min", "60 s"]}[workers]
    ended = range(4 + workers, 10, workers)
    lines = [f"{n} of 10, about {time} left" for n, time in zip(ended, left, strict=True)]
    assert said == [*lines, "10 of 10"]
    assert sorted(progress.codes(tmp_path)) == [0] * 9 + [1]


def test_notes_of_a_killed_sweep_are_no_progress_of_the_next(tmp_path: Path) -> None:
    progress.expect(tmp_path, 3)
    progress.note(tmp_path, 0, 1, 0.0)
    (other := tmp_path / "run").mkdir()
    progress.clear(tmp_path)
    assert progress.codes(tmp_path) == [] and progress.progress(tmp_path) == ""
    assert [*tmp_path.iterdir()] == [other]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119.4, "119 s"), (119.6, "2 min"), (7000, "117 min"), (7199, "2.0 h"), (86400, "24.0 h")],
)
def test_a_time_has_the_unit_in_which_it_is_read(seconds: float, words: str) -> None:
    assert progress.readable_time(seconds) == words
