import pytest
from mmengine.registry import DefaultScope

from mm_acon.ops import extension
from tests.utils import DEVICES

BUILT = extension.DEVICES
# The plain-PyTorch form everywhere, the compiled one where it was built.
FORMS = [(device, form) for device in DEVICES
         for form in ('compiled', 'reference')
         if form == 'reference' or device in BUILT]


# Of session scope because hypothesis refuses fixtures that a test function
# would share among its examples.
@pytest.fixture(scope='session', params=FORMS, ids='-'.join)
def device(request):
    name, form = request.param
    extension.DEVICES = BUILT if form == 'compiled' else frozenset()
    yield name
    extension.DEVICES = BUILT


@pytest.fixture(autouse=True)
def no_default_scope():
    """A Runner leaves its scope behind, and names would be looked up in it."""
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()
