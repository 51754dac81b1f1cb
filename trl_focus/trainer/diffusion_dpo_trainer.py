# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import copy
import json
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import DynamoBackend, set_seed
from diffusers import DiffusionPipeline
from peft import LoraConfig
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback
from transformers.utils import logging

from .._compat import _BaseTrainer, disable_dropout_in_model
from ..callbacks import PreferenceCollapseCallback
from ..callbacks.progress import closed_on_error, show_progress
from ..data.collator import DataCollatorForDiffusionPreference
from ..data.layout import LayoutRule
from ..data.preparation import PreferenceDataset
from ..hub.card import write_card
from ..hub.encoded import fetcher
from ..hub.lora import save_lora
from ..losses import PreferenceTerms, mean_error, preference_loss
from ..noise import Noised, denoising_error, draw
from .beta_controller import GradientFactorController
from .checks import check_arguments, each_dataset, warn_of_cut_prompts
from .computation import set_computation
from .diffusion_dpo_config import DiffusionDPOConfig
from .feeding import FeedMixin
from .finite import FiniteAlarm
from .metrics import DeviceMeans
from .observing import ObserveMixin
from .offload import offload_blocks, undo_offload
from .pipeline import load_pipeline, load_reference
from .policy import REFERENCE, add_frozen_copy, as_reference, check_lora, make_policy
from .pushing import PushMixin
from .resume import STATE_NAME, find_checkpoint, restore, update_size


logger = logging.get_logger(__name__)


class CellWeights(NamedTuple):
    """
    Weights of the cells of the 2B images of a batch, each of shape `(2B, H, W)`; `None` is 1 everywhere.

    Attributes:
        preference_BHW (`torch.Tensor`, *optional*):
            Weights of the errors that are compared.
        sft_BHW (`torch.Tensor`, *optional*):
            Weights of the error of the `"sft"` loss.
        parts (`dict[str, torch.Tensor]`):
            Maps that the weights were made of, by name.
        anchor_BHW (`torch.Tensor`, *optional*):
            Weights of the drift of the `"anchor"` loss.
    """

    preference_BHW: torch.Tensor | None = None
    sft_BHW: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] = {}
    anchor_BHW: torch.Tensor | None = None


class DiffusionDPOTrainer(FeedMixin, ObserveMixin, PushMixin, _BaseTrainer):
    """
    Trainer for Direct Preference Optimization of diffusion models, as in [Diffusion Model Alignment Using Direct
    Preference Optimization](https://huggingface.co/papers/2311.12908). It trains a LoRA on pairs of images.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_focus import DiffusionDPOConfig, DiffusionDPOTrainer

    >>> trainer = DiffusionDPOTrainer(
    ...     model="black-forest-labs/FLUX.2-klein-base-4B",
    ...     args=DiffusionDPOConfig(output_dir="klein-dpo", resolution=512),
    ...     train_dataset=load_dataset("user/pairs", split="train"),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or `DiffusionPipeline`):
            Hub id or folder of a pipeline, or a loaded one. A pipeline that comes with one loaded LoRA continues it.
        ref_model (`str`, `DiffusionPipeline` or `ModelMixin`, *optional*):
            Reference: an id, a pipeline, or a denoiser of the policy's class. By default the policy with its LoRA off.
        args ([`DiffusionDPOConfig`], *optional*):
            Configuration. Defaults to one that writes to a folder named after the model.
        data_collator (`Callable`, *optional*):
            Collates rows into a batch; its output must be that of [`DataCollatorForDiffusionPreference`].
        train_dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Pairs in the preference schema (`prompt`, `chosen`, `rejected`, and optional columns).
        eval_dataset (`datasets.Dataset`, `datasets.IterableDataset` or `dict` of them, *optional*):
            Pairs to evaluate on.
        callbacks (`list[TrainerCallback]`, *optional*):
            Callbacks. A [`PreferenceCollapseCallback`] that warns is added unless one is among them.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Here for the signature of TRL's trainers: an optimizer made before the LoRA would not train it. Choose one with
            `args.optim`, or set `trainer.optimizer`.
        quantization_config (`PipelineQuantizationConfig`, or a diffusers config for the denoiser alone, *optional*):
            How to quantize a model that is loaded from a string.
        peft_config (`peft.LoraConfig`, *optional*):
            LoRA to train. Defaults to the family's.

    Raises:
        TypeError, ValueError: If the model, the data or the arguments can't be trained; the message names the field or the
            row, and the way out. Nothing is written before.
    """

    # `compute_loss` divides by the number of pairs of the whole update, whatever the batches it comes in
    loss_is_scaled_for_ga = True

    _tag_names = ["trl", "diffusion-dpo"]
    _name = "Diffusion-DPO"
    dataset_name: str | None = None  # id of the data on the Hub, for the cards of all saves
    _paper = {
        "title": "Diffusion Model Alignment Using Direct Preference Optimization",
        "id": "2311.12908",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{wallace2024diffusion,
                title     = {{Diffusion Model Alignment Using Direct Preference Optimization}},
                author    = {Bram Wallace and Meihua Dang and Rafael Rafailov and Linqi Zhou and Aaron Lou and Senthil Purushwalkam and Stefano Ermon and Caiming Xiong and Shafiq Joty and Nikhil Naik},
                year      = 2024,
                booktitle = {{IEEE/CVF Conference on Computer Vision and Pattern Recognition, CVPR 2024}},
            }"""),
    }

    _config_class = DiffusionDPOConfig

    def __init__(
        self,
        model: "str | DiffusionPipeline",
        ref_model: "str | DiffusionPipeline | torch.nn.Module | None" = None,
        args: DiffusionDPOConfig | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        train_dataset: PreferenceDataset | None = None,
        eval_dataset: PreferenceDataset | dict[str, PreferenceDataset] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config=None,
        peft_config: LoraConfig | None = None,
    ):
        if args is None:
            name = model if isinstance(model, str | Path) else getattr(model, "name_or_path", None) or "pipeline"
            args = self._config_class(f"{Path(name).name}-{self._name}")
        # First what needs no model, then what needs no change of it; the pipeline gets its LoRA last
        self.reference = check_arguments(
            self._config_class, model, ref_model, args, train_dataset, eval_dataset, optimizers, peft_config
        )

        # Model
        self.family = load_pipeline(model, args, quantization_config)
        self.pipeline = self.family.pipeline
        denoiser = self.family.denoiser
        self._denoiser_dtype = denoiser.dtype
        loaded_lora = check_lora(self.pipeline, denoiser, peft_config)
        if self.reference == "initial_adapter" and loaded_lora is None:
            raise ValueError(
                "`reference='initial_adapter'` holds the policy against the LoRA that the pipeline came with, and it "
                "came with none. Load one with `pipeline.load_lora_weights`, or use 'adapter_off'."
            )
        if args.resolution is not None and (over := args.resolution % self.family.size_multiple):
            below = args.resolution - over
            raise ValueError(
                f"`resolution` is {args.resolution}, and the sides of this model's images are multiples of "
                f"{self.family.size_multiple} pixels: set it to {below + self.family.size_multiple}"
                f"{f' or {below}' if below else ''}."
            )
        ref_denoiser = load_reference(ref_model, self.family, args) if ref_model is not None else None
        for part in (denoiser, ref_denoiser):
            if part is not None:
                set_computation(part, args)

        # Data
        self.args = args  # its preparation may ask for them
        self.layout_rule = LayoutRule(
            args.resolution or self.family.default_resolution,
            self.family.size_multiple,
            self.family.reference_rule(args.reference_resolution),
            stretch=args.crop == "none",
            reference_counts=self.family.reference_counts,
        )
        collator = partial(DataCollatorForDiffusionPreference, self.layout_rule, self.family.cell_size)
        self.encode_once = args.encode_once and data_collator is None
        self.fetch_encoded = fetcher(args.prepared, args.hub_token) if args.prepared else None
        self.eval_collator = data_collator or collator(args.eval_seed, "none" if args.crop == "none" else "center")
        data_collator = data_collator or collator(args.seed, args.crop, args.random_flip, args.caption_dropout)
        with args.main_process_first(local=False, desc="checking preference pairs"):  # the others read its cache
            train_dataset, eval_dataset = each_dataset(self._prepare_dataset, train_dataset, eval_dataset)
        each_dataset(partial(warn_of_cut_prompts, self.family), train_dataset, eval_dataset)

        # Policy: LoRA weights are random, so the seed comes first
        set_seed(args.seed)
        default = LoraConfig(
            r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=self.family.lora_target_modules
        )
        policy, continued = make_policy(self.pipeline, denoiser, peft_config, default)
        if peft_config is None and not continued:
            logger.warning(f"No `peft_config` given: training a LoRA of rank 16 on {default.target_modules}.")
        if self.reference == "initial_adapter":
            add_frozen_copy(policy)
        if args.disable_dropout:
            disable_dropout_in_model(policy)

        self._metrics = {"train": DeviceMeans(), "eval": DeviceMeans()}
        self._alarm = FiniteAlarm()
        callbacks = callbacks or []
        if not any(isinstance(callback, PreferenceCollapseCallback) for callback in callbacks):
            callbacks = [*callbacks, PreferenceCollapseCallback()]
        if args.torch_compile:
            denoiser.compile_repeated_blocks(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
        denoisers = [denoiser]
        if ref_denoiser is not None:
            denoisers.append(ref_denoiser.requires_grad_(False).eval())
        for part in denoisers:
            undo_offload(part)
        if args.offload_blocks:
            offload_blocks(policy, denoisers, args.device)
        self.policy = policy  # whatever wraps it; accelerate, asked to unwrap it, looks through all modules
        # Before the denoiser comes to the device
        train_dataset, eval_dataset = self._encode_datasets(train_dataset, eval_dataset, data_collator)
        super().__init__(
            model=policy,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
            optimizers=optimizers,
        )

        # The blocks are compiled in place; accelerate would compile the whole around them
        self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
        show_progress(self)
        self.ref_denoiser = None
        if ref_denoiser is not None:
            self.ref_denoiser = self.accelerator.prepare_model(ref_denoiser, evaluation_mode=True)
        self.beta_controller = None
        if args.target_gradient_factor is not None:
            self.beta_controller = GradientFactorController(
                args.beta,
                args.target_gradient_factor,
                args.beta_min,
                args.beta_max,
                args.beta_warmup_steps,
                self.accelerator.device,
            )

    @property
    def beta(self) -> float | torch.Tensor:
        """Beta in force: the configured one, or where the controller moved it."""
        return self.args.beta if self.beta_controller is None else self.beta_controller.beta

    # ---- Loss ----

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """Number of pairs of one update, over its batches and all processes."""
        pairs = sum(batch["counts"].sum() for batch in batch_samples)
        return self.accelerator.reduce(torch.as_tensor(pairs, device=device), reduction="sum")

    def _autocast(self) -> AbstractContextManager:
        # Inputs stay fp32, so that noise levels reach the denoiser's embedding unrounded
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        dtype = mixed or self._denoiser_dtype
        return nullcontext() if dtype == torch.float32 else torch.autocast(self.accelerator.device.type, dtype)

    def _noise(self, x_BCHW: torch.Tensor, seeds: list[int]) -> Noised:
        """Noises both images of a pair with one noise and one level."""
        args = self.args
        noise_BCHW, u_B = draw(
            seeds,
            x_BCHW.shape[1:],
            x_BCHW.device,
            args.weighting_scheme,
            args.logit_mean,
            args.logit_std,
            args.mode_scale,
        )
        return self.family.process.noise(x_BCHW, torch.cat([noise_BCHW] * 2), torch.cat([u_B] * 2))

    def _parts(self, noised: Noised, prompt: dict[str, Any], references: list[torch.Tensor]) -> list[tuple]:
        """What the 2B images are in one forward, or the chosen ones and then the rejected ones."""
        if self.args.one_forward:
            return [(noised, prompt, references)]

        def halves(value):
            middle = len(value) // 2
            return value[:middle], value[middle:]

        prompts = zip(*map(halves, prompt.values()), strict=True)
        shown = zip(*map(halves, references), strict=True) if references else [(), ()]
        return [
            (Noised(*part), dict(zip(prompt, values, strict=True)), [*images])
            for part, values, images in zip(zip(*map(halves, noised), strict=True), prompts, shown, strict=True)
        ]

    def _predict(
        self, denoiser: torch.nn.Module, noised: Noised, prompt: dict[str, Any], references: list[torch.Tensor]
    ) -> torch.Tensor:
        with self._autocast():
            return self.family.predict(denoiser, noised.noisy_BCHW, noised.timestep_B, prompt, references)

    @torch.no_grad()
    def _reference_prediction(self, parts: list[tuple]) -> torch.Tensor:
        if self.reference == "model":
            return torch.cat([self._predict(self.ref_denoiser, *part) for part in parts])
        with as_reference(self.policy, REFERENCE if self.reference == "initial_adapter" else None):
            # not the DDP wrapper: no gradient, no bookkeeping of its reducer
            return torch.cat([self._predict(self.model, *part) for part in parts])

    def reference_error(self, batch: dict[str, Any]) -> torch.Tensor:
        """The reference's error on each cell of the 2B images of a batch (chosen first), of shape `(2B, H, W)`."""
        x_BCHW, prompt, references = self._encode(batch)
        noised = self._noise(x_BCHW, batch["seed"])
        return denoising_error(self._reference_prediction(self._parts(noised, prompt, references)), noised.target_BCHW)

    def watch(
        self,
        batch: dict[str, Any],
        noised: Noised,
        prompt: dict[str, torch.Tensor],
        references: list[torch.Tensor],
    ) -> AbstractContextManager[Any]:
        """Context in which a forward of the policy runs, of all 2B images or of half. What it yields goes to `cell_weights`."""
        return nullcontext()

    def cell_weights(self, batch: dict[str, Any], noised: Noised, seen: list) -> CellWeights:
        """
        Weights of the cells of the 2B images (chosen first).

        Args:
            seen (`list`):
                What `watch` yielded in each forward.
        """
        return CellWeights()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ):
        x_BCHW, prompt, references = self._encode(inputs)
        noised = self._noise(x_BCHW, inputs["seed"])
        parts = self._parts(noised, prompt, references)
        # The reference goes first: switching adapters does not come between the policy's forward and its backward
        if "ref_errors" in inputs:
            reference_BCHW, ref_error_BHW = None, inputs["ref_errors"]
        else:
            reference_BCHW = self._reference_prediction(parts)
            ref_error_BHW = denoising_error(reference_BCHW, noised.target_BCHW)
        predictions, seen = [], []
        for part in parts:
            with self.watch(inputs, *part) as saw:
                if part is parts[-1]:
                    predictions.append(self._predict(model, *part))
                else:
                    # Forgotten until its own backward pass, so that what two forwards keep is never there at once. Not the
                    # DDP wrapper, whose reducer expects one forward before the backward pass, and none within it
                    predictions.append(checkpoint(self._predict, self.policy, *part, use_reentrant=False))
            seen.append(saw)
        prediction_BCHW = torch.cat(predictions)
        error_BHW = denoising_error(prediction_BCHW, noised.target_BCHW)
        weights = self.cell_weights(inputs, noised, seen)
        # The difference is formed before the mean: four means of nearly equal size would cancel badly in fp32
        change_BHW = error_BHW - ref_error_BHW
        chosen_B, rejected_B = mean_error(change_BHW, weights.preference_BHW).chunk(2)
        bounded_B = rejected_B
        if self.args.rejected_error_bound is not None:
            bounded_B = rejected_B.clamp(max=self.args.rejected_error_bound)
        drift_B = None
        if "anchor" in self.args.loss_type:
            drift_BHW = denoising_error(prediction_BCHW, reference_BCHW)
            drift_B = mean_error(drift_BHW, weights.anchor_BHW).view(2, -1).mean(dim=0)
        terms = PreferenceTerms(
            gap_B=-0.5 * (chosen_B - bounded_B),
            chosen_error_B=mean_error(error_BHW, weights.sft_BHW).chunk(2)[0],
            beta=self.beta,
            label_smoothing=self.args.label_smoothing,
            drift_B=drift_B,
        )
        loss_B = preference_loss(terms, self.args.loss_type, self.args.loss_weights)
        counts_B = inputs["counts"]
        self._observe(inputs, noised, terms, loss_B, change_BHW.detach(), weights)

        pairs = counts_B.sum() if num_items_in_batch is None else num_items_in_batch
        loss = (loss_B * counts_B).sum() / pairs
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, {"loss": loss_B, "rewards": terms.inside_B}) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.beta_controller is not None and self.accelerator.sync_gradients:
            self.beta_controller.step(self.accelerator)
        return loss

    # ---- Sampling ----

    def base_policy(self) -> AbstractContextManager:
        """Within it the policy is the model without its LoRA."""
        return as_reference(self.policy, None)

    @contextmanager
    def sampling(self):
        """
        Within it `pipeline` draws with the policy. What sampling leaves behind in the pipeline and in the policy's mode is
        undone, so that training goes on as it would have.
        """
        pipeline, policy = self.pipeline, self.policy
        training, scheduler, bar = policy.training, pipeline.scheduler, getattr(pipeline, "_progress_bar_config", {})
        pipeline.scheduler = copy.deepcopy(scheduler)
        pipeline.set_progress_bar_config(disable=True)
        policy.eval()
        try:
            with torch.no_grad(), self._encoders_at_work():
                yield
        finally:
            policy.train(training)
            pipeline.scheduler = scheduler
            pipeline.set_progress_bar_config(**bar)

    # ---- Saving and resuming ----

    def _save_checkpoint(self, model, trial):
        self.check_finite()
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None):
        """Writes the LoRA twice, as PEFT (from which training resumes) and as diffusers load it, and a card."""
        output_dir = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        # Not by the base, which pickles the arguments as well, and the token with them
        self.policy.save_pretrained(output_dir, state_dict=state_dict)
        save_lora(self.pipeline, self.family.denoiser_name, self.policy, output_dir, state_dict)
        write_card(output_dir, self._card_facts(output_dir))
        state = {
            "family": type(self.family).__name__,
            "denoiser": type(self.family.denoiser).__name__,
            "reference": self.reference,
            "beta_controller": None if self.beta_controller is None else self.beta_controller.state_dict(),
            "update": update_size(self),
        }
        (output_dir / STATE_NAME).write_text(json.dumps(state, indent=2))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Trains, from the start or from a checkpoint. See [`~transformers.Trainer.train`].

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                Folder of a checkpoint; `True` for the last one in `output_dir`; `"last-checkpoint"` for the last one in
                `hub_model_id` on the Hub, if there is no such folder here.

        Raises:
            ValueError: If there is no such checkpoint, it is of another family or another kind of LoRA, or its reference is
                not here.
        """
        if resume_from_checkpoint:
            checkpoint = find_checkpoint(resume_from_checkpoint, self)
            restore(self, checkpoint)
            resume_from_checkpoint = str(checkpoint)
        self._metrics["train"] = DeviceMeans()  # an earlier run may have ended between two logs
        with closed_on_error(self.callback_handler.callbacks):
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _send_telemetry(self):
        """Sends nothing: TRL's base would report each run."""
