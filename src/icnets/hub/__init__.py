"""Networks on the Hugging Face Hub, or in a folder with the same files: weights and a model card.

``convert_`` makes an IC network of any module, so these are functions of a module, not a base class for it.
"""

from icnets.hub.card import Card
from icnets.hub.repository import HubError, from_pretrained, push_to_hub, save_pretrained

__all__ = ["Card", "HubError", "from_pretrained", "push_to_hub", "save_pretrained"]
