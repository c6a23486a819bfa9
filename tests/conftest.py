"""Fixtures: the six tiny families, the tokenizer they share, and tests that ask as a user does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import hypothesis
import jaxtyping
import pytest
from helpers.tiny_models import FAMILIES, hf_model, memory_tokenizer

from mechunlearn.models.hooked import HookedModel

# A loaded machine is no fault of what is tested.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# A shell that runs the tests in the background has Ctrl-C ignored, and the tests of interrupts would wait.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The tokenizer that exists only in memory."""
    return memory_tokenizer()


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each family's name in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def hm(family: str, tokenizer: Any) -> HookedModel:
    """Each of the six tiny families in turn (read-only: change a fork, or undo what you do)."""
    return HookedModel.from_hf(hf_model(family), tokenizer)


@pytest.fixture(scope="session")
def llama(tokenizer: Any) -> HookedModel:
    """One tiny model for tests that need no other family (read-only)."""
    return HookedModel.from_hf(hf_model("llama"), tokenizer)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Ask as a user does: the type checker of the tests would refuse a value before the message can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
