"""The embedded demo: a small safety-tuned chat model and the language it was trained on.

The folder ``model`` beside this file is what ``mlx_lm.load`` reads; ``examples/train_demo.py`` made it.
"""
