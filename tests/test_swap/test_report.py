from mm_acon.swap import SwapReport, SwapRow
from mm_acon.swap.report import Proof

ROWS = [
    SwapRow('conv1', 'ReLU', 'PWLU', 64, (64, 64), 1344, keeps='exact'),
    SwapRow('layer1.0.conv2', 'ReLU', None, 128, (32, 32),
            reason='not included'),
    SwapRow('fc', 'ReLU6', 'PWLU', 10, (), 210,
            note='copied'),
]  # yapf: disable

TABLE = '''\
site            old    new   width  map    parameters  function  note
conv1           ReLU   PWLU  64     64x64  1,344       exact
layer1.0.conv2  ReLU   -     128    32x32  -           -         not included
fc              ReLU6  PWLU  10     -      210         -         copied
2 of 3 activation sites replaced, 1,554 parameters added'''


def test_table():
    assert str(SwapReport(ROWS, [], [])) == TABLE


def test_what_is_out_of_reach():
    report = SwapReport(ROWS, ['relu in head', 'silu in neck'], ['aux.1'])
    assert str(report) == TABLE + '''
out of reach, because called as functions: relu in head, silu in neck
not called, so left as they are: aux.1'''


def test_proof():
    proof = Proof(['evaluation'], {'training': 'no targets'}, seconds=.25)
    assert str(SwapReport(ROWS, [], [], proof)) == TABLE + '''
with the old activations at these places, outputs and gradients stay exactly \
what they are, in evaluation (0.2 s); not compared in training, where it does \
not run: no targets'''
    proof = Proof(['training'], seconds=.25, no_gradients='it ends')
    assert str(proof) == '''\
with the old activations at these places, outputs stay exactly what they are, \
in training (0.2 s); gradients are not compared: it ends'''


def test_replaced():
    assert SwapReport(ROWS, [], []).replaced == [ROWS[0], ROWS[2]]
