"""The bins of a run: made where they are missing, and compared with those that its checkpoint was trained on."""

import inspect
from typing import Any

from jsonargparse import Namespace

from scratchlm.data.bins import is_prepared
from scratchlm.data.card import card_table, warnings_for
from scratchlm.data.inspection import require_untouched, require_whole
from scratchlm.data.preparation import Corpus
from scratchlm.data.pretraining import PretrainingData
from scratchlm.errors import UserError
from scratchlm.model import checkpoint as checkpoint_file
from scratchlm.training.loggers import say


def prepare_corpus(config: Namespace, is_first: bool, begun_with: dict[str, Any], yaml_of_run: str) -> dict[str, Any]:
    """Makes the bins where they are missing, and refuses those that are not what the checkpoint was trained on.

    Args:
        config: The configuration of fit; what it asks to be verified is, once.
        is_first: Whether this is the first process; the others come when it is done.
        begun_with: `order` and `configuration` of the checkpoint to go on from; empty for a new run.
        yaml_of_run: What to give to `-c` to make the bins of the run again.

    Returns:
        The order of training, as `PretrainingData.order`.

    Raises:
        UserError: Whatever `Corpus.prepare` refuses, or bins that are not as they were.
    """
    folder = config.data.folder
    remake = f"scratchlm prepare --fresh true -c {yaml_of_run}"
    try:
        if is_first:
            _prepare(config)
        config.data.verify = False  # once is enough
        order = PretrainingData(**config.data.as_dict()).order
    except UserError as error:
        raise type(error)(str(error).replace(checkpoint_file.REMAKE, remake)) from error
    if begun_with:
        before = begun_with["configuration"].get("data", {}).get("folder", folder)
        cure = f"{remake} makes that one again, where its sources are what they were."
        if before != folder:
            cure = f"Give --data.folder {before}; {cure}"
        checkpoint_file.require_same_order(order, begun_with["order"], folder, cure)
    return order


def _prepare(config: Namespace) -> None:
    """Makes the bins where they are missing; checks that they are the ones asked for where they are not."""
    corpus = Corpus(**{key: config.data[key] for key in inspect.signature(Corpus).parameters})
    were_there = is_prepared(config.data.folder)
    manifest = corpus.prepare()
    if config.data.verify:  # here, so that bins that are broken move no run aside
        require_whole(config.data.folder, manifest)
    else:
        require_untouched(config.data.folder, manifest)
    if not were_there:
        print(card_table(manifest), flush=True)
    for warning in warnings_for(manifest, config.data.context_length) if were_there else ():
        say(f"scratchlm: warning: {warning}")
