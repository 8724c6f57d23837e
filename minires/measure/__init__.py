"""Measuring: what a step must cost (roofline.py), and what it does cost on a GPU (stages.py).

`python -m minires.kernels.cuda.check` runs the stages one after the other; `python -m minires.measure.roofline` prints
the table of floors. Nothing else imports this package.

Reading order: roofline.py, stages.py; any time after train/.
"""
