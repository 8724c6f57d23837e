"""The command line: `minires`, and what the programs in examples/ share with it.

Reading order: any time: arguments.py, info.py, predict.py, commands.py.
"""
