"""Methods against references in numpy: written from papers and official code, gradients by hand.

A reference takes from the package the initial model, the partition, the order of the samples, and
what is drawn at random. All else is computed again, in float64 and without torch.
"""
