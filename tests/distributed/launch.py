# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]


def launch(module: str, folder: Path, processes: int):
    """Runs a module in one process, or in several through torch's launcher; what it prints is shown if it fails."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    result = subprocess.run(
        [sys.executable, "-m", *(launcher if processes > 1 else []), module, str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-5000:]
