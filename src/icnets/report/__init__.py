"""``icnets report RUN…``: what a run says about its networks, as one HTML file that needs no network."""
