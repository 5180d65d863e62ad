"""Models of the Hugging Face hub."""

import pytest

from instruct_jax.data.hub import model_folder
from instruct_jax.errors import DataError


def test_a_revision_of_a_model(monkeypatch, tmp_path):
    asked = []

    def download(name, **options):
        asked.append((name, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert model_folder("EleutherAI/pythia-1b@step3000") == tmp_path
    assert model_folder("EleutherAI/pythia-1b") == tmp_path
    assert asked == [("EleutherAI/pythia-1b", "step3000"), ("EleutherAI/pythia-1b", None)]


def test_a_revision_that_cannot_be_had(monkeypatch):
    def no_network(name, **options):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    fix = "hf download EleutherAI/pythia-1b --revision step3000 --local-dir FOLDER"
    with pytest.raises(DataError, match=fix):
        model_folder("EleutherAI/pythia-1b@step3000")
