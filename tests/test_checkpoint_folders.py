"""Checkpoint folders that are not whole: links that lead nowhere, adapters, folders that cannot be listed; and large ones."""

import os
import time
from pathlib import Path

import pytest
from test_bad_models import index
from test_conversion import copied
from test_conversion_files import added

from ivlite import cli
from ivlite.errors import ModelFileError
from ivlite.gguf import GGUFFile
from ivlite.quantize import quantize, source


@pytest.fixture
def folder(wide, tmp_path):
    """A checkpoint that a test may spoil."""
    return copied(wide, tmp_path / "checkpoint")


def refused(folder, *words):
    with pytest.raises(ModelFileError) as caught:
        quantize(folder, folder.parent / "m.gguf", type="q8_0")
    for word in (str(folder), *words):
        assert word in str(caught.value), caught.value
    return str(caught.value)


def dangling(path):
    path.unlink(missing_ok=True)
    path.symlink_to("../../blobs/0123abcd")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "preprocessor_config.json"]
)
def test_a_link_that_leads_nowhere(folder, name):
    """A snapshot of the Hugging Face cache that was copied without its blobs."""
    dangling(folder / name)
    sentence = refused(folder, name, "is a link to ../../blobs/0123abcd, where nothing is")
    assert "index" not in sentence and "there is no file" not in sentence


def test_links_of_an_index(folder):
    index(folder)
    shard = folder / "model-a.safetensors"
    data = shard.read_bytes()
    dangling(shard)
    refused(folder, "model-a.safetensors", "where nothing is")
    shard.unlink()
    shard.write_bytes(data)
    dangling(folder / "model.safetensors.index.json")
    refused(folder, "model.safetensors.index.json", "where nothing is")


def test_a_model_file_that_is_a_link(tmp_path):
    dangling(tmp_path / "m.gguf")
    with pytest.raises(ModelFileError, match=r"m\.gguf is a link to \.\./\.\./blobs/0123abcd, where nothing is"):
        GGUFFile(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "names", [["adapter_model.safetensors", "adapter_config.json"], ["adapter_model.bin"], ["adapter_config.json"]]
)
def test_an_adapter(folder, names):
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(b"{}")
    assert "download" not in refused(folder, "adapter (LoRA)", "merge")


def test_a_folder_that_cannot_be_listed(folder, monkeypatch, capsys):
    """Its files can be opened by their names: a folder of mode 311."""
    true = Path.iterdir

    def closed(self):
        if self == folder:
            raise PermissionError(13, "Permission denied", str(self))
        return true(self)

    monkeypatch.setattr(Path, "iterdir", closed)
    assert cli.main(["quantize", str(folder), "-o", str(folder.parent / "m.gguf")]) == 3
    shown = capsys.readouterr().err
    assert f"{folder} cannot be listed: Permission denied; check its permissions" in shown and "write" not in shown
    monkeypatch.setattr(os, "listdir", closed)
    (folder / "model.safetensors").unlink()
    refused(folder, "cannot be read: Permission denied; check its permissions")


def test_many_spare_buffers_take_no_long_time(folder):
    """Their names were searched in a list, each time from the beginning: a header of 32 MiB took hours."""
    added(folder, [(f"b{i}.position_ids", "I64", [0], b"") for i in range(150_000)])
    start = time.process_time()
    with source.open_source(folder) as origin:
        assert "149997 more" in origin.notes[0]
    assert time.process_time() - start < 20  # about 3 s
