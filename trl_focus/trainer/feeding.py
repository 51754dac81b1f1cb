# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from accelerate import PartialState
from diffusers.training_utils import free_memory
from torch.utils.data import DataLoader

from ..data.batches import PreferenceRows, PreferenceStream
from ..data.collator import DataCollatorForDiffusionPreference
from ..data.encoded import EncodedCollator, EncodedRows
from ..data.loader import preference_loader
from ..data.preparation import PreferenceDataset, prepare_preferences
from .checks import each_dataset, named_dataset
from .encoding import encode_once, encoder_identity
from .precomputed import add_reference_errors


class FeedMixin:
    """
    What a trainer is fed: datasets, checked and encoded; batches of them; and what a batch is to the denoiser. The encoders are
    on the device while they work, and away where nothing is left for them to do.
    """

    def _prepare_dataset(self, dataset: PreferenceDataset) -> PreferenceRows | PreferenceStream:
        return prepare_preferences(dataset, self.layout_rule, self.args.ties, self.args.dataset_num_proc)

    def _encode_datasets(self, train_dataset, eval_dataset, data_collator: Callable) -> tuple:
        """Both, encoded where they can be. The encoders stay on the device if something is left for the steps."""
        for module in self.family.encoders:
            module.requires_grad_(False).eval()
        train_dataset, _ = each_dataset(partial(self._encoded, collator=data_collator), train_dataset, None)
        _, eval_dataset = each_dataset(partial(self._encoded, collator=self.eval_collator), None, eval_dataset)
        parts = [train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset])]
        all_encoded = all(isinstance(part, EncodedRows | None) for part in parts)
        if (found := self._found_before()) and not all_encoded:
            name, off = found
            raise ValueError(
                f"`{name}` is for rows that are encoded once: it does not go with streams, nor with a `data_collator` of "
                f"your own. Set it to {off!r}."
            )
        self._move_encoders(torch.device("cpu") if all_encoded else self.args.device)
        return train_dataset, eval_dataset

    def _encoded(
        self, dataset: PreferenceRows | PreferenceStream, collator: Callable
    ) -> PreferenceRows | PreferenceStream:
        """Rows with latents, as the collator sees them; a stream as it is."""
        if not self.encode_once or not isinstance(dataset, PreferenceRows):
            return dataset
        with self._encoders_at_work():
            return encode_once(
                dataset,
                self.family,
                self._encoder_identity,
                collator,
                self.args.encode_variants,
                PartialState(),
                self.fetch_encoded,
            )

    def _found_before(self) -> tuple[str, Any] | None:
        """The setting by which the model finds something out about each row before training, and its value for nothing."""
        return ("precompute_ref_errors", 0) if self.args.precompute_ref_errors else None

    @cached_property
    def _encoder_identity(self) -> str:
        return encoder_identity(self.family)  # reads all their weights

    def _move_encoders(self, device: torch.device):
        for module in self.family.encoders:
            is_quantized = getattr(module, "hf_quantizer", None) is not None  # these stay where they were loaded
            if module.device != device and not is_quantized:
                module.to(device)

    @contextmanager
    def _encoders_at_work(self):
        """Within it the encoders are on the device."""
        were_away = any(module.device != self.args.device for module in self.family.encoders)
        self._move_encoders(self.args.device)
        try:
            yield
        finally:
            if were_away:
                self._move_encoders(torch.device("cpu"))
                free_memory()

    def _collator(self, dataset: PreferenceRows | PreferenceStream, train: bool) -> Callable:
        collator = self.data_collator if train else self.eval_collator
        if isinstance(dataset, EncodedRows):
            return EncodedCollator(**vars(collator), stack=self.family.stack_prompts)
        return collator

    def _precompute(self, dataset: PreferenceRows | PreferenceStream, draws: int, train: bool):
        if draws and isinstance(dataset, EncodedRows) and dataset.ref_errors is None:
            batch_size = self._train_batch_size if train else self.args.eval_batch_size
            add_reference_errors(self, dataset, self._collator(dataset, train), draws, batch_size)

    def _loader(self, dataset: PreferenceRows | PreferenceStream, batch_size: int, train: bool) -> DataLoader:
        collator = self._collator(dataset, train)
        return preference_loader(dataset, batch_size, collator, self.args, self.accelerator, train)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of one layout each, the same number for every process."""
        dataset = self.train_dataset
        if isinstance(dataset, EncodedRows) and type(self.data_collator) is not DataCollatorForDiffusionPreference:
            dataset = dataset.source  # a collator that was set since sees pixels, as one that was given
            self._move_encoders(self.args.device)
        self._precompute(dataset, self.args.precompute_ref_errors, train=True)
        loader = self._loader(dataset, self._train_batch_size, train=True)
        if isinstance(dataset, PreferenceRows) and len(loader) == 0:
            raise ValueError(
                f"`train_dataset` has no full batch of {self._train_batch_size} pairs of one layout, and "
                "`dataloader_drop_last` leaves out the others. Lower `per_device_train_batch_size`, or leave it off."
            )
        return loader

    def get_eval_dataloader(self, eval_dataset: PreferenceDataset | str | None = None) -> DataLoader:
        """Batches of one layout each, of the evaluation set, of one of its parts by name, or of a given dataset."""
        if eval_dataset is None:
            eval_dataset = self.eval_dataset
        elif isinstance(eval_dataset, str):
            named = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
            if eval_dataset not in named:
                raise ValueError(
                    f"`eval_dataset` has no part {eval_dataset!r}; it has {[*named] or 'no named parts'}."
                )
            eval_dataset = named[eval_dataset]
        if eval_dataset is None:
            raise ValueError("Evaluation needs an `eval_dataset`: give one to the trainer, or to `evaluate`.")
        if not isinstance(eval_dataset, PreferenceRows | PreferenceStream):
            eval_dataset = named_dataset("eval_dataset", self._prepare_dataset, eval_dataset)
            eval_dataset = self._encoded(eval_dataset, self.eval_collator)
        if not isinstance(eval_dataset, EncodedRows):
            self._move_encoders(self.args.device)  # where each step needs them
        self._precompute(eval_dataset, min(self.args.precompute_ref_errors, 1), train=False)  # its noise never changes
        return self._loader(eval_dataset, self.args.eval_batch_size, train=False)

    def get_test_dataloader(self, test_dataset: PreferenceDataset) -> DataLoader:
        """Batches of one layout each, as in evaluation."""
        return self.get_eval_dataloader(test_dataset)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Batches come on the device. The base would cast them with DeepSpeed, and the reference's errors must stay exact."""
        return inputs

    @torch.no_grad()
    def _encode(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], list[torch.Tensor]]:
        """Clean latents of the 2B images (chosen first), and what conditions them; encoded, unless they are already."""
        images, references = torch.cat([batch["chosen"], batch["rejected"]]), batch["references"]
        if (prompt := batch.get("conditions")) is None:
            images, *references = (self.family.encode_pixels(pixels) for pixels in (images, *references))
            prompt = self.family.encode_prompt(batch["prompt"], batch["prompt_references"])
        prompt = {
            name: value * 2 if isinstance(value, list) else torch.cat([value] * 2) for name, value in prompt.items()
        }
        return images.float(), prompt, [torch.cat([latents.float()] * 2) for latents in references]

    def pixels(self, batch: dict[str, Any]) -> torch.Tensor:
        """The 2B images of a batch of training (chosen first), uint8 of shape `(2B, 3, H, W)`."""
        if "conditions" not in batch:
            return torch.cat([batch["chosen"], batch["rejected"]])
        keys = zip(batch["row"], batch["epoch"], strict=True)
        pairs = [self.train_dataset.picture(*key, self.data_collator) for key in keys]
        return torch.stack(pairs, dim=1).flatten(0, 1)
