"""Models and exported runs that several test files use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.lm.export import export
from harness.lm.mixer_lm import MixerLM
from tests.harness.lm.models import MODELS, tokenizer
from tests.harness.lm.runs import finished_run, model_config


@pytest.fixture(params=MODELS)
def lm(request: pytest.FixtureRequest) -> MixerLM:
    """Each of MODELS as an lm-eval model."""
    return MixerLM(MODELS[request.param](), tokenizer())


@pytest.fixture(scope="module")
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for these tests alone; transformers copies remote code into it before importing it."""
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
        patch.setattr(sys, "path", [*sys.path])
        yield


@pytest.fixture(scope="module")
def one(modules_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run (`run`) and its export (`out`), for tests that do not depend on the mixer."""
    folder = tmp_path_factory.mktemp("one")
    finished_run(folder / "run", model_config("gated_deltanet", "hybrid"))
    export(folder / "run", folder / "out")
    return folder
