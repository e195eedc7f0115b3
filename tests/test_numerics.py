"""Threads and random streams."""

import pytest
import torch

from distill.numerics import reseed, share_of_threads


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        for processes, threads in ((1, 6), (2, 3), (4, 1), (12, 1)):
            with share_of_threads(processes):
                assert torch.get_num_threads() == threads
            assert torch.get_num_threads() == 6
        monkeypatch.setenv("OMP_NUM_THREADS", "6")
        with share_of_threads(2):
            assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)


def test_reseeding_draws_what_manual_seed_draws() -> None:
    torch.manual_seed(2**40 + 5)
    expected = torch.rand(4)
    reseed(2**40 + 5, torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)
