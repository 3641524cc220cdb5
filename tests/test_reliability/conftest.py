"""Writes a report after `bash tools/run_tests.sh --full`."""
import datetime
import os
from pathlib import Path

import pytest

from mm_acon.env import describe

from .report import cell, figures, markdown, table

# In the process that runs a test: messages of the errors that it expects.
messages = []


def pytest_configure(config):
    config.reliability = dict(
        matrix=[], long_runs=[], answers={}, failed=[])
    exit_of_raises = pytest.RaisesExc.__exit__

    def note(self, *exception):
        expected = exit_of_raises(self, *exception)
        if expected and str(exception[1]):
            messages.append(str(exception[1]))
        return expected

    pytest.RaisesExc.__exit__ = note
    config.add_cleanup(
        lambda: setattr(pytest.RaisesExc, '__exit__', exit_of_raises))
    config.pluginmanager.register(Collect(config.reliability))


class Collect:

    def __init__(self, results):
        self.results = results

    # Before pytest-xdist sends the report to the process that collects.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report):
        if report.when != 'call':
            return
        if messages:
            report.user_properties.append(('answers', list(messages)))
            messages.clear()
        results = self.results
        if report.failed:
            results['failed'].append(report.nodeid)
        for name, value in report.user_properties:
            if name == 'matrix':
                results['matrix'].append(value)
            elif name == 'long run':
                results['long_runs'].append(value)
            elif name == 'answers':
                test = report.nodeid.partition('[')[0]
                row = results['answers'].setdefault(
                    test, dict(test=f'`{test}`', inputs=0))
                row['inputs'] += len(value)
                row['answer'] = cell(value[-1].partition('\n')[0])


def pytest_terminal_summary(terminalreporter, config):
    path = os.getenv('MM_ACON_REPORT')
    if path is None or hasattr(config, 'workerinput'):
        return
    results = config.reliability
    matrix, answers = results['matrix'], list(results['answers'].values())
    counts = ', '.join(
        f'{len(terminalreporter.getreports(name))} {name}'
        for name in ('passed', 'failed', 'error', 'skipped'))
    Path(path).write_text(
        markdown(
            str(datetime.date.today()), describe(), counts, results['failed'],
            matrix, results['long_runs'], answers))
    terminalreporter.section(f'{path} is written')
    terminalreporter.write_line(table(matrix))
    terminalreporter.write_line('')
    terminalreporter.write_line(table(figures(matrix, answers)))
