"""One file for each form in which real Caffe's results are recorded; ``tests/golden.py`` tells the forms apart."""
