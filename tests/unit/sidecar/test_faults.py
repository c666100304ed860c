"""Rules between the keys that say when an engine is left."""

import pytest

from sidecar.errors import ConfigError
from sidecar.faults import Outlier, Retry


def test_the_longest_is_no_shorter_than_the_first() -> None:
    assert Outlier(base_ejection_time_s=300).max_ejection_time_s == 300
    with pytest.raises(ConfigError, match="max_ejection_time_s: is less than base_ejection_time_s"):
        Outlier(base_ejection_time_s=301)
    with pytest.raises(ConfigError, match="max_ms: is less than base_ms"):
        Retry(base_ms=1001)
    with pytest.raises(ConfigError, match="per_try_max_s: is less than per_try_min_s"):
        Retry(per_try_min_s=31)
