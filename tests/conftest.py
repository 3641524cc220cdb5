import pytest

from tests.utils import DEVICES


# Of session scope because hypothesis refuses fixtures that a test function
# would share among its examples.
@pytest.fixture(scope='session', params=DEVICES)
def device(request):
    return request.param
