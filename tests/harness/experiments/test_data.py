"""Training data of an experiment: two kinds of phase, the source that serves them, and their sizes."""

from pathlib import Path
from typing import Any

import pytest

from harness.experiments.data import DataConfig, Phase, RecallPhase
from harness.experiments.load import load_experiment
from tests.harness.experiments.experiment_files import expanded, write

TEXT = {"tokens": 1000, "seq_len": 64, "rows": {"text": 4}}
SETS = [{"pairs": 4, "seq_len": 64, "examples": 1000}, {"pairs": 8, "seq_len": 128, "examples": 500}]
RECALL = {"mqar": SETS, "rows": 256}
BARE = {"source": "synthetic", "tokenizer": "ids:64"}
ONE = {"pairs": 4, "seq_len": 64, "examples": 1000}


def test_a_phase_is_of_the_kind_whose_fields_it_has() -> None:
    (phase,) = DataConfig(phases=[TEXT]).phases
    assert isinstance(phase, Phase)
    (phase,) = DataConfig(**BARE, phases=[RECALL]).phases
    assert isinstance(phase, RecallPhase) and (phase.epochs, phase.protocol) == (1, "separated")
    data = DataConfig(**BARE, phases=[RECALL | {"protocol": "zoology"}])
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data


TRACKING = {"state_tracking": "modular_brackets", "steps": 30, "rows": 8, "lengths": [2, 8], "curriculum": 0.5}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"phases": [TEXT | {"rowz": 3}]}, r"data.phases.0.rowz: unknown field; remove it or correct its name \(got 3"),
        (BARE | {"phases": [RECALL | {"rowz": 3}]}, r"data.phases.0.rowz: unknown field; .* \(got 3\)"),
        (BARE | {"phases": [RECALL | {"tokens": 3}]}, r"data.phases.0.tokens: unknown field; .* \(got 3\)"),
        (BARE | {"phases": [RECALL | {"rows": {"text": 4}}]}, r"data.phases.0.rows: Input should be a valid integer"),
        (BARE | {"phases": [RECALL | {"protocol": "zoo"}]}, r"data.phases.0.protocol: .*'zoology' or 'separated'"),
        (BARE | {"phases": [RECALL | {"mqar": []}]}, r"data.phases.0.mqar: .* at least 1 item"),
        (BARE | {"phases": [RECALL | {"mqar": [ONE | {"pears": 1}]}]}, r"data.phases.0.mqar.0.pears: unknown field"),
        (
            BARE | {"phases": [RECALL | {"mqar": [ONE | {"seq_len": 15}]}]},
            r"data.phases.0.mqar.0: seq_len: 15 is too short for 4 pairs; use at least 16",
        ),
        (BARE | {"phases": [RECALL | {"mqar": [ONE, ONE]}]}, r"data.phases.0.mqar: pairs: \[4, 4\] has one twice"),
        ({"phases": [3]}, r"data.phases.0: .*\(got 3\)"),
        ({"phases": [RECALL]}, r"source: 'embedded' has no rows for phases.0, .*use source: synthetic with tokenizer"),
        (BARE | {"phases": [TEXT]}, r"source: 'synthetic' has no rows for phases.0, text or words; use phases with"),
        ({"source": "synthetic", "phases": [RECALL]}, r"source, tokenizer: 'synthetic' does not go with 'embedded'"),
        ({"tokenizer": "ids:64", "phases": [TEXT]}, r"source, tokenizer: 'embedded' does not go with 'ids:64'"),
        (BARE | {"tokenizer": "ids:x"}, r"data: tokenizer: 'ids:x' names no number of ids"),
        (
            BARE | {"tokenizer": "ids:17", "phases": [RECALL]},
            r"'ids:17' has too few ids for phases.0: .*; use at least ids:18",
        ),
        (BARE | {"tokenizer": "ids:10", "phases": [TRACKING]}, r"'ids:10' has too few ids for phases.0: .*ids:11"),
        (BARE | {"phases": [TRACKING | {"state_tracking": "s4"}]}, r"data.phases.0.state_tracking: .*'parity'"),
        (BARE | {"phases": [TRACKING | {"lengths": [9, 8]}]}, r"data.phases.0.lengths: \[9, 8\] has its shortest"),
        (BARE | {"phases": [TRACKING | {"lengths": [1, 8]}]}, r"lengths: 1 is too short for modular_brackets; use"),
        (BARE | {"phases": [TRACKING | {"curriculum": 1.5}]}, r"data.phases.0.curriculum: .*\(got 1.5\)"),
        (BARE | {"phases": [TRACKING | {"steps": 10**12}]}, r"data.phases.0.steps: .*10000000"),
    ],
)
def test_wrong_data_are_named_with_field_value_and_remedy(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_experiment(write(tmp_path, data=data))
    assert "\n" not in str(caught.value)
    DataConfig(**BARE | {"tokenizer": "ids:18"}, phases=[RECALL])


def test_sizes_count_whole_steps_of_every_set_in_every_epoch() -> None:
    text = Phase(**TEXT)
    assert (text.rows_per_step, text.steps, text.tokens_by_length) == (4, 4, {64: 1024})
    phase = RecallPhase(**RECALL, epochs=3)
    # 4 and 2 steps of 256 rows per epoch.
    assert (phase.rows_per_step, phase.steps, phase.seq_len) == (256, 18, 128)
    assert phase.tokens_by_length == {64: 3 * 4 * 256 * 64, 128: 3 * 2 * 256 * 128}
    data = DataConfig(**BARE, phases=[phase, phase])
    assert (data.steps, data.tokens, data.seq_len) == (36, 2 * phase.tokens, 128)
    alike = RecallPhase(mqar=[ONE, ONE | {"pairs": 8}], rows=500)
    assert alike.tokens_by_length == {64: 4 * 500 * 64}


def test_a_share_of_the_training_keeps_a_step_of_every_set() -> None:
    data = DataConfig(phases=[TEXT, TEXT | {"tokens": 10}]).scaled(0.25)
    assert [phase.tokens for phase in data.phases] == [250, 2] and [phase.steps for phase in data.phases] == [1, 1]
    data = DataConfig(**BARE, phases=[RECALL | {"epochs": 2}])
    assert [each.examples for each in data.scaled(0.3).phases[0].mqar] == [300, 150]
    assert data.scaled(1e-6).steps == 4 and data.scaled(2).phases[0].epochs == 2 and data.scaled(1) == data


def test_a_phase_says_in_words_what_it_draws() -> None:
    assert str(Phase(**TEXT | {"rows": {"text": 3, "mqar": 1}})) == "1,024 tokens in rows of 64: 3 text and 1 mqar"
    assert str(RecallPhase(**RECALL, epochs=2)) == (
        "262,144 tokens, 256 rows a step: 2 epochs of 1,000 rows of 4 pairs in 64 tokens and 500 rows of 8 pairs in "
        "128 tokens (mqar, separated)"
    )


def test_protocol_sets_and_epochs_identify_a_run(tmp_path: Path) -> None:
    def run_id(**changes: object) -> str:
        return expanded(tmp_path, mixers=["gdn2"], data=BARE | {"phases": [RECALL | changes]})[0].run_id

    first = run_id()
    assert run_id(protocol="separated", epochs=1) == first
    others = [run_id(protocol="zoology"), run_id(epochs=2), run_id(rows=128), run_id(mqar=[ONE])]
    assert len({first, *others}) == 5


def test_a_share_of_state_tracking_has_a_share_of_its_steps() -> None:
    phase = DataConfig(**BARE, phases=[TRACKING]).scaled(0.4).phases[0]
    assert phase.steps == 12 and phase.tokens == sum(phase.tokens_by_length.values())
