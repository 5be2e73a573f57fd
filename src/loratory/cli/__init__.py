"""The command line: one module per verb, and what they share.

In: arguments. Out: an exit code; results go to standard output, everything else to standard error. Modules import
lazily, so that ``--help`` does not wait for PyTorch. Read ``main.py`` first.
"""
