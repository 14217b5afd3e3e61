"""Finished work on disk: stages found by the hash of their recipe, the processes that share them, what they cost."""
