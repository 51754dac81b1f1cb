# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import gc
import os


# Set before the first import of torch and the Hub client; processes that a test starts inherit them.
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: more threads only wait for one another
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def pytest_collection_finish():
    """
    What was imported by now stays: the collections of garbage that accelerate asks for at the start of each training need not
    look through it, which took longer than the training.
    """
    gc.collect()
    gc.freeze()
