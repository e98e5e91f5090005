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

    frozen = []
    with pytest.raises(KeyError):
        failing()
    assert frozen[0] > 1000
    assert gc.get_freeze_count() == 0


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
