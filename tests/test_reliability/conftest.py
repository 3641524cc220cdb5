"""Writes a report after `bash tools/run_tests.sh --full`."""
import datetime
import os
from pathlib import Path

import pytest

from mm_acon.env import describe

from .report import by_option, figures, markdown, table


def pytest_configure(config):
    config.reliability = dict(matrix=[], long_runs=[], failed=[])
    config.pluginmanager.register(Collect(config.reliability))


class Collect:

    def __init__(self, results):
        self.results = results

    # Before pytest-xdist sends the report to the process that collects.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report):
        if report.when != 'call':
            return
        results = self.results
        if report.failed:
            results['failed'].append(report.nodeid)
        for name, value in report.user_properties:
            if name == 'matrix':
                results['matrix'].append(value)
            elif name == 'long run':
                results['long_runs'].append(value)


def pytest_terminal_summary(terminalreporter, config):
    path = os.getenv('MM_ACON_REPORT')
    if path is None or hasattr(config, 'workerinput'):
        return
    results = config.reliability
    counts = ', '.join(f'{len(terminalreporter.getreports(name))} {name}'
                       for name in ('passed', 'failed', 'error', 'skipped'))
    # Of a skipped test or file: file, line, "Skipped: REASON".
    skipped = [
        report.longrepr[2][len('Skipped: '):]
        for report in terminalreporter.getreports('skipped')
    ]
    Path(path).write_text(
        markdown(
            str(datetime.date.today()), describe(), counts, results['failed'],
            skipped, results['matrix'], results['long_runs']))
    terminalreporter.section(f'{path} is written')
    terminalreporter.write_line(table(by_option(results['matrix'])))
    terminalreporter.write_line('')
    terminalreporter.write_line(table(figures(results['matrix'])))
