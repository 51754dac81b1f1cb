# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""
What training takes: operations, memory, network and disk, by model, resolution and number of cards.

    python -m benchmarks.cost_model

prints the tables of `docs/scaling.md`.
"""
