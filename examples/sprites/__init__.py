# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""The sprites benchmark: a world in which identity and leakage are known exactly, and a small model that draws it."""
