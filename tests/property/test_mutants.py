"""The tests of the kernel, of admission and of the budget can fail: each mutant is caught by one of them."""

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.property.mutants import MUTANTS, PIPELINE, ROOT, SUITES, Mutant, apply, run

AT_ONCE = 2
FAILED = 1  # pytest's exit status for "a test failed"; errors of its own have others


def test_every_mutant_fits_the_code() -> None:
    for mutant in MUTANTS:
        source = (ROOT / mutant.file).read_text()
        assert apply(mutant, source) != source


def test_a_mutant_that_does_not_fit_is_reported() -> None:
    with pytest.raises(ValueError, match=re.escape("no fit: its text occurs 2 times in sidecar/pipeline.py")):
        apply(Mutant("no fit", PIPELINE, "x", "y"), "x + x")


@pytest.mark.mutants
@pytest.mark.parametrize("file", SUITES)
def test_the_code_as_it_is_passes(file: str, tmp_path: Path) -> None:
    result = run(tmp_path, file, None)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[CompletedProcess[str]]]]:
    """The runs of all mutants that were selected, a few at a time."""
    selected = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    mutants = [params["mutant"] for params in selected if "mutant" in params]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            mutant.name: pool.submit(run, tmp_path_factory.mktemp("mutant"), mutant.file, mutant)
            for mutant in mutants
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_is_caught(mutant: Mutant, outcomes: dict[str, Future[CompletedProcess[str]]]) -> None:
    result = outcomes[mutant.name].result()
    assert result.returncode == FAILED, f"{result.stdout[-4000:]}{result.stderr[-2000:]}"
