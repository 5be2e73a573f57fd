"""Models from a hub: what would be downloaded is known beforehand, what was downloaded is not downloaded again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, fake_hub
from tiny import write_tiny_model
from tiny_gguf import write_gguf

SCRIPT = """
import json, sys
from loratory.errors import UserError
from loratory.models.finding import bytes_to_download, find_files
from loratory.settings import ModelConfig

config = ModelConfig(sys.argv[1])
result = {"before": bytes_to_download(config)}
try:
    found = find_files(config)
    files = sorted(path.name for path in found.folder.iterdir())
    result |= {"files": files, "name": found.name, "revision": found.revision, "after": bytes_to_download(config)}
except UserError as error:
    result["error"] = error.what
print(json.dumps(result))
"""


def find(name: str, endpoint: str, folder: Path) -> dict[str, Any]:
    """What a process that may use the hub at ``endpoint`` finds; the address is read when a process starts."""
    hub = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home")}
    environment = {**os.environ, **hub, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.thorough
def test_a_model_is_downloaded_once_without_files_that_are_not_used(tmp_path):
    model = tmp_path / "hub" / "someone" / "tiny"
    write_tiny_model(model)
    used = sum(path.stat().st_size for path in model.iterdir())
    (model / "pytorch_model.bin").write_bytes(b"never loaded")
    (model / "picture.png").write_bytes(b"not needed")
    with fake_hub(tmp_path / "hub") as endpoint:
        found = find("someone/tiny", endpoint, tmp_path)
    assert (found["before"], found["after"], found["revision"]) == (used, 0, COMMIT)
    assert {"config.json", "model.safetensors"} <= set(found["files"])
    assert not {"pytorch_model.bin", "picture.png"} & set(found["files"])


@pytest.mark.thorough
def test_one_gguf_file_of_several_on_the_hub_is_downloaded_and_converted(tmp_path):
    folder = tmp_path / "hub" / "someone" / "tiny-gguf"
    (folder / "small").mkdir(parents=True)
    write_gguf(folder / "small" / "tiny[Q8].gguf", seed=0)
    write_gguf(folder / "tiny[Q4].gguf", seed=1)
    with fake_hub(tmp_path / "hub") as endpoint:
        found = find("someone/tiny-gguf/small/tiny[Q8].gguf", endpoint, tmp_path)
        missing = find("someone/tiny-gguf/other.gguf", endpoint, tmp_path)
    assert found["before"] == (folder / "small" / "tiny[Q8].gguf").stat().st_size
    assert (found["after"], found["revision"]) == (0, COMMIT)
    assert found["name"] == "someone/tiny-gguf/small/tiny[Q8].gguf"
    assert "model.safetensors" in found["files"]
    cached = tmp_path / "home" / "hub" / "models--someone--tiny-gguf" / "snapshots" / COMMIT
    assert [str(path.relative_to(cached)) for path in cached.rglob("*.gguf")] == ["small/tiny[Q8].gguf"]
    assert missing["error"] == "The model on the hub does not have this file"


@pytest.mark.thorough
def test_a_model_that_the_hub_does_not_have_is_told_as_such(tmp_path):
    (tmp_path / "hub").mkdir()
    with fake_hub(tmp_path / "hub") as endpoint:
        found = find("someone/else", endpoint, tmp_path)
    assert found == {"before": None, "error": "The model does not exist on the hub"}
    assert find("someone/else", endpoint, tmp_path)["error"].endswith("the hub cannot be reached")
