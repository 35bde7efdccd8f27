"""Saved models: folders, and the Hugging Face Hub, of which a server of the tests takes the place."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import echo_ext
from echo_ext import models
from echo_ext.models import Autoencoder, Model, build

pytest.importorskip("huggingface_hub")
safetensors = pytest.importorskip("safetensors.torch")

import hub_server  # noqa: E402
from huggingface_hub import ModelCard, constants  # noqa: E402

NEEDED = "sharing models needs huggingface_hub: pip install 'echo-ext[hub]'"
X = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def make(recipe="echo", **settings):
    """A model that has seen a batch."""
    torch.manual_seed(0)
    if recipe == "echo":
        settings = {"num_terms": 20, "hidden": (16,), **settings}
    model = build(recipe, (1, 8, 8), latent_dim=3, **settings)
    model.loss(X)
    return model.eval()


def make_parts():
    """The parts of a model of one's own."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    decoder = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)))
    return {"encoder": encoder, "decoder": decoder, "channel": echo_ext.EchoChannel(20), "data_shape": (1, 8, 8)}


def outputs(model):
    torch.manual_seed(1)
    return model.encode(X), model.sample(3)


def assert_same(first, second):
    assert type(first) is type(second)
    for mine, theirs in zip(outputs(first), outputs(second), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def change(file, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


# ---- Folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("echo", {"beta": 0.5, "bank_size": 64}),
        ("echo", {"target_rate": 9.0}),  # a learned weight
        ("echo-matrix", {"min_other_rows": 20}),
        ("vae-vamp", {"pseudo_inputs": 7}),
        ("stacked-corex", {}),
        ("mutual-ae", {}),
        ("mim", {}),
    ],
)
def test_saved_model_is_built_again(recipe, settings, tmp_path):
    model = make(recipe, **settings)
    model.save_pretrained(tmp_path / "new" / "folder")
    again = Model.from_pretrained(tmp_path / "new" / "folder")
    assert not again.training
    assert_same(model, again)
    assert again.built_by == model.built_by | {"model_settings": again.built_by["model_settings"]}
    again.train()
    assert torch.isfinite(again.loss(X)["loss"])


class WeightDecay(nn.Module):
    """A regularizer that holds another part of the model."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, z):
        return {"penalty": sum(weight.square().sum() for weight in self.part.parameters())}


def test_shared_weights_are_saved_once_and_stay_shared(tmp_path):
    def make_model():
        parts = make_parts()
        return Autoencoder(**parts, regularizers=[WeightDecay(parts["encoder"])])

    model = make_model()
    model.loss(X)
    model.eval().save_pretrained(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert sum(name.endswith("1.weight") for name in opened.keys()) == 1  # noqa: SIM118
    parts = make_parts()
    again = Autoencoder.from_pretrained(tmp_path, **parts, regularizers=[WeightDecay(parts["encoder"])])
    assert again.regularizers[0].part is again.encoder
    assert_same(model, again)
    fresh = make_model()
    fresh.loss(X)
    safetensors.load_model(fresh, tmp_path / "model.safetensors")  # without echo_ext
    assert_same(model, fresh.eval())


def test_untrained_model_can_be_saved(tmp_path):
    model = build("echo", (1, 8, 8), latent_dim=3, num_terms=20, hidden=[16])
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path).train()
    assert not again.channel.has_bank
    assert torch.isfinite(again.loss(X)["loss"])


def test_files_of_a_saved_model(tmp_path):
    make().save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["library"], config["class"], config["recipe"]) == ("echo-ext", "Autoencoder", "echo")
    assert (config["data_shape"], config["latent_dim"]) == ([1, 8, 8], 3)
    assert config["model_settings"]["hidden"] == [16]
    assert config["model_settings"]["beta"] == 1.0  # a default, which may be another in a later version
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "echo-ext"
    assert {"echo-ext", "echo"} <= set(card.data.tags)


def test_card_has_the_code_that_loads_the_model(tmp_path, monkeypatch):
    model = make()
    model.save_pretrained(tmp_path / "user" / "name")
    code = (tmp_path / "user" / "name" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert_same(model, names["model"])


def test_card_of_the_user_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    make().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_other_class_is_an_error(tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"must be of class MIM, got Autoencoder$"):
        models.MIM.from_pretrained(tmp_path)


# ---- Models of one's own parts ---------------------------------------------------------------------------------------


def test_model_of_own_parts_is_loaded_with_its_parts(tmp_path):
    model = Autoencoder(**make_parts())
    model.loss(X)
    model.eval().save_pretrained(tmp_path)
    assert_same(model, Autoencoder.from_pretrained(tmp_path, **make_parts()))


@pytest.mark.parametrize(("kind", "parts"), [(Autoencoder, {}), (Model, {"encoder": nn.Identity()})])
def test_model_of_own_parts_needs_them(kind, parts, tmp_path):
    Autoencoder(**make_parts()).save_pretrained(tmp_path)
    message = r"^parts must be given for a Autoencoder that was not built by a recipe: Autoencoder\.from_pretrained\('"
    with pytest.raises(ValueError, match=message):
        kind.from_pretrained(tmp_path, **parts)


def test_parts_that_do_not_fit(tmp_path):
    Autoencoder(**make_parts()).save_pretrained(tmp_path)
    parts = make_parts() | {"encoder": nn.Sequential(nn.Flatten(), nn.Linear(64, 6, bias=False))}
    with pytest.raises(ValueError, match=r"does not fit the model: Unexpected key.*encoder\.1\.bias"):
        Autoencoder.from_pretrained(tmp_path, **parts)


def test_parts_for_a_recipe_are_an_error(tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^parts must be left out for a model of the recipe 'echo', got encoder$"):
        Model.from_pretrained(tmp_path, encoder=nn.Identity())


def test_model_with_replaced_parts_is_not_saved_as_its_recipe(tmp_path):
    model = make()
    model.decoder = make_parts()["decoder"]
    with pytest.raises(ValueError, match=r"^the parts of a model must be those of its recipe 'echo' to be saved: "):
        model.save_pretrained(tmp_path)


def test_setting_that_is_no_json_is_named(tmp_path):
    model = make()
    model.built_by["model_settings"]["hidden"] = {16}
    with pytest.raises(TypeError, match=r"^hidden must contain only numbers, strings, .*, got \{16\}$"):
        model.save_pretrained(tmp_path)


# ---- Damaged and hostile files ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    make().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"recipe": "ecko"}, "there is no recipe 'ecko'; the most similar are echo"),
        ({"format": 2}, "in format 2, not 1"),
        ({"format": None}, "format must be of type int"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"latent_dim": "3"}, "latent_dim must be of type int"),
        ({"data_shape": [1] * 9}, "data_shape must be a few integers"),
        ({"data_shape": [1, -8, 8]}, "data_shape must be"),
        ({"model_settings": {"hidden": [2, "x"]}}, "hidden must be a list"),
        ({"model_settings": {"widths": [2]}}, "recipe 'echo' has no setting 'widths'"),
        ({"model_settings": {"activation": {}}}, "activation"),
        ({"model_settings": []}, "model_settings must be of type dict"),
    ],
)
def test_wrong_config_is_one_line(entries, message, folder):
    change(folder / "config.json", **entries)
    with pytest.raises(ValueError, match="does not describe a model of echo-ext") as caught:
        Model.from_pretrained(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b'"' + b"x" * 2**20 + b'"', b"[]"])
def test_config_that_is_no_description(content, folder):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="does not describe a model of echo-ext"):
        Model.from_pretrained(folder)


def test_large_model_is_refused_before_memory_is_taken(folder):
    change(folder / "config.json", model_settings={"hidden": [10**7, 10**7], "num_terms": 20})
    with pytest.raises(ValueError, match="does not fit the model"):
        Model.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["truncated", "empty", "pickle", "header"])
def test_damaged_weights_are_one_line(damage, folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    if damage == "pickle":
        torch.save(make().state_dict(), file)
    else:
        damaged = {"truncated": content[:-1], "empty": b"", "header": b"\xff" * 8 + content[8:]}
        file.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: ") as caught:
        Model.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_one_line(folder):
    other = make(hidden=(17,))
    safetensors.save_model(other, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the model: size mismatch for encoder\.") as caught:
        Model.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"it has no {name}"):
        Model.from_pretrained(folder)


# ---- The Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.Hub() as server:
        server.point_to(monkeypatch, server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield server


@pytest.fixture
def no_network(hub, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hub.point_to(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
        yield


def test_pushed_model_is_downloaded(hub):
    model = make()
    assert model.push_to_hub("user/echo").startswith(f"{hub.endpoint}/user/echo/commit/")
    assert set(hub.repositories["user/echo"]) == {"config.json", "model.safetensors", "README.md"}
    assert_same(model, Model.from_pretrained("user/echo"))
    assert sorted(hub.reads) == ["config.json", "model.safetensors"]
    Model.from_pretrained("user/echo", revision="main")
    assert len(hub.reads) == 2  # the files are in the cache


def test_private_model_needs_the_token(hub, monkeypatch):
    make().push_to_hub("user/secret", private=True)
    assert hub.private == {"user/secret"}
    Model.from_pretrained("user/secret")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match="or it is private: check the name, or log in by `hf auth login`"):
        Model.from_pretrained("user/secret", force_download=True)
    Model.from_pretrained("user/secret", force_download=True, token=hub_server.TOKEN)


def one_line(kind, message, call):
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_downloads_are_one_line(hub):
    hub.repositories["user/empty"] = {}
    one_line(FileNotFoundError, "there is no model 'user/none' at http", lambda: Model.from_pretrained("user/none"))
    one_line(FileNotFoundError, "user/empty has no config.json", lambda: Model.from_pretrained("user/empty"))
    one_line(FileNotFoundError, "no such revision", lambda: Model.from_pretrained("user/empty", revision="v9"))
    one_line(ValueError, "such as 'user/name', got './no/folder'", lambda: Model.from_pretrained("./no/folder"))
    hub.gated.add("user/empty")
    for force in (False, True):
        call = lambda: Model.from_pretrained("user/empty", force_download=force)  # noqa: B023, E731
        one_line(PermissionError, "must be granted by its owner", call)


def test_errors_of_pushes_are_one_line(hub, monkeypatch):
    model = make()
    one_line(PermissionError, "must be allowed to write to other/echo", lambda: model.push_to_hub("other/echo"))
    one_line(PermissionError, "must be allowed to write", lambda: model.push_to_hub("user/echo", token="hf_wrong"))
    one_line(
        ValueError, "repo_id must be a repository such as 'user/name', got 'a b'", lambda: model.push_to_hub("a b")
    )
    model.built_by["model_settings"]["hidden"] = {16}
    one_line(TypeError, "hidden must contain only", lambda: model.push_to_hub("user/echo"))
    monkeypatch.delenv("HF_TOKEN")
    one_line(PermissionError, "a token is needed to push to user/echo", lambda: model.push_to_hub("user/echo"))
    assert not hub.repositories.get("user/echo")


@pytest.mark.usefixtures("no_network")
def test_no_network_is_one_line(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the attempts of huggingface_hub
    advice = "try again with a network, or copy the folder that `hf download user/echo --local-dir DIR` writes"
    one_line(ConnectionError, advice, lambda: Model.from_pretrained("user/echo"))
    one_line(ConnectionError, advice, lambda: Model.from_pretrained("user/echo", local_files_only=True))
    one_line(ConnectionError, "cannot be reached to push user/echo", lambda: make().push_to_hub("user/echo"))


# ---- Without huggingface_hub -----------------------------------------------------------------------------------------


def test_models_do_not_import_huggingface_hub():
    code = (
        "import sys, echo_ext.models, echo_ext.training; print({'huggingface_hub', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "call",
    [
        lambda path: make().save_pretrained(path),
        lambda path: make().push_to_hub("user/echo"),
        lambda path: Model.from_pretrained(path),
    ],
)
def test_missing_huggingface_hub_is_named(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        call(tmp_path)
    assert str(caught.value) == NEEDED
