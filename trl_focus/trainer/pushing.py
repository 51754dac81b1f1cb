# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import shutil
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy, SaveStrategy

from ..hub.card import card_facts, write_card
from ..hub.upload import HubUploads, checkpoint_files, run_files
from .policy import POLICY
from .resume import STATE_NAME


# What a checkpoint holds of what `save_model` writes to the run's folder, but for the card, which shows the run's pictures
MODEL_FILES = ("*.safetensors", "*adapter_config.json", STATE_NAME)


class PushMixin:
    """
    How a trainer describes its run in a card, and uploads it: see [`~hub.upload.HubUploads`]. Takes the place of what
    [`~transformers.Trainer`] does, under the same settings.
    """

    _uploads: HubUploads | None = None  # on the main process, once the repository is set up

    def _card_facts(
        self,
        folder: str | Path,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: list[str] | None = None,
    ) -> dict[str, Any]:
        data = self.train_dataset.dataset
        repo = getattr(self, "hub_model_id", None) or self.args.hub_model_id
        from_trackers = getattr(self.policy, "model_tags", None) or []
        return card_facts(
            self.family,
            self.args,
            folder,
            name=model_name or repo or Path(self.args.output_dir).resolve().name,
            method=self._name,
            paper=self._paper,
            tags=[*self._tag_names, *from_trackers, *(tags or [])],
            lora=self.policy.peft_config[POLICY],
            repo=repo,
            dataset=dataset_name or self.dataset_name,
            prompt=data.select_columns("prompt")[0]["prompt"] if isinstance(data, Dataset) else None,
            with_references="references" in (data.column_names or ["references"]),
            resolution=self.layout_rule.resolution,
            state=self.state,
        )

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ):
        """Writes the card of the LoRA to `args.output_dir`."""
        if self.is_world_process_zero():
            tags = [tags] if isinstance(tags, str) else tags
            write_card(self.args.output_dir, self._card_facts(self.args.output_dir, model_name, dataset_name, tags))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None):
        """Creates the repository. If the Hub can't be reached, training goes on, and each push tries again."""
        if not self.is_world_process_zero():
            return
        args = self.args
        self._uploads = HubUploads(
            args.output_dir,
            args.hub_model_id or Path(args.output_dir).absolute().name,
            args.hub_token if token is None else token,
            args.hub_private_repo if private is None else private,
            args.hub_revision,
        )
        self._uploads.try_create_repo()
        self.hub_model_id = self._uploads.repo_id

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> "CommitInfo | Future[CommitInfo | None] | None":
        """
        Saves the LoRA, writes its card and uploads the run's folder, without its checkpoints.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Whether to return only when the upload has ended.
            token (`str`, *optional*), revision (`str`, *optional*), private (`bool`, *optional*):
                In place of those of the arguments, from here on.
            kwargs:
                For `create_model_card`: `model_name`, `dataset_name`, `tags`.

        Returns:
            The commit, or `None` if the upload failed: the log then has the command that finishes it. A `Future` of it if not
            `blocking`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self._uploads is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._uploads.wait()
        self._uploads.token = token or self._uploads.token
        self._uploads.revision = revision or self._uploads.revision
        if private is not None:  # the repository may still have to be made
            self._uploads.private = private
        folder = Path(self.args.output_dir)
        pushed = self._uploads.push(run_files(folder), commit_message, {".": folder})
        if not blocking:
            return pushed
        self._finish_current_push()
        return pushed.result()

    def _push_from_checkpoint(self, checkpoint_folder: str):
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if not args.hub_always_push and self._uploads.running:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        folder, checkpoint = Path(args.output_dir), Path(checkpoint_folder)
        for file in checkpoint.rglob("*"):
            path = file.relative_to(checkpoint)
            if file.is_file() and any(fnmatch(path.as_posix(), pattern) for pattern in MODEL_FILES):
                (folder / path).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, folder / path)
        self.create_model_card()
        files, sources = run_files(folder), {".": folder}
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
            files |= checkpoint_files(checkpoint, name)
            sources[name] = checkpoint
        by_step = args.save_strategy == SaveStrategy.STEPS
        done = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch)}"
        self._uploads.push(files, f"Training in progress, {done}", sources)

    def _finish_current_push(self):
        if self._uploads is not None:
            self._uploads.wait()
            self._uploads.report()
            self.hub_model_id = self._uploads.repo_id  # its owner may be known only now
