"""Other people's files: models of AllenNLP and bilm-tf, word vectors.

Nothing is imported here; import the module of the format.
"""
