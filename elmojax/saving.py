"""A model in another form: as HDF5, as a run directory, for the Hugging Face Hub."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import jax
import numpy as np

import elmojax
from elmojax.arguments import checked
from elmojax.config import TrainConfig
from elmojax.disk import install, local, new_directory, replacing
from elmojax.errors import InputError, Remark
from elmojax.formats.assembly import Stored
from elmojax.formats.hdf5 import save_hdf5
from elmojax.formats.hugging_face import push_safetensors, save_safetensors
from elmojax.loading import FULL, Model, open_model
from elmojax.model.bilm import ElmoParams
from elmojax.model.cluster_loss import edges_of
from elmojax.training.card import CARD
from elmojax.training.checkpoint import Checkpoints
from elmojax.training.record import RunRecord, create_run, fingerprint


def convert(
    model: Model, out: Path, version: str = "", dtype: Stored = "float32"
) -> str:
    """Writes a run directory as HDF5, and any other model as a run directory.

    HDF5 is options.json and weights.hdf5, with softmax.hdf5, vocabulary.txt and card.md
    where the model has them; numbers go through unchanged, unless `dtype` is float16,
    which only HDF5 files take. `out` is there when it is whole, and not before.

    Returns what was written, "HDF5" or "Orbax".

    Raises:
      InputError: if `out` is there already, cannot be written, or cannot hold the
        model.
    """
    out = Path(os.path.realpath(local(out)))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already; choose another --out.")
    if model.form == "run":
        save_hdf5(model.params, out, model.head, model.vocabulary, dtype=dtype)
        if model.card is not None:
            with replacing(out / CARD) as partial:
                partial.write_text(model.card, encoding="utf-8")
        return "HDF5"
    if dtype != "float32":
        raise InputError(
            f"{model.source} becomes a run directory, whose numbers are float32; leave "
            f"--dtype {dtype} out."
        )
    if any(np.any(leaf) for leaf in jax.tree.leaves(model.params.initial_state)):
        raise InputError(
            f"{model.source} has an initial state other than zero, which a run "
            "directory does not hold; keep it as HDF5."
        )
    _remark_mix(model)
    head = {} if model.head is None else {"head": model.head}
    record = RunRecord(
        train=TrainConfig(
            model=model.params.config, head=model.head_config, workdir=out
        ),
        corpus="",
        vocabulary=edges_of(model.head)[-1] if model.head else 0,
        words=fingerprint(model.vocabulary) if model.vocabulary else "",
        elmojax=version,
    )
    with new_directory(out) as partial:
        create_run(partial, record, model.vocabulary)
        checkpoints = Checkpoints(partial, record.train)
        checkpoints.save(0, {**model.params.tree, **head}, None)
        checkpoints.close()
        install(partial, out, replaces=out.exists())
    return "Orbax"


def _remark_mix(model: Model) -> None:
    if model.mix is not None:
        gammas = " ".join(f"{gamma:.6g}" for gamma in model.mix)
        warnings.warn(
            f"The weights of the layers that {model.source} has ({gammas}) are not in "
            "what is written; give them as gammas where the layers are mixed.",
            Remark,
            stacklevel=3,
        )


@checked
def save_pretrained(
    model: ElmoParams | Model | str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Writes a model as repositories of the Hugging Face Hub have them.

    The files are model.safetensors, config.json, README.md (the card of the model, if
    it has one) and vocabulary.txt; `load` takes the directory. Needs the extra `hub`.

    Args:
      model: parameters; or a model as `load` takes it, whose softmax, vocabulary and
        card go along where it has them.
      directory: made if need be. It is a model once config.json is there, which comes
        last.
      overwrite: replace a model of this form in `directory`.

    Raises:
      InputError: if the model cannot be read, a file is there already or cannot be
        written, a number is not finite, or safetensors is not installed.
    """
    opened = _open(model)
    save_safetensors(
        opened.params,
        directory,
        opened.head,
        opened.vocabulary,
        opened.card,
        overwrite,
        elmojax.__version__,
    )


@checked
def push_to_hub(
    model: ElmoParams | Model | str | os.PathLike[str],
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Uploads what `save_pretrained` writes to a repository of the Hugging Face Hub.

    Args:
      model: as for `save_pretrained`.
      repository: OWNER/NAME, or the address of it; made if it is not there.
      private: whether a repository that is made is private; None = as its owner has
        chosen for new ones.
      revision: a branch to put it on; None = main.
      token: of the Hub; None = the one that huggingface_hub knows (HF_TOKEN, or a
        login).

    Returns:
      Its address for `load`, hf://OWNER/NAME or hf://OWNER/NAME@REVISION.

    Raises:
      InputError: as `save_pretrained`; and if the Hub cannot be reached or refuses.
    """
    opened = _open(model)
    return push_safetensors(
        opened.params,
        repository,
        opened.head,
        opened.vocabulary,
        opened.card,
        elmojax.__version__,
        private,
        revision,
        token,
    )


def _open(model: ElmoParams | Model | str | os.PathLike[str]) -> Model:
    if isinstance(model, ElmoParams):
        return Model("params", model, None, None, FULL)
    opened = model if isinstance(model, Model) else open_model(model)
    _remark_mix(opened)
    return opened
