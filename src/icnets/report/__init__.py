"""``icnets report RUN``: what a comparison says about its networks, as one HTML file that needs no network."""
