"""Shared fixtures. Tests never reach the network beyond the package index, and only the `llm` test does that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers with two threads each wait for one another
os.environ.setdefault("MPLBACKEND", "Agg")

# The suite has a time limit; before a release: pytest --hypothesis-profile=thorough
settings.register_profile("quick", max_examples=40)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("quick")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def backend():
    from rtg_agents.hf import TorchBackend
    from rtg_agents.lora import LoraSettings
    from tests.tiny import tiny_model, tiny_tokenizer

    return TorchBackend(tiny_model(), tiny_tokenizer(), model_id="tiny", lora=LoraSettings(rank=4, alpha=8.0))
