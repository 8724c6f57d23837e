"""Measuring: what a step must cost, what it does cost on a GPU, and whether the GPU computes what it should.

`python -m minires.kernels.cuda.check` runs the stages one after the other; `python -m minires.measure.roofline` prints
the table of floors, `python -m minires.measure.machine_code` what the compiler has made. Nothing else imports this
package.

Reading order: cases, roofline, tools, find with pytest_cases, speed, machine_code; any time after train/.
"""
