"""The fast paths behind :mod:`icnets.unit.functional`: each gives what the formula there gives, by test."""
