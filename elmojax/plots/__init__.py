"""Pictures, as PNG or SVG: losses of runs, uses of a word, weights of layers.

matplotlib, the extra `plots`, is imported here alone, and only to draw.
"""
