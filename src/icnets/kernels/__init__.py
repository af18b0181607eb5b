"""The fast paths behind :mod:`icnets.functional`: each gives what the formula there gives, by test."""
