"""``icnets data check``: every image of a data set is decoded before a training meets the broken ones."""
