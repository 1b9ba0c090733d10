"""One thread and a fresh global random stream for every test."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def global_stream():
    torch.manual_seed(0)
