"""Sphinx: python -m sphinx -W -c docs . build/docs, in the repository root.

The source folder is the root, so that README.md and configs/README.md are
pages as they stand, and links between all pages work on a web site of the
repository, too.
"""
import mm_acon

project = 'mm_acon'
author = 'mm_acon contributors'
project_copyright = author
release = version = mm_acon.__version__

root_doc = 'docs/index'
include_patterns = [
    'README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'configs/README.md',
    'docs/**.md', 'mm_acon/ops/csrc/README.md'
]
# Folders that need not be walked through.
exclude_patterns = [
    '.*', 'build', 'data', 'mm_acon/.mim', 'tests', 'work_dirs'
]

extensions = [
    'myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.mathjax',
    'sphinx.ext.napoleon'
]
myst_enable_extensions = ['dollarmath']
# Links to headings, as GitHub makes them.
myst_heading_anchors = 3
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'

html_theme = 'alabaster'
html_title = f'mm_acon {release}'
html_theme_options = dict(
    description='ACON, meta-ACON and PWLU for OpenMMLab',
    page_width='72rem',
    sidebar_width='15rem',
    fixed_sidebar=True)
