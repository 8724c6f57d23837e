"""The command line: `minires`, and the parts that the programs in examples/ share with the command.

Reading order: any time: arguments.py, info.py, predict.py, commands.py.
"""
