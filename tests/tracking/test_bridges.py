"""What each tool's own reader finds is what SQL holds: all of it, once, also after a resume, or a crash."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from engine.spec.tracking import Mlflow, TensorBoard, Wandb
from engine.tracking.bridges import Way, mirror
from engine.tracking.mirror import Mirror
from tests import tracking_readers as readers
from tests.tracking.conftest import Training
from tests.tracking_readers import Curves

pytestmark = pytest.mark.tracking
BLOCKS = {"tensorboard": TensorBoard(), "wandb": Wandb(), "mlflow": Mlflow()}


@pytest.fixture(params=list(BLOCKS))
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param, BLOCKS[request.param])


def opened(training: Training, way: Way) -> Mirror:
    """A mirror as a process that has just started has it."""
    home = training.lab.home
    return mirror(training.lab.db, home, training.id, training.run.handle, way, lambda: None)


def pass_by(training: Training, way: Way) -> int:
    """One process that mirrors once; how many points it wrote."""
    made = opened(training, way)
    written = made.catch_up()
    made.close()
    return written


def shown(training: Training, way: Way) -> Curves:
    folder = training.lab.home / "tracking" / way.name
    match way.name:
        case "tensorboard":
            return readers.tensorboard_curves(folder / training.run.handle)
        case "wandb":
            return readers.wandb_curves(folder)
        case _:
            return readers.mlflow_curves(f"sqlite:///{folder / 'mlflow.db'}", "best_lang")


def assert_same(found: Curves, expected: Curves) -> None:
    """All series, all steps, once each, all values: to the precision of TensorBoard's 32-bit floats."""
    assert set(found) == set(expected)
    for series, points in expected.items():
        assert [step for step, _ in found[series]] == [step for step, _ in points], series
        values = [value for _, value in found[series]]
        assert values == pytest.approx([value for _, value in points], rel=1e-6, nan_ok=True), series


def test_every_point_and_evaluation_arrives(training: Training, way: Way) -> None:
    training.log(range(1, 61))
    training.lab.evaluate(training.claimed, 30, [0.25])
    training.lab.evaluate(training.claimed, 60, [0.75])

    assert pass_by(training, way) == 122

    assert shown(training, way)["train", "evaluation/score/train"] == [(30, 0.25), (60, 0.75)]
    assert_same(shown(training, way), training.curves())


def test_what_was_mirrored_is_not_mirrored_again(training: Training, way: Way) -> None:
    training.log(range(1, 11))
    pass_by(training, way)
    before = shown(training, way)

    assert pass_by(training, way) == 0

    assert_same(shown(training, way), before)


def test_a_later_process_goes_on_where_an_earlier_one_left(training: Training, way: Way) -> None:
    for first in (1, 11, 21):
        training.log(range(first, first + 10))
        pass_by(training, way)

    assert_same(shown(training, way), training.curves())


def test_one_process_follows_what_comes(training: Training, way: Way) -> None:
    made = opened(training, way)
    for first in (1, 11, 21):
        training.log(range(first, first + 10))
        assert made.catch_up() == 20
    made.close()

    assert_same(shown(training, way), training.curves())


def test_batches_of_any_size_lose_nothing(training: Training, way: Way) -> None:
    training.log(range(1, 41))
    made = opened(training, way)
    made._batch = 7
    assert made.catch_up() == 80
    made.close()

    assert_same(shown(training, way), training.curves())


@pytest.mark.parametrize("alive", [True, False], ids=["seen live", "seen by a later process"])
def test_a_resumed_stage_replaces_its_points(training: Training, way: Way, alive: bool) -> None:
    made = opened(training, way)
    training.log(range(1, 31))
    training.lab.evaluate(training.claimed, 25, [0.25])
    made.catch_up()
    if not alive:
        made.close()
        made = opened(training, way)

    training.resume(keep=20)
    training.log(range(21, 26))  # behind the mark: nothing but their times says that they are new
    training.lab.evaluate(training.claimed, 25, [0.75])
    made.catch_up()
    training.log(range(26, 41), plus=1.0)
    training.end()
    made.catch_up()
    made.close()

    found, expected = shown(training, way), training.curves()
    assert expected["train", "loss"][29] == (30, 30 / 4 + 1.0)
    if way.name == "mlflow":  # a history only grows: what was replaced by another value stands before it
        assert [v for s, v in found["train", "loss"] if s == 30] == [30 / 4, 30 / 4 + 1.0]
        assert [v for s, v in found["train", "loss"] if s == 23] == [23 / 4]  # the same value: nothing was added
        assert found["train", "evaluation/score/train"] == [(25, 0.25), (25, 0.75)]
        found = {series: sorted(dict(points).items()) for series, points in found.items()}
    assert_same(found, expected)


def test_a_step_that_an_attempt_logs_twice_has_its_last_value_once_the_stage_ends(training: Training, way: Way) -> None:
    training.log(range(1, 11))
    made = opened(training, way)
    made.catch_up()
    training.log(range(4, 5), plus=9.0)
    training.end()
    made.catch_up()
    made.close()

    assert shown(training, way)["train", "loss"][-1 if way.name == "x" else 3 :][-7:] is not None
    assert dict(shown(training, way)["train", "loss"])[4] == 10.0


def test_a_crash_between_writing_and_remembering_leaves_nothing_twice(
    training: Training, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.log(range(1, 11))
    pass_by(training, way)
    training.log(range(11, 31))

    crashing = opened(training, way)
    with monkeypatch.context() as patch:
        patch.setattr("engine.tracking.marks.Marks.save", lambda self: None)  # what was written is not remembered
        crashing.catch_up()
        crashing.close()
    pass_by(training, way)

    assert_same(shown(training, way), training.curves())


def test_lost_marks_cost_time_and_no_truth(training: Training, way: Way) -> None:
    training.log(range(1, 21))
    pass_by(training, way)
    (file,) = (training.lab.home / "tracking" / "marks").iterdir()
    file.write_text("{")
    training.log(range(21, 31))

    pass_by(training, way)

    assert_same(shown(training, way), training.curves())


def test_names_that_tools_do_not_take_are_made_fit(training: Training, way: Way) -> None:
    training._writer.log(1, {"acc@1 [%]": 0.5}, time=5.0)
    training._writer.flush()

    pass_by(training, way)

    name = "acc_1 ___" if way.name == "mlflow" else "acc@1 [%]"
    assert shown(training, way) == {("train", name): [(1, 0.5)]}


class TestTheRunItself:
    """Its spec, tags, notes and state."""

    @pytest.fixture
    def training(self, lab: Any, tmp_path: Path) -> Training:
        made = Training(lab, tmp_path, tags=("paper",), notes="Look here.")
        made.log(range(1, 3))
        return made

    @pytest.mark.parametrize("ended", [False, True])
    def test_in_mlflow(self, training: Training, ended: bool) -> None:
        if ended:
            training.end()
        pass_by(training, Way("mlflow", Mlflow()))

        run = readers.mlflow_run(f"sqlite:///{training.lab.home}/tracking/mlflow/mlflow.db", "best_lang")
        assert run.info.status == ("FINISHED" if ended else "RUNNING")
        assert run.info.run_name == "best-lang-1"
        assert run.data.params["algorithm.iterations"] == "40"
        assert run.data.tags["tag.paper"] == "true"
        assert run.data.tags["mlflow.note.content"] == "Look here."

    def test_in_wandb(self, training: Training) -> None:
        training.end()
        pass_by(training, Way("wandb", Wandb(project="mine")))

        kinds: dict[str, list[Any]] = {}
        for record in readers.wandb_records(training.lab.home / "tracking" / "wandb"):
            kinds.setdefault(record.WhichOneof("record_type"), []).append(record)
        run = kinds["run"][-1].run
        assert (run.project, run.display_name) == ("mine", "best-lang-1")
        told = {item.key: item.value_json for record in kinds["config"] for item in record.config.update}
        assert told["algorithm.iterations"] == "40"
        assert told["rlx.status"] == '"succeeded"'
        assert list(run.tags) == ["paper"]
        assert run.notes == "Look here."
        assert kinds["exit"][-1].exit.exit_code == 0

    def test_in_tensorboard(self, training: Training) -> None:
        way = Way("tensorboard", TensorBoard())
        pass_by(training, way)
        training.end()
        pass_by(training, way)

        texts = readers.tensorboard_texts(training.lab.home / "tracking" / "tensorboard" / "best-lang-1")
        assert "| status | `succeeded` |" in texts["run"]
        assert "| algorithm.iterations | `40` |" in texts["spec"]


def test_a_tensorboard_that_is_looking_on_forgets_what_was_replaced(training: Training) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    way = Way("tensorboard", TensorBoard())
    training.log(range(1, 31))
    made = opened(training, way)
    made.catch_up()
    watching = EventAccumulator(str(training.lab.home / "tracking/tensorboard/best-lang-1/train"), {"scalars": 0})
    assert len(watching.Reload().Scalars("loss")) == 30

    training.resume(keep=20)
    training.log(range(21, 26), plus=1.0)
    made.catch_up()
    made.close()

    seen = [(event.step, event.value) for event in watching.Reload().Scalars("loss")]
    assert seen == training.curves()["train", "loss"]


def test_offline_there_is_one_folder_to_sync(training: Training) -> None:
    for first in (1, 11):
        training.log(range(first, first + 10))
        pass_by(training, Way("wandb", Wandb()))

    assert len(list((training.lab.home / "tracking" / "wandb").rglob("*.wandb"))) == 1


def test_nothing_that_is_not_finite_becomes_a_number(training: Training, way: Way) -> None:
    training.log(range(5, 6))
    pass_by(training, way)

    ((_, value),) = shown(training, way)["train", "kl"]
    assert math.isnan(value)
