from mm_acon.swap import SwapReport, SwapRow

ROWS = [
    SwapRow('conv1', 'ReLU', 'PWLU', 64, (64, 64), 1344),
    SwapRow('layer1.0.conv2', 'ReLU', None, 128, (32, 32),
            reason='not included'),
    SwapRow('fc', 'ReLU6', 'PWLU', 10, (), 210),
]  # yapf: disable

TABLE = '''\
site            old    new   width  map    parameters  note
conv1           ReLU   PWLU  64     64x64  1,344
layer1.0.conv2  ReLU   -     128    32x32  -           not included
fc              ReLU6  PWLU  10     -      210
2 of 3 activation sites replaced, 1,554 parameters added'''


def test_table():
    assert str(SwapReport(ROWS, [], [])) == TABLE


def test_what_is_out_of_reach():
    report = SwapReport(ROWS, ['relu in head', 'silu in neck'], ['aux.1'])
    assert str(report) == TABLE + '''
out of reach, because called as functions: relu in head, silu in neck
not called, so left as they are: aux.1'''


def test_replaced():
    assert SwapReport(ROWS, [], []).replaced == [ROWS[0], ROWS[2]]
