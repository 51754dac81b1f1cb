# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.
"""`python -m trl_focus` is `trl-focus`."""

from .cli import main


if __name__ == "__main__":
    raise SystemExit(main())
