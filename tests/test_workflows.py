"""What runs elsewhere on every change: valid, and of what is here."""
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / '.github/workflows').glob('*.yml'))
REQUIREMENTS = ROOT / 'tools/requirements'


def load(path):
    return yaml.safe_load(path.read_text())


def commands(workflow):
    return [
        step['run'] for job in workflow['jobs'].values()
        for step in job['steps'] if 'run' in step
    ]


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
def test_workflow(path):
    workflow = load(path)
    # YAML takes the key "on" for a truth value.
    assert {'name', True, 'jobs'} <= set(workflow)
    for job in workflow['jobs'].values():
        for step in job['steps']:
            assert ('uses' in step) != ('run' in step)
    scripts = re.findall(r'bash (\S+)', '\n'.join(commands(workflow)))
    assert scripts and all((ROOT / script).is_file() for script in scripts)


def test_every_stack_is_tested():
    """On a Python that it is for."""
    matrix = load(ROOT / '.github/workflows/test.yml'
                  )['jobs']['test']['strategy']['matrix']['include']
    pythons = {}
    for row in matrix:
        pythons.setdefault(row['stack'], []).append(row['python'])
    stacks = {
        path.stem: path.read_text().partition('\n')[0]
        for path in REQUIREMENTS.glob('*.txt')
        if not path.stem.startswith('common')
    }
    assert pythons.keys() == stacks.keys()
    for stack, head in stacks.items():
        # The first line names them, the usual one first.
        usual, *others = re.fullmatch('# Python ([3. 0-9]+)', head)[1].split()
        assert usual in pythons[stack]
        assert set(pythons[stack]) <= {usual, *others}
    found = [python for row in pythons.values() for python in row]
    assert {'3.8', '3.13'} <= set(found)


def test_linters_are_pinned():
    pattern = re.search(
        r"grep -E '(.*?)'",
        '\n'.join(commands(load(ROOT / '.github/workflows/lint.yml'))))[1]
    lines = (REQUIREMENTS / 'common.txt').read_text().splitlines()
    assert len([line for line in lines if re.match(pattern, line)]) == 4
