"""transformers' Trainer with the hooks of an adapted model: groups, a regularizer, steps that diverge."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback

from lora_zoo.core.hooks import Progress
from lora_zoo.core.processes import current
from lora_zoo.core.routing import routing_means
from lora_zoo.core.train_eval import in_mode
from lora_zoo.injection.inject import Injection
from lora_zoo.models import activations
from lora_zoo.tasks.base import IGNORED
from lora_zoo.training import checkpoints, divergence, parts
from lora_zoo.training.arguments import check_schedule
from lora_zoo.training.callbacks import EarlyStopping, HookCallback, progress_of
from lora_zoo.training.dropbp import BackwardDropper
from lora_zoo.training.handover import Handover, follow_run, take_over
from lora_zoo.training.optimizers import needs_graph, optimizer_of
from lora_zoo.training.ranks import RankRecorder
from lora_zoo.training.state import TrainState
from lora_zoo.training.together import Borrowed
from lora_zoo.training.transformers_trainer import TRAINER_STATE_NAME, Trainer

_log = logging.getLogger("lora_zoo")


class ZooTrainer(Trainer):
    """Trains an injection's parameters. The logged loss excludes the regularizer.

    A step's loss is the mean over the items of all its micro-batches, by whatever model and head: each one's
    mean counts by its share of the items, the regularizer by its share of the micro-batches.

    The order of one optimiser step, as transformers calls it; the first six lines once a micro-batch:

    | call | what happens |
    |---|---|
    | `hooks.forward_context` | entered; the hooks' own state during the pass |
    | `hooks.objective` | the task's loss by one pass, or by more of them and an extra |
    | `model.forward` | within it |
    | `hooks.regularizer` | added, as the extra, to the loss that is differentiated |
    | `accelerator.backward` | gradients are accumulated |
    | `hooks.forward_context.exit` | left |
    | `divergence.finite` | at the last micro-batch; if not, Diverged, or with `skip` no gradients |
    | `hooks.on_after_backward` | gradients are whole and not clipped; not called in a skipped step |
    | `accelerator.clip_grad_norm_` | if max_grad_norm is not 0 |
    | `optimizer.step` | as `hooks.optimizer` has wrapped it |
    | `hooks.on_step_end` | the gradients are still there; rates are this step's |
    | `lr_scheduler.step` | |
    | `model.zero_grad` | |
    | `callback.on_step_end` | the step counts as done: timer, progress bar, stop signals, timed checkpoints |
    | `callback.on_log` | then evaluation, then a checkpoint, each where it is due |

    Where the variant has `parts`, each step's batches are of the part that is due. `about` is kept with the
    adapter in every checkpoint. Of a `stage` of a program the ranks are recorded whatever the variant.
    """

    def __init__(
        self,
        injection: Injection,
        *,
        evaluator: Any,
        skip: bool = False,
        stage: bool = False,
        about: dict[str, Any] | None = None,
        handover: Handover = Handover(),  # noqa: B008 - it cannot change
        dropper: BackwardDropper | None = None,
        **arguments: Any,
    ) -> None:
        # `evaluate` asks the evaluator; the Trainer wants a data set before it evaluates at all.
        with _known_as_adapted(injection.model):
            super().__init__(model=injection.model, eval_dataset=[], **arguments)
        self.injection, self.evaluator, self.about = injection, evaluator, about or {}
        self.ranks = RankRecorder(injection, whole=stage)
        self.skip, self.train_state = skip, TrainState(self, injection, self.ranks)
        self.handover, self.dropper, self.processes = handover, dropper, current()
        self._penalty: Tensor | float = 0.0
        self.parts = self._divided()
        # Whether a model's loss heeds the number of items differs by class and head: none is asked to.
        self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = False, True
        self.remove_callback(PrinterCallback)
        for callback in (self.train_state, HookCallback(injection), self.ranks, self.train_state.timer):
            self.add_callback(callback)

    @property
    def progress(self) -> Progress:
        return progress_of(self.state, self.args, self.optimizer)

    def get_batch_samples(self, *given: Any, **named: Any) -> tuple[list[Any], Any]:
        """The micro-batches of one step, and how many items the step's loss is the mean of."""
        batches, _ = super().get_batch_samples(*given, **named)
        if not batches:
            return batches, None
        items = torch.stack([self.num_items(batch) for batch in batches]).sum()
        self.processes.add_up([items])
        return batches, items

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:  # type: ignore[has-type]
            cls, arguments = optimizer_of(self.args, self.model)
            if needs_graph(self.args, self.injection.model):
                self.accelerator.backward = partial(self.accelerator.backward, create_graph=True)
            self.optimizer = made = self.injection.optimizer(
                partial(cls, **arguments), lr=self.args.learning_rate, weight_decay=self.args.weight_decay
            )
            if self.handover.moments:
                take_over(made, self.injection, self.handover.moments)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        schedule = super().create_scheduler(self.handover.steps(num_training_steps), optimizer)
        if self.handover.rewarm is not None:
            follow_run(schedule, self.handover.before, self.handover.rewarm)
        return schedule

    def _divided(self) -> dict[str, Tensor]:
        """The parts of the training examples; {} for a variant without. ValueError where they do not fit."""
        variant, arguments = self.injection.variant, self.args
        shares = variant.hooks.parts(**self.injection.hyper)
        if not shares:
            return {}
        parts.check_order(arguments, variant.name)
        return parts.divided(shares, len(self.train_dataset), self._order_seed, self._train_batch_size)

    @property
    def _order_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if not self.parts:
            return super()._get_train_sampler(train_dataset)
        due = self.injection.hooks.part
        return parts.TurnSampler(self.parts, due, self.args, self._train_batch_size, self._order_seed)

    def check_schedule(self) -> None:
        """Follow the schedules of rate and hooks. ValueError where one does not fit the length of the run.

        ValueError too where the loader gives no batch, so that nothing would be trained, and for a variant
        that cannot have activations recomputed.
        """
        variant = self.injection.variant
        if self.args.gradient_checkpointing and variant.not_recomputable:
            raise ValueError(f"{variant.name} {variant.not_recomputable}")
        batches = self.get_train_dataloader()
        if not len(batches):
            raise ValueError(
                f"trainer.dataloader_drop_last=true leaves no batch: there are {len(self.train_dataset)} "
                f"examples, and batch_size={self.args.per_device_train_batch_size}"
            )
        steps = self.set_initial_training_values(self.args, batches)[-1]
        check_schedule(self.args, self.handover.steps(steps))
        self.injection.hooks.on_train_begin(steps)

    def saved_bytes(self) -> dict[str, int] | None:
        """Bytes that autograd saves for the backward pass of the first batch, adapters on and off.

        In evaluation mode, so that nothing random is drawn. None for a model whose inputs are not embedded.
        """
        model, cast = self.injection.model, self.compute_loss_context_manager()
        data, size = self.train_dataset, self.args.per_device_train_batch_size
        batch = self._prepare_inputs(self.data_collator([data[i] for i in range(min(size, len(data)))]))
        try:
            with in_mode(model, training=False), cast, activations.embedded_inputs_learn(model):
                saved = activations.saved_bytes(model, lambda: model(**batch).loss)
                with self.injection.disabled():
                    frozen = activations.saved_bytes(model, lambda: model(**batch).loss)
        except NotImplementedError:
            return None
        return {"saved": saved, "saved_frozen": frozen}

    def num_items(self, batch: Mapping[str, Any]) -> Tensor:
        """The number of items that a batch's loss is the mean of: its labels, less those that are ignored.

        A decoder predicts a label from what stands before it, and so none that stands first.
        """
        if isinstance(batch, Borrowed):
            return torch.zeros((), dtype=torch.int64, device=self.args.device)
        labels, ids = batch["labels"], batch.get("input_ids")
        encodes = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        if ids is not None and labels.shape == ids.shape and not encodes:
            labels = labels[..., 1:]
        return (labels != IGNORED).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        counted = self.num_items(inputs)
        share = 1.0 if num_items_in_batch is None else counted / num_items_in_batch

        shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if self.label_smoother is not None and shifted:  # it takes the labels out of what the model is given
            inputs = inputs | {"decoder_input_ids": shifted(labels=inputs["labels"])}

        def once() -> Any:
            return super(ZooTrainer, self).compute_loss(model, dict(inputs), True)

        self._penalty = 0.0
        if not model.training:
            loss, outputs = once()
        else:
            hooks = self.injection.hooks
            loss, outputs, extra = hooks.objective(once, self.progress)
            if self.processes.size > 1 and self.injection.counter.emitted:
                name = self.injection.variant.name
                raise ValueError(f"{name} emits losses of all tokens, of which each process has a part")
            passes = self.current_gradient_accumulation_steps * self.processes.size
            added = share * extra + hooks.regularizer() / passes
            loss = share * loss + added
            self._penalty = torch.as_tensor(added).detach()
            if self.dropper and not loss.requires_grad:  # all of it was dropped: nothing learns in this pass
                loss = loss + loss.new_zeros((), requires_grad=True)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **more: Any) -> Tensor:
        hooks, progress = self.injection.hooks, self.progress
        with hooks.forward_context(progress), self._dropping(inputs, progress):
            loss = super().training_step(model, inputs, *rest, **more)
        reported = loss - self._penalty
        self.processes.add_up([loss, reported])
        if self.accelerator.sync_gradients:
            self.processes.add_up_gradients(self.injection.parameters())
            if progress.step == 1 and self.dropper is None:
                self._check_used(inputs)
            skipped = self.train_state.skipped if self.skip else None
            check = divergence.StepCheck(self.injection, progress.step, self.args.learning_rate, skipped)
            scaled = self.accelerator.scaler is not None
            if check.passes(loss, lambda: self._prepare_inputs(inputs), scaled=scaled):
                again = self._gradients_of_step if self.parts else None
                hooks.on_after_backward(progress._replace(gradients_of_step=again))
        return reported

    def _dropping(self, inputs: dict[str, Any], progress: Progress) -> contextlib.AbstractContextManager[Any]:
        """A context for one pass, in which parts of its backward pass are dropped as drawn."""
        if self.dropper is None:
            return contextlib.nullcontext()
        if self.dropper.is_due(progress):
            self.dropper.allocate(
                partial(self._gradients, self._prepare_inputs(inputs)), length_of(inputs, self.model.config)
            )
        return self.dropper.dropping(progress)

    def _check_used(self, inputs: dict[str, Any]) -> None:
        """ValueError for a tensor without a gradient, which it has not in evaluation either.

        In training some models skip layers at random: Wav2Vec2 by its `layerdrop`.
        """
        full = set(self.injection.fully_trained)  # full fine-tuning may cover parts that a task leaves unused
        named = self.injection.named_parameters()
        without = {n for n, p in named.items() if p.grad is None and n not in full}
        if without:
            with in_mode(self.injection.model, training=False):
                found = self._gradients(self._prepare_inputs(inputs))
            unused = [n for n, grad in zip(named, found, strict=True) if grad is None and n in without]
            if unused:
                raise ValueError(
                    f"{unused[0]} (and {len(unused) - 1} more) gets no gradient: the model does not use it; "
                    "take it out of target_modules, or name it in exclude_modules"
                )

    def _gradients(self, inputs: dict[str, Any]) -> tuple[Tensor | None, ...]:
        with self._without_trace():
            with self.compute_loss_context_manager():
                loss = self.compute_loss(self.model, inputs)
            return torch.autograd.grad(loss, self.injection.parameters(), allow_unused=True)

    def _gradients_of_step(self, step: int) -> dict[nn.Parameter, Tensor]:
        if self.accelerator.scaler is not None:
            raise ValueError("gradients of an earlier step are not scaled as float16's are: use trainer.bf16")
        sampler, size = self._get_train_sampler(), self._train_batch_size
        assert isinstance(sampler, parts.TurnSampler), "of a variant without parts nobody knows them"
        rows = [self.train_dataset[number] for number in sampler.of_step(step)]
        batches = [self.data_collator(rows[start : start + size]) for start in range(0, len(rows), size)]
        parameters, items = self.injection.parameters(), torch.stack([*map(self.num_items, batches)]).sum()
        self.processes.add_up([items])
        in_hand = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        with self._without_trace():
            for batch in batches:
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(
                        self.model, self._prepare_inputs(batch), num_items_in_batch=items
                    )
                self.accelerator.backward(loss)
        self.processes.add_up_gradients(parameters)
        found = {p: p.grad for p in parameters if p.grad is not None}
        for p, own in zip(parameters, in_hand, strict=True):
            p.grad = own
        return found

    @contextlib.contextmanager
    def _without_trace(self) -> Iterator[None]:
        """Inside, passes draw numbers that the next one after it draws, too."""
        counts, device = self.injection.counter.counts, self.args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
        self.injection.counter.counts = counts

    def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
        if "train_loss" in logs:  # of the whole run, also where an earlier process has trained a part of it
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        if not any(name.startswith("eval_") for name in logs):
            logs |= self.ranks.look(self.state.global_step)
        super().log(logs, *rest, **more)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Compute the task's metrics and nll on the validation split, in the middle of training."""
        metrics = self.processes.of_passes(self._judged)
        self.log(metrics)
        control = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, metrics)
        self._is_best = super()._determine_best_metric(metrics, None)
        return metrics

    def _judged(self) -> dict[str, float]:
        values, likelihood = self.evaluator.evaluate_split("validation")
        told = {"nll": likelihood["nll"]} if likelihood else {}
        told |= routing_means(self.evaluator.routing.get("validation", {}))
        return {f"eval_{name}": value for name, value in (told | values).items()}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """True where the evaluation is the best up to now, of which a checkpoint is then written.

        `evaluate` has found it, so that the evaluation counts, too, that a resumed run makes up for: of that
        one the checkpoint is there.
        """
        if self.args.load_best_model_at_end and self._is_best:
            self.control.should_save = True
        return self._is_best

    _is_best = False
    kept_step: int | None = None
    """The step of the best evaluation, where the adapter is of that step."""

    @property
    def stopped_early(self) -> bool:
        """True where evaluations have not become better for as long as was asked."""
        watching = (c for c in self.callback_handler.callbacks if isinstance(c, EarlyStopping))
        return any(callback.stopped for callback in watching)

    def _finalize_training(self, *arguments: Any) -> Any:
        """End training with the checkpoint of the best evaluation, where it is whole."""
        folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.best_global_step}"
        whole = self.state.best_global_step is not None and not checkpoints.flaw(folder)
        self.state.best_model_checkpoint = str(folder) if whole else None
        return super()._finalize_training(*arguments)

    def _load_best_model(self) -> None:
        """Set the adapter, the hooks and the buffers to those of the best evaluation."""
        self.train_state.load_best(Path(self.state.best_model_checkpoint or ""))
        self.kept_step = self.state.best_global_step

    def _run_epoch(self, *arguments: Any, **more: Any) -> None:
        """Train for an epoch; for none if the checkpoint resumed from is one at which training had ended."""
        ended = self.control.should_training_stop or self.stopped_early
        if self.state.global_step < self.state.max_steps and not ended:
            super()._run_epoch(*arguments, **more)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._folder if self._folder is not None else super()._get_output_dir(trial))

    _folder: Path | None = None
    """The folder in which a checkpoint is being written."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Have the process that leads save a checkpoint, once all have the same tensors."""
        self.processes.check_alike(self.train_state.tensors(), f"after step {self.state.global_step}")
        if self.processes.leads:
            self._save_whole(model, trial)
        self.state.best_model_checkpoint = self.processes.from_first(lambda: self.state.best_model_checkpoint)

    def _save_whole(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint of transformers', whole or not at all; a disk that refuses costs a warning."""
        root = Path(self.args.output_dir or ".")
        try:
            with checkpoints.staged(root, self.state.global_step) as folder:
                self._folder = folder.parent
                super()._save_checkpoint(model, trial)
                if self.state.best_global_step:
                    self.state.best_model_checkpoint = str(root / f"checkpoint-{self.state.best_global_step}")
                    self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        except checkpoints.Unsaved as refusal:
            _log.warning("%s; training continues", refusal)
        else:
            checkpoints.rotate(root, self.args.save_total_limit, self.state.best_model_checkpoint)
        finally:
            self._folder = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        self.train_state.save(Path(output_dir or self.args.output_dir or "."), **self.about)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.train_state.load(Path(resume_from_checkpoint))


@contextlib.contextmanager
def _known_as_adapted(model: Any) -> Iterator[None]:
    """Inside, the Trainer takes `model` for one with adapters, without which it trains no quantised base."""
    vars(model)["_hf_peft_config_loaded"] = True
    try:
        yield
    finally:
        del vars(model)["_hf_peft_config_loaded"]


def length_of(batch: Mapping[str, Any], config: Any) -> int:
    """The length of a batch's sequences, of images their patches, of sounds their samples or frames."""
    if "pixel_values" in batch:
        patch = torch.tensor(getattr(config, "patch_size", 1)).expand(2).prod()
        return int(batch["pixel_values"][0, 0].numel() // patch)
    names = ("input_ids", "input_values", "input_features")
    return max(next(batch[name] for name in names if name in batch).shape[1:])
