import copy
import functools
import logging
import os
from collections import Counter
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.config import Config, config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mm_acon.ops.extension import DEVICES as BUILT
from mm_acon.ops.extension import use_reference
from tests.helpers.cache import CACHE
from tests.utils import DEVICES, torch_threads

ROOT = Path(__file__).parents[1]
# The plain-PyTorch form everywhere, the compiled one where it was built.
FORMS = [(device, form) for device in DEVICES
         for form in ('compiled', 'reference')
         if form == 'reference' or device in BUILT]

# For what the plain-PyTorch form does not have to show.
COMPILED = pytest.mark.parametrize(
    'device', [form for form in FORMS if form[1] == 'compiled'],
    indirect=True,
    ids='-'.join)


def pytest_configure(config):
    # pytest-xdist would start with the files of most tests.
    config.option.loadscopereorder = False
    # torch 2.1 takes a library that another process has not written to its
    # end yet for a broken one.
    os.environ['TORCHINDUCTOR_CACHE_DIR'] = str(
        CACHE / 'inductor' / torch.__version__ /
        os.getenv('PYTEST_XDIST_WORKER', 'alone'))


def pytest_collection_modifyitems(items):
    """Files of few tests come first: these take minutes.

    One of them at the end would have all processes but one wait.
    """
    sizes = Counter(item.location[0] for item in items)
    items.sort(key=lambda item: sizes[item.location[0]])


# Of session scope because hypothesis refuses fixtures that a test function
# would share among its examples.
@pytest.fixture(scope='session', params=FORMS, ids='-'.join)
def device(request):
    return request.param[0]


@pytest.fixture(autouse=True)
def form(request):
    """The form that ``device`` names, the compiled one in all other tests.

    The plain-PyTorch one by one thread: with several, PyTorch adds up the
    gradients of a look-up in an order of chance.
    """
    case = getattr(request.node, 'callspec', None)
    _, form = case.params.get('device', FORMS[0]) if case else FORMS[0]
    if form != 'reference':
        yield
        return
    with use_reference(), torch_threads(1):
        yield


@pytest.fixture(autouse=True, scope='session')
def long_configs_are_not_formatted():
    """A Runner formats its own four times, which takes as long as a short
    training."""
    real = config.FormatCode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            config, 'FormatCode', lambda text, **kwargs: (text, True)
            if len(text) > 3000 else real(text, **kwargs))
        yield


def kinds(of):
    """A class and all that derive from it."""
    return [
        of, *(kind for child in of.__subclasses__() for kind in kinds(child))
    ]


@pytest.fixture(autouse=True, scope='session')
def configs_that_ship_are_read_once():
    """Ours and the libraries', which takes up to a second each."""
    real = Config.fromfile
    folders = ROOT / 'configs', Path(mmengine.__file__).parents[1]

    @functools.lru_cache(None)
    def read(filename, folder):
        return real(filename)

    def fromfile(filename, *args, **kwargs):
        parents = Path(filename).resolve().parents
        if args or kwargs or not any(folder in parents for folder in folders):
            return real(filename, *args, **kwargs)
        return copy.deepcopy(read(str(filename), os.getcwd()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, 'fromfile', staticmethod(fromfile))
        yield


@pytest.fixture(autouse=True)
def nothing_of_other_runners():
    """A Runner leaves its scope behind, where names would be looked up, and
    its visualizer, which the next one of that name would write with."""

    def forget():
        for kind in (DefaultScope, *kinds(Visualizer)):
            kind._instance_dict.clear()

    forget()
    yield
    forget()


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


@pytest.fixture
def unverified(monkeypatch):
    """A swap does not compare the network with itself, which takes seconds.

    For tests of something else that build many networks.
    """
    monkeypatch.setattr('mm_acon.swap.swap.prove', lambda *args: (None, {}))
