"""Settings for every test: one printed seed, fixed threads, no network, and the devices of this machine."""

from __future__ import annotations

import os
import random
from pathlib import Path

# Before transformers is imported anywhere: a test that asks a hub for something must fail at once, not wait.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is: the commands that tests start must not take the cores of the tests beside them.
os.environ["OMP_NUM_THREADS"] = os.environ.get("RELAXPRUNE_THREADS", str(os.cpu_count() or 1))

import hypothesis
import pytest
import torch

SEED = int(os.environ.get("RELAXPRUNE_SEED", "0"))
THREADS = int(os.environ["OMP_NUM_THREADS"])
LONG = os.environ.get("RELAXPRUNE_LONG") == "1"

hypothesis.settings.register_profile("short", max_examples=12, deadline=None, database=None)
hypothesis.settings.register_profile("long", max_examples=1000, deadline=None, database=None)


def _devices() -> list[str]:
    """Name the CPU and the accelerator that torch finds, if any."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] if found is None else ["cpu", found.type]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Seed hypothesis, unless the command line does, and fix the number of threads: sums depend on it."""
    hypothesis.settings.load_profile("long" if LONG else "short")
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = SEED
    torch.set_num_threads(THREADS)
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        # The process that only hands out tests collects none, so it would not load this by itself.
        from .solvers.conformance import conftest as conformance

        config.pluginmanager.register(conformance, "conformance")


def pytest_report_header() -> list[str]:
    """Say what is tested, and with which seed."""
    import relaxprune

    return [
        f"relaxprune {relaxprune.__version__} from {Path(relaxprune.__file__).parent}",
        f"seed {SEED} (RELAXPRUNE_SEED), threads {THREADS} (RELAXPRUNE_THREADS), torch {torch.__version__}, "
        f"devices {', '.join(_devices())}, {'full counts' if LONG else 'samples (RELAXPRUNE_LONG=1 for full counts)'}",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what only the full counts run."""
    if LONG:
        return
    for item in items:
        for marker, command in {"long": "check-long", "slow": "test-slow"}.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"not among the quick tests: make {command}"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same random state, whatever ran before it."""
    random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(scope="session")
def seed() -> int:
    """Return the seed of this session, for generators of a test's own."""
    return SEED


@pytest.fixture
def generator() -> torch.Generator:
    """Return a fresh CPU generator with the session's seed."""
    return torch.Generator().manual_seed(SEED)


@pytest.fixture(scope="session")
def long_run() -> bool:
    """Tell whether full counts are asked for (``RELAXPRUNE_LONG=1``)."""
    return LONG


@pytest.fixture(scope="session")
def devices() -> list[torch.device]:
    """Return every kind of device that is there, the CPU first."""
    return [torch.device(name) for name in _devices()]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """Run the test once on every kind of device that is there."""
    return torch.device(request.param)
