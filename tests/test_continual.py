"""Sequences of tasks: their matrix, what stays as it is, and each method's own law."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor

from lora_zoo import inject, runs
from lora_zoo.analysis import continual
from lora_zoo.conformance.cases import batch, fresh
from lora_zoo.core.hooks import Progress
from lora_zoo.core.program import PROGRAMS, ProgramContext
from lora_zoo.core.train_eval import in_mode
from lora_zoo.report import figures
from lora_zoo.report.tables import continual_table
from lora_zoo.training import evaluation, runner
from lora_zoo.training.trainer import ZooTrainer
from lora_zoo.variants.continual.centroids import k_means
from lora_zoo.variants.continual.loss_plateaus import HardExamples, LossPlateaus, row_losses
from tests.test_programs import asked, folder_in, record

pytestmark = pytest.mark.xdist_group("programs")
TASKS = "[pocket-pick,pocket-topic]"
FAST = (
    "task=pocket-sequence",
    f"task.options.tasks={TASKS}",
    "program=sequence",
    "steps=6",
    "lr=0.01",
    "rank=2",
)
FAST += ("task.sizes.train=64", "task.sizes.test=8", "eval_splits=[test]", "eval_before_training=false")
FAST += ("batch_size=4", "task.max_new_tokens=2", "threads=1", "tracking=none", "forgetting_text=null")
FAST += ("trainer.save_steps=2", "trainer.logging_steps=2")


def made(at: Path, *words: str) -> Path:
    assert runner.run(asked(*FAST, *words, f"out={at}")) == 0
    return folder_in(at)


def tensors(folder: Path, stage: int | None = None) -> dict[str, Tensor]:
    where = folder if stage is None else folder / "stages" / str(stage)
    return load_file(where / "adapter" / "adapter.safetensors")


# --- the matrix --------------------------------------------------------------------------------------------

A_TT = np.array([[0.9, 0.1, 0.2], [0.5, 0.8, 0.3], [0.6, 0.4, 0.7]])


def test_measures_of_a_matrix_by_hand() -> None:
    """Task 1: .9 when learned, .6 at the end; task 2: .8 and .4; task 3: .7."""
    assert continual.average_accuracy(A_TT) == pytest.approx((0.6 + 0.4 + 0.7) / 3)
    assert continual.learning_accuracy(A_TT) == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert continual.backward_transfer(A_TT) == pytest.approx(((0.6 - 0.9) + (0.4 - 0.8)) / 2)
    assert continual.forgetting(A_TT) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.4)) / 2)
    assert continual.forward_transfer(A_TT, [0, 0.05, 0.1]) == pytest.approx((0.05 + 0.2) / 2)
    better_later = np.array([[0.5, 0, 0], [0.9, 0.8, 0], [0.7, 0.8, 0.6]])
    assert continual.backward_transfer(better_later) == pytest.approx(0.1)
    assert continual.forgetting(better_later) == pytest.approx(0.1), "from the best, not from when learned"
    assert math.isnan(continual.forgetting(A_TT[:1, :1]))
    with pytest.raises(ValueError, match=r"the shape \(2, 3\)"):
        continual.average_accuracy(A_TT[:2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts of tasks, which nothing befell."""
    return made(tmp_path_factory.mktemp("whole"), "+variant=task_lora", "program.adapter=more")


def test_a_sequence_s_matrix_is_what_its_stages_recorded(whole: Path) -> None:
    frame, about = runs.load(str(whole)), record(whole)
    found = next(iter(continual.matrices(frame).values()))
    assert found.tasks == ["pocket-pick", "pocket-topic"] and np.isnan(found.before_T).all()
    first, last = about["stages"][0]["groups"]["test"], about["groups"]["test"]
    told = [[row[task]["exact_match"] for task in found.tasks] for row in (first, last)]
    assert np.array_equal(found.a_TT, told)
    assert about["metrics"]["test"]["exact_match"] == pytest.approx(np.mean(told[-1])), "as many of each task"
    assert [stage["group"] for stage in about["stages"]] == found.tasks
    assert len(runs.groups(frame)) == 4
    table = continual_table(frame)
    assert table is not None and "backward transfer" in table.columns
    about_it = {"rows": ["variant"], "columns": ["program.adapter"]}
    laid = continual_table(frame.assign(experiment="mine", experiment_about=[about_it]))
    assert laid is not None and len(laid.headers) == 2 and laid.columns == table.columns, "axes are all rows"
    (panel,) = figures.accuracy_matrix(frame, ["variant"]).panels
    assert list(panel.rows["value"]) == pytest.approx(found.a_TT.ravel().tolist())
    assert continual.continual(frame)["routing_accuracy"].isna().all(), "it is told of the task"


def test_the_routing_accuracy_of_a_sequence_is_its_tasks_mean_at_its_end() -> None:
    tasks, own = ["a", "b"], {"a": 0.5, "b": 1.0}
    stages = [
        {"group": "a", "groups": {"test": {"a": {"m": 1, "routing_accuracy": 1.0}, "b": {"m": 0}}}},
        {"group": "b"},
    ]
    last = {"test": {task: {"m": 1, "routing_accuracy": own[task]} for task in tasks}}
    record = {"stages": stages, "groups": last}
    frame = pd.DataFrame({"run": ["r"], "metric": ["m"], "record": [record]})
    assert continual.continual(frame)["routing_accuracy"].tolist() == [0.75]
    found = continual.matrices(frame, metric="routing_accuracy")["r"].a_TT
    assert np.array_equal(found, [[1.0, np.nan], [0.5, 1.0]], equal_nan=True)


def test_a_run_killed_in_its_second_task_goes_on_to_the_bit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, steps = ZooTrainer.training_step, list[Any]()

    class Killed(BaseException):
        pass

    def training_step(self: ZooTrainer, *given: Any, **named: Any) -> Any:
        steps.append(self)
        if len(steps) == 6:
            raise Killed
        return plain(self, *given, **named)

    words = ("+variant=task_lora", "program.adapter=more")
    monkeypatch.setattr(ZooTrainer, "training_step", training_step)
    with pytest.raises(Killed):
        runner.run(asked(*FAST, *words, f"out={tmp_path}"))
    monkeypatch.undo()
    again = made(tmp_path, *words, "resume=true")
    assert record(again)["resumed"][0]["step"] == 5
    for stage in (1, 2, None):
        one, other = tensors(whole, stage), tensors(again, stage)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    for key in ("groups", "metrics"):
        assert record(whole)[key] == record(again)[key]
    assert record(whole)["stages"][0]["groups"] == record(again)["stages"][0]["groups"]


def test_an_earlier_task_s_lora_stays_to_the_bit(whole: Path) -> None:
    first, last = tensors(whole, 1), tensors(whole)
    names = [name.removesuffix(".A_RI") for name in first if name.endswith(".A_RI")]
    assert names and all(first[f"{n}.B_OR"].any() for n in names)
    for name in names:
        assert torch.equal(last[f"{name}.A_KRI"][0], first[f"{name}.A_RI"])
        assert torch.equal(last[f"{name}.B_KOR"][0], first[f"{name}.B_OR"])
    groups = [entry["groups"]["test"]["pocket-pick"] for entry in (record(whole)["stages"][0], record(whole))]
    assert groups[0] == groups[1], "told of the task, the model answers as it did"


def test_groups_that_are_no_column_or_that_train_lacks_are_refused() -> None:
    def told(column: str | None, **splits: list[str]) -> list[str]:
        rows = {split: Dataset.from_dict({"task": own}) for split, own in splits.items()}
        task = SimpleNamespace(task=SimpleNamespace(groups=column))
        return evaluation._groups(SimpleNamespace(kind=task, splits=rows), [*splits][1:])  # type: ignore[arg-type]

    assert told("task", train=["b", "a", "b"], test=["a"]) == ["b", "a"] and told(None, train=["a"]) == []
    with pytest.raises(ValueError, match=r"task\.groups=kind is no column of train, which has task"):
        told("kind", train=["a"])
    with pytest.raises(ValueError, match="test has 'c', of which train has no example"):
        told("task", train=["a"], test=["c"])


# --- the program -------------------------------------------------------------------------------------------


def stages_of(variant: str = "lora", **hyper: Any) -> list[Any]:
    context = ProgramContext(9, variant, {"rank": 2}, 5, lambda: iter(()))
    program = PROGRAMS.find("sequence")(context, **{"tasks": ["a", "b", "c"], **hyper})
    found, learned = [next(program)], inject(fresh("llama")[0], "lora", rank=2)
    while True:
        try:
            found.append(program.send(learned))
        except StopIteration:
            return found


def test_stages_of_a_sequence_see_their_task_and_a_share_of_earlier_ones() -> None:
    rows = [{"task": task} for task in "abcabcabcabc"]
    first, second, third = stages_of(replay=0.5)
    assert [s.steps for s in (first, second, third)] == [3, 3, 3]
    assert [s.then for s in (first, second, third)] == ["discard", "discard", "keep"]
    assert [rows[n]["task"] for n in first.examples(rows)] == ["a"] * 4
    told = [rows[n]["task"] for n in third.examples(rows)]
    assert [told.count(task) for task in "abc"] == [2, 2, 4]
    assert {*second.examples(rows)} - {1, 4, 7, 10} <= {*third.examples(rows)}, "the same are seen again"
    assert [s.then for s in stages_of(adapter="new")] == ["settle", "settle", "keep"]
    with pytest.raises(ValueError, match="no example is of 'c'; the column task holds a, b"):
        third.examples([{"task": "a"}, {"task": "b"}])


@pytest.mark.parametrize(
    ("variant", "hyper", "says"),
    [
        ("lora", {"adapter": "more"}, "use am_lora, color, task_lora; got lora"),
        ("am_lora", {"adapter": "same"}, "am_lora holds a LoRA for each task: use program.adapter=more"),
        ("full", {"adapter": "new"}, "full has none: use same"),
        ("lora", {"tasks": ["a", "a"]}, "different tasks"),
        ("lora", {"replay": 1.5}, "0 <= replay <= 1; got"),
    ],
)
def test_a_sequence_that_cannot_be_is_refused(variant: str, hyper: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        stages_of(variant, **hyper)


# --- methods -----------------------------------------------------------------------------------------------


def two_of(variant: str, **hyper: Any) -> Any:
    """A random adapter of llama's q, whose matrices and batch are tiny."""
    injection = inject(fresh("llama")[0], variant, rank=2, target_modules=["q"], **hyper)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in injection.state_dict().items():
            if tensor.is_floating_point() and not name.startswith("shared"):
                tensor.copy_(torch.randn(tensor.shape, generator=source) / 4)
    return injection


def test_o_lora_s_penalty_by_hand() -> None:
    """|1·2 + 1·(-3)| + |0·2 + 2·(-3)| = 1 + 6, times λ₁ = .5; without a prior none."""
    base = fresh("llama")[0]
    old = inject(base, "lora", rank=2, target_modules=["q"], layers=[0], name="old")
    new = inject(base, "o_lora", rank=1, target_modules=["q"], layers=[0], name="new", prior=["old"], l2=1.0)
    (one,), (two,) = old.adapters.values(), new.adapters.values()
    with torch.no_grad():
        for tensor in (one.A_RI, two.A_RI):
            tensor.zero_()
        one.A_RI[:, :2] = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
        two.A_RI[0, :2] = torch.tensor([2.0, -3.0])
    assert new.hooks.overlap().item() == 7
    assert new.hooks.regularizer().item() == pytest.approx(3.5 + 13**0.5), "λ₂ ‖p‖, B is zero"
    assert inject(fresh("llama")[0], "o_lora", rank=1).hooks.regularizer() == 0


def test_o_lora_sees_what_earlier_tasks_have_settled(tmp_path: Path) -> None:
    """The first stage has none, and the function of the first task's LoRA is in the run's to the bit."""
    folder = made(tmp_path, "+variant=o_lora", "variant.orthogonality=1000")
    first, second, last = tensors(folder, 1), tensors(folder, 2), tensors(folder)
    for name in (n for n in first if n.endswith("A_RI")):
        assert torch.equal(last[name][:2], first[name])
        of = [(first[name] @ own[name].T).abs().sum() for own in (second, first)]
        assert of[0] < of[1] / 2, "a thousand keeps them apart within three steps"


def test_am_lora_by_hand_and_whatever_the_order_of_tasks() -> None:
    injection = two_of("am_lora", tasks=["a", "b", "c"])
    adapter = next(iter(injection.adapters.values()))
    h_TO = torch.zeros(3, adapter.V_TO.shape[1])
    h_TO[0, 0], h_TO[1, 0], h_TO[2, 0] = 1.0, 2.0, 0.0
    with torch.no_grad():
        adapter.V_TO.zero_()
        adapter.V_TO[:, 0] = torch.tensor([0.5, -0.5, 9.0])
    raised = np.exp([0, np.tanh(0.5), np.tanh(-1.0), 0])
    assert adapter.attention(h_TO).detach().numpy() == pytest.approx(raised / raised.sum())
    with in_mode(injection.model, training=False), torch.no_grad():
        before = injection.model(**batch("llama")).logits
        for own in injection.adapters.values():
            for stack, newest in ((own.A_KRI, own.A_RI), (own.B_KOR, own.B_OR)):
                stack[0], newest[:] = newest.clone(), stack[0].clone()
            own.V_TO[[0, 2]] = own.V_TO[[2, 0]]
        torch.testing.assert_close(injection.model(**batch("llama")).logits, before, rtol=1e-4, atol=1e-5)
    assert float(injection.hooks.regularizer()) == pytest.approx(
        1e-4 * sum(float(a.V_TO.abs().sum()) for a in injection.adapters.values())
    )


def test_told_of_a_task_the_model_is_that_of_its_lora_and_of_none_the_base() -> None:
    injection = two_of("task_lora", tasks=["a", "b"])
    inputs, hooks = batch("llama"), injection.hooks
    with in_mode(injection.model, training=False), torch.no_grad():
        newest = injection.model(**inputs).logits
        with hooks.of_group("b"):
            assert torch.equal(injection.model(**inputs).logits, newest)
        with hooks.of_group("a"):
            first = injection.model(**inputs).logits
        with hooks.of_group("c"):
            none = injection.model(**inputs).logits
        with injection.disabled():
            torch.testing.assert_close(none, injection.model(**inputs).logits)
            plain = inject(injection.model, "lora", rank=2, target_modules=["q"], name="plain")
        for name, adapter in plain.adapters.items():
            own = injection.adapters[name]

            adapter.A_RI.copy_(own.A_KRI[0])
            adapter.B_OR.copy_(own.scale / adapter.scale * own.B_KOR[0])
        plain.activate()
        torch.testing.assert_close(injection.model(**inputs).logits, first, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first, newest, atol=1e-3)


def test_color_sends_each_row_to_its_cluster_and_to_that_lora_alone() -> None:
    injection = two_of("color", tasks=["a", "b"], clusters=1)
    inputs = {key: value for key, value in batch("llama").items() if key != "labels"}
    hooks, shared = injection.hooks, injection.shared
    f_NH = hooks.features(**inputs)
    shared.C_TKH.copy_(torch.stack([f_NH[:1], f_NH[1:2]]))
    shared.known_T.fill_(1)
    assert shared.nearest(f_NH)[:2].tolist() == [0, 1]
    with in_mode(injection.model, training=False), torch.no_grad():
        together = injection.model(**inputs).logits
        assert [a.route_N[:2].tolist() for a in injection.adapters.values()] == [[0, 1]] * len(injection)
        for row in range(2):
            shared.C_TKH.copy_(f_NH[row].expand_as(shared.C_TKH))
            shared.known_T.copy_(torch.tensor([row == 0, row == 1]))
            alone = injection.model(**inputs).logits
            torch.testing.assert_close(together[row], alone[row], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(together[0], alone[0], atol=1e-3)
        for adapter in injection.adapters.values():
            adapter.B_OR.mul_(9)
    assert torch.equal(hooks.features(**inputs), f_NH), "they are the base's, whatever is learned"


def test_color_writes_a_text_through_the_lora_that_it_found_for_the_prompt() -> None:
    """The base's pass for features leaves the cache alone, and no token is routed anew."""
    injection = two_of("color", tasks=["a", "b"], clusters=1)
    model, prompt = injection.model.eval(), batch("llama")["input_ids"]
    injection.shared.C_TKH.copy_(injection.hooks.features(input_ids=prompt)[:2, None])
    injection.shared.known_T.fill_(1)
    with injection.recorded_routing() as routing:
        options: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
        found = model.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=-1, **options)
    routes = next(iter(injection.adapters.values())).route_N.tolist()
    (load,) = (own["load"] for own in routing.summary().values())
    assert routes[:2] == [0, 1] and load == pytest.approx([routes.count(0) / 3, routes.count(1) / 3])
    for row, task in enumerate(routes):
        injection.shared.known_T.copy_(torch.tensor([task == 0, task == 1]))
        with torch.no_grad():
            whole = model(found.sequences[row : row + 1, :-1]).logits[0, prompt.shape[1] - 1 :]
        torch.testing.assert_close(torch.stack(found.logits, 1)[row], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("variant", "before"), [("color", 0), ("am_lora", 1)])
def test_the_routing_accuracy_of_a_group_is_what_its_own_lora_weighs(variant: str, before: int) -> None:
    injection = two_of(variant, tasks=["a", "b"])
    assert [injection.hooks.expert_of(name) for name in ("a", "b", "c")] == [before, before + 1, None]
    weighs = {"a": [0.75, 0.25], "b": [0.5, 0.5], "c": [1.0, 0.0]}
    data = Dataset.from_dict({"item": [0, 1, 2], "task": ["b", "a", "c"]})

    def outcomes(_: Any, rows: Dataset) -> list[dict[str, Any]]:
        for adapter in injection.adapters.values():
            adapter.note(torch.tensor([[0.0] * before + weighs[row["task"]] for row in rows]))
        return [{"item": row["item"], "prediction": 1, "reference": 1} for row in rows]

    kind = SimpleNamespace(task=SimpleNamespace(groups="task"), outcomes=outcomes)
    splits = {"train": data, "test": data}
    task_data: Any = SimpleNamespace(kind=kind, splits=splits)
    judge = evaluation.Evaluator(injection, task_data, {}, record=None, eval_splits=["test"])
    groups = judge.evaluate(keep=False).groups["test"]
    assert groups == {"b": {"routing_accuracy": 0.5}, "a": {"routing_accuracy": 0.75}, "c": {}}
    (load, *_) = [own["load"] for own in judge.routing["test"].values()]
    assert load == pytest.approx([0.0] * before + [0.75, 0.25]), "groups are parts of the whole"


def test_k_means_finds_clusters_that_are_apart() -> None:
    rows = torch.tensor([[0.0, 0], [0, 1], [10, 0], [10, 1], [0, 9], [0, 11]])
    found = sorted(map(tuple, k_means(rows, 3).tolist()))
    assert found == [(0, 0.5), (0, 10), (10, 0.5)]
    assert len(k_means(rows[:1], 3)) == 3


def test_a_plateau_is_found_after_a_peak_alone() -> None:
    seen = LossPlateaus(2, torch.zeros(()))
    losses = [0.9, 0.05, 3.0, 1.0, 0.4, 0.4, 0.4, 0.4, 2.0, 2.0, 0.4, 0.4, 0.4]
    fired = [seen.step(loss, mean_below=0.5, variance_below=0.01) for loss in losses]
    assert [n for n, at in enumerate(fired) if at] == [5, 11]


def test_online_lora_keeps_the_function_and_begins_anew_with_a_factor_that_learns() -> None:
    injection = two_of("online_lora", importance=10.0)
    hooks, inputs = injection.hooks, batch("llama")
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for omega in (t for a in injection.adapters.values() for t in (a.OmegaA_RI, a.OmegaB_OR, a.dW_OI)):
        omega.zero_()
    assert hooks.regularizer() == 0.0
    injection.model.train()
    extra = hooks.objective(lambda: ((out := injection.model(**inputs)).loss, out), Progress(1, 4))[2]
    assert extra == 0.0, "nothing is hard before anything was seen"
    again = hooks.objective(lambda: ((out := injection.model(**inputs)).loss, out), Progress(2, 4))[2]
    rows = row_losses(injection.model(**inputs).logits, inputs["labels"])
    assert float(again) == pytest.approx(
        float(rows.topk(min(4, len(rows))).values.sum()) / len(rows), rel=1e-4
    )
    with in_mode(injection.model, training=False), torch.no_grad():
        before = injection.model(**inputs).logits
    injection.shared.losses.state[4] = 1
    hooks.consolidate()
    with in_mode(injection.model, training=False), torch.no_grad():
        torch.testing.assert_close(injection.model(**inputs).logits, before, rtol=1e-4, atol=1e-5)
    for adapter in injection.adapters.values():
        assert not adapter.B_OR.any() and adapter.A_RI.any() and adapter.OmegaB_OR.any()
    expected = 5 * sum(float((a.OmegaA_RI * a.A_RI**2).sum()) for a in injection.adapters.values())
    assert float(hooks.regularizer()) == pytest.approx(expected, rel=1e-5)


def test_the_hardest_examples_of_the_stream_are_kept() -> None:
    hard = HardExamples(2, 4, torch.zeros(()))
    assert hard.inputs() == {}

    def rows(*ids: int) -> dict[str, Tensor]:
        given = torch.tensor([[number, number] for number in ids])
        return {"input_ids": given, "attention_mask": torch.ones_like(given), "labels": given}

    hard.update(rows(1, 2, 3), torch.tensor([0.5, 2.0, 1.0]), None)
    assert hard.inputs()["input_ids"][:, 0].tolist() == [2, 3]
    hard.update(rows(4), torch.tensor([1.5]), torch.tensor([0.1, 3.0]))
    assert hard.inputs()["input_ids"].tolist() == [[3, 3], [4, 4]] and hard.loss_M.tolist() == [3.0, 1.5]


@pytest.mark.parametrize(("words", "more"), [(("+variant=color",), "shared.C_TKH")])
def test_color_in_a_sequence_has_centres_of_each_task(
    words: tuple[str, ...], more: str, tmp_path: Path
) -> None:
    folder = made(tmp_path, *words)
    first, last = tensors(folder, 1), tensors(folder)
    assert last["shared.known_T"].tolist() == [1, 1]
    assert torch.equal(last[more][0], first[more][0]) and not torch.equal(last[more][1], last[more][0])
