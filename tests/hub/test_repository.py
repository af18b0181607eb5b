import shutil
from pathlib import Path
from unittest import mock

import huggingface_hub
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

import icnets
import icnets.timm_models
from icnets import CheckpointError, ICConfig, convert_, create_model, fuse_
from icnets.cli import main
from icnets.hub import Card, HubError, from_pretrained, push_to_hub, save_pretrained

SMALL = {"channels": [8, 8, 16, 16], "stem_width": 8, "num_classes": 5, "in_chans": 1}
X = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def own() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))


def trained(model: nn.Module) -> nn.Module:
    """As after training: no parameter at its initial value."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(a.eval()(X), b.eval()(X))


@pytest.fixture
def model() -> nn.Module:
    return trained(create_model("resnet18", **SMALL))


@pytest.fixture
def folder(model: nn.Module, tmp_path: Path) -> Path:
    save_pretrained(model, tmp_path / "net")
    return tmp_path / "net"


def test_a_network_of_ones_own_comes_back(tmp_path):
    basic = own()
    basic(X)
    model = trained(basic)
    convert_(model, ICConfig(linear=True))
    save_pretrained(trained(model), tmp_path / "a" / "net")
    assert {p.name for p in (tmp_path / "a" / "net").iterdir()} == {"model.safetensors", "README.md"}
    fresh = own()
    fresh(X)
    assert same(from_pretrained(tmp_path / "a" / "net", fresh), model)
    assert "from_pretrained('net', basic)" in (tmp_path / "a" / "net" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match="pass the basic one"):
        from_pretrained(tmp_path / "a" / "net")


def test_torchvisions_is_made_anew(tmp_path):
    model = torchvision.models.get_model("mobilenet_v3_small", num_classes=5)
    convert_(model, ICConfig(layers="kxk"))
    args = {"name": "mobilenet_v3_small", "num_classes": 5}
    save_pretrained(model, tmp_path, architecture={"factory": "torchvision.models.get_model", "args": args})
    again, x = from_pretrained(tmp_path), X.expand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), model.eval()(x))


def test_overwriting_leaves_nothing_of_the_one_before(folder):
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    with pytest.raises(HubError, match=r"has a model.safetensors already; give another folder, or overwrite=True"):
        save_pretrained(model, folder)
    (folder / "config.json").touch()  # as earlier versions wrote it, for timm
    save_pretrained(model, folder, overwrite=True)
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "README.md"}


def test_labels_that_do_not_fit_the_network(model, tmp_path):
    with pytest.raises(ValueError, match=r"the card has 2 classes, the network 5 outputs; give its own"):
        save_pretrained(model, tmp_path / "net", card=Card(classes=["a", "b"]))
    assert not (tmp_path / "net").exists()
    save_pretrained(model, tmp_path / "net", metadata={"class_names": "a, the first,b,c,d,e"})  # 5, joined by commas
    assert "## Classes" not in (tmp_path / "net" / "README.md").read_text(encoding="utf-8")


def test_saving_leaves_the_random_numbers_alone(model, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    save_pretrained(model, tmp_path)
    assert torch.equal(torch.rand(1), expected)


# The Hub: its own cache, laid out as after a download, and its own signatures; no connection.


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Path:
    repository = tmp_path / "cache" / "models--someone--net"
    shutil.copytree(folder, repository / "snapshots" / ("1" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    return tmp_path / "cache"


def test_a_repository_is_loaded(model, cache):
    assert same(from_pretrained("someone/net", cache_dir=cache, local_files_only=True), model)


def test_a_push_is_one_commit_of_the_same_files(model, folder, tmp_path, monkeypatch):
    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = mock.Mock(repo_id="someone/net")
    api.upload_folder.side_effect = lambda **given: shutil.copytree(given["folder_path"], tmp_path / "pushed")
    monkeypatch.setattr(huggingface_hub, "HfApi", mock.create_autospec(huggingface_hub.HfApi, return_value=api))
    push_to_hub(model, "net", private=True, revision="draft")
    api.create_repo.assert_called_once_with("net", private=True, exist_ok=True)
    assert api.upload_folder.call_args.kwargs["revision"] == "draft"
    pushed = tmp_path / "pushed"
    assert {p.name for p in pushed.iterdir()} == {p.name for p in folder.iterdir()}
    assert same(from_pretrained(pushed), model)
    assert "from_pretrained('net')" in (pushed / "README.md").read_text(encoding="utf-8")


def test_a_push_that_fails_says_why_in_a_line(model, monkeypatch):
    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.side_effect = RuntimeError("401 Unauthorized\nmore")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: api)
    with pytest.raises(HubError, match=r"^someone/net can't be pushed: 401 Unauthorized; check .* hf auth login$"):
        push_to_hub(model, "someone/net")


# Mistakes.


def test_sources_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for source, message in {
        tmp_path / "empty": "has no model.safetensors; give a folder that save_pretrained wrote",
        tmp_path / "file": "is a file; give a folder",
        tmp_path / "nothing": r"nothing is no folder here, and can't be had from the Hub: Repo id must",
        "some/deep/folder": r"some/deep/folder is no folder here, and can't be had from the Hub: Repo id must be",
    }.items():
        with pytest.raises(HubError, match=message):
            from_pretrained(source)
    with pytest.raises(HubError, match=r"someone/gone is no folder here, and can't be had .*; check the name") as error:
        from_pretrained("someone/gone", cache_dir=tmp_path, local_files_only=True)
    assert "\n" not in str(error.value)


def test_weights_of_others_and_damaged_ones(folder):
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights)
    with pytest.raises(CheckpointError, match=r"was not written by icnets\.save"):
        from_pretrained(folder)
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        from_pretrained(folder)


def test_nothing_is_written_for_what_can_not_be_saved(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HubError, match="is a file; give a folder"):
        save_pretrained(model, tmp_path / "file")
    with pytest.raises(
        HubError, match=r"a/b/c can't be pushed: Repo id must be in the form 'repo_name' or 'namespace/repo_name'"
    ):
        push_to_hub(model, "a/b/c")
    fuse_(model, X)
    with pytest.raises(TypeError, match="the model is deployed"):
        save_pretrained(model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("change", [lambda m: m.to("meta"), lambda m: prune.identity(m.conv1, "collision")])
def test_a_network_that_save_refuses_leaves_no_file(model, change, tmp_path):
    change(model)
    with pytest.raises(TypeError, match=r"is on the meta device|is pruned or parametrised"):
        save_pretrained(model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_changed_network_asks_for_itself(model, tmp_path):
    model.act1 = nn.GELU()
    with pytest.warns(UserWarning, match="act1 is GELU instead of ReLU"):
        save_pretrained(model, tmp_path)
    assert f"from_pretrained({tmp_path.name!r}, basic)" in (tmp_path / "README.md").read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match="act1 is GELU instead of ReLU"):
        from_pretrained(tmp_path)
    basic = create_model("resnet18", ic=None, **SMALL)
    basic.act1 = nn.GELU()
    assert same(from_pretrained(tmp_path, basic), model)


def test_a_wrapped_network_is_saved_without_the_wrapper(model, tmp_path):
    save_pretrained(nn.DataParallel(model), tmp_path)
    assert same(from_pretrained(tmp_path), model)


# The command.


def test_the_command_carries_what_the_checkpoint_says(model, tmp_path, capsys):
    icnets.save(model, tmp_path / "best.safetensors", metadata={"class_names": "a,b,c,d,e", "mean": "0.4"})
    arguments = ["hub", "save", str(tmp_path / "best.safetensors"), str(tmp_path / "net")]
    (tmp_path / "results.md").write_text("| method | error |\n", encoding="utf-8")
    arguments += ["--description", str(tmp_path / "results.md")]
    assert main([*arguments, "--license", "mit", "--dataset", "someone/photos", "--title", "Mine"]) == 0
    assert "has the network and its card" in capsys.readouterr().out
    assert same(from_pretrained(tmp_path / "net"), model)
    with pytest.raises(HubError, match="is a folder here, and revison are for repositories; leave them out"):
        from_pretrained(tmp_path / "net", revison="main")
    data = huggingface_hub.ModelCard.load(tmp_path / "net" / "README.md").data
    assert (data.license, data.datasets) == ("mit", ["someone/photos"])
    text = (tmp_path / "net" / "README.md").read_text(encoding="utf-8")
    assert "5, in the order of the outputs: **0** a, **1** b, **2** c, **3** d, **4** e." in text
    assert "Images: mean 0.4." in text
    assert "\n| method | error |\n" in text
    for wrong, message in {
        (): "the following arguments are required: save|push",
        ("push", "gone.safetensors", "a/b"): "there is no checkpoint",
    }.items():
        assert main(["hub", *wrong]) == 2
        assert message in capsys.readouterr().err
