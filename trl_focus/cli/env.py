# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

PACKAGES = (
    *("torch", "diffusers", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub"),
    *("bitsandbytes", "safetensors", "numpy", "pillow", "deepspeed"),
)


def add_parser(subparsers):
    return subparsers.add_parser("env", help="print versions and devices, for a bug report")


def run(args) -> int:
    import platform
    import sys
    from importlib.metadata import PackageNotFoundError, version

    from .. import __version__

    def version_of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    lines = {
        "trl-focus": __version__,
        "Python": platform.python_version(),
        "Platform": platform.platform(),
        "Devices": ", ".join(_devices()) or "CPU only",
        "accelerate config": _accelerate_config(),
        **{package: version_of(package) for package in PACKAGES},
    }
    sys.stdout.write("".join(f"- {name}: {value}\n" for name, value in lines.items()))
    return 0


def _devices() -> list[str]:
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.accelerator.is_available():
        return [torch.accelerator.current_accelerator().type] * torch.accelerator.device_count()
    return []


def _accelerate_config() -> str:
    """What `accelerate config` has set, of what can say nothing of the user."""
    from pathlib import Path

    import yaml
    from huggingface_hub import constants

    file = Path(constants.HF_HOME, "accelerate", "default_config.yaml")
    if not file.is_file():
        return "none"
    names = ("distributed_type", "num_processes", "num_machines", "mixed_precision", "use_cpu")
    try:
        config = yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict):
        return "there, but no YAML mapping"
    return ", ".join(f"{name}={config[name]}" for name in names if name in config)
