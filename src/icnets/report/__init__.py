"""``icnets report RUN``: what a comparison or runs of fit say, as one HTML file that needs no network."""
