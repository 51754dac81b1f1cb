# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json
from typing import Any


NO_PROMPT = "a photograph of a cat"


def snippet(facts: dict[str, Any], samples: list[dict[str, Any]]) -> str:
    """
    The code of a card: loads the base model and the LoRA, and draws. It draws the first of the samples, where there are some,
    and runs on any device; in the folder of the card, where the LoRA is in no repository.

    Args:
        facts (`dict`):
            From [`card_facts`].
        samples (`list[dict]`):
            From [`read_samples`].
    """
    repo, pipeline, base = facts["repo"], facts["pipeline"], facts["base"]
    sample = samples[0] if samples else {}
    shown = facts["with_references"] or sample.get("references")
    references = facts["references"] if shown else None
    helper = facts["helper"] if references else None
    call = dict(sample.get("settings", facts["call"]))

    lines = ["import torch", f"from diffusers import {pipeline}"]
    if references:
        lines.append("from diffusers.utils import load_image")
    if sample.get("references") and repo:
        lines.append("from huggingface_hub import hf_hub_download")
    if helper is not None:
        lines.append("from trl_focus import sample_with_references")

    lines += ["", 'device = torch.accelerator.current_accelerator(check_available=True) or "cpu"']
    place = base.get("id") or (base.get("folder") if not repo else None)
    if place is None:
        place = f"path/to/{base.get('folder', 'the-base-model')}"
    dtype = f"dtype=torch.{facts['dtype']}"
    loading = [f"{name}={_literal(value)}" for name, value in base["load"].items()]
    if facts["modular"]:
        loaded = ", ".join([_literal(place), *loading])
        lines.append(f"pipe = {pipeline}.from_pretrained({loaded})")
        if facts["unused_blocks"]:  # which would change the prompt, and need models of their own
            lines.append("blocks = pipe.blocks")
            lines += [f"blocks.sub_blocks.pop({_literal(block)}, None)" for block in facts["unused_blocks"]]
            lines.append(f"pipe = {pipeline}(blocks, {loaded})")
        lines += [f"pipe.load_components({dtype})", "pipe.to(device)"]
    else:
        lines.append(f"pipe = {pipeline}.from_pretrained({', '.join([_literal(place), *loading, dtype])}).to(device)")
    revision = f", revision={_literal(facts['revision'])}" if repo and facts["revision"] else ""
    lines += [f"pipe.load_lora_weights({_literal(repo or '.')}{revision})", ""]

    if references:
        lines += _references(facts, sample.get("references"), repo, revision)
    arguments = [f"prompt={_literal(sample.get('prompt') or facts['prompt'] or NO_PROMPT)}"]
    if helper is not None:
        arguments.append("references=references")
        call = {**helper, **call}
    elif references:
        given = "references[0]" if references["most"] == 1 else "references"
        arguments.append(f"image={given if sample.get('references') or references['least'] else 'references or None'}")
    arguments += [f"{name}={_literal(value)}" for name, value in call.items()]
    arguments.append(f"generator=torch.Generator().manual_seed({sample.get('seed', 0)})")
    function = "pipe(" if helper is None else "sample_with_references("
    if helper is not None:
        arguments.insert(0, "pipe")
    lines += [f"image = {function}", *(f"    {argument}," for argument in arguments), ").images[0]"]
    return "\n".join([*lines, 'image.save("image.png")'])


def _references(facts: dict[str, Any], names: list[str] | None, repo: str | None, revision: str) -> list[str]:
    if names is None:
        least = facts["references"]["least"]
        if least == 0:
            return ['references = []  # pictures of what is to be seen: [load_image("cat.png"), ...]']
        return ['references = [load_image("reference.png")]  # a picture of what is to be seen']
    paths = [_literal(f"samples/{name}") for name in names]
    if repo:
        paths = [f"hf_hub_download({_literal(repo)}, {path}{revision})" for path in paths]
    return ["references = [", *(f"    load_image({path})," for path in paths), "]"] if paths else ["references = []"]


def _literal(value: Any) -> str:
    """Python source of a value, with nothing in it that would end a block of code in Markdown."""
    source = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    return source.replace("`", "\\x60")
