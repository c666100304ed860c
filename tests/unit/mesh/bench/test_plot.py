"""Pictures: one column for each run, and shares that are smoothed over what came before them."""

from math import isnan
from pathlib import Path

import pytest
from matplotlib.image import imread

from mesh.bench import plot
from tests.unit.mesh.bench.scores import result


def test_there_is_a_column_for_each_run(tmp_path: Path) -> None:
    one = imread(plot.save([result()], tmp_path / "one.png"))
    three = imread(plot.save([result(), result("b"), result("c", capacity=None)], tmp_path / "three.png"))
    assert one.shape[0] == three.shape[0]
    assert three.shape[1] == pytest.approx(3 * one.shape[1], abs=2)


def test_shares_are_of_the_last_seconds() -> None:
    shares = plot.smooth([1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 2])
    assert shares[:4] == [1, 0.5, 0.5, 0]
    assert isnan(shares[4])
    assert shares[5] == 0
