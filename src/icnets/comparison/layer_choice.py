"""Which layers of a comparison's networks fit a budget of time: measured once, and kept beside the results."""

import json
from dataclasses import replace
from typing import Any

from icnets.comparison.planned_runs import digest, network_of, plain
from icnets.comparison.runs import create_for
from icnets.comparison.settings import Method, Settings
from icnets.support.files import atomic_write
from icnets.support.quiet import silence
from icnets.training.network import with_chosen_layers


def with_layers(settings: Settings, data: Any) -> Settings:
    """Settings in which every IC network that is to keep within a budget names its layers.

    What was measured before stands in OUT/layers.json, so that a comparison goes on with the networks that it began.
    """
    methods, networks = ([_bounded(settings, m, data) for m in ms] for ms in (settings.methods, settings.networks))
    return replace(settings, methods=methods, networks=networks)


def _bounded(settings: Settings, method: Method, data: Any) -> Method:
    ic, file = method.ic, settings.out / "layers.json"
    if ic is not None and settings.max_slowdown is not None:
        ic = replace(ic, max_slowdown=settings.max_slowdown, engine=settings.engine)
    if ic is None or not ic.measures:
        return method
    network = network_of(settings, method)
    same = plain(replace(ic, warm_start="gain"))  # whichever it is, the layers are the same
    key = digest([plain(network), same, data.image_size, data.batch_size])
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if key not in known:
        print(f"measuring which layers fit {ic.max_slowdown:g} times the basic network's time", flush=True)
        with silence():
            basic = create_for(data, network, settings.imports)
        chosen, text = with_chosen_layers(basic, ic, data)
        known[key] = {"only": chosen.only, "measured": text}
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
        print(f"{len(chosen.only or ())} layers: {text}", flush=True)
    return replace(method, ic=replace(ic, only=tuple(known[key]["only"])))
