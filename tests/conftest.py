"Shared fixtures: where real data lies, and an empty working folder per test."
import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started in the background inherits a deaf Ctrl-C, and so would the processes it tests


@pytest.fixture(scope="session")
def root() -> Path: return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    "The folder with real MedMNIST files: $XAIMED_DATA_DIR, else a `shared/data` beside the checkout."
    folders = [Path(p) for p in (os.environ.get("XAIMED_DATA_DIR"), ROOT.parent / "shared" / "data") if p]
    for folder in folders:
        if (folder / "breastmnist.npz").exists(): return folder
    pytest.skip("no real MedMNIST files here: set XAIMED_DATA_DIR to a folder that holds breastmnist.npz")
