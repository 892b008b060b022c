"""SAEs of SAELens's releases, ``(release, sae_id)``: fetched once, saved as a folder.

sae-lens is an optional extra. It imports torch and takes some 10 s, so that it runs in a
process of its own, which ends when the SAE is saved. What is saved is read by our own loader
from then on, here and in every worker, without sae-lens.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypeGuard

from extraction_kit import atomic
from extraction_kit.errors import BadSae
from extraction_kit.lifecycle import digest_of

_PROGRAM = (
    "import sys; from extraction_kit.trainings.saelens_release import download;"
    "download(*sys.argv[1:])"
)


def is_release(sae: object) -> TypeGuard[tuple[str, str]]:
    """Tell whether `sae` is a pair of texts."""
    return (
        isinstance(sae, tuple)
        and len(sae) == 2  # noqa: PLR2004 - a pair
        and all(isinstance(part, str) for part in sae)
    )


def fetch_release(release: str, sae_id: str, *, folder: Path) -> Path:
    """Return the folder of a released SAE, downloaded by sae-lens the first time.

    Parameters
    ----------
    release, sae_id : str
        As ``SAE.from_pretrained(release, sae_id)`` of SAELens takes them; both are kept in
        the metadata of its ``cfg.json``.
    folder : Path
        Holds one folder per SAE.

    Raises
    ------
    BadSae
        sae-lens is not installed, or does not know or cannot load it; its own words are
        in the message.
    """
    saved = folder / digest_of([release, sae_id])[:16]
    if saved.is_dir():
        return saved
    if importlib.util.find_spec("sae_lens") is None:
        raise BadSae(
            f"sae={(release, sae_id)!r} is a release of SAELens, whose package is not "
            "installed here: pip install 'extraction_kit[saelens]', or pass a folder that "
            "sae.save_model(folder) wrote"
        )
    folder.mkdir(parents=True, exist_ok=True)
    staged = atomic.temporary_beside(saved)
    try:
        _run(release, sae_id, staged)
        _sign(staged / "cfg.json", release, sae_id)
        atomic.move_folder(staged, saved)
    finally:
        atomic.remove_folder(staged)
    return saved


def download(release: str, sae_id: str, folder: str) -> None:
    """Load an SAE with sae-lens and save it; the one place that calls sae-lens."""
    from sae_lens import SAE  # type: ignore[import-not-found] # noqa: PLC0415 - optional, heavy

    SAE.from_pretrained(release, sae_id, device="cpu").save_model(folder)


def _run(release: str, sae_id: str, staged: Path) -> None:
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", _PROGRAM, release, sae_id, str(staged)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = next(iter(done.stderr.strip().splitlines()[::-1]), "no message")
        raise BadSae(
            f"SAELens cannot load sae={(release, sae_id)!r}: {last}. Check both names in "
            "its list of pretrained SAEs, and the network"
        )


def _sign(config: Path, release: str, sae_id: str) -> None:
    """Keep in the config which SAE it is."""
    values = json.loads(config.read_bytes())
    metadata = values.get("metadata") or {}
    values["metadata"] = metadata | {"release": release, "sae_id": sae_id}
    atomic.write_json(config, values)
