import pytest

from mm_acon.adapt import adapt_mmengine
from tests.helpers.toy import make_runner

# As the tools do.
adapt_mmengine()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint after one epoch of the toy model."""
    folder = tmp_path_factory.mktemp('trained')
    make_runner(folder, epochs=1).train()
    return folder / 'epoch_1.pth'
