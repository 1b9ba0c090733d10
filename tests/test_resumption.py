"""Every variant goes on to the bit: saved at step k, restored into a new process, compared at step n.

No variant is named here. The new process is this module, run with the folder that holds the checkpoints; one
process restores all variants, after having drawn from every global stream, so that nothing fits by chance.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.init import Init, init_names
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.training.checkpoints import newest
from tests.processes import run as process
from tests.test_training import TRAINED, model, small, trainer

pytestmark = pytest.mark.xdist_group("resumption")  # one worker: they share what is trained
STEPS, SAVED = 7, (2, 5, 6)  # 48 examples, 10 a step: in the first epoch, at its end, in the second
PASSIVE = {"shared", "law", "packable", "param_groups"}  # of hooks: what does nothing in a step


def accepted(name: str) -> list[str]:
    """The starts that a variant takes as they are, residual ones at the end."""

    def plain(init: Init) -> bool:
        return VARIANTS[name].accepts_init(init) and not (
            init.control or init.needs or init.name.endswith("_4")
        )

    residual = set(init_names(lambda init: plain(init) and init.residual))
    return sorted(init_names(plain), key=lambda init: init in residual)


WIDEST = max(TRAINED, key=lambda name: len(accepted(name)))


def starts(name: str) -> list[str]:
    """A start of the variant, a residual one where it takes any; three of the one that takes most.

    One word for a variant that has none.
    """
    known = accepted(name)
    return list(dict.fromkeys([*known[:1], *known[-2:]])) if name == WIDEST else known[-1:] or ["-"]


def steps(name: str) -> tuple[int, ...]:
    """Where it is saved: at two of the three where the method acts while it trains, else at one, by turns."""
    turn, own = TRAINED.index(name) % len(SAVED), VARIANTS[name].hooks
    defined = {key for cls in own.__mro__ if cls not in AdapterHooks.__mro__ for key in vars(cls)}
    acts = any(not key.startswith("__") for key in defined - PASSIVE)
    return SAVED[:turn] + SAVED[turn + 1 :] if acts else SAVED[turn : turn + 1]


CASES = [(name, init) for name in TRAINED for init in starts(name)]


def counted(network: torch.nn.Module, _: Any) -> None:
    """As a running mean: a buffer that training changes."""
    network.count += network.training


def adapted(name: str, init: str) -> Injection:
    """A small model with dropout of its own, adapted with dropout where the variant takes it."""
    network = model()
    network.config.attention_dropout = 0.1
    for layer in network.model.layers:
        layer.self_attn.attention_dropout = 0.1
    network.register_buffer("count", torch.zeros(2))
    network.register_forward_pre_hook(counted)
    known = hyperparameters(VARIANTS[name])
    chosen = {"init": init} if "init" in known else {}
    for dropout in (0.1, 0.0) if "lora_dropout" in known else (None,):
        more = chosen | ({} if dropout is None else {"lora_dropout": dropout})
        try:
            return inject(network, name, seed=5, **small(name, **more))
        except ValueError as refusal:
            assert "lora_dropout" in str(refusal)
    raise AssertionError(name)


def run(folder: Path, name: str, init: str, **more: Any) -> Any:
    usual = {"max_steps": STEPS, "weight_decay": 0.1, "lr_scheduler_type": "cosine", "logging_steps": 3}
    usual["per_device_train_batch_size"] = 10
    return trainer(folder, adapted(name, init), **(usual | more))


def unsettle() -> None:
    random.seed(99), numpy.random.seed(98), torch.manual_seed(97)
    torch.rand(5)


def finish(folder: Path) -> None:
    """In the new process, train each case from each of its checkpoints to the end."""
    torch.set_num_threads(1)
    for case in sorted(folder.iterdir()):
        name, init = json.loads((case / "case.json").read_text())
        for step in steps(name):
            unsettle()
            at = run(case, name, init)
            unsettle()
            at.train(resume_from_checkpoint=str(case / f"checkpoint-{step}"))
            save_file(state(at), case / f"from-{step}.safetensors")
            (case / f"from-{step}.json").write_text(json.dumps(logs(at)))


def state(run: Any) -> dict[str, torch.Tensor]:
    """The adapter, the method's state, the optimiser's, the clock, the model's own buffer."""
    injection = run.injection
    moments = {
        f"optimizer.{i}.{key}": torch.as_tensor(value).clone()
        for i, entry in run.optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    kept = {f"method.{k}": v.clone() for k, v in injection.hooks.state_dict().items()}
    own = {k: v.detach().clone().contiguous() for k, v in injection.state_dict().items()}
    rest = {
        "clock": torch.tensor(list(injection.counter.counts.values())),
        "count": injection.model.count.clone(),
    }
    return own | kept | moments | rest | {"stream": torch.rand(3)}


def logs(run: Any) -> list[dict[str, float]]:
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [{k: v for k, v in e.items() if k not in timed} for e in run.state.log_history]


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Each case trained without a break, its checkpoints finished by a new process."""
    folder, whole = tmp_path_factory.mktemp("cases"), {}
    for name, init in CASES:
        case = folder / f"{name}-{init}"
        case.mkdir()
        (case / "case.json").write_text(json.dumps([name, init]))
        unsettle()
        at = run(case, name, init, save_strategy="steps", save_steps=1)
        at.add_callback(Chosen(steps(name)))
        at.train()
        whole[case.name] = (state(at), json.loads(json.dumps(logs(at))))
    ended = process(str(folder), at=folder, module="tests.test_resumption")
    assert ended.returncode == 0, ended.stderr
    return folder, whole


class Chosen:
    """Saves at the chosen steps alone."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps = steps

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda *_, **__: None
        raise AttributeError(name)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = state.global_step in self.steps


@pytest.mark.parametrize(
    ("name", "init", "step"), [(name, init, step) for name, init in CASES for step in steps(name)]
)
def test_a_new_process_goes_on_to_the_bit(restored: Any, name: str, init: str, step: int) -> None:
    folder, whole = restored
    expected, history = whole[f"{name}-{init}"]
    got = load_file(folder / f"{name}-{init}" / f"from-{step}.safetensors")
    assert got.keys() == expected.keys()
    different = [key for key, tensor in expected.items() if not torch.equal(got[key], tensor)]
    assert not different
    assert json.loads((folder / f"{name}-{init}" / f"from-{step}.json").read_text()) == history


def test_what_was_saved_is_whole(restored: Any) -> None:
    for case in restored[0].iterdir():
        last = newest(case)
        name, _ = json.loads((case / "case.json").read_text())
        assert last is not None and last.name == f"checkpoint-{steps(name)[-1]}"


if __name__ == "__main__":
    finish(Path(sys.argv[1]))
