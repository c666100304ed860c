"""What is known of an engine, and for how long."""

from sidecar.balance.load import EngineLoad


def test_nothing_was_ever_heard() -> None:
    assert not EngineLoad().is_fresh(0.0, 1e9)


def test_what_is_old_is_not_fresh() -> None:
    load = EngineLoad(at=10.0)
    assert load.is_fresh(13.0, 3.0)
    assert not load.is_fresh(13.001, 3.0)


def test_a_page_replaces_everything() -> None:
    load = EngineLoad(1.0, 1.0, running=3, waiting=2, kv_used=0.5, generated_total=7)
    page = EngineLoad(2.0, 2.0, running=1)
    load.take(page)
    assert load == page
    assert load is not page


def test_a_report_changes_what_it_names_and_no_total() -> None:
    load = EngineLoad(1.0, 1.0, running=3, waiting=2, kv_used=0.5, generated_total=7)
    load.hear(EngineLoad(2.0, waiting=0))
    assert load == EngineLoad(2.0, 1.0, running=3, waiting=0, kv_used=0.5, generated_total=7)
