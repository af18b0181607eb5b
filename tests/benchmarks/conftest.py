import pytest


@pytest.fixture
def tiny(monkeypatch):
    """ResNet-18 with one narrow block a stage, whose last maps are 2x2, in the place of all families."""
    import networks

    def sizes(*layers: int) -> dict:
        return {"channels": (8, 8, 16, 16), "layers": layers, "num_classes": 7}

    family = networks.Family("resnet18", "resnet34", True, 64, sizes(1, 1, 1, 1), sizes(1, 1, 1, 2))
    for name in list(networks.FAMILIES):
        monkeypatch.delitem(networks.FAMILIES, name)
    monkeypatch.setitem(networks.FAMILIES, "resnet18", family)
    return family
