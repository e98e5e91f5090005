"""What is in memory when a sync begins is left out of garbage collections until it ends."""

import gc

import pytest

from airflow_provider_talon_cdp.sync.garbage import rare_collections


@pytest.fixture(autouse=True)
def _thawed():
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_was_there_before_is_looked_through_again_after_the_end():
    @rare_collections()
    def failing():
        frozen.append(gc.get_freeze_count())
        raise KeyError

    frozen, threshold = [], gc.get_threshold()
    with pytest.raises(KeyError):
        failing()
    assert frozen[0] > 1000
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == threshold


def test_what_others_froze_stays_frozen():
    gc.freeze()
    frozen = gc.get_freeze_count()
    with rare_collections():
        """Nothing."""
    assert gc.get_freeze_count() > frozen * 0.9


def test_garbage_that_a_sync_makes_is_collected_meanwhile():
    class Cycle:
        def __init__(self):
            self.own = self
            made.append(id(self))

        def __del__(self):
            collected.append(id(self))

    made, collected = [], []
    with rare_collections():
        Cycle()
        gc.collect()
        assert collected == made


@pytest.mark.parametrize("own, meanwhile", [(700, 20_000), (50_000, 50_000), (0, 0)])
def test_young_objects_are_looked_through_less_often_unless_that_is_turned_off(own, meanwhile):
    before = gc.get_threshold()
    gc.set_threshold(own, 7, 8)
    try:
        with rare_collections():
            assert gc.get_threshold() == (meanwhile, 7, 8)
        assert gc.get_threshold() == (own, 7, 8)
    finally:
        gc.set_threshold(*before)
