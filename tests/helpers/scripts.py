"""Scripts in processes of their own that need not import OpenMMLab again.

A server imports it once and forks for every call. What a script sees is what
it sees on a command line, some seconds sooner; tests of the command line
itself start Python.
"""
import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

FORKS = multiprocessing.get_context('forkserver')
# A test process has one server, which imports what its first user asks for.
# Modules that are not installed are left out.
FORKS.set_forkserver_preload([
    'mmdet.apis', 'mmseg.apis', 'mmpretrain.apis', 'tests.helpers.scripts',
    'tests.test_reliability.runs'
])


def _run(words, folder, environment, outputs):
    for stream, path in zip((1, 2), outputs):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = words
    # An empty folder would be the current one.
    folders = filter(None, environment.get('PYTHONPATH', '').split(os.pathsep))
    sys.path[:0] = [str(Path(words[0]).parent), *folders]
    runpy.run_path(words[0], run_name='__main__')


def run_script(script, *arguments, cwd, **environment):
    """A ``CompletedProcess``, as of ``python script arguments``.

    Args:
        script (str or Path): The Python file.
        *arguments: As they are typed.
        cwd (str or Path): The folder that it runs in.
        **environment (str): Variables beside those of this process. Those
            that are read when torch is imported come too late.
    """
    words = [str(word) for word in (script, *arguments)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ('out', 'error')]
        process = FORKS.Process(
            target=_run,
            args=(words, str(cwd), dict(os.environ, **environment), outputs))
        process.start()
        process.join()
        printed = [Path(path).read_text() for path in outputs]
    return CompletedProcess(words, process.exitcode, *printed)
