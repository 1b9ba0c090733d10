"""One thread and a fresh global random stream for every test."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what the tests start, too

import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def global_stream():
    torch.manual_seed(0)
