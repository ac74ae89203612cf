"""Checkpoints by folder or by their id on the Hugging Face hub."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from pixelrefer_fast.checkpoint.embedded import embedded_folder, is_embedded
from pixelrefer_fast.checkpoint.tokenizer import TOKENIZER_FILES
from pixelrefer_fast.checks.safe_files import brief

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*/[A-Za-z0-9][A-Za-z0-9_.\-]*")
_SIZES = ("config.json", "vision_encoder/config.json")
_SMALL_FILES = (*_SIZES, "generation_config.json", *TOKENIZER_FILES)
_SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def checkpoint_folder(path_or_hub_id: str | Path, *, progress: bool | None = None, sizes_only: bool = False) -> Path:
    """The resolved folder of a checkpoint. A name that is no folder but looks like a hub id is downloaded first.

    Only weights, configuration and tokenizer are downloaded: no code, and no pickle files if there are safetensors.

    Args:
        path_or_hub_id: a folder, an id such as Alibaba-DAMO-Academy/PixelRefer-Lite-2B, or one of `embedded.TITLES`.
        progress: whether to show download progress; None: only if stderr is a terminal.
        sizes_only: whether to download only the configuration.

    Raises:
        ValueError: there is no such folder or download; one line that says why.
    """
    if not isinstance(path_or_hub_id, (str, os.PathLike)):
        raise ValueError(f"expected the path of a checkpoint folder or a hub id, got {brief(path_or_hub_id)}")
    text = os.fspath(path_or_hub_id)
    if isinstance(path_or_hub_id, str) and is_embedded(path_or_hub_id):
        return embedded_folder(path_or_hub_id)
    if isinstance(text, str) and os.path.isdir(text):
        return Path(text).resolve()
    if not isinstance(path_or_hub_id, str) or os.path.exists(text) or not _HUB_ID.fullmatch(text):
        raise ValueError(f"{brief(text)}: expected a checkpoint folder or a hub id (owner/name), found no such folder")
    return _download(path_or_hub_id, _on_terminal() if progress is None else progress, sizes_only)


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # None where it was closed before Python started


def _download(hub_id: str, progress: bool, sizes_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    bars = None if progress else _silent_bars()
    try:
        files = list(_SIZES) if sizes_only else [*_SMALL_FILES, *_SAFETENSORS]
        folder = Path(snapshot_download(hub_id, allow_patterns=files, tqdm_class=bars))
        if not sizes_only and not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=[*_SMALL_FILES, *_PICKLES], tqdm_class=bars))
    except GatedRepoError:
        reason = "the hub asks you to accept its terms and to log in"
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or it is private"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = "it is not in the local cache (or not whole) and the hub cannot be reached"
    except Exception as error:  # of whichever HTTP library huggingface_hub uses
        reason = f"the download failed ({type(error).__name__}: {brief(str(error))})"
    else:
        return folder.resolve()
    raise ValueError(f"{hub_id}: no such folder here, and not to be had from the Hugging Face hub: {reason}")


def _silent_bars() -> type:
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent
