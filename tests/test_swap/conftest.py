import logging

import pytest
from mmengine.logging import MMLogger


class Records(logging.Handler):
    """What was logged, as (level, message)."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append((record.levelno, record.getMessage()))

    def of(self, level):
        return [text for number, text in self.records if number == level]


@pytest.fixture
def log():
    logger, records = MMLogger.get_current_instance(), Records()
    logger.addHandler(records)
    yield records
    logger.removeHandler(records)
